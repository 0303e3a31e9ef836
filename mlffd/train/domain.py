# SPDX-License-Identifier: MIT
"""What a bundle records of the frames that it was trained on, in the entries of mlffd/domain.py."""

import numpy as np
import torch

from mlffd.domain import center_name, pair_name
from mlffd.graph import Graph
from mlffd.predict import array, pair_gradient
from mlffd.students.student import Student
from mlffd.train.loss import Target

DIGITS = 5
# One frame in twenty may go beyond a limit. Rounds of sampling by a student bring in frames from the brink of
# a collapse, to teach it better; they say nothing of where it can be trusted.
BEYOND = 0.05


def training_domain(student: Student, frames: list[tuple[Graph, Target]]) -> dict:
    """The entry of the metadata for a student that was trained on ``frames``."""
    shortest, neighbors, pair_forces, forces = {}, {}, [], []
    for graph, target in frames:
        for name, distance in shortest_distances(graph).items():
            shortest.setdefault(name, []).append(distance)
        for name, (fewest, most) in neighbor_counts(graph, student.species).items():
            before = neighbors.get(name, (fewest, most))
            neighbors[name] = [min(fewest, before[0]), max(most, before[1])]
        gradient = pair_gradient(student, graph)[1].detach()
        pair_forces.append(largest_norm(gradient))
        forces.append(largest_norm(target.forces))
    domain = {"largest_pair_force": usual_largest(pair_forces), "largest_force": usual_largest(forces)}
    domain = {name: rounded(value) for name, value in domain.items() if value > 0.0}
    shortest = {name: rounded(-usual_largest([-d for d in shortest[name]])) for name in sorted(shortest)}
    return {"shortest_distance": shortest, "neighbors": neighbors, **domain}


def shortest_distances(graph: Graph) -> dict[str, float]:
    """Å, by pair of elements; those without an edge are left out. An edge's reverse is an edge, too."""
    pairs = array(graph.atomic_numbers[graph.edge_index])  # (2, n_edges)
    distances = array(torch.linalg.vector_norm(graph.edge_vectors, dim=1))
    kinds, kind_of_edge = np.unique(pairs, axis=1, return_inverse=True)
    of_kind = np.full(kinds.shape[1], np.inf)
    np.minimum.at(of_kind, kind_of_edge.ravel(), distances)
    return {pair_name(*kind): float(distance) for kind, distance in zip(kinds.T.tolist(), of_kind)}


def neighbor_counts(graph: Graph, species: tuple[int, ...]) -> dict[str, tuple[int, int]]:
    """The fewest and the most neighbors of an atom within the cutoff, by elements of center and neighbor."""
    numbers, (i, j) = array(graph.atomic_numbers), array(graph.edge_index)
    found = {}
    for neighbor in species:
        counts = np.bincount(i[numbers[j] == neighbor], minlength=len(numbers))
        for center in set(species) & set(numbers.tolist()):
            of_center = counts[numbers == center]
            found[center_name(center, neighbor)] = int(of_center.min()), int(of_center.max())
    return found


def usual_largest(values: list[float]) -> float:
    """The least of the values that at most BEYOND of them exceed; the largest of up to twenty."""
    return float(np.quantile(values, 1.0 - BEYOND, method="higher"))


def largest_norm(vectors: torch.Tensor) -> float:
    """Of vectors (n, 3); 0 where there are none."""
    return float(torch.linalg.vector_norm(vectors.double(), dim=1).max()) if len(vectors) else 0.0


def rounded(value: float) -> float:
    """To as many digits as survive another order of summation."""
    return float(f"{value:.{DIGITS}g}")
