# SPDX-License-Identifier: MIT
"""Graphs no simulation would offer, and the float64 reference that judges the CPU kernels on them."""

from dataclasses import dataclass

import numpy as np
import torch

from mlffd.graph import Graph
from mlffd.predict import pair_gradient

SHORTEST = 0.7  # Å; closer pairs are dominated by the repulsion, which has tests of its own


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
    """Centres with so many neighbors each, picked from all atoms, in random directions.

    One edge in ten is longer than the cutoff. Each centre has one within bonding distance, so that forces are
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


def reference(student, graph: PairGraph) -> tuple[np.ndarray, np.ndarray]:
    """Atomic energies (n_centers,) and dE/d(edge_vectors) of plain PyTorch in the student's dtype."""
    numbers = torch.as_tensor(np.asarray(graph.atomic_numbers, dtype=np.int64))
    edges = np.stack([graph.centers, graph.neighbor]).astype(np.int64)
    energies, gradient = pair_gradient(
        student,
        Graph(
            atomic_numbers=numbers,
            edge_index=torch.as_tensor(edges),
            edge_vectors=torch.as_tensor(graph.edge_vectors, dtype=next(student.parameters()).dtype),
            system_idx=torch.zeros_like(numbers),
            n_systems=1,
            volume=torch.full((1,), torch.nan, dtype=torch.float64),
            n_centers=graph.n_centers,
        ),
    )
    return energies.detach().numpy(), gradient.numpy().astype(np.float64)
