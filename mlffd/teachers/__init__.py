# SPDX-License-Identifier: MIT
"""Teachers: ASE calculators by name, with the facts a label file must carry about them.

Each package has a short file here with its loader and its facts; nothing of it is imported before use.
"""

import difflib
import inspect
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ase.calculators.calculator import BaseCalculator

from mlffd.errors import TeacherError
from mlffd.teachers import (
    aimnet,
    ani,
    ase_factory,
    chgnet,
    cp2k,
    fairchem,
    lennard_jones,
    mace,
    mattersim,
    orb,
    sevennet,
    tblite,
    upet,
)
from mlffd.teachers.facts import TeacherFacts, elements_of

# names and patterns of names; where several match, the first one counts
TEACHERS = {
    **lennard_jones.TEACHERS, **sevennet.TEACHERS, **orb.TEACHERS, **mace.TEACHERS, **fairchem.TEACHERS,
    **chgnet.TEACHERS, **mattersim.TEACHERS, **upet.TEACHERS, **ani.TEACHERS, **aimnet.TEACHERS,
    **tblite.TEACHERS, **cp2k.TEACHERS, "module:factory": ase_factory.FACTORY,
}  # fmt: skip
NOT_SETTINGS = ("name", "device", "directory")


@dataclass(frozen=True)
class Teacher:
    """An ASE calculator (eV, Å), where it comes from, and what is known of it."""

    calculator: BaseCalculator
    name: str
    version: str
    settings: dict
    facts: TeacherFacts

    @property
    def licence(self):
        """Of the weights, and of the code where it is another."""
        return self.facts.licence

    @property
    def elements(self):
        """Symbols it knows as a set, or None where that is not known."""
        return elements_of(self.calculator) or self.facts.elements

    @property
    def periodic(self):
        """Whether a frame must, may or must not have a cell: "required", "optional" or "never"."""
        return self.facts.periodic

    @property
    def stress(self):
        """Whether it gives a stress."""
        return self.facts.stress

    def description(self):
        """What a label file says about this teacher, as a dict that fits into JSON."""
        return {
            "name": self.name,
            "version": self.version,
            "licence": self.licence,
            "settings": self.settings,
        }


def load_teacher(spec, device="cpu", directory="."):
    """The Teacher named by `spec`: a name, or a dict with `name` and the settings of that teacher.

    Names: those in TEACHERS, `cp2k:INPUT`, or `module:factory` for any callable returning an ASE
    calculator. `INPUT`, `module` and other files may lie in `directory` (the folder of the config) or in
    the current one. What a package prints while it loads goes to standard error.
    Raises TeacherError with what to do when there is no such teacher, setting, package or weights.
    """
    name = teacher_name(spec)
    settings = {} if isinstance(spec, str) else {key: spec[key] for key in spec if key != "name"}
    facts = facts_of(name)
    with redirect_stdout(sys.stderr):
        if facts is ase_factory.FACTORY:
            *found, facts = ase_factory.load(name, device, Path(directory), **settings)
        else:
            _check_settings(name, facts, settings)
            found = _load(name, facts, device, directory, settings)
    calculator, version, used = found
    return Teacher(calculator, name, version, used, facts)


def teacher_name(spec):
    """The name in what `load_teacher` takes. Raises TeacherError where there is none."""
    name = spec if isinstance(spec, str) else dict(spec).get("name")
    if not isinstance(name, str):
        raise TeacherError('a teacher is a name or a table with one, such as {name = "7net-0"}')
    return name


def facts_of(name):
    """The TeacherFacts of a teacher's name, before anything is loaded.

    Raises TeacherError with the nearest name when there is no such teacher.
    """
    if name in TEACHERS:
        return TEACHERS[name]
    if name.startswith(cp2k.PREFIX):
        return TEACHERS["cp2k:INPUT"]
    if ":" in name:
        return ase_factory.FACTORY
    for pattern, facts in TEACHERS.items():
        if fnmatchcase(name, pattern):
            return facts
    close = difflib.get_close_matches(name, known_names(), n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(TEACHERS)}"
    raise TeacherError(f"no teacher named {name!r}: {hint}")


def known_names():
    """Every name that can be given as it stands, patterns spelled out."""
    return [name for pattern, facts in TEACHERS.items() for name in (facts.names or (pattern,))]


def settings_of(facts):
    """Settings of a teacher and their defaults, as a dict."""
    parameters = inspect.signature(facts.load).parameters
    return {key: p.default for key, p in parameters.items() if key not in NOT_SETTINGS}


def _load(name, facts, device, directory, settings):
    try:
        return facts.load(name, device=device, directory=directory, **settings)
    except ase_factory.FACTORY_FAILURES as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        download = f"; its weights are fetched {facts.download}" if facts.download.startswith("from") else ""
        local = ', or give them by weights = "FILE"' if download and "weights" in settings_of(facts) else ""
        other = f"; known are {', '.join(facts.names)}" if facts.names and name not in facts.names else ""
        raise TeacherError(f"teacher {name} failed to start: {reason}{other}{download}{local}") from error


def _check_settings(name, facts, settings):
    known = list(settings_of(facts))
    for key in settings:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known) or 'none'}"
            raise TeacherError(f"teacher {name} has no setting {key!r}: {hint}")
