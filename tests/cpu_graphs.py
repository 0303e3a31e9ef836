# SPDX-License-Identifier: MIT
"""Graphs no simulation would offer, the CPU kernels on them, and the float64 reference that judges these."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from ase.neighborlist import neighbor_list

from mlffd.errors import ConfigError
from mlffd.graph import Graph
from mlffd.kernels import cpu
from mlffd.predict import pair_gradient

SHORTEST = 0.7  # Å; closer pairs are dominated by the repulsion, which has tests of its own

NEIGHBORS = {
    "none": [0],
    "one": [1, 1],
    "two": [2, 0, 2],
    "500": [500, 30],
    "uneven": [0, 40, 1, 17, 33, 2, 500, 16, 15, 64],
    "many": [52] * 100,
    "few": [0, 40, 1, 17, 33, 2, 16, 15, 64],
}


@dataclass(frozen=True)
class PairGraph:
    """Atoms and sorted edges as the kernels take them; ghosts last."""

    atomic_numbers: np.ndarray  # (n_atoms,)
    first_edge: np.ndarray  # (n_centers + 1,) int64
    neighbor: np.ndarray  # (n_edges,) int32
    edge_vectors: np.ndarray  # (n_edges, 3) Å

    @property
    def n_centers(self) -> int:
        return len(self.first_edge) - 1

    @property
    def centers(self) -> np.ndarray:
        return np.repeat(np.arange(self.n_centers), np.diff(self.first_edge))

    def species_idx(self, student) -> np.ndarray:
        """(n_atoms,) int32, index into the student's species."""
        return student.index_of_number.numpy()[self.atomic_numbers].astype(np.int32)

    def forces(self, gradient: np.ndarray) -> np.ndarray:
        """(n_atoms, 3) from dE/d(edge_vectors)."""
        total = np.zeros((len(self.atomic_numbers), 3))
        np.add.at(total, self.centers, gradient)
        np.add.at(total, self.neighbor, -gradient)
        return total


def random_graph(student, n_neighbors, n_ghosts: int = 0, seed: int = 0) -> PairGraph:
    """Centers with so many neighbors each, picked from all atoms, in random directions.

    One edge in ten is longer than the cutoff. Each center has one within bonding distance, so that forces are
    not all tails, and those with several have one at exactly the cutoff.
    """
    rng = np.random.default_rng(seed)
    n_neighbors = np.asarray(n_neighbors)
    n_atoms, n_edges = len(n_neighbors) + n_ghosts, n_neighbors.sum()
    first_edge = np.concatenate([[0], np.cumsum(n_neighbors)]).astype(np.int64)
    directions = rng.normal(size=(n_edges, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    low, high = SHORTEST**3, (1.035 * student.cutoff) ** 3
    vectors = directions * np.cbrt(rng.uniform(low, high, n_edges))[:, None]
    bonded = first_edge[1:][n_neighbors > 0] - 1
    vectors[bonded] = directions[bonded] * rng.uniform(0.9, 1.6, len(bonded))[:, None]
    at_cutoff = first_edge[:-1][n_neighbors > 1]
    vectors[at_cutoff] = np.eye(3)[rng.integers(0, 3, len(at_cutoff))] * student.cutoff
    return PairGraph(
        rng.choice(student.species, n_atoms),
        first_edge,
        rng.integers(0, n_atoms, n_edges).astype(np.int32),
        vectors,
    )


def single_layer_graph(student, n_neighbors) -> PairGraph:
    """With ghosts where the student can have them."""
    return random_graph(student, n_neighbors, n_ghosts=3 if student.n_layers == 1 else 0)


def dimers(student, n_dimers: int, seed: int = 0) -> PairGraph:
    """Pairs of atoms, from short bonds to the cutoff in equal steps, in random directions."""
    rng = np.random.default_rng(seed)
    distances = np.linspace(0.9, student.cutoff, n_dimers)
    directions = rng.normal(size=(n_dimers, 3))
    vectors = directions * (distances / np.linalg.norm(directions, axis=1))[:, None]
    n_atoms = 2 * n_dimers
    return PairGraph(
        rng.choice(student.species, n_atoms),
        np.arange(n_atoms + 1, dtype=np.int64),
        np.arange(n_atoms, dtype=np.int32) ^ 1,
        np.stack([vectors, -vectors], axis=1).reshape(-1, 3),
    )


def symmetric_graph(atoms, cutoff: float) -> PairGraph:
    """All pairs of a structure, some beyond the cutoff; an edge and its reverse are exactly opposite."""
    i, j, shifts = neighbor_list("ijS", atoms, cutoff)
    vectors = (atoms.positions[j] - atoms.positions[i]) + shifts @ atoms.cell.array
    index = {(a, b, *shift): k for k, (a, b, shift) in enumerate(zip(i, j, shifts.tolist()))}
    reverse = [index[(b, a, -x, -y, -z)] for a, b, (x, y, z) in zip(i, j, shifts.tolist())]
    # exactly opposite vectors, whatever order the sums were made in
    vectors = np.where((np.arange(len(i)) < reverse)[:, None], vectors, -vectors[reverse])
    first_edge = np.concatenate([[0], np.cumsum(np.bincount(i, minlength=len(atoms)))]).astype(np.int64)
    return PairGraph(atoms.numbers, first_edge, j.astype(np.int32), vectors)


def kernel(student, dtype: str, instructions: str = "auto") -> cpu.CpuKernel:
    """Skips where the processor lacks the instructions."""
    try:
        return cpu.CpuKernel(student, dtype, instructions)
    except ConfigError as error:
        if "this processor has no" in str(error):
            pytest.skip(str(error))
        raise


def evaluate(kernel_: cpu.CpuKernel, student, graph: PairGraph, n_threads: int = 1):
    return kernel_.evaluate(
        graph.species_idx(student), graph.first_edge, graph.neighbor, graph.edge_vectors, n_threads=n_threads
    )


def reference(student, graph: PairGraph) -> tuple[np.ndarray, np.ndarray]:
    """Atomic energies (n_centers,) and dE/d(edge_vectors) of plain PyTorch in the student's dtype, which gets
    the edges within the cutoff alone."""
    numbers = torch.as_tensor(np.asarray(graph.atomic_numbers, dtype=np.int64))
    near = np.linalg.norm(graph.edge_vectors, axis=1) < student.cutoff
    edges = np.stack([graph.centers, graph.neighbor]).astype(np.int64)[:, near]
    gradient = np.zeros_like(graph.edge_vectors)
    energies, gradient[near] = pair_gradient(
        student,
        Graph(
            atomic_numbers=numbers,
            edge_index=torch.as_tensor(edges),
            edge_vectors=torch.as_tensor(graph.edge_vectors[near], dtype=next(student.parameters()).dtype),
            system_idx=torch.zeros_like(numbers),
            n_systems=1,
            volume=torch.full((1,), torch.nan, dtype=torch.float64),
            n_centers=graph.n_centers,
        ),
    )
    return energies.detach().numpy(), gradient
