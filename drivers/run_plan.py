# SPDX-License-Identifier: MIT
"""What all writers of inputs share: conditions that a run can have, and the structure it starts from."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms

from mlffd.bundle import Bundle, read_bundle
from mlffd.drivers.structure_file import read_structure
from mlffd.errors import ConfigError
from mlffd.students.student import check_species

VACUUM = 10.0  # Å on each side, along directions that are not periodic


@dataclass(frozen=True)
class Conditions:
    """Under which conditions a run is to go, and how far. Raises ConfigError for those that cannot be."""

    ensemble: str = "nvt"  # one of those that the program has
    temperature: float = 300.0  # K
    pressure: float = 1.0  # bar
    time_step: float = 0.5  # fs
    steps: int = 10000
    seed: int = 20260704

    def __post_init__(self):
        for name in ("temperature", "time_step", "steps", "seed"):
            if not 0 < getattr(self, name) < np.inf:
                raise ConfigError(f"{name} must be greater than 0, not {getattr(self, name)}")
        if not np.isfinite(self.pressure):
            raise ConfigError(f"pressure must be a number of bar, not {self.pressure}")


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ConfigError unless the value is one of the known ones."""
    if value not in known:
        raise ConfigError(f"{name} is one of {', '.join(known)}, not {value!r}")


def check_free(path: Path, structure: Path, overwrite: bool) -> None:
    """Raises ConfigError where a file would be lost, or there is no folder for it."""
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}")
    if path.exists() and path.samefile(structure):
        raise ConfigError(f"{path} is the structure itself: choose another name for the input")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} is there already: choose another name, or --force to write over it")


def read_start(structure: str | Path, student: str, ensemble: str) -> tuple[Atoms, Bundle]:
    """The last frame of a structure file, and the student that is to move its atoms.

    Raises:
        ConfigError: the structure cannot be read, or has no cell that the ensemble needs.
        BundleError, StructureError: no such student, or it does not know an element.
    """
    atoms, bundle = read_structure(structure), read_bundle(student)
    if len(atoms) == 0:
        raise ConfigError(f"{structure} holds no atoms")
    check_species(atoms.numbers.tolist(), bundle.student.species)
    if ensemble == "npt" and not atoms.pbc.all():
        raise ConfigError(f"{structure}: constant pressure needs a structure periodic in three directions")
    if atoms.cell.rank < atoms.pbc.sum():
        raise ConfigError(f"{structure} is periodic along a direction that its cell does not have")
    return atoms, bundle


def in_a_box(atoms: Atoms) -> Atoms:
    """The structure with a cell in which it has room along directions that are not periodic."""
    atoms = atoms.copy()
    if not atoms.pbc.all():
        atoms.center(vacuum=VACUUM, axis=tuple(np.flatnonzero(~atoms.pbc)))
    return atoms
