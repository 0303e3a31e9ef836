# SPDX-License-Identifier: MIT
"""Structures from files that a user names."""

from pathlib import Path

from ase import Atoms
from ase.io import read
from ase.io.formats import UnknownFileTypeError

from mlffd.errors import ConfigError


def read_structure(path: str | Path, name: str = "") -> Atoms:
    """The last frame of any file that ASE reads; ``name`` is what errors call the file, by default its path.

    Raises:
        ConfigError: there is no such file, or no structure in it.
    """
    name = name or str(path)
    try:
        return read(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{name} does not exist") from error
    except (OSError, ValueError, KeyError, IndexError, StopIteration, UnknownFileTypeError) as error:
        raise ConfigError(f"{name} is no structure file that ASE can read: {error}") from error
