"""Neighbor lists against ASE's, an independent implementation, in cells of every kind."""

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list as ase_neighbor_list

from mlffd.errors import EmptyStructureError, NonFinitePositionsError, SingularCellError
from mlffd.neighbors import neighbor_list

CUTOFF = 3.7


def random_atoms(seed: int, pbc, n_atoms: int = 9, length: float = 5.0) -> Atoms:
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    cell = (np.eye(3) + rng.uniform(-0.2, 0.2, (3, 3))) * length @ turn
    return Atoms(["H"] * n_atoms, positions=rng.uniform(-1, 2, (n_atoms, 3)) @ cell, cell=cell, pbc=pbc)


@pytest.mark.parametrize("length", [2.5, 5.0, 14.0])
@pytest.mark.parametrize(
    "pbc", [(1, 1, 1), (1, 1, 0), (0, 1, 0), (0, 0, 0)], ids=lambda pbc: "".join(map(str, pbc))
)
def test_same_pairs_as_ase(pbc, length):
    for seed in range(3):
        atoms = random_atoms(seed, pbc, length=length)
        edge_index, edge_vectors, cell_shifts = neighbor_list(
            atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF
        )
        ours = np.column_stack([edge_index.T, np.round(edge_vectors, 8)])
        i, j, vectors = ase_neighbor_list("ijD", atoms, CUTOFF)
        theirs = np.column_stack([i, j, vectors])
        assert len(ours) == len(theirs)
        assert np.allclose(in_order(ours), in_order(np.round(theirs, 8)), atol=2e-8)
        i, j = edge_index
        assert np.all(np.diff(i) >= 0)
        rebuilt = atoms.positions[j] - atoms.positions[i] + cell_shifts @ atoms.cell.array
        assert np.allclose(edge_vectors, rebuilt, atol=1e-12)


def in_order(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(rows.T[::-1])]


def test_bad_input_has_its_own_error():
    box = np.eye(3) * 5
    with pytest.raises(EmptyStructureError, match="no atoms"):
        neighbor_list(np.zeros((0, 3)), box, True, CUTOFF)
    with pytest.raises(NonFinitePositionsError, match="atom 1"):
        neighbor_list(np.array([[0, 0, 0], [np.nan, 0, 0]]), box, True, CUTOFF)
    with pytest.raises(NonFinitePositionsError, match="cell"):
        neighbor_list(np.zeros((1, 3)), np.full((3, 3), np.inf), True, CUTOFF)
    # vesin itself ends the process on these
    for cell, pbc in ((np.zeros((3, 3)), True), (np.ones((3, 3)), True), (np.zeros((3, 3)), (1, 1, 0))):
        with pytest.raises(SingularCellError, match="periodic directions"):
            neighbor_list(np.zeros((1, 3)), cell, pbc, CUTOFF)
