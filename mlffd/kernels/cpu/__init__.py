# SPDX-License-Identifier: MIT
"""Fused C++ kernels with hand-written gradients, for the processor at hand.

``students.cpp`` is compiled for several instruction sets; the best that the processor has is used, or the one
that the environment variable MLFFD_INSTRUCTIONS names (baseline, avx2, avx512).
"""

import os
from functools import cache
from pathlib import Path

import numpy as np

from mlffd.errors import ConfigError
from mlffd.graph import Exchange
from mlffd.kernels.block import weight_block
from mlffd.students.student import Student

FAMILIES = ("local", "painn", "lennard_jones")
PRECISIONS = {"float32": 32, "float64": 64}
LIBRARY = Path(__file__).parent / "libmlffd.so"  # the C interface, mlffd.h, for programs without Python
INSTRUCTIONS = ("auto", "baseline", "avx2", "avx512")


class KernelsNotCompiled(ConfigError):
    """The kernels are not there, or cannot be loaded."""


def binding():
    """The compiled module.

    Raises:
        KernelsNotCompiled: there was no C++ compiler, or the library does not fit this system.
    """
    if not LIBRARY.is_file():
        raise KernelsNotCompiled(
            "the CPU kernels are not compiled (install mlffd again where there is a C++ compiler)"
        )
    try:
        from mlffd.kernels.cpu import _binding
    except ImportError as error:
        raise KernelsNotCompiled(f"the CPU kernels cannot be loaded ({error})") from error
    return _binding


loaded = cache(binding)  # for every step: looking for the file takes as long as wrapping the atoms


def is_compiled() -> bool:
    """Whether the kernels can be used."""
    try:
        binding()
    except KernelsNotCompiled:
        return False
    return True


class CpuKernel:
    """A student on the compiled kernels. It can be copied and pickled.

    Args:
        student: of a family in ``FAMILIES``.
        dtype: ``float32`` (distances and sums of energies are still float64) or ``float64``.
        instructions: ``auto``, ``baseline``, ``avx2`` or ``avx512``.

    Raises:
        KernelsNotCompiled: see ``binding``.
        ConfigError: no kernel for this family or its sizes, or instructions this processor lacks.
    """

    def __init__(self, student: Student, dtype: str = "float32", instructions: str = "auto"):
        if student.family not in FAMILIES:
            raise ConfigError(f"the CPU kernels know {', '.join(FAMILIES)} students, not {student.family}")
        self.__setstate__((weight_block(student), dtype, instructions))

    def __getstate__(self) -> tuple[bytes, str, str]:
        return self._made_of

    def __setstate__(self, made_of: tuple[bytes, str, str]) -> None:
        self._made_of = made_of
        block, dtype, instructions = made_of
        try:
            self._student = binding().Student(block, PRECISIONS[dtype], chosen(instructions))
        except ValueError as error:
            raise ConfigError(f"CPU kernel: {error}") from error
        self.instructions = self._student.instructions

    def evaluate(
        self,
        species_idx: np.ndarray,
        first_edge: np.ndarray,
        neighbor: np.ndarray,
        edge_vectors: np.ndarray,
        symmetric: bool = False,
        n_threads: int = 1,
        exchange: Exchange | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Atomic energies (n_centers,) in eV and dE/d(edge_vectors) (n_edges, 3) in eV/Å, float64.

        Args:
            species_idx: (n_atoms,) int32, ghosts last.
            first_edge: (n_centers + 1,) int64; edges of center i are first_edge[i] to first_edge[i + 1].
            neighbor: (n_edges,) int32.
            edge_vectors: (n_edges, 3) float64 in Å; those longer than the cutoff count for nothing.
            symmetric: whether every edge has its reverse among the edges, with exactly the opposite vector.
                The two may then carry each other's share of the gradient; forces and virial are the same.
            exchange: needed by a student that passes messages where there are ghosts. Its rows are NumPy
                arrays of the kernel's dtype and the kernel's own memory. The kernel is busy during a call:
                ranks that run as threads each need a kernel of their own.

        Raises:
            ValueError: indices or sizes that do not fit together, or ghosts without an exchange.
            What the exchange raises; it is not called again in this evaluation.
        """
        if _forked:
            n_threads = 1
        return self._student.evaluate_pairs(
            species_idx, first_edge, neighbor, edge_vectors, symmetric, n_threads, exchange
        )


def chosen(instructions: str) -> str:
    """``instructions``, or what MLFFD_INSTRUCTIONS says instead of ``auto``.

    Raises:
        ConfigError: the variable names none.
    """
    wanted = os.environ.get("MLFFD_INSTRUCTIONS") or "auto"
    if instructions != "auto" or wanted in INSTRUCTIONS:
        return instructions if instructions != "auto" else wanted
    raise ConfigError(f"MLFFD_INSTRUCTIONS is {wanted!r}; choose one of {', '.join(INSTRUCTIONS)}")


_forked = False  # OpenMP's threads are not there in a forked child, which would wait for them for ever


def _note_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_note_fork)


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
        first_edge, neighbor: as in ``CpuKernel.evaluate``, every atom a center.
        cell_shifts: (n_edges, 3) int32.
        positions: (n_atoms, 3) float64 in Å.
        cells: (n_systems, 3, 3) float64 in Å, rows are lattice vectors.
    """
    return loaded().edge_vectors(first_atom, first_edge, neighbor, cell_shifts, positions, cells)


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
    return loaded().sum_forces(first_atom, first_edge, neighbor, edge_vectors, gradient)


def lammps_pairs(
    function_address: int,
    lammps_pointer: int,
    list_index: int,
    n_listed: int,
    positions: np.ndarray,
    cutoff: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of a neighbor list of LAMMPS closer than the cutoff, in the order of the list.

    Args:
        function_address: of ``lammps_neighlist_element_neighbors`` in the LAMMPS that is running.
        lammps_pointer: the instance.
        list_index: as ``lammps_find_pair_neighlist`` and its like return it.
        n_listed: atoms of the list (``lammps_neighlist_num_elements``).
        positions: (n_all, 3) float64 in Å, ghosts last; may be LAMMPS' own memory.
        cutoff: in Å.

    Returns:
        pair_i and pair_j (n_pairs,) int32, indices of atoms, and rij (n_pairs, 3) float64 in Å,
        ``positions[pair_j] - positions[pair_i]``. Pairs at a distance that is not a number are among them.

    Raises:
        ValueError: no such list, or one that names atoms without a position.
        KernelsNotCompiled: see ``binding``.
    """
    return loaded().lammps_pairs(function_address, lammps_pointer, list_index, n_listed, positions, cutoff)
