# SPDX-License-Identifier: MIT
"""Structures from files, read in one way wherever frames come in."""

from collections.abc import Sequence

import ase.io
from ase import Atoms
from ase.io.formats import UnknownFileTypeError

from mlffd.errors import ConfigError, LabelError


def read_frames(path):
    """All structures of a file as a list of ase.Atoms; LabelError if there is none to be read."""
    if not path.is_file():
        raise LabelError(f"no structure file {path}")
    if path.stat().st_size == 0:
        raise LabelError(f"{path} is empty: it should hold structures")
    try:
        frames = ase.io.read(path, index=":")
    except KeyError as error:  # what ASE says of a symbol that it does not know
        raise LabelError(f"cannot read structures from {path}: no element is called {error}") from error
    except (OSError, ValueError, LookupError, UnknownFileTypeError, StopIteration) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise LabelError(f"cannot read structures from {path}: {reason}") from error
    if not frames:
        raise LabelError(f"{path} holds no structures")
    return frames


def check_apart(trained_on: Sequence[Atoms], held_out: Sequence[Atoms]) -> None:
    """Refuse held-out frames that students are trained on.

    Raises:
        ConfigError: naming the first.
    """
    known = {atoms.positions.tobytes() for atoms in trained_on}
    for number, atoms in enumerate(held_out):
        if atoms.positions.tobytes() in known:
            raise ConfigError(f"held-out frame {number} is among the frames of training: give others")
