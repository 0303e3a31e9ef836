# SPDX-License-Identifier: MIT
"""Speed of the student beside the teacher's: on this machine, one after the other, atoms moving."""

import time

import numpy as np
from ase import Atoms

from mlffd.evaluation import Evaluate
from mlffd.fidelity.lines import line
from mlffd.speed import Timing, ToAndFro, time_side_by_side

FAST = 0.02  # s of an evaluation, up to which a teacher is timed as the student is
LEAST, MOST = 3, 20  # evaluations of a slower one that a median is taken of
TEACHER_SECONDS = 20.0  # after which no further one is timed


def time_both(student: Evaluate, teacher: Evaluate | None, atoms: Atoms) -> tuple[Timing, Timing | None]:
    """See ``time_side_by_side``; a slow teacher is timed by itself."""
    if teacher is None:
        return time_side_by_side([student], atoms)[0], None
    slow = time_slowly(teacher, atoms, 0.0)
    if slow.median * len(atoms) < 1e6 * FAST:
        return tuple(time_side_by_side([student, teacher], atoms))
    return time_side_by_side([student], atoms)[0], time_slowly(teacher, atoms, TEACHER_SECONDS)


def time_slowly(evaluate: Evaluate, atoms: Atoms, seconds: float) -> Timing:
    """Of single evaluations, the first of which does not count."""
    path, times = ToAndFro(atoms), []
    while len(times) <= LEAST or (len(times) <= MOST and sum(times) < seconds):
        began = time.perf_counter()
        evaluate([path.next()])
        times.append(time.perf_counter() - began)
    low, median, high = 1e6 * np.quantile(times[1:], [0.0, 0.5, 1.0]) / len(atoms)
    return Timing(float(median), float(low), float(high), len(times) - 1, 1, len(atoms))


def speed_lines(student: Timing, teacher: Timing | None, note: str) -> list[dict]:
    """Both times and their ratio."""
    lines = [timing_line("student_us_per_atom", student, note)]
    if teacher is None:
        return lines
    ratio = teacher.median / student.median
    error = ratio * np.hypot(*(noise(timing) / timing.median for timing in (student, teacher)))
    return [*lines, timing_line("teacher_us_per_atom", teacher, note), line("speedup", ratio, error, note)]


def timing_line(name: str, timing: Timing, note: str) -> dict:
    runs = f"median of {timing.n_runs} times {timing.n_steps} evaluations"
    return line(name, timing.median, noise(timing), f"{runs}; {note}")


def noise(timing: Timing) -> float:
    """How far the fastest run is below the median: what else a machine does only ever adds time."""
    return timing.median - timing.lowest
