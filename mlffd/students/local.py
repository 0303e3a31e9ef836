"""The strictly local student: neighbor density -> channels -> invariants -> a small network per species.

The density and its power spectrum are those of the atomic cluster expansion (Drautz, Phys. Rev. B 99,
014104, 2019) and SOAP (Bartók et al., Phys. Rev. B 87, 184115, 2013), with learned radial channels.
"""

import torch
from torch import Tensor, nn

from mlffd.graph import Graph
from mlffd.students.radial import bessel_basis, spherical_harmonics
from mlffd.students.student import TrainedStudent

CALIBRATION_STRUCTURES = 50
SEPARATE_DENSITIES = 4  # up to so many species get a density each; more share learned embeddings


class LocalStudent(TrainedStudent):
    """One pass over the edges; the energy of an atom depends on its own neighbors only.

    The density of atom i is the sum over neighbors j of w_d(species j) R_n(r_ij) Y_lm(r_ij), where w is one
    weight a species for few species and a learned embedding for many.
    """

    family = "local"
    embeddings = ("neighbor_weights",)

    def __init__(
        self,
        species: tuple[int, ...],
        cutoff: float = 5.5,
        n_radial: int = 8,
        l_max: int = 3,
        channels: int = 32,
        hidden: tuple[int, ...] = (64, 64),
    ):
        super().__init__(species, cutoff)
        self.n_radial, self.l_max, self.channels, self.hidden = n_radial, l_max, channels, tuple(hidden)
        n_species = len(self.species)
        if n_species <= SEPARATE_DENSITIES:
            self.register_buffer("neighbor_weights", torch.eye(n_species))
        else:
            self.neighbor_weights = nn.Parameter(torch.randn(n_species, SEPARATE_DENSITIES))
        n_density = self.neighbor_weights.shape[1] * n_radial
        self.networks = nn.ModuleList(
            SpeciesNetwork(n_density, l_max, channels, self.hidden) for _ in self.species
        )

    @property
    def architecture(self) -> dict:
        return dict(
            family=self.family, species=list(self.species), cutoff=self.cutoff, n_radial=self.n_radial,
            l_max=self.l_max, channels=self.channels, hidden=list(self.hidden),
        )  # fmt: skip

    def interaction(self, graph: Graph, species_idx: Tensor, distance: Tensor) -> Tensor:
        density = self.density(graph, species_idx, distance)
        energies = density.new_zeros(graph.n_centers)
        for k, network in enumerate(self.networks):
            (atoms,) = torch.nonzero(species_idx[: graph.n_centers] == k, as_tuple=True)
            if len(atoms):
                energies = energies.index_copy(0, atoms, network(density[atoms]))
        return energies

    def last_features(self, graph: Graph) -> Tensor:
        """The last hidden layer of each species' network; see ``Student.last_features``."""
        species_idx = self.species_idx(graph)
        distance = torch.linalg.vector_norm(graph.edge_vectors, dim=1)
        density = self.density(graph, species_idx, distance)
        features = density.new_zeros(graph.n_centers, self.networks[0].layers[-1].in_features)
        for k, network in enumerate(self.networks):
            (atoms,) = torch.nonzero(species_idx[: graph.n_centers] == k, as_tuple=True)
            features = features.index_copy(0, atoms, network.last_features(density[atoms]))
        return features

    @torch.no_grad()
    def calibrate(self, graphs: list[Graph]) -> None:
        """Standardize each species' invariants: zero mean, unit variance over the training structures."""
        found = [[] for _ in self.networks]
        for graph in graphs[:CALIBRATION_STRUCTURES]:
            species_idx = self.species_idx(graph)
            distance = torch.linalg.vector_norm(graph.edge_vectors, dim=1)
            density = self.density(graph, species_idx, distance)
            for k, network in enumerate(self.networks):
                found[k].append(network.invariants(density[species_idx == k]))
        for network, invariants in zip(self.networks, map(torch.cat, found)):
            if len(invariants):
                network.invariant_mean.copy_(invariants.mean(0))
                spread = invariants.std(0, correction=0)
                # environments that are all alike have no spread to scale by
                floor = torch.clamp(1e-3 * spread.max(), min=1e-4)
                network.invariant_scale.copy_(1.0 / (spread + floor))

    def density(self, graph: Graph, species_idx: Tensor, distance: Tensor) -> Tensor:
        """Neighbor density (n_centers, (l_max + 1)^2, n_density)."""
        directions = graph.edge_vectors / distance[:, None]
        harmonics = spherical_harmonics(directions, self.l_max).T
        radial = bessel_basis(distance, self.cutoff, self.n_radial).T
        weights = self.neighbor_weights[species_idx[graph.edge_index[1]]]
        radial = (weights[:, :, None] * radial[:, None, :]).flatten(1)
        rows = padded_rows(graph)
        radial, harmonics = (pad(values, rows, graph.n_centers) for values in (radial, harmonics))
        return torch.bmm(harmonics.transpose(1, 2), radial)


