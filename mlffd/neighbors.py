"""Neighbor lists. The only module that imports the neighbor-list library (vesin)."""

import numpy as np
import vesin
from ase.geometry import complete_cell

from mlffd.errors import EmptyStructureError, NonFinitePositionsError, SingularCellError

SMALLEST_HEIGHT = 1e-6  # Å; a periodic cell thinner than this has no meaningful images


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
        edge_index (2, n_edges) int64, sorted by the centre ``edge_index[0]``;
        edge_vectors (n_edges, 3) float64, ``positions[j] - positions[i] + cell_shifts @ cell``;
        cell_shifts (n_edges, 3) int32.

    Raises:
        EmptyStructureError, NonFinitePositionsError, SingularCellError: vesin itself would crash on these.
    """
    positions = np.ascontiguousarray(positions, dtype=np.float64)
    if len(positions) == 0:
        raise EmptyStructureError("the structure has no atoms")
    pbc = np.broadcast_to(np.asarray(pbc, dtype=bool), (3,))
    cell = checked_cell(cell, pbc)
    if not np.isfinite(positions).all():
        atom = int(np.argmax(~np.isfinite(positions).all(axis=1)))
        raise NonFinitePositionsError(f"position of atom {atom} is not finite: {positions[atom].tolist()} Å")
    calculator = vesin.NeighborList(cutoff=float(cutoff), full_list=True, sorted=True)
    i, j, cell_shifts, edge_vectors = calculator.compute(positions, cell, list(map(bool, pbc)), "ijSD")
    return np.stack([i, j]).astype(np.int64), edge_vectors, cell_shifts


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
