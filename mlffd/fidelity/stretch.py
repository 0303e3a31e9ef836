# SPDX-License-Identifier: MIT
"""Do bonds stretch as their forces say? The temperature of stretches, from positions and forces alone."""

from collections.abc import Sequence

import numpy as np

from mlffd.domain import pair_name
from mlffd.fidelity.beside import Findings, Pair
from mlffd.fidelity.lines import table
from mlffd.fidelity.observables import bonds_of
from mlffd.fidelity.statistics import block_means, replica_jackknife
from mlffd.fidelity.trajectories import Recording
from mlffd.units import BOLTZMANN

WRONG, CERTAIN = 0.05, 3.0  # of the temperature, and errors, by which stretches must not miss it
LONGEST = 1.5  # times its mean length: what gets longer is no bond


def stretch_temperatures(replicas: Sequence[Recording], n_blocks: int) -> dict[str, tuple[float, float]]:
    """Kelvin and its error, by pair of bonded elements.

    For any vector field v(x) the canonical average of -F·v is k T times that of div v (Jepps, Ayton and
    Evans, Phys. Rev. E 62, 4757, 2000). Here v moves two bonded atoms apart by what their bond is longer than
    on the average.
    """
    parts = {}
    for replica in replicas:
        for name, found in works_and_divergences(replica).items():
            parts.setdefault(name, []).append(block_means(found, n_blocks))
    return {
        name: replica_jackknife(blocks, lambda b: -b[0] / (BOLTZMANN * b[1]))
        for name, blocks in parts.items()
    }


def works_and_divergences(replica: Recording) -> dict[str, np.ndarray]:
    """(n_frames, 2) by pair of elements: F·v in eV and div v, means over its bonds; none where one breaks."""
    bonds, numbers = bonds_of(replica.start), replica.start.numbers
    vectors = bonds.vectors(replica.positions)
    lengths = np.linalg.norm(vectors, axis=2)
    pulls = replica.forces[:, bonds.j] - replica.forces[:, bonds.i]
    names = np.array([pair_name(*numbers[[i, j]]) for i, j in zip(bonds.i, bonds.j)])
    found = {}
    for name in np.unique(names).tolist():
        of_kind = names == name
        length, usual = lengths[:, of_kind], lengths[:, of_kind].mean()
        if (length > LONGEST * usual).any():
            continue
        longer = length - usual
        work = 0.5 * longer * (pulls * vectors)[:, of_kind].sum(axis=2) / length
        found[name] = np.stack([work.mean(axis=1), 1.0 + 2.0 * (longer / length).mean(axis=1)], axis=1)
    return found


def compare_stretches(pair: Pair) -> tuple[Findings, dict[str, str]]:
    """A table, and by pair of elements why distances between such atoms are not to be judged by, if so.

    A teacher that is asked seldom leaves the fastest vibrations to the student: from a quarter of their
    period on they are no longer its own, and at half of it they resonate with its impulses.
    """
    both = [stretch_temperatures(replicas, pair.n_blocks) for replicas in pair.both]
    doubts, rows = {}, []
    for name in both[0]:
        sides = {who: side[name] for who, side in zip(("teacher", "student"), both) if name in side}
        rows.append([name, *both[0][name], *sides.get("student", (None, None))])
        wrong = [
            f"{name} bonds stretch as at {kelvin:.0f} ± {error:.0f} K in the {who}'s run: take a smaller "
            + ("slow_every" if who == "teacher" else "time_step")
            for who, (kelvin, error) in sides.items()
            if abs(kelvin - pair.temperature) > max(WRONG * pair.temperature, CERTAIN * error)
        ]
        if wrong:
            doubts[name] = wrong[0]
    columns = ["bond", "teacher, K", "±", "student, K", "±"]
    return Findings(tables=[table("Temperatures of stretching bonds", columns, rows)] if rows else []), doubts
