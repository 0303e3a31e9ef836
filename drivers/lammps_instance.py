# SPDX-License-Identifier: MIT
"""A running LAMMPS seen from the Python inside it, or beside it: atoms, box, step and communicator.

LAMMPS' C library (``library.h``) tells all of it to whoever has the address of the instance. Library mode
has it: ``LammpsInstance(lmp.lmp.value, lmp.lib)``. Under ``pair_style mliap unified`` LAMMPS hands no address
over; :func:`instance_behind` finds it in the memory behind the object that it does hand over. Where that
finds nothing (no /proc, or another layout of classes), two lines in the input hand it over::

    python hand_over input 1 SELF format p here "from mlffd.drivers.lammps_instance import hand_over"
    python hand_over invoke
"""

import ctypes
import os
import struct
from collections.abc import Callable
from functools import cache, lru_cache, partial

import numpy as np

from mlffd.drivers.lammps_ranks import world
from mlffd.errors import ConfigError

_FUNCTIONS = {  # name: (result, arguments) as in library.h
    "lammps_version": (ctypes.c_int, ctypes.c_void_p),
    "lammps_extract_setting": (ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p),
    "lammps_extract_global": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p),
    "lammps_extract_atom": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p),
    "lammps_get_mpi_comm": (ctypes.c_int, ctypes.c_void_p),
    "lammps_config_has_mpi_support": (ctypes.c_int,),
}
_INTEGERS = {4: np.int32, 8: np.int64}  # by size in bytes
_C_INTEGERS = {4: ctypes.c_int32, 8: ctypes.c_int64}
_WORD = ctypes.sizeof(ctypes.c_void_p)
_N_REFERENCES = 14  # of Pointers, pointers.h: memory, error, universe, input, atom, ..., output, timer
_HEADER_WORDS = 5  # of a Python object that holds a C++ pointer and little else
_KOKKOS_WORDS = 64  # of MLIAPDataKokkosDevice, roughly


