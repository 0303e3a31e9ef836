"""The loss of a student on a batch of labelled structures."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mlffd.graph import Graph
from mlffd.predict import Prediction, from_gradient
from mlffd.train.config import TrainConfig


@dataclass(frozen=True)
class Target:
    """What the teacher said of one structure or of a batch."""

    energy: Tensor  # (n_systems,) eV, float64
    forces: Tensor  # (n_atoms, 3) eV/Å
    stress: Tensor  # (n_systems, 3, 3) eV/Å^3, ASE's sign, nan where there is none
    hessian_rows: tuple[Tensor, Tensor] | None = None  # of one structure: components (k,), (k, 3 n) eV/Å^2


def batch_targets(targets: list[Target]) -> Target:
    """Targets of several structures as one, in the order of ``mlffd.graph.batch``; without Hessian rows."""
    return Target(*(torch.cat([getattr(t, k) for t in targets]) for k in ("energy", "forces", "stress")))


def loss(prediction: Prediction, target: Target, graph: Graph, config: TrainConfig) -> Tensor:
    """Of each structure (n_systems,) float64, whatever its size, the weighted mean squares of its errors.

    Energy errors are in eV/atom, force errors in eV/Å, virial errors in eV/atom. A structure without a
    stress has no part of it. With ``config.force_scale`` errors are taken to grow with the forces: a
    structure with larger ones (root mean square of components) weighs less, by the square of the ratio.
    """
    n_atoms = torch.bincount(graph.system_idx, minlength=graph.n_systems)
    energy_error = (prediction.energy - target.energy) / n_atoms
    force_error = mean_squares(prediction.forces - target.forces, graph, n_atoms)
    total = config.energy_weight * energy_error**2 + config.force_weight * force_error
    known = torch.isfinite(target.stress).all(dim=(1, 2)) & torch.isfinite(graph.volume)
    if config.stress_weight and known.any():
        volume_per_atom = (graph.volume / n_atoms)[known, None, None]
        virial_error = (prediction.stress[known] - target.stress[known]) * volume_per_atom
        stress_loss = config.stress_weight * (virial_error**2).mean(dim=(1, 2))
        total = total.index_add(0, torch.nonzero(known)[:, 0], stress_loss)
    if config.force_scale:
        squares = mean_squares(target.forces, graph, n_atoms)
        total = total * (config.force_scale**2 / squares).clamp(max=1.0)
    return total


def mean_squares(vectors: Tensor, graph: Graph, n_atoms: Tensor) -> Tensor:
    """Of each structure (n_systems,) float64, the mean square of its atoms' ``vectors`` (n_atoms, 3)."""
    squares = (vectors**2).mean(1).double()
    return squares.new_zeros(graph.n_systems).index_add(0, graph.system_idx, squares) / n_atoms


def predict_with_hessian(student, graph: Graph, components: Tensor) -> tuple[Prediction, Tensor]:
    """The prediction, and rows of Hessians (n_atoms, 3) in eV/Å^2; both can be differentiated again.

    ``components`` are those of the batch's forces (3 n_atoms,), at most one of each structure: structures do
    not feel each other, so that one vector-Jacobian product of the forces holds a row of each. Matching rows
    drawn at random costs a fraction of matching Hessians (Amin, Raja, Krishnapriyan, "Towards fast,
    specialized machine learning force fields: distilling foundation models via energy Hessians", ICLR 2025).
    """
    edge_vectors = graph.edge_vectors.detach().requires_grad_()
    with torch.enable_grad():
        energies = student(replace(graph, edge_vectors=edge_vectors))
        (gradient,) = torch.autograd.grad(energies.sum(), edge_vectors, create_graph=True)
        prediction = from_gradient(graph, energies, gradient)
        (change,) = torch.autograd.grad(
            prediction.forces.flatten()[components].sum(), edge_vectors, create_graph=True
        )
    i, j = graph.edge_index
    rows = torch.zeros_like(prediction.forces).index_add(0, i, change).index_add(0, j, -change)
    return prediction, rows


def hessian_loss(rows: Tensor, target: Tensor, known: Tensor, graph: Graph, weight: float) -> Tensor:
    """Of each structure (n_systems,) float64, ``weight`` times the mean square of its row's errors.

    ``rows`` and ``target`` (n_atoms, 3) eV/Å^2; ``known`` (n_systems,) says where there is a row.
    """
    n_atoms = torch.bincount(graph.system_idx, minlength=graph.n_systems)
    return weight * torch.where(known, mean_squares(rows - target, graph, n_atoms), 0.0)
