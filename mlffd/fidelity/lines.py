# SPDX-License-Identifier: MIT
"""The pieces of a report's JSON: lines, curves and tables, plain and finite throughout."""

import math

import numpy as np

from mlffd.verdict import LINES


def line(name: str, value: float | None, error: float | None = None, note: str = "", doubt: str = "") -> dict:
    """One figure of a report; title and unit are those of mlffd/verdict.py. None: it was not measured.

    ``doubt`` says why no bar is to be passed by it, if so; it ends the note.
    """
    whole, _, pair = name.rpartition("_") if name not in LINES else (name, "", "")
    title, unit = LINES[whole]
    title = f"{title}: {pair}" if pair else title
    return {
        "name": name, "title": title, "unit": unit, "note": "; ".join(filter(None, (note, doubt))),
        "value": plain(value), "error": plain(error), "doubt": doubt,
    }  # fmt: skip


def curve(
    name: str, x: np.ndarray, labels: tuple[str, str], teacher: tuple | None, student: tuple | None
) -> dict:
    """A curve of each: ``teacher`` and ``student`` are (values, errors), all (n,)."""
    teacher, teacher_error = teacher or (None, None)
    student, student_error = student or (None, None)
    return {
        "name": name, "x": plain(x), "x_label": labels[0], "y_label": labels[1],
        "teacher": plain(teacher), "teacher_error": plain(teacher_error),
        "student": plain(student), "student_error": plain(student_error),
    }  # fmt: skip


def table(title: str, columns: list[str], rows: list[list]) -> dict:
    """Rows of texts and numbers."""
    return {"title": title, "columns": columns, "rows": [[plain(entry) for entry in row] for row in rows]}


def plain(value):
    """For JSON: numbers of NumPy as those of Python, arrays as lists, what is not finite as None."""
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
