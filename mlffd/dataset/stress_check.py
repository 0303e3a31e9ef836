# SPDX-License-Identifier: MIT
"""Signs and units of other people's stresses, found out as far as the numbers tell.

Inside, a stress is dE/dstrain / volume in eV/Å^3 (ASE's sign: positive under tension) and a virial is
-stress * volume in eV.
"""

from collections import defaultdict

import numpy as np
from ase.neighborlist import neighbor_list

from mlffd.errors import LabelError
from mlffd.units import GPA

UNITS = {"eV/A3": 1.0, "GPa": GPA, "kbar": 0.1 * GPA, "bar": 1e-4 * GPA}  # eV/Å^3
SIGNS = {"tension": 1.0, "compression": -1.0}  # what a positive stress means
# eV/Å^3, 32 GPa: frames of a simulation are rarely under more, and GPa read as eV/Å^3 rarely under less
LARGE_STRESS = 0.2
STIFF = 1200 * GPA  # eV/Å^3; diamond's bulk modulus is 440 GPa
VOLUME_SPREAD, CORRELATION, FEW_FRAMES = 0.01, 0.6, 6
# of shear virials to those of nearest neighbors: with the right sign and unit 0.04 to 0.6, correlation 0.6 to
# 0.95, for liquid water, Cu, Al, W, Si, Ar; in ionic crystals (NaCl, MgO) they hardly correlate: -0.3 to 0.3
LARGE_RESPONSE = 5.0
LOOKED_AT = 40  # frames
FIRST_SHELL, LAST_SHELL = 2.0, 10.0  # Å


def check_against_virials(given, virials, volumes, unit, sign):
    """Raise LabelError unless `given` stresses (n, 3, 3), read in `unit` and `sign`, are -virials / volumes.

    virials (n, 3, 3) eV, volumes (n,) Å^3; frames where either is nan are left out. The line says which
    unit and sign would make them agree.
    """
    expected = -np.asarray(virials) / np.reshape(volumes, (-1, 1, 1))
    both = np.isfinite(expected).all((1, 2)) & np.isfinite(given).all((1, 2))
    given, expected = np.asarray(given)[both], expected[both]
    if not both.any() or _agree(given * UNITS[unit] * SIGNS[sign], expected):
        return
    for unit, factor in UNITS.items():
        for sign, direction in SIGNS.items():
            if _agree(given * factor * direction, expected):
                raise LabelError(
                    f"stress and virial agree only if the stress is in {unit} and positive under {sign}:"
                    f" say --stress-unit {unit} --stress-sign {sign}"
                )
    worst = int(np.flatnonzero(both)[np.abs(given - expected).max((1, 2)).argmax()])
    raise LabelError(
        f"stress and virial disagree in every unit and sign, most in frame {worst}: a virial is"
        " -stress * volume in eV; mend the file, or say --no-stress"
    )


def _agree(given, expected):
    return np.allclose(given, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def check_sign(stresses, structures, forces):
    """Raise LabelError if the stresses (n, 3, 3) eV/Å^3 tell the opposite of the structures and forces.

    Two signs of that: the pressure grows with the volume, among frames of one composition; and shear
    virials go against those of the forces between nearest neighbors. forces: list of (n_atoms, 3) or None.
    """
    advice = "say --stress-sign compression, or --stress-sign tension if it is right"
    for slope, correlation in _compressions(stresses, structures):
        if slope > 0 and correlation > CORRELATION:
            raise LabelError(f"the pressure grows with the volume, against ASE's sign of a stress: {advice}")
    _, correlation = _shear_response(stresses, structures, forces)
    if correlation < -CORRELATION:
        raise LabelError(f"the stresses go against the forces, not with them as in ASE's sign: {advice}")


def check_unit(stresses, structures, forces):
    """Raise LabelError for stresses (n, 3, 3) too large for eV/Å^3: as such, for the forces, for a solid."""
    sizes = np.abs(stresses).max((1, 2))
    typical = float(np.median(sizes[np.isfinite(sizes)])) if np.isfinite(sizes).any() else 0.0
    advice = "say --stress-unit GPa or kbar, or --stress-unit eV/A3 if it is right"
    if typical > LARGE_STRESS:
        raise LabelError(f"stresses of {typical:.3g} eV/Å^3 are {typical / GPA:.3g} GPa: {advice}")
    for slope, correlation in _compressions(stresses, structures):
        if correlation < -CORRELATION and -slope > STIFF:
            raise LabelError(f"the stresses mean a bulk modulus of {-slope / GPA:.3g} GPa: {advice}")
    slope, correlation = _shear_response(stresses, structures, forces)
    if abs(correlation) > CORRELATION and abs(slope) > LARGE_RESPONSE:
        raise LabelError(f"the stresses are {abs(slope):.3g} times what the forces would suggest: {advice}")


def _compressions(stresses, structures):
    """For each composition with frames of several volumes: dP/dlnV (eV/Å^3), and how P and lnV correlate."""
    groups = defaultdict(list)
    for stress, atoms in zip(stresses, structures):
        if np.isfinite(stress).all() and atoms.cell.rank == 3:
            pressure = -np.trace(stress) / 3
            groups[atoms.get_chemical_formula()].append((np.log(atoms.get_volume()), pressure))
    for points in groups.values():
        log_volumes, pressures = np.array(points).T
        if len(points) >= FEW_FRAMES and log_volumes.std() > VOLUME_SPREAD and pressures.std() > 0:
            correlation = np.corrcoef(log_volumes, pressures)[0, 1]
            yield np.polyfit(log_volumes, pressures, 1)[0], correlation


def _shear_response(stresses, structures, forces):
    """Slope and correlation of off-diagonal virials with those that forces between neighbors would make."""
    usable = [
        k for k, atoms in enumerate(structures)
        if forces[k] is not None and atoms.cell.rank == 3 and np.isfinite(stresses[k]).all()
    ]  # fmt: skip
    usable = usable[:: max(1, len(usable) // LOOKED_AT)]
    if len(usable) < FEW_FRAMES:
        return 0.0, 0.0
    off_diagonal = np.triu_indices(3, 1)
    guessed = [_neighbor_virial(structures[k], forces[k])[off_diagonal] for k in usable]
    given = [-stresses[k][off_diagonal] * structures[k].get_volume() for k in usable]
    guessed, given = np.ravel(guessed), np.ravel(given)
    if guessed.std() == 0 or given.std() == 0:
        return 0.0, 0.0
    return np.polyfit(guessed, given, 1)[0], np.corrcoef(guessed, given)[0, 1]


def _neighbor_virial(atoms, forces):
    """sum of r ⊗ F (3, 3) in eV, symmetric, with r from every atom's nearest neighbor to it."""
    reach, i = FIRST_SHELL, np.zeros(0, int)
    while len(np.unique(i)) < len(atoms) and reach < LAST_SHELL:
        i, vectors, distances = neighbor_list("iDd", atoms, reach)
        reach *= 1.5
    order = np.lexsort((distances, i))
    nearest = order[np.unique(i[order], return_index=True)[1]]
    virial = -vectors[nearest].T @ np.asarray(forces, np.float64)[i[nearest]]
    return (virial + virial.T) / 2
