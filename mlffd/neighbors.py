# SPDX-License-Identifier: MIT
"""Neighbor lists: built by vesin, with a skin, and used again while no atom has moved too far.

The only module that imports the neighbor-list library.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

import numpy as np
import vesin
from ase.geometry import complete_cell
from ase.neighborlist import primitive_neighbor_list

from mlffd.domain import LARGEST_EXTENT
from mlffd.errors import (
    EmptyStructureError,
    NonFinitePositionsError,
    ScatteredAtomsError,
    SingularCellError,
)

SMALLEST_HEIGHT = 1e-6  # Å; a periodic cell thinner than this has no meaningful images
VESIN_CELLS = 1e5
FARTHEST_IMAGE = 1e6  # cells away from the origin; vesin counts them in 32 bits
ROUNDING = 1e-9  # Å; a list that covers a structure by less is built again
LARGEST_JUMP = 1e3  # Å; an atom that comes back from farther away is for the checks of a new list
LONGEST_IDLE = 500  # structures; a list that served none of so many is dropped
LARGEST_POOL = 10_000_000  # edges of 16 bytes
MOST_TRIES = 4  # lists looked at closely before a new one is built
N_PROBES = 15  # atoms that tell from afar which lists these are
LARGEST_JOINED = 4_000_000  # edges of batches remembered, of 16 bytes; the latest is, however large
BUILDS_PER_CLEARING = 32


@dataclass(frozen=True, eq=False)
class Edges:
    """Which atoms are neighbors, in one structure or in several that lie one after the other.

    Edges are sorted by their center, and by the neighbor within a center. Every edge has its reverse: from
    the neighbor to the center, with the opposite cell shift.
    """

    first_atom: np.ndarray  # (n_systems + 1,) int64: atoms of system k are first_atom[k] to first_atom[k + 1]
    first_edge: np.ndarray  # (n_atoms + 1,) int64: edges of center i are first_edge[i] to first_edge[i + 1]
    neighbor: np.ndarray  # (n_edges,) int32
    cell_shifts: np.ndarray  # (n_edges, 3) int32

    @property
    def n_systems(self) -> int:
        return len(self.first_atom) - 1

    @property
    def n_atoms(self) -> int:
        return len(self.first_edge) - 1

    @property
    def n_edges(self) -> int:
        return len(self.neighbor)

    @cached_property
    def center(self) -> np.ndarray:
        """(n_edges,) int32."""
        return np.repeat(np.arange(self.n_atoms, dtype=np.int32), np.diff(self.first_edge))

    def vectors(self, positions: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """``positions[neighbor] - positions[center] + cell_shifts @ cell`` (n_edges, 3) in Å, float64.

        The vector of an edge is exactly the opposite of its reverse's: term by term, no matrix product,
        whose rounding may differ from row to row.

        Args:
            positions: (n_atoms, 3) in Å, in the images that the list was made for (``NeighborList.follow``).
            cells: (n_systems, 3, 3) in Å, rows are lattice vectors.
        """
        vectors = positions.take(self.neighbor, axis=0)
        vectors -= positions.take(self.center, axis=0)
        first_edge = self.first_edge[self.first_atom]
        for cell, start, end in zip(cells, first_edge[:-1], first_edge[1:]):
            a, b, c = self.cell_shifts[start:end].T[:, :, None]
            vectors[start:end] += a * cell[0] + b * cell[1] + c * cell[2]
        return vectors


def join(parts: Sequence[Edges]) -> Edges:
    """The edges of several batches as one."""
    if len(parts) == 1:
        return parts[0]
    atoms = np.cumsum([0] + [part.n_atoms for part in parts])
    edges = np.cumsum([0] + [part.n_edges for part in parts])
    start = np.zeros(1, dtype=np.int64)
    return Edges(
        first_atom=np.concatenate([start] + [p.first_atom[1:] + k for p, k in zip(parts, atoms)]),
        first_edge=np.concatenate([start] + [p.first_edge[1:] + k for p, k in zip(parts, edges)]),
        neighbor=np.concatenate([p.neighbor + np.int32(k) for p, k in zip(parts, atoms)]),
        cell_shifts=np.concatenate([p.cell_shifts for p in parts]),
    )


@dataclass(frozen=True, eq=False)
class NeighborList:
    """All pairs of one structure closer than ``cutoff + skin``, for it and for structures like it.

    Nothing in it changes once it is built, so threads may share it.
    """

    edges: Edges
    positions: np.ndarray  # (n_atoms, 3) Å, of the structure it was built from
    cell: np.ndarray  # (3, 3) Å, likewise
    pbc: np.ndarray  # (3,)
    cutoff: float  # Å
    skin: float  # Å

    def covers(self, positions: np.ndarray, cell: np.ndarray) -> bool:
        """Whether every pair that is now closer than the cutoff is in the list; see ``follow``."""
        return self.follow(positions, cell) is not None

    def follow(self, positions: np.ndarray, cell: np.ndarray) -> np.ndarray | None:
        """The positions (n_atoms, 3) in the images that the list was made for; None if it misses a pair.

        Let F be the deformation that takes the lattice vectors of the list to those of ``cell``. An atom then
        at R (a row) is now at R F + u + n @ cell: it moved along with the cell, was displaced by u, and by n
        lattice vectors, because callers wrap atoms. A pair whose vector is d now had, but for the n, the
        vector (d - u_j + u_i) F^-1 then. That is no longer than (|d| + 2 max |u|) / s, with s the smallest
        singular value of F, so no pair closer than the cutoff is missed if

            cutoff + 2 max |u| <= s (cutoff + skin).

        Args:
            positions: (n_atoms, 3) float64 in Å; those of any other number of atoms are not covered.
            cell: (3, 3) float64 in Å, rows are lattice vectors.
        """
        if positions.shape != self.positions.shape:
            return None
        expected, smallest_stretch = self.positions, 1.0
        if cell.tobytes() != self._cell_bytes:
            deformation = self._deformation(cell)
            if not np.isfinite(deformation).all():
                return None
            smallest_stretch = np.linalg.svd(deformation, compute_uv=False)[-1]
            expected = self.positions @ deformation
        farthest = (smallest_stretch * (self.cutoff + self.skin) - self.cutoff) / 2 - ROUNDING
        displacements = positions - expected
        moved = largest_norm(displacements)
        if moved <= farthest:
            return positions
        if farthest < 0 or not smallest_stretch * self._height - farthest < moved < LARGEST_JUMP:
            return None  # no other image is nearer
        jumps = np.rint(displacements @ self._inverse_cell) @ cell
        return positions - jumps if largest_norm(displacements - jumps) <= farthest else None

    def _deformation(self, cell: np.ndarray) -> np.ndarray:
        """F (3, 3): ``self.cell @ F = cell`` for the periodic rows, and as little change as that needs."""
        with np.errstate(all="ignore"):
            return np.eye(3) + self._inverse_cell @ (cell - self.cell)

    @cached_property
    def _cell_bytes(self) -> bytes:
        return self.cell.tobytes()

    @cached_property
    def _inverse_cell(self) -> np.ndarray:
        """(3, 3): Cartesian to fractional coordinates along periodic directions, 0 along others."""
        inverse = np.linalg.pinv(np.where(self.pbc[:, None], self.cell, 0.0))
        return np.where(self.pbc, inverse, 0.0)

    @cached_property
    def _height(self) -> float:
        """No lattice vector is shorter (Å)."""
        reciprocal = np.linalg.norm(self._inverse_cell[:, self.pbc], axis=0)
        return 1.0 / reciprocal.max() if len(reciprocal) else math.inf


def largest_norm(vectors: np.ndarray) -> float:
    """The norm of the longest of some vectors (n, 3); nan if one has a nan."""
    return math.sqrt(np.einsum("ij,ij->i", vectors, vectors).max())


def neighbor_list(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ordered pairs of atoms closer than ``cutoff``, periodic images included.

    Args:
        positions: (n_atoms, 3) in Å, wrapped or not.
        cell: (3, 3) in Å, rows are lattice vectors; may be zero along directions that are not periodic.
        pbc: (3,) booleans.
        cutoff: in Å.

    Returns:
        edge_index (2, n_edges) int64, sorted by the center ``edge_index[0]``;
        edge_vectors (n_edges, 3) float64, ``positions[j] - positions[i] + cell_shifts @ cell``;
        cell_shifts (n_edges, 3) int32.

    Raises:
        EmptyStructureError, NonFinitePositionsError, SingularCellError, ScatteredAtomsError: vesin itself
            would end the process on these, or silently find no neighbors.
    """
    built = build(positions, cell, pbc, cutoff)
    edge_index = np.stack([built.edges.center, built.edges.neighbor]).astype(np.int64)
    return edge_index, built.edges.vectors(built.positions, built.cell[None]), built.edges.cell_shifts


