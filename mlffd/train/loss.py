"""The loss of a student on a batch of labelled structures."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mlffd.graph import Graph
from mlffd.predict import Prediction


@dataclass(frozen=True)
class Target:
    """What the teacher said of one structure or of a batch."""

    energy: Tensor  # (n_systems,) eV, float64
    forces: Tensor  # (n_atoms, 3) eV/Å
    stress: Tensor  # (n_systems, 3, 3) eV/Å^3, ASE's sign, nan where there is none


def batch_targets(targets: list[Target]) -> Target:
    """Targets of several structures as one, in the order of ``mlffd.graph.batch``."""
    return Target(*(torch.cat([getattr(t, k) for t in targets]) for k in ("energy", "forces", "stress")))


def loss(
    prediction: Prediction,
    target: Target,
    graph: Graph,
    energy_weight: float,
    force_weight: float,
    stress_weight: float,
) -> Tensor:
    """Weighted mean squares of energy errors (eV/atom), force errors (eV/Å) and virial errors (eV/atom).

    Every structure counts the same, whatever its size.
    """
    n_atoms = torch.bincount(graph.system_idx, minlength=graph.n_systems)
    energy_error = (prediction.energy - target.energy) / n_atoms
    atom_weight = 1.0 / (3.0 * n_atoms[graph.system_idx] * graph.n_systems)
    force_error = ((prediction.forces - target.forces) ** 2).sum(1) * atom_weight
    total = energy_weight * (energy_error**2).mean() + force_weight * force_error.sum()
    known = torch.isfinite(target.stress).all(dim=(1, 2)) & torch.isfinite(graph.volume)
    if stress_weight and known.any():
        volume_per_atom = (graph.volume / n_atoms)[known, None, None]
        virial_error = (prediction.stress[known] - target.stress[known]) * volume_per_atom
        total = total + stress_weight * (virial_error**2).mean()
    return total
