# SPDX-License-Identifier: MIT
"""Where dynamics starts: frames of structure files, at a density."""

from collections.abc import Sequence
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.io.formats import UnknownFileTypeError

from mlffd.dataset.pack import density
from mlffd.errors import ConfigError
from mlffd.evaluation import state_of

SAME_DENSITY = 1e-3  # g/cm3


def read_starts(paths: Sequence[Path]) -> list[Atoms]:
    """All frames of the files, in order, without momenta, constraints and calculators.

    Raises:
        ConfigError: a file cannot be read, or none holds a structure.
    """
    frames = []
    for path in paths:
        try:
            frames += ase.io.read(path, index=":")
        except (OSError, ValueError, LookupError, UnknownFileTypeError, StopIteration) as error:
            raise ConfigError(f"cannot read start structures from {path}: {error}") from error
    if not any(map(len, frames)):
        raise ConfigError(f"no start structures in {', '.join(map(str, paths)) or 'an empty list of files'}")
    return [bare(frame) for frame in frames if len(frame)]


def bare(atoms: Atoms) -> Atoms:
    """Elements, positions, cell, periodic directions, charge and spin where they are given; nothing else."""
    return Atoms(
        atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc, info=state_of(atoms)
    )


def start_near(frames: Sequence[Atoms], target: float | None, rng: np.random.Generator) -> Atoms:
    """One of the frames nearest in density, drawn at random and scaled to ``target`` g/cm3; of all if None.

    Raises:
        ConfigError: a density is asked for, and no frame has a cell.
    """
    if target is not None:
        frames = [frame for frame in frames if frame.cell.rank == 3]
        if not frames:
            raise ConfigError("the start structures have no cell, and so no density: leave densities out")
        misfits = np.array([abs(density(frame) - target) for frame in frames])
        frames = [frames[k] for k in np.flatnonzero(misfits < misfits.min() + SAME_DENSITY)]
    atoms = bare(frames[rng.integers(len(frames))])
    if target is not None:
        atoms.set_cell(atoms.cell * (density(atoms) / target) ** (1 / 3), scale_atoms=True)
    return atoms