def padded_rows(graph: Graph) -> tuple[Tensor, int]:
    """For each edge its row in a table of ``width`` rows per center, and that width (most neighbors)."""
    i = graph.edge_index[0]
    n_neighbors = torch.bincount(i, minlength=graph.n_centers)
    first_edge = torch.cumsum(n_neighbors, 0) - n_neighbors
    width = max(int(n_neighbors.max()), 1) if len(n_neighbors) else 1
    position = torch.arange(len(i), device=i.device) - first_edge[i]
    return i * width + position, width


def pad(edge_values: Tensor, rows: tuple[Tensor, int], n_centers: int) -> Tensor:
    """Edge values (n_edges, k) laid out by center and filled up with zeros: (n_centers, width, k)."""
    row, width = rows
    k = edge_values.shape[1]
    return edge_values.new_zeros(n_centers * width, k).index_copy(0, row, edge_values).view(-1, width, k)


class SpeciesNetwork(nn.Module):
    """Density of atoms of one species -> their energies: channels, invariants, multilayer perceptron."""

    def __init__(self, n_density: int, l_max: int, channels: int, hidden: tuple[int, ...]):
        super().__init__()
        self.l_max = l_max
        # two sets of channels: products between different sets say more than squares of one
        self.mixing = nn.Parameter(torch.randn(l_max + 1, n_density, 2 * channels) / n_density**0.5)
        n_invariants = channels * (2 + l_max + (2 if l_max >= 2 else 0))
        self.register_buffer("invariant_mean", torch.zeros(n_invariants))
        self.register_buffer("invariant_scale", torch.ones(n_invariants))
        sizes = [n_invariants, *hidden, 1]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        nn.init.zeros_(self.layers[-1].bias)

    def invariants(self, density: Tensor) -> Tensor:
        """Rotational invariants (n, n_invariants) of densities (n, (l_max + 1)^2, n_density)."""
        first, second = [], []
        for l in range(self.l_max + 1):  # noqa: E741
            block = density[:, l * l : (l + 1) ** 2].flatten(0, 1)  # one matrix product instead of n
            a, b = (block @ self.mixing[l]).unflatten(0, (len(density), 2 * l + 1)).chunk(2, dim=2)
            first.append(a)
            second.append(b)
        invariants = [first[0][:, 0]]
        invariants += [(a * b).sum(1) for a, b in zip(first, second)]
        if self.l_max >= 2:
            invariants += four_body(first[1], first[2])
        return torch.cat(invariants, dim=1)

    def last_features(self, density: Tensor) -> Tensor:
        """The last hidden layer (n, its size), in which energies are linear; without one the invariants."""
        features = (self.invariants(density) - self.invariant_mean) * self.invariant_scale
        for layer in self.layers[:-1]:
            features = nn.functional.silu(layer(features))
        return features

    def forward(self, density: Tensor) -> Tensor:
        return self.layers[-1](self.last_features(density))[:, 0]


def four_body(vector: Tensor, quadrupole: Tensor) -> list[Tensor]:
    """The couplings (1, 1, 2) and (2, 2, 2) of channels, as v·Q·v and det Q.

    ``vector`` (n, 3, channels) holds l = 1 in the order y, z, x and ``quadrupole`` (n, 5, channels) l = 2 in
    the order xy, yz, z^2, xz, x^2 - y^2; Q is the symmetric traceless matrix with those components.
    """
    y, z, x = vector.unbind(1)
    xy, yz, zz, xz, xx_yy = quadrupole.unbind(1)
    zz = zz * (2.0 / 3.0**0.5)  # Q_zz; with this, Q = r r^T - 1/3 up to one common factor
    xx, yy = -0.5 * zz + xx_yy, -0.5 * zz - xx_yy
    contraction = xx * x * x + yy * y * y + zz * z * z + 2.0 * (xy * x * y + yz * y * z + xz * x * z)
    determinant = xx * (yy * zz - yz * yz) - xy * (xy * zz - yz * xz) + xz * (xy * yz - yy * xz)
    return [contraction, determinant]
