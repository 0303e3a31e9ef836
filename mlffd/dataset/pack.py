# SPDX-License-Identifier: MIT
"""A periodic box of molecules from a composition and a density."""

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.collections import g2
from ase.data import chemical_symbols
from ase.units import _amu  # kg

from mlffd.errors import ConfigError

GRAM_PER_CM3 = 1e-24 / (_amu * 1e3)  # amu/Å^3
CLOSEST = 1.2  # Å; atoms of different molecules nearer than this are no packing
TRIES = 400  # orientations tried for each molecule


def density(atoms):
    """Mass density of a periodic structure in g/cm3."""
    return atoms.get_masses().sum() / atoms.get_volume() / GRAM_PER_CM3


def packed_box(composition, target_density, rng):
    """Cubic periodic box at `target_density` (g/cm3) holding `composition`, such as {"H2O": 64}.

    Molecules sit on a jittered lattice, each turned to the orientation that keeps it farthest from
    those already placed. Names are ASE's g2 molecules or single elements.
    Raises ConfigError for unknown names and for densities at which molecules would overlap.
    """
    molecules = [m for name, count in composition.items() for m in [_molecule(name)] * count]
    if not molecules:
        raise ConfigError("the composition is empty: name at least one molecule, such as { H2O = 64 }")
    if not target_density > 0:
        raise ConfigError(f"density must be above zero g/cm3, not {target_density}")
    mass = sum(m.get_masses().sum() for m in molecules)
    length = (mass / (target_density * GRAM_PER_CM3)) ** (1 / 3)
    sites = _lattice_sites(len(molecules), length, rng)
    box = Atoms(cell=[length] * 3, pbc=True)
    # the largest first: they are the hardest to place; atoms keep the order of the composition
    placed = {}
    order = sorted(range(len(molecules)), key=lambda k: -len(molecules[k]))
    for site, k in zip(sites, order):
        others = np.concatenate([p.reshape(-1, 3) for p in placed.values()]) if placed else np.empty((0, 3))
        placed[k] = _place(molecules[k].positions, site, others, length, rng)
    for k, m in enumerate(molecules):
        box += Atoms(m.numbers, positions=placed[k])
    return box


def _molecule(name):
    if name in chemical_symbols[1:]:
        return Atoms(name, positions=[[0, 0, 0]])
    if name not in g2.names:
        raise ConfigError(
            f"no molecule named {name!r}: use an element or a molecule of ASE's g2 set, like H2O"
        )
    found = molecule(name)
    found.positions -= found.get_center_of_mass()
    return found


def _lattice_sites(count, length, rng):
    per_side = int(np.ceil(count ** (1 / 3) - 1e-9))
    lattice = np.stack(np.meshgrid(*[np.arange(per_side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    chosen = rng.permutation(len(lattice))[:count]
    jitter = rng.uniform(-0.1, 0.1, (count, 3))
    return (lattice[chosen] + jitter) * (length / per_side)


def _place(positions, site, others, length, rng):
    best, best_distance = None, -1.0
    for _ in range(TRIES):
        trial = positions @ _random_rotation(rng).T + site
        distance = _closest(trial, others, length)
        if distance > best_distance:
            best, best_distance = trial, distance
        if distance > 1.5 * CLOSEST or len(positions) == 1:
            break
    if best_distance < CLOSEST:
        raise ConfigError(
            f"molecules come within {best_distance:.2f} Å when packed into a box of {length:.2f} Å:"
            " lower the density"
        )
    return best


def _closest(trial, others, length):
    """Smallest distance of a molecule to the others and to its own periodic images."""
    extent = np.linalg.norm(trial - trial.mean(0), axis=1).max()
    own = length - 2 * extent
    if not len(others):
        return own
    vectors = trial[:, None] - others[None]
    vectors -= length * np.round(vectors / length)
    return min(own, float(np.sqrt((vectors**2).sum(-1).min())))


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