class LammpsInstance:
    """A running LAMMPS.

    Args:
        pointer: address of the C++ object, which the C library calls a handle.
        library: the loaded library that has ``lammps_extract_setting`` and its kin; ``ctypes.CDLL(None)``
            inside ``lmp``.

    Raises:
        ConfigError: the library lacks one of these functions.
    """

    def __init__(self, pointer: int, library: ctypes.CDLL):
        self.pointer, self.library = pointer, library
        self._call = _functions(library)
        self.version = self._call["lammps_version"](pointer)  # as in 20260704
        self._tag_type = _INTEGERS[self.setting("tagint")]
        n_bytes = self.setting("bigint")
        self._step_type, self._step = _INTEGERS[n_bytes], _C_INTEGERS[n_bytes]

    def setting(self, name: str) -> int:
        """An integer that LAMMPS knows by this name (``lammps_extract_setting``); -1 where it does not."""
        return self._call["lammps_extract_setting"](self.pointer, name.encode())

    @property
    def n_local(self) -> int:
        """Atoms that this rank owns."""
        return self.setting("nlocal")

    @property
    def n_all(self) -> int:
        """Atoms of this rank, ghosts included."""
        return self.setting("nall")

    @property
    def n_ranks(self) -> int:
        """Ranks of this instance; of its own partition, where LAMMPS runs several."""
        return self.setting("world_size")

    def tags(self) -> np.ndarray:
        """Atom ids (n_all,) int64, ghosts last; a copy.

        Raises:
            ConfigError: the atoms have no ids.
        """
        tags = self._atoms("id", self._tag_type).astype(np.int64)
        if len(tags) and tags.min() <= 0:
            raise ConfigError("atoms have no ids: remove `atom_modify id no` from the input")
        return tags

    def types(self) -> np.ndarray:
        """Atom types (n_all,) int32, from 1 on; a view."""
        return self._atoms("type", np.int32)

    def is_present(self) -> np.ndarray:
        """Which of this rank's atoms (n_local,) are in group ``all``; a copy. An atom that ``fix gcmc`` tries
        to do without is in no group but one of the fix's own until that is decided."""
        return self._atoms("mask", np.int32)[: self.n_local] & 1 == 1

    def positions(self) -> np.ndarray:
        """Positions (n_all, 3) float64 in LAMMPS' unit of length, Å in units metal and real; a view."""
        return vectors(self._call["lammps_extract_atom"](self.pointer, b"x"), self.n_all)

    def forces(self) -> np.ndarray:
        """Forces (n_all, 3) float64 in LAMMPS' units; a view."""
        return vectors(self._call["lammps_extract_atom"](self.pointer, b"f"), self.n_all)

    def step(self) -> int:
        """The timestep."""
        # asked in every step, so by the shortest way
        return self._step.from_address(self._call["lammps_extract_global"](self.pointer, b"ntimestep")).value

    def units(self) -> str:
        """The input's unit style, such as ``metal``."""
        return self._text("units")

    def pair_style(self) -> str:
        """The input's pair style, without its arguments; empty where LAMMPS does not say."""
        return self._text("pair_style")

    def hides_bonded_atoms(self) -> bool:
        """Whether ``special_bonds``, as by default, leaves atoms out of the neighbor lists of those that they
        are bonded to."""
        if self.setting("molecule_flag") <= 0 or self.global_values("nbonds", self._step_type)[0] == 0:
            return False
        lj, coul = (self.global_values(name, np.float64, 4)[1:] for name in ("special_lj", "special_coul"))
        return bool(((lj == 0.0) & (coul == 0.0)).any())

    def skin(self) -> float:
        """The neighbor list's skin, in LAMMPS' unit of length."""
        return float(self.global_values("neigh_skin", np.float64)[0])

    def box(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Origin (3,), cell (3, 3) whose rows are lattice vectors, and pbc (3,) bool."""
        origin = self.global_values("boxlo", np.float64, 3).copy()
        cell = np.diag(self.global_values("boxhi", np.float64, 3) - origin)
        for name, row, column in [("xy", 1, 0), ("xz", 2, 0), ("yz", 2, 1)]:
            cell[row, column] = self.global_values(name, np.float64)[0]
        return origin, cell, self.global_values("periodicity", np.int32, 3) != 0

    def communicator(self):
        """mpi4py's communicator of this instance's ranks; None in a serial build of LAMMPS, or where mpi4py
        is not installed or was built for another MPI."""
        if not self._call["lammps_config_has_mpi_support"]() or world() is None:
            return None
        from mpi4py import MPI

        return MPI.Comm.f2py(self._call["lammps_get_mpi_comm"](self.pointer))

    def _atoms(self, name: str, dtype) -> np.ndarray:
        return _view(self._call["lammps_extract_atom"](self.pointer, name.encode()), dtype, self.n_all)

    def _text(self, name: str) -> str:
        address = self._call["lammps_extract_global"](self.pointer, name.encode())
        return ctypes.string_at(address).decode() if address else ""

    def global_values(self, name: str, dtype, n: int = 1) -> np.ndarray:
        """LAMMPS' global property of this name (n,), a view; empty in a release that does not tell."""
        return _view(self._call["lammps_extract_global"](self.pointer, name.encode()), dtype, n)


def address_of(handle) -> int:
    """The address that a ``python`` command of an input hands over as SELF: a capsule, or a number."""
    get = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    return handle if isinstance(handle, int) else get(handle, None)


def hand_over(handle) -> None:
    """Tell :func:`instance_behind` where LAMMPS is: SELF of a ``python`` command in the input."""
    global _handed_over
    _handed_over = address_of(handle)


_handed_over: int | None = None


def instance_behind(mliap_data) -> LammpsInstance | None:
    """The LAMMPS that calls a ``pair_style mliap unified`` model, from the object it calls with.

    That object holds the address of an MLIAPData. As every class derived from Pointers (pointers.h) this
    begins with the address of its virtual functions, that of LAMMPS, and references to LAMMPS' first members,
    which are addresses one word apart: a signature that nothing else has. Whatever is not readable memory, or
    does not have it, or counts other atoms than ``mliap_data``, is refused.

    Returns:
        None where there is no such thing and none was handed over either.
    """
    library = _own_library()
    if library is None:
        return None
    for address in (_address_in(mliap_data), _handed_over):
        if address:
            instance = _instance_at(address, library)
            if (instance.n_local, instance.n_all) == (mliap_data.nlocal, mliap_data.ntotal):
                return instance
    return None


def library_is_visible() -> bool:
    """Whether this process has the functions of LAMMPS' C library, as an ``lmp`` built shared has."""
    return _own_library() is not None


@lru_cache(maxsize=4)
def _instance_at(address: int, library: ctypes.CDLL) -> LammpsInstance:
    """What an instance keeps is the same for all of a build; all else it asks LAMMPS for anew."""
    return LammpsInstance(address, library)


@cache
def _own_library() -> ctypes.CDLL | None:
    """This process as a library; None where it has no LAMMPS in it."""
    library = ctypes.CDLL(None)
    return library if all(hasattr(library, name) for name in _FUNCTIONS) else None


@cache
def _functions(library: ctypes.CDLL) -> dict:
    """LAMMPS' functions with their types, apart from those that LAMMPS' own module sets on ``library``."""
    try:
        return {name: ctypes.CFUNCTYPE(*types)((name, library)) for name, types in _FUNCTIONS.items()}
    except AttributeError as error:
        raise ConfigError(f"not the library of LAMMPS, or one older than 2020: {error}") from error


def _address_in(mliap_data) -> int | None:
    """The address of LAMMPS, if one of the object's first words leads to it."""
    place = _place_in.get(type(mliap_data))
    if place is not None:  # an address there is one of memory: no need for precautions, which take time
        (found,) = _words(ctypes.string_at, id(mliap_data) + place, 1)
        return _lammps_of(ctypes.string_at, found)
    try:
        memory = os.open("/proc/self/mem", os.O_RDONLY)
    except OSError:
        return None
    try:
        return _search(partial(_read_carefully, memory), mliap_data)
    finally:
        os.close(memory)


_place_in: dict[type, int] = {}  # bytes from the beginning of such an object to the address of its MLIAPData


def _search(read: Callable, mliap_data) -> int | None:
    for k, found in enumerate(_words(read, id(mliap_data), _HEADER_WORDS)):
        if k < 2:  # reference count and type
            continue
        address = _lammps_of(read, found)
        if address is not None:
            _place_in[type(mliap_data)] = k * _WORD
            return address
        # of Kokkos, a plain structure with a pointer to the pair style in it
        members = _words(read, found, _KOKKOS_WORDS)
        address = next(filter(None, (_lammps_of(read, member) for member in members)), None)
        if address is not None:
            return address
    return None


def _lammps_of(read: Callable, found: int) -> int | None:
    """The second of the words at ``found``, if an object derived from Pointers begins there."""
    words = _words(read, found, 2 + _N_REFERENCES)
    address = words[1] if len(words) == 2 + _N_REFERENCES else 0
    expected = tuple(range(address, address + _WORD * _N_REFERENCES, _WORD))
    return address if address and words[2:] == expected else None


def _words(read: Callable, address: int, n: int) -> tuple[int, ...]:
    """Words from an address of this process: ``n``, or as many as ``read(address, n_bytes)`` returns."""
    content = read(address, n * _WORD)
    return struct.unpack(f"{len(content) // _WORD}P", content[: len(content) // _WORD * _WORD])


def _read_carefully(memory: int, address: int, n_bytes: int) -> bytes:
    """Bytes from an address, as far as they are memory that one can read. ``memory``: /proc/self/mem."""
    try:
        return os.pread(memory, n_bytes, address)
    except (OSError, OverflowError):
        return b""


def vectors(rows: int | None, n: int) -> np.ndarray:
    """LAMMPS' array (n, 3) float64 from the address of its row pointers, a view: it is in one piece."""
    first_row = ctypes.c_void_p.from_address(rows).value if rows and n else None
    return _view(first_row, np.float64, 3 * n).reshape(-1, 3)


def _view(address: int | None, dtype, n: int) -> np.ndarray:
    """``n`` values at an address, not copied."""
    if not address or n == 0:
        return np.zeros(0, dtype)
    buffer = (ctypes.c_char * (n * np.dtype(dtype).itemsize)).from_address(address)
    return np.frombuffer(buffer, dtype)
