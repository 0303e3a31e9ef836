# SPDX-License-Identifier: MIT
"""What no run that goes well ever asks for or is answered: looked for in every structure and every result.

i-PI would carry on with such an answer to the end of the run. The bounds are far outside of what melting,
evaporation, a barostat or flight through a gas lead to; what a student can be trusted with is a narrower
matter, and the guard's (drivers/guard.py). Energies have no such bound: a pair of atoms that has collapsed
lowers the energy of a batch by less than a chemical reaction of the others may, and shows in the forces.
"""

from collections.abc import Iterator

import numpy as np
from ase import Atoms

from mlffd.domain import EXPLOSION, LARGEST_EXTENT
from mlffd.drivers.ipi.protocol import Answer

# From there on float64 has steps above 1e-8 Å, and forces are wrong in digits that matter to a conserved
# quantity. A hydrogen molecule at 300 K flies so far in 5 microseconds.
FARTHEST = 1e8  # Å from the origin, before wrapping
# Hydrogen at 500 GPa takes ten times as much. Neighbors grow as its inverse, up to all memory.
SMALLEST_VOLUME = 0.1  # Å^3 an atom
# Vapor of water at 1 mbar takes a million times the volume of the liquid, a hundred times along each vector.
LARGEST_STRETCH = 1e3  # of the template's lattice vectors, in the mean of the periodic ones; or its inverse
# Atoms next to their own images, ten times closer than any two are. A fiftieth of it took 11 GB.
THINNEST = 0.05  # Å, of a cell, between two of its faces

Fault = tuple[int, str]  # which structure, and what is wrong with it


def faults_of_structures(cells: np.ndarray, positions: np.ndarray, template: Atoms) -> list[Fault]:
    """What is wrong with structures as i-PI sends them, at most one fault for each.

    Wrong is a position that is not finite or farther than FARTHEST from the origin; an atom more than
    LARGEST_EXTENT (1e4 Å, the student's own limit) away from the median of all where no direction is
    periodic; and, where one is, a cell that is not finite, without volume, left-handed though the template's
    is not, with less than SMALLEST_VOLUME an atom, beyond LARGEST_STRETCH or thinner than THINNEST.

    Args:
        cells: (n_structures, 3, 3) Å, rows are lattice vectors; not looked at where nothing is periodic.
        positions: (n_structures, n_atoms, 3) Å.
        template: says what is periodic, and gives the elements their names.
    """
    faults = {}
    if template.pbc.any():
        faults.update(_faults_of_cells(cells, template))
    if not np.abs(positions).max() <= FARTHEST:
        faults.update(_far_from_origin(positions, template))
    elif not template.pbc.any() and not np.ptp(positions, axis=1).max() <= LARGEST_EXTENT:
        faults.update(_far_from_others(positions, template))
    return sorted(faults.items())


def faults_of_answer(answer: Answer, template: Atoms) -> list[Fault]:
    """Which structures have a result that is not finite, or a force on an atom beyond EXPLOSION."""
    faults, forces = {}, answer.forces
    for name, values in (("energy", answer.energies), ("virial", answer.virials.reshape(len(forces), 9))):
        if not np.isfinite(values).all():
            wrong = ~np.isfinite(values.reshape(len(forces), -1)).all(axis=1)
            faults.update((int(k), f"the {name} is {values[k].tolist()} eV") for k in np.flatnonzero(wrong))
    # a force beyond the bound has a component beyond 1/sqrt(3) of it; NaN is not below anything
    if not np.abs(forces).max() <= EXPLOSION / 3**0.5:
        faults.update(_too_strong(forces, template))
    return sorted(faults.items())


def _faults_of_cells(cells: np.ndarray, template: Atoms) -> Iterator[Fault]:
    finite = np.isfinite(cells).all(axis=(1, 2))
    cells = np.where(finite[:, None, None], cells, 0.0)
    sizes = extents(cells, template.pbc)
    stretch = sizes / extents(template.cell.array[None], template.pbc)
    lengths = np.linalg.norm(cells[:, template.pbc], axis=2)
    # exact at right angles, else a lower bound
    thinnest = sizes * lengths.min(axis=1) / np.maximum(lengths.prod(axis=1), 1e-300)
    volumes = np.linalg.det(cells)
    bound = LARGEST_STRETCH ** template.pbc.sum()
    least = SMALLEST_VOLUME * len(template) if template.pbc.all() else 0.0
    flipped = (volumes < 0.0) & (np.linalg.det(template.cell.array) > 0.0)
    fine = finite & (volumes != 0.0) & ~flipped & (np.abs(volumes) >= least)
    fine &= (stretch <= bound) & (stretch * bound >= 1.0) & (thinnest >= THINNEST)
    for k in np.flatnonzero(~fine):
        if not finite[k]:
            what = "is not finite"
        elif volumes[k] == 0.0:
            what = "has no volume"
        elif flipped[k]:
            what = "is left-handed, and the template's is not"
        elif abs(volumes[k]) < least:
            what = f"has {abs(volumes[k]) / len(template):.3g} Å^3 an atom, less than {SMALLEST_VOLUME}"
        elif thinnest[k] < THINNEST:
            what = f"is only {thinnest[k]:.3g} Å thin"
        else:
            what = f"is {stretch[k]:.3g} times as large as the template's, beyond {bound:g} or its inverse"
        yield int(k), f"the cell {what}"


def extents(cells: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Of cells (n, 3, 3): the volume, area or length (n,) that the periodic vectors span, in powers of Å."""
    periodic = cells[:, pbc]
    gram = periodic @ periodic.transpose(0, 2, 1)
    return np.sqrt(np.maximum(np.linalg.det(gram), 0.0))


def _far_from_origin(positions: np.ndarray, template: Atoms) -> Iterator[Fault]:
    for k, atom in _worst_atoms(np.abs(positions).max(axis=2), FARTHEST):
        where, why = positions[k, atom], ""
        if np.isfinite(where).all():
            why = f", farther than {FARTHEST:g} Å from the origin"
        yield k, f"{named(atom, template)} is at {where.tolist()} Å{why}"


def _far_from_others(positions: np.ndarray, template: Atoms) -> Iterator[Fault]:
    distances = np.abs(positions - np.median(positions, axis=1, keepdims=True)).max(axis=2)
    for k, atom in _worst_atoms(distances, LARGEST_EXTENT):
        far = f"{distances[k, atom]:.4g} Å from the others, more than {LARGEST_EXTENT:g} Å"
        yield k, f"{named(atom, template)} is {far}"


def _too_strong(forces: np.ndarray, template: Atoms) -> Iterator[Fault]:
    sizes = np.linalg.norm(forces, axis=2)
    for k, atom in _worst_atoms(sizes, EXPLOSION):
        why = f", more than {EXPLOSION:g} eV/Å" if np.isfinite(sizes[k, atom]) else ""
        yield k, f"the force on {named(atom, template)} is {sizes[k, atom]:.4g} eV/Å{why}"


def _worst_atoms(values: np.ndarray, bound: float) -> Iterator[tuple[int, int]]:
    """Of values (n_structures, n_atoms) those beyond the bound or not a number: structure and worst atom."""
    values = np.where(np.isnan(values), np.inf, values)
    worst = values.argmax(axis=1)
    for k in np.flatnonzero(values.max(axis=1) > bound):
        yield int(k), int(worst[k])


def named(atom: int, template: Atoms) -> str:
    """An atom by its index in the template, from 0, and its element."""
    return f"atom {atom} ({template.symbols[atom]})"
