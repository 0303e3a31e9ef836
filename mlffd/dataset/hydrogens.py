# SPDX-License-Identifier: MIT
"""Whether a structure has lost its hydrogens, as files from crystallography often have."""

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from ase.neighborlist import neighbor_list

NONMETALS = [
    atomic_numbers[s]
    for s in ("H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Ge", "As", "Se", "Br", "Te", "I")
]
BOND, METAL_BOND = 1.25, 1.4  # largest bond lengths in sums of covalent radii
SINGLE_BOND = 1.42  # Å; a carbon at the end of a longer bond than this has others, to hydrogens
LINEAR, PLANAR = 150.0, 345.0  # degrees: of an angle, and of the sum of three
WATERS = 2.0, 3.5  # Å between oxygens of neighboring water molecules
MANY, SOME = 0.5, 0.2  # of the carbons or oxygens


def missing_hydrogens(atoms: Atoms) -> tuple[str, str] | None:
    """("error" or "warning", what is missing), or None.

    A carbon wants hydrogens where its neighbors leave room for them: at the end of a single bond, between
    two bonds at an angle, under three that are not in a plane. An oxygen does where it is bound to nothing.
    It is an error if at least half of them do, none has any, and the structure is an organic one or
    water; carbon by itself may have such atoms, at its edges.
    """
    neighbors = _bonded(atoms)
    carbons = np.flatnonzero(atoms.numbers == 6)
    oxygens = np.flatnonzero(atoms.numbers == 8)
    open_carbons = [k for k in carbons if _is_open(atoms, k, neighbors[k])]
    lone = [k for k in oxygens if not neighbors[k]]
    bare = not (atoms.numbers == 1).any()
    if bare and len(lone) > 1 and len(lone) >= MANY * len(oxygens) and _are_near(atoms, lone):
        return "error", f"{len(lone)} oxygen atoms are bound to nothing: water without its hydrogens?"
    organic = np.isin(atoms.numbers, [7, 8, 16]).any()
    if len(open_carbons) > 1 and len(open_carbons) >= (SOME if organic else MANY) * len(carbons):
        certain = bare and organic and len(open_carbons) >= MANY * len(carbons)
        text = f"{len(open_carbons)} of {len(carbons)} carbon atoms lack hydrogens"
        return ("error" if certain else "warning"), text
    if lone and len(atoms) > 1:
        return "warning", f"{len(lone)} oxygen atoms are bound to nothing"
    return None


def _bonded(atoms):
    """Lists of (vector, atomic number) of the atoms bound to each one."""
    radii = METAL_BOND * covalent_radii[atoms.numbers]
    first, second, vectors, distances = neighbor_list("ijDd", atoms, radii)
    neighbors = [[] for _ in atoms]
    numbers = atoms.numbers
    for i, j, vector, distance in zip(first, second, vectors, distances):
        nonmetals = numbers[i] in NONMETALS and numbers[j] in NONMETALS
        limit = (BOND if nonmetals else METAL_BOND) * (
            covalent_radii[numbers[i]] + covalent_radii[numbers[j]]
        )
        if distance < limit:
            neighbors[i].append((vector, numbers[j]))
    return neighbors


def _is_open(atoms, k, neighbors):
    """Whether the neighbors of a carbon leave room for hydrogens."""
    kinds = [number for _, number in neighbors]
    if any(number not in NONMETALS for number in kinds) or not {6, 7}.intersection(kinds):
        return bool(kinds == [8] and np.linalg.norm(neighbors[0][0]) > 1.36)
    if len(neighbors) == 1:
        return bool(np.linalg.norm(neighbors[0][0]) > SINGLE_BOND)
    if len(neighbors) == 2:
        return bool(_angles(neighbors)[0] < LINEAR)
    return len(neighbors) == 3 and sum(_angles(neighbors)) < PLANAR


def _angles(neighbors):
    """Angles between all pairs of bonds, degrees."""
    units = np.array([vector / np.linalg.norm(vector) for vector, _ in neighbors])
    pairs = np.triu_indices(len(units), 1)
    return np.degrees(np.arccos(np.clip((units @ units.T)[pairs], -1, 1)))


def _are_near(atoms, indices):
    """Whether these atoms are mostly as far from each other as neighboring water molecules."""
    first, distances = neighbor_list("id", atoms[indices], WATERS[1])
    nearest = [distances[first == k].min() for k in np.unique(first)]
    return bool(nearest) and float(np.median(nearest)) > WATERS[0]
