# SPDX-License-Identifier: MIT
"""Run by ``mpiexec``: exchanges between ranks whose atoms are drawn at random, judged by what all ranks know.

Prints ``passed`` once a rank. Any failure ends all ranks.
"""

import sys
import traceback

import numpy as np
import pytest
from mpi4py import MPI

from mlffd.drivers.lammps_exchange import GhostExchange
from mlffd.errors import ConfigError

WORLD = MPI.COMM_WORLD
RANK, N_RANKS = WORLD.Get_rank(), WORLD.Get_size()


def scatter(seed: int, n_atoms: int, owners) -> tuple[np.ndarray, int]:
    """Tags of this rank's atoms in no order, then of its ghosts: any atoms, its own too, many twice."""
    known_to_all = np.random.default_rng(seed)
    tags = known_to_all.choice(2**40, n_atoms, replace=False) + 1  # beyond 32 bits
    owner = known_to_all.choice(owners, n_atoms)
    mine = np.random.default_rng([seed, RANK])
    local = mine.permutation(tags[owner == RANK])
    ghosts = mine.choice(tags, mine.integers(0, 3 * n_atoms)) if n_atoms else local
    return np.concatenate([local, ghosts]), len(local)


def value_of(tags: np.ndarray, n_values: int, dtype) -> np.ndarray:
    return np.sin(tags[:, None] % 1009 + np.arange(n_values)).astype(dtype)


def check_rows(exchange, tags, n_local):
    assert np.array_equal(exchange.row_of_atom[:n_local], np.arange(n_local))
    assert exchange.row_of_atom.dtype == np.int32
    tag_of_row = np.full(exchange.n_rows, -1)
    tag_of_row[exchange.row_of_atom] = tags
    assert np.array_equal(tag_of_row[exchange.row_of_atom], tags)  # one tag a row
    assert len(np.unique(tag_of_row)) == exchange.n_rows  # and one row a tag
    assert tag_of_row.min(initial=1) > 0
    return tag_of_row


def check_messages(exchange, tag_of_row, n_local, n_values, dtype):
    rows = value_of(tag_of_row, n_values, dtype)
    rows[n_local:] = np.nan
    exchange.forward(rows)
    assert np.array_equal(rows, value_of(tag_of_row, n_values, dtype))

    random = np.random.default_rng([n_values, RANK])
    given = random.integers(-9, 9, (exchange.n_rows, n_values)).astype(dtype)  # sums of these are exact
    sums = given.copy()
    exchange.reverse(sums)
    expected = given.copy()
    pieces = WORLD.allgather((tag_of_row[n_local:], given[n_local:]))
    for tags, gradients in pieces:
        for tag, gradient in zip(tags, gradients):
            expected[:n_local][tag_of_row[:n_local] == tag] += gradient
    assert np.array_equal(sums, expected)


def check_adjoint(exchange, n_local):
    """<forward x, y> = <x, reverse y>; x has values of owned atoms, y of all rows."""
    random = np.random.default_rng([5, RANK])
    x, y = random.normal(size=(2, exchange.n_rows, 3))
    forward, reverse = x.copy(), y.copy()
    exchange.forward(forward)
    exchange.reverse(reverse)
    left, right = (forward * y).sum(), (x[:n_local] * reverse[:n_local]).sum()
    assert abs(WORLD.allreduce(left) - WORLD.allreduce(right)) < 1e-10


def check_case(seed, n_atoms, owners):
    tags, n_local = scatter(seed, n_atoms, owners)
    exchange = GhostExchange(WORLD)
    exchange.update(tags, n_local)
    tag_of_row = check_rows(exchange, tags, n_local)
    for n_values, dtype in [(1, np.float64), (12, np.float64), (7, np.float32)]:
        check_messages(exchange, tag_of_row, n_local, n_values, dtype)
    check_adjoint(exchange, n_local)


def check_updates():
    """Atoms that stay cost no plan; if those of one rank change, all make one."""
    tags, n_local = scatter(3, 30, range(N_RANKS))
    exchange = GhostExchange(WORLD)
    exchange.update(tags, n_local)
    exchange.update(tags.copy(), n_local)
    assert exchange.n_updates == 1
    if RANK == N_RANKS - 1:
        tags = tags[: len(tags) // 2] if len(tags) // 2 > n_local else tags[:n_local]
    exchange.update(tags, n_local)
    assert exchange.n_updates == 2
    tag_of_row = check_rows(exchange, tags, n_local)
    check_messages(exchange, tag_of_row, n_local, 2, np.float64)


def check_refusals():
    exchange = GhostExchange(WORLD)
    with pytest.raises(ConfigError, match="no rank owns atom 77"):
        exchange.update(np.array([RANK + 1, 77]), 1)
    exchange = GhostExchange(WORLD)
    exchange.update(np.array([RANK + 1]), 1)
    for wrong in (np.zeros((2, 3)), np.zeros((1, 6))[:, ::2], np.zeros(1)):
        with pytest.raises(ValueError, match="C-contiguous"):
            exchange.forward(wrong)


def check_all():
    for seed in range(4):
        check_case(seed, 40, range(N_RANKS))
    check_case(7, 40, [N_RANKS - 1])  # all others own nothing
    check_case(8, 2, range(N_RANKS))
    check_case(9, 0, range(N_RANKS))
    check_updates()
    check_refusals()


if __name__ == "__main__":
    try:
        check_all()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        WORLD.Abort(1)
        raise
    print("passed\n", end="", flush=True)
