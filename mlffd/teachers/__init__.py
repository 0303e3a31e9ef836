# SPDX-License-Identifier: MIT
"""Teachers: ASE calculators by name, with the facts a label file must carry about them."""

import difflib
import inspect
from dataclasses import dataclass
from pathlib import Path

from ase.calculators.calculator import BaseCalculator

from mlffd.errors import TeacherError
from mlffd.teachers import ase_factory, lennard_jones, sevennet

LOADERS = {"lj": lennard_jones.load, **sevennet.LOADERS}


@dataclass(frozen=True)
class Teacher:
    """An ASE calculator (eV, Å) and where it comes from; every field but `calculator` fits into JSON."""

    calculator: BaseCalculator
    name: str
    version: str
    licence: str
    settings: dict

    def description(self):
        """What a label file says about this teacher, as a dict."""
        return {
            "name": self.name,
            "version": self.version,
            "licence": self.licence,
            "settings": self.settings,
        }


def load_teacher(spec, device="cpu", directory="."):
    """The Teacher named by `spec`: a name, or a dict with `name` and the settings of that teacher.

    Names: those in LOADERS, or `module:factory` for any callable returning an ASE calculator, where
    `module` may be a file in `directory` (the folder of the config) or in the current one.
    Raises TeacherError with what to do when there is no such teacher, setting or package.
    """
    settings = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise TeacherError('a teacher is a name or a table with one, such as {name = "7net-0"}')
    if ":" in name:
        found = ase_factory.load(name, device, Path(directory), **settings)
    else:
        loader = _loader(name)
        _check_settings(name, loader, settings)
        found = loader(device=device, **settings)
    calculator, version, licence, used = found
    return Teacher(calculator, name, version, licence, used)


def _loader(name):
    if name not in LOADERS:
        close = difflib.get_close_matches(name, LOADERS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(LOADERS)}, or module:factory"
        raise TeacherError(f"no teacher named {name!r}: {hint}")
    return LOADERS[name]


def _check_settings(name, loader, settings):
    known = [key for key in inspect.signature(loader).parameters if key not in ("model", "device")]
    for key in settings:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known) or 'none'}"
            raise TeacherError(f"teacher {name} has no setting {key!r}: {hint}")
