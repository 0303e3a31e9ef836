# SPDX-License-Identifier: MIT
"""Pairs from LAMMPS' neighbor list, through a C function like LAMMPS' own.

Seen to fail when the bits above the mask are kept, a center's index in the list is taken for the atom, or the
vector points from the neighbor to the center.
"""

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_int, c_void_p

import numpy as np
import pytest

from mlffd.kernels import cpu

pytestmark = pytest.mark.skipif(not cpu.is_compiled(), reason="the CPU kernels are not compiled")

FUNCTION = CFUNCTYPE(None, c_void_p, c_int, c_int, POINTER(c_int), POINTER(c_int), POINTER(POINTER(c_int)))
LAMMPS, INDEX = 0x5EED, 3
BONDED = 1 << 30  # one of the bits in which LAMMPS notes how two atoms are bonded


class FakeList:
    """lammps_neighlist_element_neighbors of a list that is given as {atom: neighbors}."""

    def __init__(self, neighbors: dict[int, list[int]]):
        self.atoms = list(neighbors)
        self.kept = [(c_int * len(found))(*found) for found in neighbors.values()]
        self.function = FUNCTION(self.show)

    def show(self, lammps, index, element, atom, n_neighbors, neighbors) -> None:
        assert (lammps, index) == (LAMMPS, INDEX)
        if element < len(self.atoms):
            atom[0], n_neighbors[0] = self.atoms[element], len(self.kept[element])
            neighbors[0] = ctypes.cast(self.kept[element], POINTER(c_int))
        else:
            atom[0], n_neighbors[0] = -1, 0

    def pairs(self, positions, cutoff: float, n_listed: int | None = None):
        address = ctypes.cast(self.function, c_void_p).value
        n_listed = len(self.atoms) if n_listed is None else n_listed
        return cpu.lammps_pairs(address, LAMMPS, INDEX, n_listed, positions, cutoff)


POSITIONS = np.array([[0, 0, 0], [0, 0, 1], [0, 2, 0], [0.5, 0, 0.5], [0, 0, -1]], dtype=float)


def test_pairs_within_the_cutoff_in_the_order_of_the_list():
    listed = FakeList({0: [1, 2, 3 | BONDED, 4], 2: [], 1: [4, 0 | BONDED | (1 << 29), 3]})
    pair_i, pair_j, rij = listed.pairs(POSITIONS, 1.5)
    assert pair_i.dtype == pair_j.dtype == np.int32
    assert list(zip(pair_i.tolist(), pair_j.tolist())) == [(0, 1), (0, 3), (0, 4), (1, 0), (1, 3)]
    assert np.array_equal(rij, POSITIONS[pair_j] - POSITIONS[pair_i])
    assert rij.flags.c_contiguous
    assert [array.shape for array in FakeList({}).pairs(POSITIONS, 1.5)] == [(0,), (0,), (0, 3)]
    assert [len(array) for array in listed.pairs(POSITIONS, 0.1)] == [0, 0, 0]


def test_what_is_not_a_number_stays():
    """It would pass for a pair beyond the cutoff, and an exploded run for a gas."""
    positions = POSITIONS.copy()
    positions[1] = np.nan
    pair_i, pair_j, rij = FakeList({0: [1, 2, 3]}).pairs(positions, 1.5)
    assert (pair_i.tolist(), pair_j.tolist()) == ([0, 0], [1, 3])
    assert np.isnan(rij[0]).all()


def test_lists_that_do_not_fit_are_refused():
    for listed, n_listed in [
        (FakeList({0: [5]}), 1), (FakeList({5: [0]}), 1), (FakeList({0: [1]}), 2),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match="do not fit together"):
            listed.pairs(POSITIONS, 1.5, n_listed)
    with pytest.raises(ValueError, match="positions has the wrong shape"):
        FakeList({0: [1]}).pairs(np.zeros((5, 2)), 1.5)
