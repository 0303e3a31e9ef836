# SPDX-License-Identifier: MIT
"""Species and periodicity, which the protocol does not carry, from a structure file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from scipy.spatial import cKDTree

from mlffd.drivers.structure_file import read_structure
from mlffd.errors import ConfigError
from mlffd.units import BOHR

SAME = 0.02  # Å between what is at one place, in files with few digits


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


def mistaken_units(template: Atoms, cell: np.ndarray, positions: np.ndarray) -> str:
    """Says so where the structure that i-PI starts from is the template's with Å taken for Bohr; else empty.

    Args:
        cell: (3, 3) Å, rows are lattice vectors.
        positions: (n_atoms, 3) Å, as i-PI has them, not wrapped.
    """
    pairs = [("positions are", positions, template.positions)]
    if template.pbc.any():
        pairs.append(("cell is", cell, template.cell.array))
    for name, ours, of_template in pairs:
        for scale in (BOHR, 1 / BOHR):
            if np.abs(ours - scale * of_template).max() < SAME < np.abs(ours - of_template).max():
                return (
                    f"i-PI's {name} the template's times {scale:.4f}, as if one of both files had been read "
                    "in Bohr and the other in Å: say units='angstrom' where the i-PI input reads its own"
                )
    return ""


def mistaken_order(template: Atoms, positions: np.ndarray) -> str:
    """Says so where the structure that i-PI starts from is the template's with elements at each other's
    places; else empty. After a restart the atoms are elsewhere, and nothing can be told.

    Args:
        positions: (n_atoms, 3) Å, as i-PI has them, not wrapped.
    """
    places, scale, box = template.positions, 1.0, 0.0
    if template.pbc.any():
        cell = template.cell.array
        inverse, scale, box = np.linalg.inv(cell), np.linalg.norm(cell, 2), template.pbc.astype(float)
        places, positions = (into_unit_cell(x @ inverse, template.pbc) for x in (places, positions))
    distances, there = cKDTree(places, boxsize=box).query(positions)
    mistaken = np.flatnonzero(template.numbers[there] != template.numbers)
    if distances.max() * scale > SAME or not len(mistaken):
        return ""
    first = mistaken[0]
    return (
        f"i-PI has the template's atoms in another order: its atom {first} is where the template has "
        f"{template.symbols[there[first]]}, and there atom {first} is {template.symbols[first]}; "
        "start the driver with the structure that the i-PI input starts from"
    )


def into_unit_cell(scaled: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Scaled positions (n_atoms, 3) at 0 or above and below 1 where ``pbc`` says so."""
    moved = scaled - np.where(pbc, np.floor(scaled), 0.0)
    moved[(moved >= 1.0) & pbc] = 0.0  # -1e-20 + 1
    return moved
