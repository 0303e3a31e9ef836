# SPDX-License-Identifier: MIT
"""Reference energies of the elements by least squares, and what compositions can tell of them."""

import numpy as np
import torch
from ase.data import chemical_symbols

from mlffd.dataset.store import LabelledSet
from mlffd.students.student import TrainedStudent


@torch.no_grad()
def fit_reference_energies(
    student: TrainedStudent, labels: LabelledSet, predicted: np.ndarray | float = 0.0
) -> str:
    """Move reference energies by the least squares of what ``predicted`` (n_frames,) eV leaves of the labels.

    The shift of least norm is taken where compositions cannot tell elements apart; then the sentence that is
    returned says so, and is empty otherwise.
    """
    counts = np.array([[(atoms.numbers == z).sum() for z in student.species] for atoms in labels.structures])
    size = counts.sum(1, keepdims=True)
    residual = (labels.energies - predicted) / size[:, 0]
    shift, *_ = np.linalg.lstsq(counts / size, residual, rcond=None)
    student.baseline.reference_energies += torch.from_numpy(shift)
    return ambiguity(counts / size, student.species)


def ambiguity(fractions: np.ndarray, species: tuple[int, ...]) -> str:
    """Which elements the compositions ``fractions`` (n_frames, n_species) leave undetermined; "" for none."""
    _, values, directions = np.linalg.svd(fractions)
    rank = int((values > values.max() * max(fractions.shape) * np.finfo(float).eps).sum())
    unknown = np.abs(directions[rank:]).max(0, initial=0.0) > 1e-8
    if not unknown.any():
        return ""
    symbols = ", ".join(chemical_symbols[z] for z, open_ in zip(species, unknown) if open_)
    return (
        f"the compositions of the labels do not determine the reference energies of {symbols} one by one: "
        "energies are right for these compositions, differences to others mean nothing"
    )
