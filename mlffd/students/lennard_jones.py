"""Lennard-Jones in a student's place: an analytic function to judge the couplings by.

LAMMPS' ``lj/cut`` and mlffd must agree on it to rounding, through ASE, i-PI and ML-IAP alike.
"""

import torch
from torch import Tensor, nn

from mlffd.graph import Graph, sum_over_neighbors
from mlffd.students.student import Student


class LennardJonesStudent(Student):
    """4 epsilon ((sigma / r)^12 - (sigma / r)^6), cut off without a shift.

    ``epsilon`` in eV and ``sigma`` in Å are given for each species; unlike pairs take the geometric mean of
    both, as LAMMPS' ``pair_modify mix geometric``, its default, does.
    """

    family = "lennard_jones"

    def __init__(
        self, species: tuple[int, ...], cutoff: float, epsilon: tuple[float, ...], sigma: tuple[float, ...]
    ):
        super().__init__(species, cutoff)
        self.epsilon = nn.Parameter(torch.tensor(epsilon, dtype=torch.float64))
        self.sigma = nn.Parameter(torch.tensor(sigma, dtype=torch.float64))

    @property
    def architecture(self) -> dict:
        return dict(
            family=self.family, species=list(self.species), cutoff=self.cutoff,
            epsilon=self.epsilon.tolist(), sigma=self.sigma.tolist(),
        )  # fmt: skip

    def forward(self, graph: Graph) -> Tensor:
        i, j = self.species_idx(graph)[graph.edge_index]
        epsilon = torch.sqrt(self.epsilon[i] * self.epsilon[j])
        sigma_squared = self.sigma[i] * self.sigma[j]
        x = (sigma_squared / (graph.edge_vectors**2).sum(1)) ** 3
        return sum_over_neighbors((2.0 * epsilon * (x * x - x)).double(), graph)  # half a pair to each atom
