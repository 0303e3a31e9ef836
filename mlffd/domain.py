# SPDX-License-Identifier: MIT
"""What a student saw in training, in a few numbers, and how far beyond is too far.

A bundle's metadata may hold, under ``training_domain``::

    {"shortest_distance": {"H-H": 1.29, "H-O": 0.88, "O-O": 2.39},   Å, in a frame, by pair of elements
     "neighbors": {"H-H": [32, 57], "H-O": [16, 30], "O-H": [34, 57], "O-O": [15, 28]},
                                    of one atom within the cutoff, fewest and most: O-H are the H around an O
     "largest_pair_force": 5.3,     eV/Å, of the student: |dE/dr_ij| of one edge i-j
     "largest_force": 6.5}          eV/Å, of the teacher, on one atom

taken over the frames that the student was trained on; one frame in twenty may go beyond distances and forces,
as those may that a student sampled when it was about to collapse. Pairs of elements that were never within
the cutoff of each other have no shortest distance.

Numbers of neighbors tell environments apart that have nothing to do with training, such as a surface or a
molecule that has left the liquid. Distances from the training set in the space of the student's invariants
(principal components and the residual, or all of them, scaled by their spread) did not: for the shipped water
student they called a lone molecule ordinary.

Pair forces stand for forces because they belong to one edge: a rank knows them whole, and their size does not
depend on how the box is divided. The force on an atom is the sum of a few dozen, known only when the ranks
have exchanged them.
"""

from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from mlffd.errors import BundleError

KEY = "training_domain"
# The least distance of many frames is their rarest event, and a bigger box or a longer run has rarer ones:
# 512 water molecules came 2.6 % closer in 10 ps at 300 K than those of 360 frames of 64, and all was well. At
# 500 K, beyond its training, a student let two oxygen atoms pass 0.95 of the distance 0.2 ps before the box
# began to heat up, to 70 000 K within 0.1 ps; they passed 0.9 of it 50 fs later.
DISTANCE_MARGIN = 0.95
# Repulsion rises steeply: 5 % in the distance of a bond are a factor of about two in the force along it.
PAIR_FORCE_MARGIN = 2.0
# Counts scatter: in 10 ps of 512 water molecules one fell 6 % below the fewest of training. At a surface they
# fall by half or more.
NEIGHBOR_MARGIN = 0.2
LEAST_NEIGHBOR_MARGIN = 2  # for small counts
ANY_NUMBER = 1e9
# Where nothing is known: no bond of any element pulls or pushes as hard outside a nuclear collision.
EXPLOSION = 1000.0  # eV/Å
# Atoms further from the others than this belong to no system, and a neighbor list would grow with the gap.
LARGEST_EXTENT = 1e4  # Å, along directions that are not periodic


@dataclass(frozen=True)
class Limits:
    """Where a student is certainly outside of what it was trained on.

    shortest: (n_species, n_species) Å, symmetric; 0 where nothing is known.
    fewest, most: (n_species, n_species) neighbors; row: of the center; 0 and 1e9 where nothing is known.
    largest_pair_force: eV/Å.
    """

    shortest: np.ndarray
    fewest: np.ndarray
    most: np.ndarray
    largest_pair_force: float

    def arrays(self) -> dict[str, np.ndarray]:
        """By name, as weight blocks have them."""
        return {f"guard.{name}": np.array(value) for name, value in vars(self).items()}


def limits(metadata: dict, species: tuple[int, ...]) -> Limits:
    """Limits for a student of ``species`` (atomic numbers) from its bundle's metadata, margins included.

    Raises:
        BundleError: the entry ``training_domain`` makes no sense.
    """
    domain = metadata.get(KEY, {})
    try:
        seen = {name: _positive(value) for name, value in domain.get("shortest_distance", {}).items()}
        force = PAIR_FORCE_MARGIN * _positive(domain.get("largest_pair_force", np.inf))
        counts = {name: _range(*value) for name, value in domain.get("neighbors", {}).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise BundleError(
            f"{KEY} in the bundle's metadata makes no sense: {error}; try: mlffd repair --labels"
        ) from error
    n = len(species)
    pairs = [(a, b) for a in species for b in species]
    shortest = np.array([seen.get(pair_name(a, b), 0.0) for a, b in pairs]).reshape(n, n)
    ranges = np.array([counts.get(center_name(a, b), (0.0, ANY_NUMBER)) for a, b in pairs]).reshape(n, n, 2)
    return Limits(DISTANCE_MARGIN * shortest, ranges[..., 0], ranges[..., 1], min(force, EXPLOSION))


def pair_name(first: int, second: int) -> str:
    """``H-O`` for atomic numbers in either order."""
    return "-".join(chemical_symbols[number] for number in sorted((first, second)))


def center_name(center: int, neighbor: int) -> str:
    """``O-H`` for hydrogen around oxygen."""
    return f"{chemical_symbols[center]}-{chemical_symbols[neighbor]}"


def _range(fewest: float, most: float) -> tuple[float, float]:
    """Numbers of neighbors, margins included."""
    if not 0 <= fewest <= most:
        raise ValueError(f"{fewest} to {most} neighbors")
    fewer = fewest - max(NEIGHBOR_MARGIN * fewest, LEAST_NEIGHBOR_MARGIN)
    return max(fewer, 0.0), most + max(NEIGHBOR_MARGIN * most, LEAST_NEIGHBOR_MARGIN)


def _positive(value: float) -> float:
    value = float(value)
    if not value > 0.0:
        raise ValueError(f"{value} is not positive")
    return value
