# SPDX-License-Identifier: MIT
"""A periodic box of molecules from a composition and a density."""

from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.collections import g2
from ase.data import chemical_symbols, covalent_radii
from ase.io.formats import UnknownFileTypeError
from ase.units import _amu  # kg

from mlffd.errors import ConfigError
from mlffd.neighbors import half_list

GRAM_PER_CM3 = 1e-24 / (_amu * 1e3)  # amu/Å^3
CLOSEST = 1.2  # Å; atoms of different molecules nearer than this are no packing
ROOM = 0.9  # Å beyond the covalent radius: about van der Waals' radius
WANTED = 0.7  # of the sum of two such radii, between atoms of different molecules; hydrogen bonds have 0.65
MOST_MOVES = 200


def density(atoms):
    """Mass density of a periodic structure in g/cm3."""
    return atoms.get_masses().sum() / atoms.get_volume() / GRAM_PER_CM3


def packed_box(composition, target_density, rng, directory="."):
    """Cubic periodic box at `target_density` (g/cm3) holding `composition`, such as {"H2O": 64, "a.xyz": 8}.

    Molecules, turned at random, begin on a jittered lattice and then move and turn as rigid bodies until
    their atoms have room. Names are elements, ASE's g2 molecules, or files in `directory`, else here, of one
    molecule.
    Raises ConfigError for unknown names, files that cannot be read, and densities at which molecules overlap.
    """
    counts = {name: _count(name, count) for name, count in composition.items()}
    molecules = [m for name, count in counts.items() for m in [_molecule(name, Path(directory))] * count]
    if not molecules:
        raise ConfigError("the composition is empty: name at least one molecule, such as { H2O = 64 }")
    if not target_density > 0:
        raise ConfigError(f"density must be above zero g/cm3, not {target_density}")
    mass = sum(m.get_masses().sum() for m in molecules)
    length = (mass / (target_density * GRAM_PER_CM3)) ** (1 / 3)
    sites = _lattice_sites(len(molecules), length, rng)
    placed = [m.positions @ _random_rotation(rng).T + site for m, site in zip(molecules, sites)]
    box = Atoms(np.concatenate([m.numbers for m in molecules]), cell=[length] * 3, pbc=True)
    box.positions = np.concatenate(placed)
    _make_room(box, np.repeat(np.arange(len(molecules)), [len(m) for m in molecules]))
    return box


def _count(name, count):
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ConfigError(f"composition: the number of {name} must be a whole number, not {count!r}")
    return count


def _molecule(name, directory):
    if name in chemical_symbols[1:]:
        return Atoms(name, positions=[[0, 0, 0]])
    if name in g2.names:
        found = molecule(name)
    elif Path(name).suffix:
        found = _molecule_file(name, directory)
    else:
        raise ConfigError(
            f"no molecule named {name!r}: use an element, a molecule of ASE's g2 set, like H2O, or a file"
        )
    found.positions -= found.get_center_of_mass()
    return found


def _molecule_file(name, directory):
    path = directory / name if (directory / name).exists() else Path(name)
    try:
        found = ase.io.read(path)
    except (OSError, ValueError, LookupError, UnknownFileTypeError, StopIteration) as error:
        raise ConfigError(f"cannot read a molecule from {path}: {error}") from error
    if not len(found):
        raise ConfigError(f"{path} holds no atoms")
    return Atoms(found.numbers, positions=found.positions)


def _lattice_sites(count, length, rng):
    per_side = int(np.ceil(count ** (1 / 3) - 1e-9))
    lattice = np.stack(np.meshgrid(*[np.arange(per_side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    chosen = rng.permutation(len(lattice))[:count]
    jitter = rng.uniform(-0.1, 0.1, (count, 3))
    return (lattice[chosen] + jitter) * (length / per_side)


def _make_room(box, molecule_of_atom):
    """Move and turn molecules (n_atoms,) as rigid bodies until all pairs of atoms are as far as wanted.

    Each atom that is too close to others wants to go; its molecule does what comes nearest to all wishes.
    Raises ConfigError if atoms are nearer than CLOSEST in the end.
    """
    radii = WANTED * (covalent_radii[box.numbers] + ROOM)
    for _ in range(MOST_MOVES):
        i, j, vectors, distances = _contacts(box, molecule_of_atom, 2 * radii.max())
        lack = radii[i] + radii[j] - distances
        close = lack > 0.02
        if not close.any():
            return
        i, j = i[close], j[close]
        push = 0.5 * (lack[close] / np.maximum(distances[close], 1e-6))[:, None] * vectors[close]
        wishes = np.zeros((len(box), 3))
        np.add.at(wishes, i, -push)
        np.add.at(wishes, j, push)
        for k in np.unique(molecule_of_atom[np.concatenate([i, j])]):
            own = molecule_of_atom == k
            box.positions[own] = _moved(box.positions[own], wishes[own])
    closest = _contacts(box, molecule_of_atom, 2 * radii.max())[3].min(initial=np.inf)
    if closest < CLOSEST:
        raise ConfigError(
            f"molecules come within {closest:.2f} Å when packed into a box of {box.cell[0, 0]:.2f} Å:"
            " lower the density"
        )


def _contacts(box, molecule_of_atom, cutoff):
    """Pairs of atoms of different molecules, or of a molecule and its image: i, j, vectors, distances."""
    i, j, shifts = half_list(box.positions, box.cell.array, box.pbc, cutoff)
    others = (molecule_of_atom[i] != molecule_of_atom[j]) | shifts.any(axis=1)
    i, j = i[others], j[others]
    vectors = box.positions[j] - box.positions[i] + shifts[others] @ box.cell.array
    return i, j, vectors, np.linalg.norm(vectors, axis=1)


def _moved(positions, wishes):
    """A rigid body (n, 3) moved by the mean wish of its atoms that have one, and turned by their torque."""
    wanting = wishes.any(axis=1)
    center = positions.mean(axis=0)
    arms = positions - center
    turn = np.cross(arms, wishes).sum(axis=0) / max((arms[wanting] ** 2).sum(), 1.0)
    return arms @ _rotation(turn).T + center + wishes[wanting].mean(axis=0)


def _rotation(turn):
    """The matrix that rotates about the vector `turn` (3,) by its length in radians."""
    angle = np.linalg.norm(turn)
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = turn / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _random_rotation(rng):
    quaternion = rng.standard_normal(4)
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
