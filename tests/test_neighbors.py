"""Neighbor lists against ASE's, an independent implementation, in cells of every kind."""

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list as ase_neighbor_list

from mlffd.errors import EmptyStructureError, NonFinitePositionsError, ScatteredAtomsError, SingularCellError
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


FLAT = {
    "sheet": ([[0, 0, 0], [0, 2000, 2000], [0, 1, 1]], np.eye(3), (0, 0, 0)),
    "thin box": ([[0, 0, 0], [0, 1000, 1000], [0, 1, 1]], np.diag([3.0, 2000, 2000]), (1, 1, 1)),
    "needle": ([[0, 0, 0], [0, 0, 9e6], [0, 1, 9e6]], np.diag([10.0, 10, 1e7]), (1, 1, 1)),
    "stray atom": ([[0, 0, 0], [0, 1, 1], [0, 0, 9000]], np.eye(3), (0, 0, 0)),
}


@pytest.mark.parametrize("name", FLAT)
def test_extents_that_vesin_divides_by_zero_on(name):
    """vesin alone ends the process with a floating point exception on most of these."""
    positions, cell, pbc = FLAT[name]
    atoms = Atoms("H3", positions, cell=cell, pbc=pbc)
    edge_index, edge_vectors, _ = neighbor_list(atoms.positions, cell, atoms.pbc, CUTOFF)
    distances = np.linalg.norm(edge_vectors, axis=1)
    near = atoms.get_all_distances(mic=True)
    assert {(i, j) for i, j in np.argwhere(near < CUTOFF) if i != j} <= set(map(tuple, edge_index.T))
    assert distances.max() < CUTOFF
    assert np.all(np.diff(edge_index[0]) >= 0)


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
    for pbc, far in (((1, 1, 1), 1e12), ((0, 0, 0), 1e6), ((1, 0, 1), 1e5)):
        with pytest.raises(ScatteredAtomsError, match="explode"):
            neighbor_list(np.array([[0, 0, 0], [far, far, far]]), box, pbc, CUTOFF)
    # vesin itself ends the process on these
    for cell, pbc in ((np.zeros((3, 3)), True), (np.ones((3, 3)), True), (np.zeros((3, 3)), (1, 1, 0))):
        with pytest.raises(SingularCellError, match="periodic directions"):
            neighbor_list(np.zeros((1, 3)), cell, pbc, CUTOFF)
