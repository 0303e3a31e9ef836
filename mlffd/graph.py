"""The one type a student sees: atoms, edges and edge vectors, of one structure or of many."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from ase import Atoms
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlffd.neighbors import Edges, build


class Exchange(Protocol):
    """How ghosts get their owners' values, and hand gradients back; both change ``rows`` in place.

    ``rows`` (n_atoms, n_values) is contiguous, float32 or float64, and lent for the call. A student that
    passes messages calls each n_layers - 1 times in an evaluation, also where there are no atoms, edges or
    ghosts, so that the calls may be collective: every rank has to evaluate.

    PyTorch tensors of a GPU are copied to the host and back, unless the exchange says ``on_device = True``:
    then plain PyTorch hands over its tensors as they are.
    """

    def forward(self, rows: np.ndarray) -> None:
        """Copy the rows of owners to their ghosts."""

    def reverse(self, rows: np.ndarray) -> None:
        """Add the rows of ghosts to those of their owners."""


@dataclass(frozen=True)
class Graph:
    """Atoms and their neighbors within a cutoff; several structures lie one after the other.

    ``i, j = edge_index``: ``i`` is the center, ``j`` the neighbor, and edges are sorted by ``i``.
    Atoms from ``n_centers`` on are ghosts: neighbors only, without edges or energy of their own (LAMMPS).
    """

    atomic_numbers: Tensor  # (n_atoms,) int64
    edge_index: Tensor  # (2, n_edges) int64
    edge_vectors: Tensor  # (n_edges, 3) Å
    system_idx: Tensor  # (n_atoms,) int64
    n_systems: int
    volume: Tensor  # (n_systems,) Å^3 float64, nan where not periodic in three directions
    n_centers: int
    exchange: Exchange | None = None  # where ghosts belong to atoms of other graphs

    @property
    def n_atoms(self) -> int:
        return self.atomic_numbers.shape[0]

    @property
    def n_edges(self) -> int:
        return self.edge_index.shape[1]


def from_atoms(
    atoms: Atoms, cutoff: float, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Graph:
    """The graph of one ASE structure.

    Distances are formed in float64 and only then cast, so that atoms far outside the cell lose nothing.

    Raises:
        StructureError: see ``mlffd.neighbors.neighbor_list``.
    """
    one = build(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    vectors = one.edges.vectors(one.positions, one.cell[None])
    volume = abs(np.linalg.det(one.cell)) if one.pbc.all() else np.nan
    return from_edges(one.edges, vectors, atoms.numbers, np.array([volume]), cutoff, dtype, device)


def from_edges(
    edges: Edges,
    edge_vectors: np.ndarray,
    atomic_numbers: np.ndarray,
    volumes: np.ndarray,
    cutoff: float,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Graph:
    """The graph of structures whose edges are known; those that reach the cutoff or beyond are left out.

    Args:
        edges: of all structures.
        edge_vectors: (n_edges, 3) float64 in Å.
        atomic_numbers: (n_atoms,).
        volumes: (n_systems,) in Å^3, nan where not periodic in three directions.
    """
    near = np.flatnonzero(np.einsum("ij,ij->i", edge_vectors, edge_vectors) < cutoff**2)
    edge_index = np.stack([edges.center.take(near), edges.neighbor.take(near)])
    system_idx = np.repeat(np.arange(edges.n_systems), np.diff(edges.first_atom))
    return Graph(
        atomic_numbers=torch.as_tensor(atomic_numbers, dtype=torch.int64, device=device),
        edge_index=torch.as_tensor(edge_index, dtype=torch.int64, device=device),
        edge_vectors=torch.as_tensor(edge_vectors.take(near, axis=0), dtype=dtype, device=device),
        system_idx=torch.as_tensor(system_idx, dtype=torch.int64, device=device),
        n_systems=edges.n_systems,
        volume=torch.as_tensor(volumes, device=device),
        n_centers=edges.n_atoms,
    )


def batch(graphs: Sequence[Graph]) -> Graph:
    """Several graphs, of any sizes, as one; without ghosts.

    Raises:
        ValueError: no graph, or one with ghosts.
    """
    if not graphs or any(graph.n_centers != graph.n_atoms for graph in graphs):
        raise ValueError("batch takes at least one graph, and none with ghosts")
    if len(graphs) == 1:
        return graphs[0]
    first_atom = np.cumsum([0] + [graph.n_atoms for graph in graphs])
    first_system = np.cumsum([0] + [graph.n_systems for graph in graphs])
    return Graph(
        atomic_numbers=torch.cat([graph.atomic_numbers for graph in graphs]),
        edge_index=torch.cat([g.edge_index + int(k) for g, k in zip(graphs, first_atom)], dim=1),
        edge_vectors=torch.cat([graph.edge_vectors for graph in graphs]),
        system_idx=torch.cat([g.system_idx + int(k) for g, k in zip(graphs, first_system)]),
        n_systems=int(first_system[-1]),
        volume=torch.cat([graph.volume for graph in graphs]),
        n_centers=int(first_atom[-1]),
    )


def sum_over_neighbors(edge_values: Tensor, graph: Graph) -> Tensor:
    """Sum values of edges (n_edges, ...) over the neighbors of each center: (n_centers, ...)."""
    total = edge_values.new_zeros(graph.n_centers, *edge_values.shape[1:])
    return total.index_add(0, graph.edge_index[0], edge_values)


def sum_per_system(atom_values: Tensor, graph: Graph) -> Tensor:
    """Sum values of centers (n_centers, ...) over the atoms of each structure: (n_systems, ...)."""
    total = atom_values.new_zeros(graph.n_systems, *atom_values.shape[1:])
    return total.index_add(0, graph.system_idx[: graph.n_centers], atom_values)


def with_ghosts(graph: Graph, *features: Tensor) -> tuple[Tensor, ...]:
    """Features of centers (n_centers, ...) with those of the ghosts, from their owners: (n_atoms, ...) each.

    One ``forward`` of the graph's exchange for all of them together, and one ``reverse`` when the result is
    differentiated: also where nothing is here to differentiate, if only the features depend on the edge
    vectors in form. Without an exchange they stay as they are.
    """
    if graph.exchange is None:
        return features
    flat = [feature.flatten(1) for feature in features]
    rows = GhostRows.apply(torch.cat(flat, dim=1), graph.n_atoms, graph.exchange)
    parts = rows.split([part.shape[1] for part in flat], dim=1)
    return tuple(part.reshape(graph.n_atoms, *f.shape[1:]) for part, f in zip(parts, features))


class GhostRows(torch.autograd.Function):
    """Rows of the centers, followed by those of the ghosts that an exchange fills in."""

    @staticmethod
    def forward(context, own: Tensor, n_atoms: int, exchange: Exchange) -> Tensor:
        context.n_centers, context.exchange = len(own), exchange
        rows = own.new_zeros(n_atoms, own.shape[1])
        rows[: len(own)] = own
        return exchanged(exchange, exchange.forward, rows)

    @staticmethod
    @once_differentiable
    def backward(context, gradient: Tensor) -> tuple[Tensor, None, None]:
        exchange, rows = context.exchange, gradient.clone(memory_format=torch.contiguous_format)
        return exchanged(exchange, exchange.reverse, rows)[: context.n_centers], None, None


def exchanged(exchange: Exchange, call: Callable, rows: Tensor) -> Tensor:
    """``rows`` after a call of the exchange, which gets them as it wants them."""
    if getattr(exchange, "on_device", False):
        call(rows)
        return rows
    on_host = rows.cpu()  # these rows themselves where they are on the host
    call(on_host.numpy())
    return on_host.to(rows.device)
