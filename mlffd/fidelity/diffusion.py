# SPDX-License-Identifier: MIT
"""Diffusion beside each other, from mean squared displacements."""

import numpy as np

from mlffd.fidelity.beside import Findings, Pair, notes
from mlffd.fidelity.lines import curve, line, table
from mlffd.fidelity.observables import diffusion_coefficient, squared_displacements
from mlffd.fidelity.statistics import combined, replica_jackknife
from mlffd.fidelity.trajectories import Recording

LONGEST_LAG, LEAST_LAG = 5.0, 0.2  # ps: no need to look at longer ones; before that atoms do not diffuse yet
LEAST_DISPLACEMENT = 1.0  # Å^2: atoms that have moved less have not left their neighbors
WORST_ERROR = 0.3  # of a ratio of two coefficients that says anything
LEAST_BLOCKS = 4  # that an error can be taken from
N_LAGS = 40
UNIT = 10.0  # 1e-9 m^2/s in Å^2/ps


def compare_diffusion(pair: Pair) -> Findings:
    """Diffusion coefficients of all elements; the line is the ratio for that with the most mass.

    Both are slowed alike by the thermostat's friction. The ratio is not given where the teacher's run is too
    short, or nothing diffuses; the note has it.
    """
    if not all(replica.start.pbc.any() for replica in pair.teacher):
        return not_measured("not periodic: nowhere to diffuse to")
    duration = 1e-3 * pair.time_step * min(len(r) * spacing(r) for side in pair.both for r in side)
    longest = min(duration / 4.0, LONGEST_LAG)
    if longest < 2.0 * LEAST_LAG:
        return not_measured(
            f"too short to judge: {duration:.2g} ps a replica, {8.0 * LEAST_LAG:g} are the least"
        )
    sides = [displacements_of(replicas, longest, pair) for replicas in pair.both]
    found, rows = Findings(), {}
    for element in sides[0]:
        blocks = [side[element] for side in sides]
        rows[element] = diffusion_row(element, blocks, longest)
        both = [replica_jackknife(side, np.copy) for side in blocks]
        name = f"displacement {element}"
        found.curves.append(curve(name, lag_times(longest), ("time, ps", "Å²"), *both))
    columns = ["element", "teacher, 1e-9 m²/s", "±", "student, 1e-9 m²/s", "±", "ratio", "±", "note"]
    found.tables = [table("Diffusion", columns, list(rows.values()))]
    found.lines = [diffusion_line(rows[heaviest(pair.teacher[0])], longest)]
    return found


def not_measured(reason: str) -> Findings:
    return Findings([line("diffusion_ratio", None, None, reason)])


def diffusion_line(row: list, longest: float) -> dict:
    element, *_, ratio, error, doubt = row
    note = notes(f"{element}, lags of {longest / 4:.2g} to {longest:.2g} ps", doubt)
    return line("diffusion_ratio", *((None, None) if doubt else (ratio, error)), note)


def spacing(replica: Recording) -> int:
    """Steps between frames."""
    return int(replica.steps[1] - replica.steps[0]) if len(replica) > 1 else 0


def heaviest(replica: Recording) -> str:
    """The element that has the most mass."""
    symbols, masses = np.array(replica.start.get_chemical_symbols()), replica.start.get_masses()
    return max(np.unique(symbols).tolist(), key=lambda symbol: masses[symbols == symbol].sum())


def lag_times(longest: float) -> np.ndarray:
    """ps."""
    return np.linspace(longest / N_LAGS, longest, N_LAGS)


def displacements_of(replicas, longest: float, pair: Pair) -> dict[str, list[np.ndarray]]:
    """Mean squared displacements (n_blocks, N_LAGS) in Å^2 at ``lag_times``, by element and replica; each
    block has two longest lags at least."""
    found = {}
    for replica in replicas:
        frame_time = 1e-3 * pair.time_step * spacing(replica)
        lags = np.unique(np.maximum(np.round(lag_times(longest) / frame_time).astype(int), 1))
        n_blocks = max(min(pair.n_blocks, len(replica) // (2 * int(lags[-1]))), 1)
        parts = np.array_split(replica.positions, n_blocks)
        blocks = [squared_displacements(replica.start, part, lags) for part in parts]
        for element in blocks[0]:
            at_lags = [np.interp(lag_times(longest), lags * frame_time, block[element]) for block in blocks]
            found.setdefault(element, []).append(np.array(at_lags))
    return found


def diffusion_row(element: str, blocks: list[list[np.ndarray]], longest: float) -> list:
    """A row of the table; its last entry says why the ratio is not to be judged by, if so."""
    times = lag_times(longest)
    late = times >= 0.25 * longest  # the rest is the rattling of atoms among their neighbors

    def coefficient(displacements: np.ndarray) -> float:
        return UNIT * diffusion_coefficient(times[late], displacements[late])

    (teacher, error), (student, error_2) = (replica_jackknife(side, coefficient) for side in blocks)
    ratio = student / teacher
    ratio_error = combined(error_2 / teacher, error * student / teacher**2)
    of_teacher = np.concatenate(blocks[0])
    moved = of_teacher.mean(axis=0)[-1]
    doubt = ""
    if moved < LEAST_DISPLACEMENT:
        doubt = f"no diffusion to judge: {moved:.2g} Å² in {longest:.2g} ps"
    elif len(of_teacher) < LEAST_BLOCKS:
        doubt = f"too short to judge: {len(of_teacher)} blocks say {ratio:.2g}"
    elif not ratio_error < WORST_ERROR * abs(ratio):
        doubt = f"too short to judge: {ratio:.2g} ± {ratio_error:.2g}"
    return [element, teacher, error, student, error_2, ratio, ratio_error, doubt]
