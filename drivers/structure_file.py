# SPDX-License-Identifier: MIT
"""Structures from files that a user names."""

import re
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read
from ase.io.formats import UnknownFileTypeError

from mlffd.errors import ConfigError
from mlffd.units import BOHR

IPI_UNITS = {"angstrom": 1.0, "ase": 1.0, "nanometer": 10.0, "picometer": 0.01}  # Å; without one it is Bohr


def read_structure(path: str | Path, name: str = "") -> Atoms:
    """The last frame of any file that ASE reads; ``name`` is what errors call the file, by default its path.

    i-PI's own xyz files, whose cell and units ASE skips, count as periodic.

    Raises:
        ConfigError: there is no such file, or no structure in it.
    """
    name = name or str(path)
    try:
        atoms = read(path)
        if Path(path).suffix == ".xyz" and not atoms.pbc.any():
            comment = Path(path).read_text().rstrip().splitlines()[-1 - len(atoms)]
            return with_ipi_cell(atoms, comment)
        return atoms
    except FileNotFoundError as error:
        raise ConfigError(f"{name} does not exist") from error
    except (OSError, ValueError, KeyError, IndexError, StopIteration, UnknownFileTypeError) as error:
        raise ConfigError(f"{name} is no structure file that ASE can read: {error}") from error


def with_ipi_cell(atoms: Atoms, comment: str) -> Atoms:
    """The structure with the cell of an i-PI comment line, and in Å; as it is where there is none."""
    found = re.search(r"CELL[\(\[\{]abcABC[\)\]\}]:((?:\s+[-+.\dEe]+){6})", comment)
    if found is None:
        return atoms
    units = dict(re.findall(r"(\w+)\{(\w+)\}", comment))
    of_cell = IPI_UNITS.get(units.pop("cell", ""), BOHR)
    of_positions = IPI_UNITS.get(next(iter(units.values()), ""), BOHR)  # named positions, x_centroid
    lengths_and_angles = np.array(found.group(1).split(), float)
    lengths_and_angles[:3] *= of_cell
    return Atoms(atoms.numbers, atoms.positions * of_positions, cell=lengths_and_angles, pbc=True)
