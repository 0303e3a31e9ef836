# SPDX-License-Identifier: MIT
"""Labelled structures as the loop sees them: graphs with targets, split and put into batches."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from ase import Atoms
from tqdm import tqdm

from mlffd.dataset.store import LabelledSet
from mlffd.errors import ConfigError
from mlffd.graph import Graph, from_atoms
from mlffd.train.config import TrainConfig
from mlffd.train.loss import Target

DTYPE = torch.float32  # of students in training
Frame = tuple[Graph, Target]


def labelled_graphs(labels: LabelledSet, cutoff: float, dtype: torch.dtype = DTYPE) -> list[Frame]:
    """Graphs and targets of all frames; neighbor lists are built once."""
    rows = getattr(labels, "hessian_rows", None) or [None] * len(labels)
    columns = zip(labels.structures, labels.energies, labels.forces, labels.stresses, rows)
    return [
        (
            from_atoms(atoms, cutoff, dtype),
            Target(
                torch.tensor([energy], dtype=torch.float64),
                torch.as_tensor(forces, dtype=dtype),
                torch.as_tensor(stress, dtype=torch.float64)[None],
                hessian_rows(row, dtype),
            ),
        )
        for atoms, energy, forces, stress, row in tqdm(columns, total=len(labels), desc="neighbor lists")
    ]


def hessian_rows(rows, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Rows of one structure's Hessian as tensors, or None where it has none."""
    if rows is None or len(rows[0]) == 0:
        return None
    components, values = rows
    return torch.as_tensor(np.asarray(components), dtype=torch.int64), torch.as_tensor(values, dtype=dtype)


def species_of(labels: LabelledSet, architecture: dict) -> list[int]:
    """Atomic numbers of the student: those of its config, else those that occur in the labels.

    Raises:
        ConfigError: the labels have elements that the config leaves out.
    """
    found = sorted({int(z) for atoms in labels.structures for z in atoms.numbers})
    species = architecture.get("species", found)
    if not set(found) <= set(species):
        raise ConfigError(f"student species {species} leave out elements of the labels: {found}")
    return list(species)


def split(structures: Sequence[Atoms], config: TrainConfig) -> tuple[list[int], list[int]]:
    """Numbers of the frames to train on and of those to validate with, by a seeded draw.

    Frames that follow each other in time are nearly the same: validation takes whole trajectories, by
    ``info["trajectory"]``, and only the end of one that is more than twice as long as is wanted. Frames
    that name no trajectory are drawn one by one.

    Raises:
        ConfigError: fewer than two frames.
    """
    if len(structures) < 2:
        raise ConfigError(f"training needs at least two labelled frames, there are {len(structures)}")
    trajectories: dict = {}
    for k, atoms in enumerate(structures):
        trajectories.setdefault(atoms.info.get("trajectory", ("frame", k)), []).append(k)
    groups = list(trajectories.values())
    wanted = min(max(1, round(config.validation_fraction * len(structures))), len(structures) - 1)
    validation: list[int] = []
    for g in np.random.default_rng(config.seed).permutation(len(groups)):
        missing = wanted - len(validation)
        if missing <= 0:
            break
        whole = len(groups[g]) <= 2 * missing and len(groups[g]) + len(validation) < len(structures)
        validation += groups[g] if whole else groups[g][-missing:]
    return sorted(set(range(len(structures))) - set(validation)), sorted(validation)


def batches(order: Sequence[int], frames: Sequence[Frame], config: TrainConfig) -> Iterator[list[int]]:
    """Consecutive numbers of ``order`` in batches as ``batch_size`` and ``batch_atoms`` allow."""
    most_atoms = config.batch_atoms or np.inf
    return cut(order, frames, config.batch_size, most_atoms)


def cut(
    order: Sequence[int], frames: Sequence[Frame], most_structures: float, most_atoms: float
) -> Iterator[list[int]]:
    """``order`` cut into pieces of at most so many structures and atoms, of one structure at the least."""
    piece: list[int] = []
    n_atoms = 0
    for k in order:
        size = frames[k][0].n_atoms
        if piece and (len(piece) == most_structures or n_atoms + size > most_atoms):
            yield piece
            piece, n_atoms = [], 0
        piece.append(int(k))
        n_atoms += size
    if piece:
        yield piece
