# SPDX-License-Identifier: MIT
"""What is seen along a trajectory: structure, pressure, diffusion. NumPy in, NumPy out.

Positions (n_frames, n_atoms, 3) in Å are those of the dynamics, never wrapped into the cell.
"""

from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.neighborlist import natural_cutoffs

from mlffd.domain import pair_name
from mlffd.neighbors import half_list
from mlffd.units import BOLTZMANN, GPA

BIN = 0.02  # Å
BOND = 1.2  # times the sum of two covalent radii; so far apart atoms are bonded
PEAK_FROM, PEAK_TO = 0.5, 0.4  # of the highest value: where the first peak begins, and where it is over
TOP = 0.75  # of a peak's height, above which a parabola goes through it
LEAST_TOP = 2  # bins on each side of the maximum


@dataclass(frozen=True)
class PairCounts:
    """How often atoms of two elements are at a distance.

    counts: (n_frames, n_bins) pairs, each counted once; ideal: (n_bins,) what atoms placed at random would
    give, or, where the structure is not periodic in all directions, all pairs times the width of a bin: then
    counts over it are a probability density in 1/Å.
    """

    counts: np.ndarray
    ideal: np.ndarray


def bin_centers(r_max: float) -> np.ndarray:
    """Å."""
    return (np.arange(round(r_max / BIN)) + 0.5) * BIN


def pair_counts(atoms: Atoms, positions: np.ndarray, r_max: float) -> dict[str, PairCounts]:
    """Of every pair of elements, named as in ``H-O``, up to ``r_max`` (Å), periodic images included."""
    numbers = atoms.numbers
    kinds = list(combinations_with_replacement(np.unique(numbers).tolist(), 2))
    kind_of = np.zeros((max(numbers) + 1,) * 2, dtype=int)
    for k, (a, b) in enumerate(kinds):
        kind_of[a, b] = kind_of[b, a] = k
    n_bins = round(r_max / BIN)
    counts = np.zeros((len(positions), len(kinds), n_bins), dtype=np.int32)
    for frame, found in zip(positions, counts):
        i, j, distances = pairs_within(frame, atoms, r_max)
        place = np.minimum((distances / BIN).astype(int), n_bins - 1)
        flat = np.bincount(kind_of[numbers[i], numbers[j]] * n_bins + place, minlength=found.size)
        found[:] = flat.reshape(found.shape)
    ideal = [ideal_counts(atoms, a, b, n_bins) for a, b in kinds]
    return {pair_name(*kind): PairCounts(counts[:, k], ideal[k]) for k, kind in enumerate(kinds)}


