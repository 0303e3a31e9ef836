# SPDX-License-Identifier: MIT
"""Speed of the student beside the teacher's: on this machine, one after the other, atoms moving."""

import time

import numpy as np
from ase import Atoms

from mlffd.fidelity.lines import line
from mlffd.speed import Evaluate, Timing, ToAndFro, time_side_by_side

LEAST, MOST = 3, 20  # evaluations of the teacher that a median is taken of
TEACHER_SECONDS = 20.0  # after which no further one is timed


def time_student(evaluate: Evaluate, atoms: Atoms) -> Timing:
    """See ``time_side_by_side``."""
    return time_side_by_side([evaluate], atoms)[0]


def time_teacher(evaluate: Evaluate, atoms: Atoms) -> Timing:
    """The same of single evaluations, which are long; the first one does not count."""
    path, times = ToAndFro(atoms), []
    while len(times) <= LEAST or (len(times) <= MOST and sum(times) < TEACHER_SECONDS):
        began = time.perf_counter()
        evaluate([path.next()])
        times.append(time.perf_counter() - began)
    low, median, high = 1e6 * np.quantile(times[1:], [0.0, 0.5, 1.0]) / len(atoms)
    return Timing(float(median), float(low), float(high), len(times) - 1, 1, len(atoms))


def speed_lines(student: Timing, teacher: Timing | None, note: str) -> list[dict]:
    """Both times and their ratio; errors are half the range that was seen."""
    lines = [timing_line("student_us_per_atom", student, note)]
    if teacher is None:
        return lines
    ratio = teacher.median / student.median
    error = ratio * np.hypot(*(half_range(timing) / timing.median for timing in (student, teacher)))
    return [*lines, timing_line("teacher_us_per_atom", teacher, note), line("speedup", ratio, error, note)]


def timing_line(name: str, timing: Timing, note: str) -> dict:
    runs = f"median and half the range of {timing.n_runs} times {timing.n_steps}"
    return line(name, timing.median, half_range(timing), f"{runs}; {note}")


def half_range(timing: Timing) -> float:
    return 0.5 * (timing.highest - timing.lowest)
