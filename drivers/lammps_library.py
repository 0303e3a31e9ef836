# SPDX-License-Identifier: MIT
"""LAMMPS' C library (``library.h``): commands and their errors, and functions that fixes need.

What an instance says of its atoms, its box and its ranks is in ``drivers/lammps_instance.py``.
"""

import ctypes
from functools import cache

from mlffd.drivers.lammps_instance import LammpsInstance
from mlffd.errors import ConfigError, MlffdError

LONGEST_MESSAGE = 2048
VOIGT = [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]  # LAMMPS' order: xx yy zz xy xz yz
_pointer, _int, _text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
FUNCTIONS = {  # name: (result, arguments) as in library.h
    "lammps_command": (_pointer, _pointer, _text),
    "lammps_file": (None, _pointer, _text),
    "lammps_free": (None, _pointer),
    "lammps_has_id": (_int, _pointer, _text, _text),
    "lammps_is_running": (_int, _pointer),
    "lammps_has_error": (_int, _pointer),
    "lammps_get_last_error_message": (_int, _pointer, _text, _int),
    "lammps_flush_buffers": (None, _pointer),
    "lammps_find_pair_neighlist": (_int, _pointer, _text, _int, _int, _int),
    "lammps_neighlist_num_elements": (_int, _pointer, _int),
    "lammps_neighlist_element_neighbors": (None, _pointer, _int, _int, _pointer, _pointer, _pointer),
    "lammps_set_fix_external_callback": (None, _pointer, _text, _pointer, _pointer),
    "lammps_fix_external_set_energy_global": (None, _pointer, _text, ctypes.c_double),
    "lammps_fix_external_set_virial_global": (None, _pointer, _text, _pointer),
    "lammps_fix_external_set_energy_peratom": (None, _pointer, _text, _pointer),
    "lammps_fix_external_set_virial_peratom": (None, _pointer, _text, _pointer),
}


class LammpsStopped(MlffdError):
    """LAMMPS refused a command and has said why. ``alone``: on this rank only."""

    def __init__(self, message: str, alone: bool):
        super().__init__(message)
        self.alone = alone


def command(instance: LammpsInstance, line: str) -> None:
    """Give LAMMPS a line of input. Raises LammpsStopped."""
    call(instance, "lammps_command", line.encode())
    check_for_error(instance)


def read_input(instance: LammpsInstance, path: str) -> None:
    """Let LAMMPS read an input; the first rank opens it. Raises LammpsStopped."""
    call(instance, "lammps_file", path.encode())
    check_for_error(instance)


def expand(instance: LammpsInstance, text: str) -> str:
    """``text`` with the values of LAMMPS' variables in it. Raises LammpsStopped."""
    if "$" not in text or not hasattr(instance.library, "lammps_expand"):  # not before 2025
        return text
    find = ctypes.CFUNCTYPE(_pointer, _pointer, _text)(("lammps_expand", instance.library))
    address = find(instance.pointer, text.encode())
    check_for_error(instance)
    expanded = ctypes.string_at(address).decode()
    _functions(instance.library)["lammps_free"](address)
    return expanded


def has_fix(instance: LammpsInstance, name: str) -> bool:
    """Whether a fix of this id is defined."""
    return bool(call(instance, "lammps_has_id", b"fix", name.encode()))


def call(instance: LammpsInstance, name: str, *arguments):
    """Call a function of the library; what it says of errors is left to ``check_for_error``."""
    return _functions(instance.library)[name](instance.pointer, *arguments)


def check_for_error(instance: LammpsInstance) -> None:
    """Raises LammpsStopped."""
    if not call(instance, "lammps_has_error"):
        return
    message = ctypes.create_string_buffer(LONGEST_MESSAGE)
    kind = call(instance, "lammps_get_last_error_message", message, LONGEST_MESSAGE)
    raise LammpsStopped(message.value.decode(errors="replace").strip(), alone=kind == 2)


@cache
def _functions(library: ctypes.CDLL) -> dict:
    """LAMMPS' functions with their types, apart from those that LAMMPS' own module sets on ``library``."""
    try:
        return {name: ctypes.CFUNCTYPE(*types)((name, library)) for name, types in FUNCTIONS.items()}
    except AttributeError as error:
        raise ConfigError(f"this LAMMPS is older than July 2021, or has no library: {error}") from error
