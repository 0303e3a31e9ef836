# SPDX-License-Identifier: MIT
"""Ghost atoms as rows of their owners, for students that pass messages.

A ghost atom is an image of an atom that some rank owns, and all images of an atom have the same features,
for features do not depend on where an atom is but on where its neighbors are. So a rank has one row for
each atom that it owns and one for each atom of other ranks that it sees, however many images of it. Between
two layers the latter get their owners' features (forward), and in the backward pass their gradients are
added to their owners' (reverse), which is the adjoint.

Who owns an atom is found by rendezvous: every rank tells the rank ``tag % n_ranks`` which atoms it owns, and
asks there for the atoms that it sees. No rank holds a table of all atoms.
"""

import numpy as np

from mlffd.drivers.lammps_instance import LammpsInstance
from mlffd.drivers.lammps_ranks import on_any_rank
from mlffd.errors import ConfigError

_FORWARD, _REVERSE = 7351, 7352  # tags of messages


class GhostExchange:
    """Who owns what, found by atom ids, and the messages between ranks.

    ``update``, ``forward`` and ``reverse`` are collective: all ranks must call them, also those that own
    nothing.

    Args:
        communicator: mpi4py's, of all ranks of this LAMMPS; None for one rank.

    Attributes:
        row_of_atom: (n_all,) int32. Local atom i is row i. A ghost has the row of the local atom that it is
            an image of, or one of the rows from n_local on: one for each atom of other ranks.
        n_rows: number of rows.
        n_local: atoms that this rank owns; -1 before the first update.
        n_updates: how many times the plan was made anew.
    """

    def __init__(self, communicator):
        self.communicator = communicator
        self.n_ranks = 1 if communicator is None else communicator.Get_size()
        self.row_of_atom = np.zeros(0, np.int32)
        self.n_rows = self.n_updates = 0
        self._tags, self.n_local = np.zeros(0, np.int64), -1
        self._receives: list[tuple[int, slice]] = []  # owner, its rows here
        self._sends: list[tuple[int, np.ndarray]] = []  # rank, rows that it sees

    def update(self, tags: np.ndarray, n_local: int) -> None:
        """Follow the atoms; cheap where no rank has got other atoms.

        Args:
            tags: (n_all,) int64, atom ids, ghosts last.
            n_local: atoms that this rank owns.

        Raises:
            ConfigError: a ghost is an image of an atom that no rank owns.
        """
        changed = n_local != self.n_local or not np.array_equal(tags, self._tags)
        if on_any_rank(changed, self.communicator):
            self._plan(tags, n_local)
            self._tags, self.n_local = tags.copy(), n_local
            self.n_updates += 1

    def forward(self, rows: np.ndarray) -> None:
        """Rows (n_rows, n_values) from n_local on get their owners' values; in place.

        ``rows`` are C-contiguous float32 or float64.
        """
        self._check(rows)
        self._pass(
            [(rank, rows[seen]) for rank, seen in self._sends],
            [(rank, rows[place]) for rank, place in self._receives],
            _FORWARD,
        )

    def reverse(self, rows: np.ndarray) -> None:
        """Rows (n_rows, n_values) from n_local on are added to their owners' rows; in place.

        ``rows`` are C-contiguous float32 or float64. The rows from n_local on stay as they are.
        """
        self._check(rows)
        arrived = [(rank, np.empty((len(seen), rows.shape[1]), rows.dtype)) for rank, seen in self._sends]
        self._pass([(rank, rows[place]) for rank, place in self._receives], arrived, _REVERSE)
        for (_, seen), (_, values) in zip(self._sends, arrived):
            rows[seen] += values  # a rank sees an atom once

    def _check(self, rows: np.ndarray) -> None:
        if rows.ndim != 2 or len(rows) != self.n_rows or not rows.flags.c_contiguous:
            raise ValueError(f"rows must be a C-contiguous ({self.n_rows}, n) array, not {rows.shape}")

    def _pass(self, sends: list, receives: list, tag: int) -> None:
        """Send and receive arrays, each with the rank at the other end."""
        requests = [self.communicator.Irecv(values, rank, tag) for rank, values in receives]
        requests += [self.communicator.Isend(values, rank, tag) for rank, values in sends]
        for request in requests:
            request.Wait()

    def _plan(self, tags: np.ndarray, n_local: int) -> None:
        local = tags[:n_local]
        foreign = np.setdiff1d(tags[n_local:], local)
        owner, row_there = self._find_owners(local, foreign)
        order = np.lexsort((row_there, owner))  # what one owner sends lands in one piece
        tag_of_row = np.concatenate([local, foreign[order]])
        self.n_rows = len(tag_of_row)
        self.row_of_atom = _places(tags, tag_of_row).astype(np.int32)
        counts = np.bincount(owner, minlength=self.n_ranks)
        ends = n_local + np.cumsum(counts)
        self._receives = [
            (rank, slice(ends[rank] - counts[rank], ends[rank])) for rank in np.flatnonzero(counts)
        ]
        asked, counts = self._all_to_all(row_there[order], counts)
        pieces = np.split(asked, np.cumsum(counts)[:-1])
        self._sends = [(rank, pieces[rank]) for rank in np.flatnonzero(counts)]

    def _find_owners(self, local: np.ndarray, foreign: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rank that owns each atom of ``foreign``, and the atom's row there."""
        owned, counts = self._to_home(local, np.arange(len(local)))
        rank = np.repeat(np.arange(self.n_ranks), counts)
        asked, counts = self._to_home(foreign, np.arange(len(foreign)))
        place = _places(asked[:, 0], owned[:, 0])
        answers = np.column_stack([np.full((len(asked), 2), -1), asked[:, 1]])
        known = place >= 0
        answers[known, 0], answers[known, 1] = rank[place[known]], owned[place[known], 1]
        answers, _ = self._all_to_all(answers, counts)
        answers = answers[np.argsort(answers[:, 2])]
        if (answers[:, 0] < 0).any():
            raise ConfigError(f"no rank owns atom {foreign[answers[:, 0] < 0][0]}, of which there is a ghost")
        return answers[:, 0], answers[:, 1]

    def _to_home(self, tags: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Send tags, each with a number, to where they are looked up; and what came in from each rank."""
        home = tags % self.n_ranks
        order = np.argsort(home, kind="stable")
        pairs = np.column_stack([tags, numbers])[order]
        return self._all_to_all(pairs, np.bincount(home, minlength=self.n_ranks))

    def _all_to_all(self, values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Send ``counts[r]`` of ``values`` (int64, first axis) to rank r; what came in, and the counts."""
        if self.communicator is None:
            return values, counts
        counts = counts.astype(np.int64)
        incoming = np.empty_like(counts)
        self.communicator.Alltoall(counts, incoming)
        width = int(np.prod(values.shape[1:]))
        arrived = np.empty((incoming.sum(), *values.shape[1:]), np.int64)
        self.communicator.Alltoallv(
            [np.ascontiguousarray(values, np.int64), counts * width], [arrived, incoming * width]
        )
        return arrived, incoming


def exchange_for(instance: LammpsInstance) -> GhostExchange | None:
    """The exchange between the ranks of an instance; None where these cannot be reached through mpi4py."""
    communicator = instance.communicator()
    return None if communicator is None and instance.n_ranks > 1 else GhostExchange(communicator)


def halo_is_complete(exchange: GhostExchange, pair_i: np.ndarray, pair_j: np.ndarray, n_layers: int) -> bool:
    """Whether this rank's ghosts have all neighbors that messages in ``n_layers`` layers come from.

    A ghost that a message to an owned atom passes must have as many neighbors as its owner has. Collective.

    Args:
        exchange: brought up to date.
        pair_i, pair_j: (n_pairs,), indices of atoms; neighbors of ghosts are among them.
    """
    n_local, n_all = exchange.n_local, len(exchange.row_of_atom)
    n_neighbors = np.bincount(pair_i, minlength=n_all)
    rows = np.zeros((exchange.n_rows, 1))
    rows[:n_local, 0] = n_neighbors[:n_local]
    exchange.forward(rows)
    passed = np.arange(n_all) < n_local
    for _ in range(n_layers - 1):
        passed[pair_j[passed[pair_i]]] = True
    return np.array_equal(n_neighbors[passed], rows[exchange.row_of_atom[passed], 0])


def _places(values: np.ndarray, distinct: np.ndarray) -> np.ndarray:
    """Where each value is in ``distinct``; -1 where it is not."""
    if len(distinct) == 0:
        return np.full(len(values), -1)
    order = np.argsort(distinct)
    place = order[np.minimum(np.searchsorted(distinct, values, sorter=order), len(distinct) - 1)]
    return np.where(distinct[place] == values, place, -1)
