# SPDX-License-Identifier: MIT
"""Replicas side by side, as dynamics moves them: flat arrays over the atoms of all."""

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from mlffd.errors import StructureError
from mlffd.neighbors import half_list

OVERLAP = 0.5  # of the sum of two covalent radii; no bond is as short


class Replicas:
    """Replicas that run: flat arrays over all atoms; positions and momenta of the Atoms are views of them.

    atoms: list of those Atoms; replicas (n_running,): their numbers among the structures; first_atom
    (n_running + 1,); place_of_atom, replica_of_atom (n_atoms,): place in the batch and number of each atom's
    replica; masses (n_atoms, 1) u; positions (n_atoms, 3) Å; momenta (n_atoms, 3) in ASE's unit; forces and
    slow_forces (n_atoms, 3) eV/Å.
    """

    def __init__(self, structures: Sequence[Atoms], replicas: Sequence[int]):
        self.replicas = np.array(replicas, int)
        self.atoms = [structures[k] for k in self.replicas]
        sizes = np.array([len(atoms) for atoms in self.atoms], int)
        self.first_atom = np.concatenate([[0], np.cumsum(sizes)])
        self.place_of_atom = np.repeat(np.arange(len(sizes)), sizes)
        self.replica_of_atom = self.replicas[self.place_of_atom]
        self.masses = self._flat("masses", sizes.sum(), 1)
        self.positions = self._flat("positions", sizes.sum(), 3)
        self.momenta = self._flat("momenta", sizes.sum(), 3)
        self.forces = np.zeros((sizes.sum(), 3))
        self.slow_forces = np.zeros((sizes.sum(), 3))
        self.total_masses = self.sums(self.masses)

    def _flat(self, name: str, n_atoms: int, n_columns: int) -> np.ndarray:
        flat = np.empty((n_atoms, n_columns))
        for atoms, start, end in zip(self.atoms, self.first_atom, self.first_atom[1:]):
            if name == "masses":
                flat[start:end, 0] = atoms.get_masses()
            else:
                flat[start:end] = atoms.arrays[name]
                atoms.arrays[name] = flat[start:end]
        return flat

    def only(self, structures: Sequence[Atoms], kept: np.ndarray) -> "Replicas":
        """Some of the replicas: ``kept`` (n_running,) bool."""
        rest = Replicas(structures, self.replicas[kept])
        of_kept = kept[self.place_of_atom]
        rest.forces, rest.slow_forces = self.forces[of_kept], self.slow_forces[of_kept]
        return rest

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums over the atoms of each replica: (n_atoms, k) to (n_running, k)."""
        if not self.atoms:
            return values
        return np.add.reduceat(values, self.first_atom[:-1], axis=0)

    def largest_norms(self, vectors: np.ndarray) -> np.ndarray:
        """(n_running,): the longest of (n_atoms, 3) in each replica; nan where one is."""
        squares = (vectors * vectors).sum(axis=1)
        return np.sqrt(np.maximum.reduceat(squares, self.first_atom[:-1])) if self.atoms else squares

    def remove_net(self, vectors: np.ndarray) -> None:
        """Take momenta or forces that would move the center of mass out of (n_atoms, 3), in place."""
        vectors -= self.masses * (self.sums(vectors) / self.total_masses)[self.place_of_atom]

    def kinetic_energies(self) -> np.ndarray:
        """(n_running,) in eV."""
        return 0.5 * self.sums((self.momenta**2).sum(axis=1, keepdims=True) / self.masses)[:, 0]

    def freedom(self, fixed_center: bool) -> np.ndarray:
        """Degrees of freedom (n_running,); at least one, so that a lone atom at rest has 0 K."""
        return np.maximum(3 * (np.diff(self.first_atom) - fixed_center), 1)


class Snapshot:
    """Where all running replicas were."""

    def __init__(self, step: int, batch: Replicas):
        self.step, self.replicas, self.first_atom = step, batch.replicas, batch.first_atom
        self.positions, self.momenta = batch.positions.copy(), batch.momenta.copy()

    def restore(self, replica: int, atoms: Atoms) -> None:
        """Put the atoms back to where they were."""
        (place,) = np.flatnonzero(self.replicas == replica)
        of_replica = slice(self.first_atom[place], self.first_atom[place + 1])
        atoms.arrays["positions"][:] = self.positions[of_replica]
        atoms.arrays["momenta"][:] = self.momenta[of_replica]


def overlap(atoms: Atoms) -> str | None:
    """What is wrong where two atoms are closer than half a bond, else None; forces may be calm there."""
    radii = OVERLAP * covalent_radii[atoms.numbers]
    i, j, shifts = half_list(atoms.positions, atoms.cell.array, atoms.pbc, 2.0 * radii.max())
    distances = np.linalg.norm(atoms.positions[j] - atoms.positions[i] + shifts @ atoms.cell.array, axis=1)
    close = np.flatnonzero(distances < radii[i] + radii[j])
    if not len(close):
        return None
    first = close[0]
    pair = f"{atoms.symbols[i[first]]}-{atoms.symbols[j[first]]}"
    return f"two atoms are closer than half a bond: {pair} {distances[first]:.2f} Å"


def bare(atoms: Atoms, number: int) -> Atoms:
    """A copy without calculator and constraints, with momenta."""
    if not len(atoms):
        raise StructureError(f"structure {number} has no atoms")
    copy = atoms.copy()
    copy.set_constraint()
    if not (copy.get_masses() > 0.0).all():
        raise StructureError(f"structure {number} has an atom without mass")
    copy.arrays["positions"] = np.array(copy.positions, float)
    copy.arrays["momenta"] = np.array(copy.get_momenta(), float)
    return copy
