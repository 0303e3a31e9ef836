# SPDX-License-Identifier: MIT
"""A second teacher on the held-out frames: how far apart teachers are, beside how far off a student is."""

from collections.abc import Sequence

import numpy as np

from mlffd.dataset.store import LabelledSet
from mlffd.engine import Engine
from mlffd.fidelity.errors import MEV, groups_of
from mlffd.fidelity.lines import line
from mlffd.fidelity.statistics import grouped_error
from mlffd.fidelity.teacher import evaluate_afresh
from mlffd.teachers import Teacher

NAMES = ("teachers_apart", "second_teacher_force_mae")


def second_teacher_lines(engine: Engine, labels: LabelledSet, second: Teacher) -> list[dict]:
    """Its forces against those of the labels, and the student's against its.

    Raises:
        TeacherError: it cannot do a frame.
        What the engine raises.
    """
    structures = labels.structures
    said = [evaluation.forces for evaluation in evaluate_afresh(second.calculator)(structures)]
    student = [prediction.forces for prediction in engine.evaluate(structures)]
    note = f"{second.name}, {second.version}; {len(structures)} frames"
    return [
        difference_line(name, said, forces, groups_of(structures), note)
        for name, forces in zip(NAMES, (labels.forces, student))
    ]


def difference_line(
    name: str, one: Sequence[np.ndarray], other: Sequence[np.ndarray], groups: Sequence[str], note: str
) -> dict:
    """Mean absolute difference of components; forces (n_atoms, 3) in eV/Å of each frame."""
    differences = [np.abs(a - b).ravel() / MEV for a, b in zip(one, other)]
    groups = np.repeat(groups, [len(of_frame) for of_frame in differences])
    components = np.concatenate(differences)
    rms = float(np.sqrt((components**2).mean()))
    return line(name, components.mean(), grouped_error(components, groups), f"{note}; RMS {rms:.3g} meV/Å")
