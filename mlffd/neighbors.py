"""Neighbor lists. The only module that imports the neighbor-list library (vesin)."""

import numpy as np
import vesin
from ase.geometry import complete_cell
from ase.neighborlist import primitive_neighbor_list

from mlffd.errors import (
    EmptyStructureError,
    NonFinitePositionsError,
    ScatteredAtomsError,
    SingularCellError,
)

SMALLEST_HEIGHT = 1e-6  # Å; a periodic cell thinner than this has no meaningful images
LARGEST_EXTENT = 1e4  # Å, along directions that are not periodic; vesin's grid of cells grows with it
VESIN_CELLS = 1e5
FARTHEST_IMAGE = 1e6  # cells away from the origin; vesin counts them in 32 bits


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
        EmptyStructureError, NonFinitePositionsError, SingularCellError, ScatteredAtomsError: vesin itself
            would end the process on these, or silently find no neighbors.
    """
    positions = np.ascontiguousarray(positions, dtype=np.float64)
    if len(positions) == 0:
        raise EmptyStructureError("the structure has no atoms")
    pbc = np.broadcast_to(np.asarray(pbc, dtype=bool), (3,))
    cell = checked_cell(cell, pbc)
    if not np.isfinite(positions).all():
        atom = int(np.argmax(~np.isfinite(positions).all(axis=1)))
        raise NonFinitePositionsError(f"position of atom {atom} is not finite: {positions[atom].tolist()} Å")
    check_extent(positions, cell, pbc)
    if breaks_vesin(positions, cell, pbc, cutoff):
        i, j, cell_shifts, edge_vectors = primitive_neighbor_list("ijSD", pbc, cell, positions, cutoff)
    else:
        calculator = vesin.NeighborList(cutoff=float(cutoff), full_list=True, sorted=True)
        i, j, cell_shifts, edge_vectors = calculator.compute(positions, cell, list(map(bool, pbc)), "ijSD")
    return np.stack([i, j]).astype(np.int64), edge_vectors, cell_shifts


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
    far = (np.abs(fractional) > FARTHEST_IMAGE) & pbc
    extent = np.abs(positions - np.median(positions, axis=0)).max(axis=1)
    far = far.any(axis=1) | ((extent > LARGEST_EXTENT) & ~pbc.all())
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
