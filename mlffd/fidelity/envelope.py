# SPDX-License-Identifier: MIT
"""How much of a student's own run lies outside of what it was trained on (mlffd/domain.py)."""

from collections.abc import Sequence

import numpy as np
from ase import Atoms

from mlffd.domain import KEY
from mlffd.drivers.guard import AtomicLimits
from mlffd.engine import EdgeGradients, Engine
from mlffd.fidelity.beside import NO_ERROR
from mlffd.fidelity.lines import line
from mlffd.fidelity.statistics import mean_with_error
from mlffd.fidelity.trajectories import Recording

MOST_FRAMES = 500  # of all replicas together


def flag(engine: Engine, limits: AtomicLimits, atoms: Atoms) -> str | None:
    """Why the guard would flag this structure, or None."""
    found = []

    def look(edges: EdgeGradients) -> None:
        pairs = edges.center, edges.neighbor, edges.vectors, edges.gradient
        numbers = edges.atomic_numbers
        found.append(limits.worst(numbers, *pairs, len(numbers), cutoff=engine.cutoff))

    engine.evaluate([atoms], watch=look)
    worst = found[0]
    return worst and worst.sentence.format(*(f"{atoms.symbols[k]} {k}" for k in worst.atoms))


def outside_line(engine: Engine, replicas: Sequence[Recording]) -> dict:
    """The fraction of frames that the guard flags, and the first reason."""
    name = "outside_training"
    if KEY not in engine.metadata:
        return line(name, None, None, "the bundle does not say what training saw: mlffd repair --labels")
    frames = [replica.thinned(max(MOST_FRAMES // len(replicas), 1)) for replica in replicas]
    if not any(len(replica) for replica in frames):
        return line(name, None, None, "the student made no run")
    limits = AtomicLimits(engine.metadata, engine.species)
    reasons = [[flag(engine, limits, replica.frame(k)) for k in range(len(replica))] for replica in frames]
    flags = [np.array([reason is not None for reason in series], dtype=float) for series in reasons if series]
    n = sum(map(len, flags))
    fraction, error = mean_with_error(flags)
    first = next((reason for series in reasons for reason in series if reason), None)
    note = f"{int(sum(map(np.sum, flags)))} of {n} frames" + (f", first: {first}" if first else "")
    error = error if 0.0 < fraction < 1.0 else 1.0 / n
    return line(name, fraction, error, note, "" if np.isfinite(error) else NO_ERROR)
