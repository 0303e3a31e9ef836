# SPDX-License-Identifier: MIT
"""All that two trajectories from the same starts say beside each other."""

import numpy as np

from mlffd.fidelity.beside import NO_ERROR, Findings, Pair, notes, short, temperature_remark
from mlffd.fidelity.diffusion import compare_diffusion
from mlffd.fidelity.lines import line
from mlffd.fidelity.observables import pressure
from mlffd.fidelity.statistics import difference_with_error, mean_with_error, n_independent
from mlffd.fidelity.structure import compare_bonds, compare_rdfs


def compare(pair: Pair, rdf_range: float, n_lost: int = 0) -> Findings:
    """Structure, pressure and diffusion; ``n_lost`` replicas that are not in the pair leave all in doubt."""
    found = compare_rdfs(pair, rdf_range)
    for part in (compare_bonds(pair), compare_pressure(pair), compare_diffusion(pair)):
        found.add(part)
    lost = f"{n_lost} of {n_lost + len(pair.teacher)} replicas blew up" if n_lost else ""
    doubt = notes(lost, temperature_remark(pair))
    found.lines = [
        {**one, "note": notes(doubt, one["note"]), "doubt": notes(doubt, one["doubt"])} for one in found.lines
    ]
    return found


def compare_pressure(pair: Pair) -> Findings:
    """Virial and kinetic part, in GPa."""
    reason = ""
    if not pair.periodic:
        reason = "no pressure: not periodic in three directions"
    elif not all(np.isfinite(replica.stresses).all() for replica in pair.teacher):
        reason = "the teacher gives no stress"
    if reason:
        return Findings([line("pressure_difference", None, None, reason)])
    series = [
        [pressure(r.stresses, len(r.start), r.start.get_volume(), pair.temperature) for r in replicas]
        for replicas in pair.both
    ]
    (teacher, error), (student, error_2) = map(mean_with_error, series)
    both = f"teacher {teacher:.4g} ± {error:.2g}, student {student:.4g} ± {error_2:.2g} GPa"
    difference, its_error = difference_with_error(*series)
    doubt = short(n_independent(series[0])) or ("" if np.isfinite(its_error) else NO_ERROR)
    return Findings([line("pressure_difference", difference, its_error, both, doubt)])
