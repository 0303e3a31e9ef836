"""From atomic energies to energy, forces, virial and stress: one gradient with respect to edge vectors."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mlffd.graph import Graph, sum_per_system


@dataclass(frozen=True)
class StructurePrediction:
    """What a student says of one structure; NumPy, float64."""

    energy: float  # eV
    atomic_energies: np.ndarray  # (n_atoms,) eV
    forces: np.ndarray  # (n_atoms, 3) eV/Å
    virial: np.ndarray  # (3, 3) eV, -sum r ⊗ dE/dr
    stress: np.ndarray  # (3, 3) eV/Å^3, -virial / volume (ASE's sign); nan where not periodic


@dataclass(frozen=True)
class Prediction:
    """What a student says of a batch. Energies and virials are float64, forces have the student's dtype."""

    energy: Tensor  # (n_systems,) eV
    atomic_energies: Tensor  # (n_atoms,) eV
    forces: Tensor  # (n_atoms, 3) eV/Å
    virial: Tensor  # (n_systems, 3, 3) eV, -sum r ⊗ dE/dr
    stress: Tensor  # (n_systems, 3, 3) eV/Å^3, -virial / volume (ASE's sign); nan where not periodic
    system_idx: Tensor  # (n_atoms,)

    def split(self) -> list[StructurePrediction]:
        """One prediction a structure, in the order of the batch."""
        energy, virial, stress = (array(tensor) for tensor in (self.energy, self.virial, self.stress))
        first_atom = np.cumsum(np.bincount(array(self.system_idx), minlength=len(energy)))[:-1]
        atomic_energies = np.split(array(self.atomic_energies), first_atom)
        forces = np.split(array(self.forces).astype(np.float64), first_atom)
        return [
            StructurePrediction(float(energy[k]), atomic_energies[k], forces[k], virial[k], stress[k])
            for k in range(len(energy))
        ]


def array(tensor: Tensor) -> np.ndarray:
    """The tensor as a NumPy array on the host."""
    return tensor.detach().cpu().numpy()


def pair_gradient(
    student, graph: Graph, create_graph: bool = False, n_owned: int | None = None
) -> tuple[Tensor, Tensor]:
    """Atomic energies (n_centers,) in eV and dE/d(edge_vectors) (n_edges, 3) in eV/Å.

    With ``create_graph`` both can be differentiated again, as a force loss needs. With ``n_owned`` only the
    first so many energies are returned, and E is their sum.
    """
    edge_vectors = graph.edge_vectors.detach().requires_grad_()
    # an exchange is called from this thread, as MPI may want it, also where autograd has one for the GPU
    with torch.enable_grad(), torch.autograd.set_multithreading_enabled(graph.exchange is None):
        atomic_energies = student(replace(graph, edge_vectors=edge_vectors))[:n_owned]
        if not atomic_energies.requires_grad:  # no edge reached the energy: isolated atoms only
            return atomic_energies, torch.zeros_like(edge_vectors)
        (gradient,) = torch.autograd.grad(
            atomic_energies.sum(), edge_vectors, create_graph=create_graph, materialize_grads=True
        )
    return atomic_energies if create_graph else atomic_energies.detach(), gradient


def predict(student, graph: Graph, create_graph: bool = False) -> Prediction:
    """Energy, forces, virial and stress of a graph without ghosts."""
    return from_gradient(graph, *pair_gradient(student, graph, create_graph))


def from_gradient(graph: Graph, atomic_energies: Tensor, gradient: Tensor) -> Prediction:
    """The same from what ``pair_gradient`` returns."""
    i, j = graph.edge_index
    forces = torch.zeros(graph.n_atoms, 3, dtype=gradient.dtype, device=gradient.device)
    forces = forces.index_add(0, i, gradient).index_add(0, j, -gradient)
    edge_virial = -graph.edge_vectors.double()[:, :, None] * gradient.double()[:, None, :]
    virial = torch.zeros(graph.n_systems, 3, 3, dtype=torch.float64, device=gradient.device)
    virial = virial.index_add(0, graph.system_idx[i], edge_virial)
    return Prediction(
        energy=sum_per_system(atomic_energies, graph),
        atomic_energies=atomic_energies,
        forces=forces,
        virial=virial,
        stress=-virial / graph.volume[:, None, None],
        system_idx=graph.system_idx,
    )
