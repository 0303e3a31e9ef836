# SPDX-License-Identifier: MIT
"""Fused C++ kernels with hand-written gradients, for the processor at hand.

``students.cpp`` is compiled for several instruction sets; the best that the processor has is used, or the one
that the environment variable MLFFD_INSTRUCTIONS names (baseline, avx2, avx512).
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mlffd.errors import ConfigError
from mlffd.kernels.block import weight_block
from mlffd.students.student import Student

FAMILIES = ("local", "painn")
PRECISIONS = {"float32": 32, "float64": 64}
LIBRARY = Path(__file__).parent / "libmlffd.so"  # the C interface, mlffd.h, for programs without Python


def is_compiled() -> bool:
    """Whether a C++ compiler was there when mlffd was installed."""
    return LIBRARY.is_file() and find_spec("mlffd.kernels.cpu._binding") is not None


class CpuKernel:
    """A student on the compiled kernels.

    Args:
        student: of a family in ``FAMILIES``.
        dtype: ``float32`` (distances and sums of energies are still float64) or ``float64``.
        instructions: ``auto``, ``baseline``, ``avx2`` or ``avx512``.

    Raises:
        ConfigError: not compiled, no kernel for this family, or instructions this processor lacks.
    """

    def __init__(self, student: Student, dtype: str = "float32", instructions: str = "auto"):
        if not is_compiled():
            raise ConfigError(
                "the CPU kernels are not compiled: install mlffd again where there is a C++ compiler, or use "
                "the reference backend"
            )
        if student.family not in FAMILIES:
            raise ConfigError(f"the CPU kernels know {' and '.join(FAMILIES)} students, not {student.family}")
        from mlffd.kernels.cpu import _binding

        try:
            self._student = _binding.Student(weight_block(student), PRECISIONS[dtype], instructions)
        except ValueError as error:
            raise ConfigError(f"CPU kernel: {error}") from error
        self.instructions = self._student.instructions

    def evaluate(
        self,
        species_idx: np.ndarray,
        first_edge: np.ndarray,
        neighbor: np.ndarray,
        edge_vectors: np.ndarray,
        reverse: np.ndarray | None = None,
        n_threads: int = 1,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Atomic energies (n_centers,) in eV and dE/d(edge_vectors) (n_edges, 3) in eV/Å, float64.

        Args:
            species_idx: (n_atoms,) int32, ghosts last.
            first_edge: (n_centers + 1,) int64; edges of centre i are first_edge[i] to first_edge[i + 1].
            neighbor: (n_edges,) int32.
            edge_vectors: (n_edges, 3) float64 in Å; those longer than the cutoff count for nothing.
            reverse: (n_edges,) int32, the edge from neighbor to centre with exactly the opposite vector.
                With it the two may carry each other's share of the gradient; forces and virial are the same.

        Raises:
            ValueError: indices or sizes that do not fit together.
        """
        return self._student.evaluate_pairs(
            species_idx, first_edge, neighbor, edge_vectors, reverse, n_threads
        )


def edge_vectors(
    first_atom: np.ndarray,
    first_edge: np.ndarray,
    neighbor: np.ndarray,
    cell_shifts: np.ndarray,
    positions: np.ndarray,
    cells: np.ndarray,
) -> np.ndarray:
    """positions[j] - positions[i] + cell_shifts @ cell (n_edges, 3); exactly opposite for reverse edges.

    Args:
        first_atom: (n_systems + 1,) int64, atoms of system k are first_atom[k] to first_atom[k + 1].
        first_edge, neighbor: as in ``CpuKernel.evaluate``, every atom a centre.
        cell_shifts: (n_edges, 3) int32.
        positions: (n_atoms, 3) float64 in Å.
        cells: (n_systems, 3, 3) float64 in Å, rows are lattice vectors.
    """
    from mlffd.kernels.cpu import _binding

    return _binding.edge_vectors(first_atom, first_edge, neighbor, cell_shifts, positions, cells)


def sum_forces(
    first_atom: np.ndarray,
    first_edge: np.ndarray,
    neighbor: np.ndarray,
    edge_vectors: np.ndarray,
    gradient: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Forces (n_atoms, 3) in eV/Å and virials -sum r ⊗ dE/dr (n_systems, 3, 3) in eV from pair gradients.

    ``gradient`` (n_edges, 3) in eV/Å; the rest as in ``edge_vectors``.
    """
    from mlffd.kernels.cpu import _binding

    return _binding.sum_forces(first_atom, first_edge, neighbor, edge_vectors, gradient)
