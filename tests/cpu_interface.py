# SPDX-License-Identifier: MIT
"""The C interface of the kernels, mlffd.h, through ctypes: what a program in C can do and NumPy cannot."""

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t, c_void_p
from dataclasses import dataclass, field

import numpy as np
from cpu_graphs import PairGraph

from mlffd.kernels import cpu

CALLBACK = CFUNCTYPE(None, c_void_p, c_void_p, c_int, c_int)


class Edges(ctypes.Structure):
    """mlffd_edges."""

    _fields_ = [
        ("n_atoms", c_int64), ("n_centers", c_int64), ("n_edges", c_int64),
        ("species_idx", POINTER(c_int32)), ("first_edge", POINTER(c_int64)), ("neighbor", POINTER(c_int32)),
        ("edge_vectors", POINTER(c_double)), ("symmetric", c_int),
    ]  # fmt: skip


class ExchangeCallbacks(ctypes.Structure):
    """mlffd_exchange."""

    _fields_ = [("context", c_void_p), ("forward", CALLBACK), ("reverse", CALLBACK)]


@dataclass
class Exchange:
    """Copies owners' rows to their ghosts, adds ghosts' gradients to the owners, and notes each call."""

    owner: np.ndarray  # (n_ghosts,) the centre that each ghost is an image of
    n_centers: int
    calls: list[tuple[str, int]] = field(default_factory=list)  # direction, bytes of a value

    def callbacks(self) -> ExchangeCallbacks:
        return ExchangeCallbacks(None, CALLBACK(self._forward), CALLBACK(self._reverse))

    def _forward(self, context, rows, n_per_row: int, n_bytes: int) -> None:
        self.calls.append(("forward", n_bytes))
        rows = self._rows(rows, n_per_row, n_bytes)
        rows[self.n_centers :] = rows[self.owner]

    def _reverse(self, context, rows, n_per_row: int, n_bytes: int) -> None:
        self.calls.append(("reverse", n_bytes))
        rows = self._rows(rows, n_per_row, n_bytes)
        np.add.at(rows, self.owner, rows[self.n_centers :])

    def _rows(self, rows, n_per_row: int, n_bytes: int) -> np.ndarray:
        shape, dtype = (self.n_centers + len(self.owner), n_per_row), {4: np.float32, 8: np.float64}[n_bytes]
        n_values = shape[0] * n_per_row
        if n_values == 0:
            return np.empty(shape, dtype)
        return np.frombuffer((ctypes.c_char * (n_values * n_bytes)).from_address(rows), dtype).reshape(shape)


class CStudent:
    """A student made from a weight block. Raises ValueError with the library's message."""

    def __init__(self, block: bytes, precision: int = 64, instructions: str = "auto"):
        self._library = ctypes.CDLL(str(cpu.LIBRARY))
        self._library.mlffd_create.restype = c_void_p
        message = ctypes.create_string_buffer(512)
        create = self._library.mlffd_create
        create.argtypes = [c_char_p, c_size_t, c_int, c_char_p, c_char_p, c_size_t]
        self._student = create(block, len(block), precision, instructions.encode(), message, len(message))
        if not self._student:
            raise ValueError(message.value.decode())

    def __del__(self):
        self._library.mlffd_destroy(c_void_p(self._student))

    def evaluate(self, species_idx: np.ndarray, graph: PairGraph, exchange: Exchange | None = None):
        """Energies (n_centers,) and gradient (n_edges, 3). Raises ValueError with the library's message."""
        sizes = len(species_idx), graph.n_centers, len(graph.neighbor)
        arrays = species_idx, graph.first_edge, graph.neighbor, np.ascontiguousarray(graph.edge_vectors)
        pointers = [
            array.ctypes.data_as(kind) for array, (_, kind) in zip(arrays, Edges._fields_[3:7], strict=True)
        ]
        edges = Edges(*sizes, *pointers, 0)
        callbacks = exchange and exchange.callbacks()
        energies, gradient = np.full(sizes[1], np.nan), np.full((sizes[2], 3), np.nan)
        message = ctypes.create_string_buffer(512)
        failed = self._library.mlffd_evaluate_pairs(
            c_void_p(self._student), ctypes.byref(edges), callbacks and ctypes.byref(callbacks), 1,
            energies.ctypes.data_as(c_void_p), gradient.ctypes.data_as(c_void_p), message,
            c_size_t(len(message)),
        )  # fmt: skip
        if failed:
            raise ValueError(message.value.decode())
        return energies, gradient
