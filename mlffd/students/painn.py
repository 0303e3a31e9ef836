"""PaiNN: equivariant message passing with scalar and vector features.

Schütt, Unke, Gastegger, "Equivariant message passing for the prediction of tensorial properties and
molecular spectra", ICML 2021. Equations are cited as there.
"""

import torch
from torch import Tensor, nn

from mlffd.graph import Graph, sum_over_neighbors, with_ghosts
from mlffd.students.radial import bessel_basis
from mlffd.students.student import TrainedStudent


class PainnStudent(TrainedStudent):
    """``layers`` rounds of messages with ``features`` scalar and vector channels."""

    family = "painn"
    embeddings = ("embedding.weight",)

    def __init__(
        self,
        species: tuple[int, ...],
        cutoff: float = 5.0,
        n_radial: int = 20,
        features: int = 64,
        layers: int = 2,
    ):
        super().__init__(species, cutoff)
        self.n_radial, self.features, self.n_layers = n_radial, features, layers
        self.embedding = nn.Embedding(len(self.species), features)
        self.messages = nn.ModuleList(Message(features, n_radial) for _ in range(layers))
        self.updates = nn.ModuleList(Update(features) for _ in range(layers))
        self.readout = two_layers(features, features // 2, 1)

    @property
    def architecture(self) -> dict:
        return dict(
            family=self.family, species=list(self.species), cutoff=self.cutoff, n_radial=self.n_radial,
            features=self.features, layers=self.n_layers,
        )  # fmt: skip

    def interaction(self, graph: Graph, species_idx: Tensor, distance: Tensor) -> Tensor:
        return self.readout(self.scalars(graph, species_idx, distance))[:, 0]

    def last_features(self, graph: Graph) -> Tensor:
        """The hidden layer of the readout; see ``Student.last_features``."""
        distance = torch.linalg.vector_norm(graph.edge_vectors, dim=1)
        return self.readout[:-1](self.scalars(graph, self.species_idx(graph), distance))

    def scalars(self, graph: Graph, species_idx: Tensor, distance: Tensor) -> Tensor:
        """Scalar features (n_centers, features) after all messages."""
        if self.n_layers > 1 and graph.n_centers != graph.n_atoms and graph.exchange is None:
            raise ValueError(
                f"messages travel {self.n_layers} edges far: with ghost atoms they need an exchange"
            )
        directions = graph.edge_vectors / distance[:, None]
        radial = bessel_basis(distance, self.cutoff, self.n_radial).T
        scalars = self.embedding(species_idx)
        vectors = None  # zero before the first message
        for layer, (message, update) in enumerate(zip(self.messages, self.updates)):
            if layer > 0:  # the first features of ghosts are known from their species
                scalars, vectors = with_ghosts(graph, scalars, vectors)
            scalars, vectors = message(graph, directions, radial, scalars, vectors)
            scalars, vectors = update(scalars, vectors)
        return scalars


class Message(nn.Module):
    """Scalars and vectors gathered from neighbors (eqs. 7 and 8)."""

    def __init__(self, features: int, n_radial: int):
        super().__init__()
        self.network = two_layers(features, features, 3 * features)
        # no bias: the filters vanish smoothly at the cutoff, as the radial basis does
        self.filters = nn.Linear(n_radial, 3 * features, bias=False)

    def forward(
        self, graph: Graph, directions: Tensor, radial: Tensor, scalars: Tensor, vectors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Features (n_centers, features) and (n_centers, 3, features); ``vectors`` None: all are zero."""
        j = graph.edge_index[1]
        of_atoms, filters = self.network(scalars).chunk(3, dim=1), self.filters.weight.chunk(3)
        # in pieces of (n_edges, features): a third less time in training than (n_edges, 3, features) at once
        to_scalars = of_atoms[0][j] * (radial @ filters[0].T)
        scalars = scalars[: graph.n_centers] + sum_over_neighbors(to_scalars, graph)
        from_directions = of_atoms[2][j] * (radial @ filters[2].T)
        to_vectors = [along[:, None] * from_directions for along in directions.unbind(1)]
        if vectors is not None:
            from_vectors = of_atoms[1][j] * (radial @ filters[1].T)
            to_vectors = [to + of[j] * from_vectors for to, of in zip(to_vectors, vectors.unbind(1))]
        change = torch.stack([sum_over_neighbors(to, graph) for to in to_vectors], dim=1)
        return scalars, change if vectors is None else vectors[: graph.n_centers] + change


class Update(nn.Module):
    """Scalars and vectors of one atom mixed (eqs. 9 and 10)."""

    def __init__(self, features: int):
        super().__init__()
        self.mix = nn.Linear(features, 2 * features, bias=False)
        self.network = two_layers(2 * features, features, 3 * features)

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        left, right = self.mix(vectors).chunk(2, dim=2)
        # the small constant keeps the derivative of the norm finite where an atom has no neighbors
        norm = torch.sqrt((right * right).sum(1) + 1e-8)
        weights = self.network(torch.cat([scalars, norm], dim=1))
        scale_vectors, scale_product, add = weights.chunk(3, dim=1)
        scalars = scalars + scale_product * (left * right).sum(1) + add
        return scalars, vectors + scale_vectors[:, None, :] * left


def two_layers(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    """Linear, SiLU, linear."""
    return nn.Sequential(nn.Linear(n_in, n_hidden), nn.SiLU(), nn.Linear(n_hidden, n_out))
