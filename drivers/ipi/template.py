# SPDX-License-Identifier: MIT
"""Species and periodicity, which the protocol does not carry, from a structure file."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms

from mlffd.drivers.structure_file import read_structure
from mlffd.errors import ConfigError
from mlffd.units import BOHR


def read_templates(paths: Sequence[str | Path], pbc: str | None = None) -> list[Atoms]:
    """One template a system, for several systems in one run; ``pbc`` as in ``read_template``.

    Raises ConfigError where two could not be told apart by their numbers of atoms and are not the same.
    """
    templates = {}
    for path in paths:
        atoms = read_template(path, pbc)
        other_path, other = templates.setdefault(len(atoms), (path, atoms))
        if (atoms.numbers != other.numbers).any() or (atoms.pbc != other.pbc).any():
            raise ConfigError(
                f"templates {other_path} and {path} have {len(atoms)} atoms each, and i-PI sends no species: "
                "give each of these systems an <ffsocket> and a driver of its own"
            )
    return [atoms for _, atoms in templates.values()]


def read_template(path: str | Path, pbc: str | None = None) -> Atoms:
    """Species, periodicity and a first geometry from any structure file that ASE reads.

    The protocol carries neither species nor periodicity. ``pbc`` overrides the file's: the periodic
    directions as in "xyz" or "xy", or "none". i-PI's own xyz files, whose cell ASE skips, count as periodic.
    Raises ConfigError where there is no such file or no structure in it, or ``pbc`` is none of these.
    """
    if pbc is not None and pbc != "none" and not (pbc and set(pbc) <= set("xyz")):
        raise ConfigError(f"pbc: {pbc!r} is not some of x, y, z, or none")
    atoms = read_structure(path, f"template {path}")
    if not atoms.pbc.any() and Path(path).suffix == ".xyz":
        atoms = with_ipi_cell(atoms, Path(path).read_text().splitlines()[1])
    atoms = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if pbc is not None:
        atoms.pbc = [letter in pbc.replace("none", "") for letter in "xyz"]
    if atoms.pbc.any() and not atoms.cell.rank == 3:
        raise ConfigError(f"template {path} has no cell of three vectors: give one, or --pbc none")
    return atoms


def with_ipi_cell(atoms: Atoms, comment: str) -> Atoms:
    """The structure with the cell of an i-PI comment line, and in Å; as it is where there is none."""
    found = re.search(r"CELL[\(\[\{]abcABC[\)\]\}]:((?:\s+[-+.\dEe]+){6})", comment)
    if found is None:
        return atoms
    lengths_and_angles = np.array(found.group(1).split(), float)
    lengths_and_angles[:3] *= 1.0 if "cell{angstrom}" in comment else BOHR
    scale = 1.0 if "positions{angstrom}" in comment else BOHR
    return Atoms(atoms.numbers, atoms.positions * scale, cell=lengths_and_angles, pbc=True)