def build(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float, skin: float = 0.0
) -> NeighborList:
    """The neighbor list of one structure; arguments and errors are those of ``neighbor_list``."""
    positions = np.array(positions, dtype=np.float64, order="C")
    cell = np.array(cell, dtype=np.float64).reshape(3, 3)
    pbc = np.array(np.broadcast_to(np.asarray(pbc, dtype=bool), (3,)))
    i, j, cell_shifts = half_list(positions, cell, pbc, cutoff + skin)
    return NeighborList(with_reverse(i, j, cell_shifts, len(positions)), positions, cell, pbc, cutoff, skin)


def half_list(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each pair once: i (n_pairs,), j (n_pairs,), cell_shifts (n_pairs, 3); errors as ``neighbor_list``."""
    if len(positions) == 0:
        raise EmptyStructureError("the structure has no atoms")
    cell = checked_cell(cell, pbc)
    if not np.isfinite(positions).all():
        atom = int(np.argmax(~np.isfinite(positions).all(axis=1)))
        raise NonFinitePositionsError(f"position of atom {atom} is not finite: {positions[atom].tolist()} Å")
    check_extent(positions, cell, pbc)
    if breaks_vesin(positions, cell, pbc, cutoff):
        i, j, cell_shifts = primitive_neighbor_list("ijS", pbc, cell, positions, cutoff)
        a, b, c = cell_shifts.T
        first = (i < j) | (i == j) & ((a > 0) | (a == 0) & ((b > 0) | (b == 0) & (c > 0)))
        return i[first], j[first], cell_shifts[first].astype(np.int32)
    calculator = vesin.NeighborList(cutoff=float(cutoff), full_list=False)
    return calculator.compute(positions, cell, pbc, "ijS")


def with_reverse(i: np.ndarray, j: np.ndarray, cell_shifts: np.ndarray, n_atoms: int) -> Edges:
    """The sorted edges of pairs (n_pairs,) of which one direction is given."""
    i, j = i.astype(np.int32), j.astype(np.int32)
    center, neighbor = np.concatenate([i, j]), np.concatenate([j, i])
    order = stable_order(neighbor, n_atoms)
    order = order.take(stable_order(center.take(order), n_atoms))
    return Edges(
        first_atom=np.array([0, n_atoms], dtype=np.int64),
        first_edge=np.concatenate([[0], np.cumsum(np.bincount(center, minlength=n_atoms))]),
        neighbor=neighbor.take(order),
        cell_shifts=np.concatenate([cell_shifts, -cell_shifts]).take(order, axis=0),
    )


def stable_order(index: np.ndarray, end: int) -> np.ndarray:
    """Stable argsort of whole numbers (n,) from 0 to below ``end``: 16 bits at a time, NumPy's fast case."""
    order = np.argsort(index.astype(np.uint16), kind="stable")
    if end > 2**16:
        order = order.take(stable_order(index.take(order) >> 16, (end >> 16) + 1))
    return order


@dataclass(eq=False)
class KeptList:
    """A neighbor list, and when it was last used."""

    neighbor_list: NeighborList
    last_used: int = 0

    def __post_init__(self):
        self.pbc = self.neighbor_list.pbc.tobytes()
        self.n_atoms = self.neighbor_list.edges.n_atoms
        self.n_edges = self.neighbor_list.edges.n_edges


@dataclass(frozen=True, eq=False)
class Pool:
    """Kept lists, oldest first, and where some atoms of each were when it was built."""

    lists: tuple[KeptList, ...] = ()
    probes: np.ndarray = field(default_factory=lambda: np.zeros((0, N_PROBES, 3)))  # (n_lists, N_PROBES, 3) Å

    def with_list(self, new: KeptList) -> "Pool":
        """One more."""
        probe = probed(new.neighbor_list.positions)[None]
        return Pool((*self.lists, new), np.concatenate([self.probes, probe]))

    def only(self, numbers: Sequence[int]) -> "Pool":
        """Those of these numbers, in their order."""
        return Pool(tuple(self.lists[k] for k in numbers), self.probes[list(numbers)])

    def nearest(self, positions: np.ndarray, within: float) -> Iterator[KeptList]:
        """Lists whose atoms have mostly moved by no more than ``within`` (Å), nearest first.

        Beads of a path integral differ by less than they may move, and arrive in any order. The median
        overlooks atoms that a caller has wrapped to the other side of the cell since.
        """
        if len(positions) == 0 or not self.lists:
            return
        moved = np.abs(self.probes - probed(positions)).max(axis=2)
        moved.sort(axis=1)
        median = moved[:, N_PROBES // 2]
        for k in np.argsort(median, kind="stable"):
            if not median[k] <= within:
                return
            if self.lists[k].n_atoms == len(positions):
                yield self.lists[k]


def probed(positions: np.ndarray) -> np.ndarray:
    """Some of the positions: (N_PROBES, 3), the same ones for the same number of atoms."""
    return positions.take(np.arange(N_PROBES) * len(positions) // N_PROBES, axis=0)


class NeighborLists:
    """Neighbor lists that are kept, so that a structure close to one seen before need not wait for its own.

    Each step of a run finds the list of the step before, the structures of a batch find each their own, and
    beads of a path integral share one where they are close enough. Lists that serve nothing are dropped.

    Threads may share it: they replace what they do not change in place, and the worst that they can do to
    each other is to build a list twice.

    Args:
        cutoff: in Å.
        skin: in Å; 0 builds a list for every structure.
    """

    def __init__(self, cutoff: float, skin: float):
        self.cutoff, self.skin = cutoff, skin
        self.n_builds = 0  # lists built so far
        self._n_seen = 0
        self._pool = Pool()
        self._by_place: dict[int, KeptList] = {}
        self._joined: dict[tuple[int, ...], tuple[list[NeighborList], Edges]] = {}

    def __getstate__(self) -> dict:
        """A copy starts without joined edges: it would find them by the ids of other objects."""
        return {**self.__dict__, "_joined": {}}

    def find(
        self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, place: int = 0
    ) -> tuple[NeighborList, np.ndarray]:
        """A list that covers a structure, built if there is none.

        Args:
            positions: (n_atoms, 3) in Å, wrapped or not.
            cell: (3, 3) float64 in Å, rows are lattice vectors.
            pbc: (3,) booleans.
            place: which of several structures it is; the list last found for this place is tried first.

        Returns:
            The list, and the positions (n_atoms, 3) in the images that it was made for.

        Raises:
            StructureError: see ``neighbor_list``.
        """
        positions = np.ascontiguousarray(positions, dtype=np.float64)
        if self.skin == 0:
            self.n_builds += 1
            return build(positions, cell, pbc, self.cutoff), positions
        self._n_seen += 1
        kept, followed = self._search(positions, cell, pbc.tobytes(), place)
        if kept is None:
            kept, followed = KeptList(build(positions, cell, pbc, self.cutoff, self.skin)), positions
            self.n_builds += 1
            self._keep(kept)
        kept.last_used = self._n_seen
        self._by_place[place] = kept
        return kept.neighbor_list, followed

    def join(self, lists: list[NeighborList]) -> Edges:
        """The edges of several structures as one; remembered, because the next step often asks again."""
        if len(lists) == 1:
            return lists[0].edges
        key = tuple(map(id, lists))
        known = self._joined.get(key)
        if known is None:
            known = lists, join([one.edges for one in lists])
            self._remember(key, known)
        return known[1]

    def _remember(self, key: tuple[int, ...], known: tuple[list[NeighborList], Edges]) -> None:
        """Add a batch, and drop the oldest of too many."""
        newest_first = [(key, known), *reversed(self._joined.items())]
        n_edges = np.cumsum([edges.n_edges for _, (_, edges) in newest_first])
        n_kept = max(int(np.searchsorted(n_edges, LARGEST_JOINED, side="right")), 1)
        self._joined = dict(reversed(newest_first[:n_kept]))

    def _search(
        self, positions: np.ndarray, cell: np.ndarray, pbc: bytes, place: int
    ) -> tuple[KeptList | None, np.ndarray | None]:
        """A kept list that covers the structure, and the positions as it follows them; None if none does."""
        for kept in islice(self._candidates(positions, pbc, place), MOST_TRIES):
            followed = kept.neighbor_list.follow(positions, cell)
            if followed is not None:
                return kept, followed
        return None, None

    def _candidates(self, positions: np.ndarray, pbc: bytes, place: int) -> Iterator[KeptList]:
        """The list of this place; then others, those first whose atoms have moved least."""
        latest = self._by_place.get(place)
        if latest is not None and latest.pbc == pbc:
            yield latest
        for kept in self._pool.nearest(positions, self.skin / 2):
            if kept.pbc == pbc and kept is not latest:
                yield kept

    def _keep(self, new: KeptList) -> None:
        """Add a list; now and then drop those idle for long, and the longest idle of too many."""
        pool = self._pool.with_list(new)
        n_edges = sum(kept.n_edges for kept in pool.lists)
        if n_edges > LARGEST_POOL or self.n_builds % BUILDS_PER_CLEARING == 0:
            pool = self._cleared(pool, n_edges)
            alive = set(map(id, pool.lists))
            self._by_place = {place: one for place, one in list(self._by_place.items()) if id(one) in alive}
        self._pool = pool

    def _cleared(self, pool: Pool, n_edges: int) -> Pool:
        """The pool, of ``n_edges`` in all, without what has to go; the newest list stays."""
        by_use = sorted(range(len(pool.lists) - 1), key=lambda k: pool.lists[k].last_used)
        idle_since = self._n_seen - LONGEST_IDLE
        while by_use and (n_edges > LARGEST_POOL or pool.lists[by_use[0]].last_used < idle_since):
            n_edges -= pool.lists[by_use.pop(0)].n_edges
        return pool.only([*by_use, len(pool.lists) - 1])


def breaks_vesin(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> bool:
    """Whether the structure is so large along some directions and so thin along others that vesin divides by
    zero: it limits the cells of its grid to 10^5 by shrinking all three numbers of cells, down to none."""
    heights = np.where(pbc, 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0), np.ptp(positions, axis=0))
    n_cells = np.maximum(heights / cutoff, 1.0)
    shrink = (VESIN_CELLS / n_cells.prod()) ** (1 / 3)
    return bool(shrink < 1.0 and n_cells.min() * shrink < 2.0)  # 2 rather than 1: on the safe side


def check_extent(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
    """Refuse atoms so far away that only an exploded run can have put them there.

    Raises:
        ScatteredAtomsError: naming the atom.
    """
    fractional = np.linalg.solve(cell.T, positions.T).T
    far = ((np.abs(fractional) > FARTHEST_IMAGE) & pbc).any(axis=1)
    if not pbc.all():
        far |= np.abs(positions - np.median(positions, axis=0)).max(axis=1) > LARGEST_EXTENT
    if far.any():
        atom = int(np.argmax(far))
        raise ScatteredAtomsError(
            f"atom {atom} at {positions[atom].tolist()} Å is far from all others; did the run explode?"
        )


def checked_cell(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The cell (3, 3) in Å with directions that are not periodic filled in, so that it can be inverted.

    Raises:
        NonFinitePositionsError: an entry is NaN or infinite.
        SingularCellError: a periodic direction has no extent.
    """
    cell = np.array(cell, dtype=np.float64).reshape(3, 3)
    if not np.isfinite(cell).all():
        raise NonFinitePositionsError(f"the cell is not finite: {cell.tolist()} Å")
    if not pbc.any():
        return np.eye(3)
    cell[~pbc] = 0.0  # a direction that is not periodic has no images: its vector plays no part
    if np.linalg.matrix_rank(cell, tol=SMALLEST_HEIGHT) < pbc.sum():
        axes = "".join(axis for axis, periodic in zip("abc", pbc) if periodic)
        raise SingularCellError(
            f"the cell has no extent along its periodic directions ({axes}): {cell.tolist()} Å; "
            "set the cell, or pbc=False"
        )
    return np.array(complete_cell(cell), dtype=np.float64)
