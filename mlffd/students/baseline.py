"""What every trained student stands on: element reference energies and a short-range repulsion."""

import torch
from ase.data import covalent_radii
from torch import Tensor, nn

from mlffd.graph import Graph
from mlffd.students.radial import polynomial_cutoff

COULOMB = 14.399645  # e^2 / (4 pi epsilon_0) in eV Å
REACH = 0.7  # of the sum of two covalent radii; triple bonds are 0.77 to 0.78 of it
ZBL_EXPONENTS = (3.19980, 0.94229, 0.40290, 0.20162)
ZBL_COEFFICIENTS = (0.18175, 0.50986, 0.28022, 0.02817)


class Baseline(nn.Module):
    """Reference energy of each element plus the screened nuclear repulsion of Ziegler, Biersack and Littmark.

    The repulsion ("The Stopping and Range of Ions in Solids", 1985, universal potential) is switched off
    smoothly at ``repulsion_reach``, by default well inside the shortest bonds: atoms do not feel it where the
    student has been trained, and cannot fall into each other where it has not. The reach of each pair of
    species (Å) is kept among the tensors, so that a student keeps its own when the default changes.
    """

    def __init__(self, species: tuple[int, ...], cutoff: float):
        super().__init__()
        numbers = torch.tensor(species, dtype=torch.float64)
        self.register_buffer("reference_energies", torch.zeros(len(species), dtype=torch.float64))
        radii = torch.tensor(covalent_radii[list(species)])
        reach = torch.clamp(REACH * (radii[:, None] + radii[None, :]), max=cutoff)
        self.register_buffer("repulsion_reach", reach)
        screening = 0.46850 / (numbers[:, None] ** 0.23 + numbers[None, :] ** 0.23)
        self.register_buffer("screening_length", screening, persistent=False)
        charge = numbers[:, None] * numbers[None, :]
        self.register_buffer("charge_product", charge, persistent=False)

    def forward(self, graph: Graph, species_idx: Tensor, distance: Tensor) -> Tensor:
        """(n_centers,) float64 in eV; ``species_idx`` (n_atoms,), ``distance`` (n_edges,) in Å."""
        energies = self.reference_energies.double()[species_idx[: graph.n_centers]]
        return energies + self.repulsion(graph, species_idx, distance)

    def repulsion(self, graph: Graph, species_idx: Tensor, distance: Tensor) -> Tensor:
        """Half of the repulsion of each pair goes to its center: (n_centers,) float64."""
        i, j = species_idx[graph.edge_index]
        reach = self.repulsion_reach.to(distance.dtype)[i, j]
        (close,) = torch.nonzero(distance < reach, as_tuple=True)
        if len(close) == 0:
            return distance.new_zeros(graph.n_centers, dtype=torch.float64)
        i, j, distance, reach = i[close], j[close], distance[close], reach[close]
        x = distance / self.screening_length.to(distance.dtype)[i, j]
        screening = sum(c * torch.exp(-k * x) for c, k in zip(ZBL_COEFFICIENTS, ZBL_EXPONENTS))
        charge = self.charge_product.to(distance.dtype)[i, j]
        energy = 0.5 * COULOMB * charge / distance * screening * polynomial_cutoff(distance / reach, 1.0)
        total = torch.zeros(graph.n_centers, dtype=torch.float64, device=distance.device)
        return total.index_add(0, graph.edge_index[0, close], energy.double())
