# SPDX-License-Identifier: MIT
"""Species and periodicity, which the protocol does not carry, from a structure file."""

from collections.abc import Sequence
from pathlib import Path

from ase import Atoms

from mlffd.drivers.structure_file import read_structure
from mlffd.errors import ConfigError


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
    directions as in "xyz" or "xy", or "none".
    Raises ConfigError where there is no such file or no structure in it, or ``pbc`` is none of these.
    """
    if pbc is not None and pbc != "none" and not (pbc and set(pbc) <= set("xyz")):
        raise ConfigError(f"pbc: {pbc!r} is not some of x, y, z, or none")
    atoms = read_structure(path, f"template {path}")
    atoms = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if pbc is not None:
        atoms.pbc = [letter in pbc.replace("none", "") for letter in "xyz"]
    if atoms.pbc.any() and not atoms.cell.rank == 3:
        raise ConfigError(f"template {path} has no cell of three vectors: give one, or --pbc none")
    return atoms
