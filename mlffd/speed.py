# SPDX-License-Identifier: MIT
"""How long an evaluation takes, as a simulation would have it: atoms move, neighbor lists are included."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units

from mlffd.evaluation import Evaluate

TEMPERATURE = 300.0  # K, of the velocities
TIME_STEP = 0.5  # fs
STEPS_ONE_WAY = (
    16  # then atoms turn back: a neighbor list wants to be built anew about as often as in a liquid
)


@dataclass(frozen=True)
class Timing:
    """Times of runs of ``n_steps`` evaluations each, in µs per atom and evaluation."""

    median: float
    lowest: float
    highest: float
    n_runs: int
    n_steps: int
    n_atoms: int


def time_side_by_side(
    evaluates: Sequence[Evaluate], atoms: Atoms, n_runs: int = 7, seconds: float = 0.3
) -> list[Timing]:
    """Time several ways to evaluate one structure.

    They take turns, run after run, so that what else the machine does meets all of them alike. Every
    evaluation has positions of its own: atoms go to and fro on straight lines with thermal velocities. One
    way there and back comes first and does not count.

    Args:
        n_runs: of each; the median counts.
        seconds: that a run takes, about; at the least one way there and back.
    """
    paths = [ToAndFro(atoms) for _ in evaluates]
    steps = [_steps_for(evaluate, path, seconds) for evaluate, path in zip(evaluates, paths)]
    times = [[] for _ in evaluates]
    for _ in range(n_runs):
        for k, (evaluate, path) in enumerate(zip(evaluates, paths)):
            times[k].append(1e6 * _seconds_a_step(evaluate, path, steps[k]) / len(atoms))
    return [Timing(float(np.median(t)), min(t), max(t), n_runs, n, len(atoms)) for t, n in zip(times, steps)]


class ToAndFro:
    """Structures one after the other, no two in a row alike."""

    def __init__(self, atoms: Atoms, seed: int = 0):
        self.atoms = atoms.copy()
        self.start = atoms.positions.copy()
        spread = np.sqrt(units.kB * TEMPERATURE / atoms.get_masses())[:, None]
        velocities = spread * np.random.default_rng(seed).standard_normal(self.start.shape)
        self.step = velocities * TIME_STEP * units.fs  # Å
        self.n = 0

    def next(self) -> Atoms:
        """The atoms where they are now; the object is the same each time."""
        self.n += 1
        place = self.n % (2 * STEPS_ONE_WAY)
        self.atoms.positions = self.start + self.step * min(place, 2 * STEPS_ONE_WAY - place)
        return self.atoms


def _steps_for(evaluate: Evaluate, path: ToAndFro, seconds: float) -> int:
    """Whole ways there and back that take about so long."""
    way = 2 * STEPS_ONE_WAY
    _seconds_a_step(evaluate, path, 2)  # what is compiled or allocated at first
    return way * max(1, math.ceil(seconds / (way * _seconds_a_step(evaluate, path, way))))


def _seconds_a_step(evaluate: Evaluate, path: ToAndFro, n_steps: int) -> float:
    started = time.perf_counter()
    for _ in range(n_steps):
        evaluate([path.next()])
    return (time.perf_counter() - started) / n_steps