def pairs_within(frame: np.ndarray, atoms: Atoms, r_max: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each pair once: i, j (n_pairs,) and distances (n_pairs,) in Å, for positions (n_atoms, 3)."""
    i, j, shifts = half_list(frame, atoms.cell.array, atoms.pbc, r_max)
    vectors = frame[j] - frame[i] + shifts @ atoms.cell.array
    return i, j, np.linalg.norm(vectors, axis=1)


def ideal_counts(atoms: Atoms, a: int, b: int, n_bins: int) -> np.ndarray:
    """(n_bins,) see ``PairCounts``. Of n atoms of one element each has n - 1 others."""
    n_a, n_b = (int((atoms.numbers == z).sum()) for z in (a, b))
    n_pairs = n_a * n_b if a != b else n_a * (n_a - 1) / 2
    if not atoms.pbc.all():
        return np.full(n_bins, n_pairs * BIN)
    edges = np.arange(n_bins + 1) * BIN
    n_pairs = n_pairs or 0.5  # a single atom has its own images
    return n_pairs * 4.0 / 3.0 * np.pi * np.diff(edges**3) / atoms.get_volume()


def first_peak(r: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Position (Å) and height of the first peak of g (n_bins,) at r (n_bins,): [nan, nan] without one.

    The top of a parabola through ln g (a Gaussian), where g is above three quarters of the maximum, each
    point weighted by the pairs that it counts.
    """
    high = g.max(initial=0.0)
    if not high > 0.0:
        return np.full(2, np.nan)
    start = int(np.argmax(g >= PEAK_FROM * high))
    below = np.flatnonzero(g[start:] < PEAK_TO * high)
    end = start + (int(below[0]) if len(below) else len(g) - start)
    top = start + int(np.argmax(g[start:end]))
    near = around(g, top)
    near = near[g[near] > 0.0]
    if len(near) < 3:
        return np.array([r[top], g[top]])
    x = r[near] - r[top]
    curvature, slope, level = np.polyfit(x, np.log(g[near]), 2, w=np.sqrt(g[near]) * r[near])
    shift = -slope / (2.0 * curvature) if curvature < 0.0 else np.inf
    if not x[0] <= shift <= x[-1]:
        return np.array([r[top], g[top]])
    return np.array([r[top] + shift, np.exp(level + 0.5 * slope * shift)])


def around(g: np.ndarray, top: int) -> np.ndarray:
    """Bins about a maximum in which g stays near it."""
    low = g < TOP * g[top]
    left = top - int(np.argmax(np.append(low[:top][::-1], True)))
    right = top + int(np.argmax(np.append(low[top:], True))) - 1
    return np.arange(max(min(left, top - LEAST_TOP), 0), min(max(right, top + LEAST_TOP), len(g) - 1) + 1)


@dataclass(frozen=True)
class Bonds:
    """Bonded atoms: i, j (n_bonds,), and what to add (n_bonds, 3) Å to ``positions[j] - positions[i]``."""

    i: np.ndarray
    j: np.ndarray
    offsets: np.ndarray

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """(n_frames, n_bonds, 3) Å, from i to j."""
        return positions[:, self.j] - positions[:, self.i] + self.offsets


def bonds_of(atoms: Atoms) -> Bonds:
    """Pairs closer than 1.2 times the sum of their covalent radii (ASE's)."""
    radii = np.array(natural_cutoffs(atoms, mult=BOND))
    i, j, shifts = half_list(atoms.positions, atoms.cell.array, atoms.pbc, max(2.0 * radii.max(), BIN))
    offsets = shifts @ atoms.cell.array
    distances = np.linalg.norm(atoms.positions[j] - atoms.positions[i] + offsets, axis=1)
    near = distances < radii[i] + radii[j]
    return Bonds(i[near], j[near], offsets[near])


def bond_lengths(atoms: Atoms, positions: np.ndarray, bonds: Bonds) -> dict[str, np.ndarray]:
    """(n_frames, n_bonds_of_a_kind) Å, by pair of elements; bonds stay those of the start."""
    lengths = np.linalg.norm(bonds.vectors(positions), axis=2)
    names = np.array([pair_name(*atoms.numbers[[i, j]]) for i, j in zip(bonds.i, bonds.j)])
    return {str(name): lengths[:, names == name] for name in np.unique(names)}


def bond_angles(atoms: Atoms, positions: np.ndarray, bonds: Bonds) -> dict[str, np.ndarray]:
    """(n_frames, n_angles_of_a_kind) degrees between bonds of one atom, named as in ``H-O-H``."""
    away = np.concatenate([bonds.vectors(positions), -bonds.vectors(positions)], axis=1)
    away /= np.maximum(np.linalg.norm(away, axis=2, keepdims=True), 1e-12)
    center, other = np.concatenate([bonds.i, bonds.j]), np.concatenate([bonds.j, bonds.i])
    angles = {}
    for atom in np.unique(center):
        for one, two in combinations(np.flatnonzero(center == atom), 2):
            ends = sorted(atoms.numbers[[other[one], other[two]]].tolist())
            name = "-".join(chemical_symbols[z] for z in (ends[0], atoms.numbers[atom], ends[1]))
            angles.setdefault(name, []).append((one, two))
    return {name: _degrees(away, np.array(pairs)) for name, pairs in sorted(angles.items())}


def _degrees(unit_vectors: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    one, two = pairs.T
    cosine = np.einsum("fij,fij->fi", unit_vectors[:, one], unit_vectors[:, two])
    return np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))


def pressure(stresses: np.ndarray, n_atoms: int, volume: float, temperature: float) -> np.ndarray:
    """Pressure (n_frames,) in GPa from stresses (n_frames, 3, 3) in eV/Å^3, of ASE's sign, and the kinetic
    part n k T / V, which is exact at ``temperature`` (K); positive where the system wants to expand."""
    virial = -np.trace(stresses, axis1=1, axis2=2) / 3.0
    return (virial + n_atoms * BOLTZMANN * temperature / volume) / GPA


def squared_displacements(atoms: Atoms, positions: np.ndarray, lags: np.ndarray) -> dict[str, np.ndarray]:
    """Mean squared displacement (n_lags,) in Å^2 after ``lags`` frames, by element, over all time origins;
    the motion of the center of mass is taken out."""
    masses = atoms.get_masses()
    moving = positions - np.einsum("a,fax->fx", masses / masses.sum(), positions)[:, None]
    found = np.array(
        [((moving[lag:] - moving[: len(moving) - lag]) ** 2).sum(axis=2).mean(axis=0) for lag in lags]
    )
    elements = np.unique(atoms.numbers).tolist()
    return {chemical_symbols[z]: found[:, atoms.numbers == z].mean(axis=1) for z in elements}


def diffusion_coefficient(times: np.ndarray, displacements: np.ndarray) -> float:
    """Einstein's: a sixth of the slope of mean squared displacements (n,) Å^2 over times (n,) ps; in Å^2/ps,
    which is 1e-8 m^2/s."""
    return float(np.polyfit(times, displacements, 1)[0] / 6.0)
