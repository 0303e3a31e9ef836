# SPDX-License-Identifier: MIT
"""Ghost atoms as rows of their owners, and the messages between ranks; without LAMMPS."""

import sys
from pathlib import Path

import numpy as np
import pytest
from lammps_process import SCRIPTS, run_limited

from mlffd.drivers.lammps_exchange import GhostExchange
from mlffd.errors import ConfigError

PROGRAM = Path(__file__).parent / "exchange_program.py"


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4])
def test_random_atoms_on_ranks(n_ranks, tmp_path):
    """Seen to catch: owners' rows not followed, sums of gradients left out, plans made by one rank alone."""
    pytest.importorskip("mpi4py")
    if not (SCRIPTS / "mpiexec").exists():
        pytest.skip("no mpiexec in this environment; `make test` brings it")
    command = [SCRIPTS / "mpiexec", "-n", n_ranks, sys.executable, PROGRAM]
    finished = run_limited(command, tmp_path, time_limit=120.0)
    assert finished.status == 0, finished.output
    assert len(finished.lines("passed")) == n_ranks


def test_one_rank_needs_no_mpi():
    """Images of an atom are its row, and there is nobody to send to."""
    exchange = GhostExchange(None)
    exchange.update(np.array([30, 10, 20, 10, 10, 30]), 3)
    assert exchange.row_of_atom.tolist() == [0, 1, 2, 1, 1, 0]
    assert exchange.n_rows == 3
    rows = np.arange(6.0).reshape(3, 2)
    exchange.forward(rows)
    exchange.reverse(rows)
    np.testing.assert_array_equal(rows, np.arange(6.0).reshape(3, 2))
    exchange.update(np.zeros(0, np.int64), 0)
    assert exchange.n_rows == 0


def test_one_rank_that_sees_atoms_of_others():
    with pytest.raises(ConfigError, match="no rank owns atom 40"):
        GhostExchange(None).update(np.array([30, 10, 40]), 2)
