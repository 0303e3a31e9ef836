# SPDX-License-Identifier: MIT
"""What is known of a teacher before it is loaded: package, elements, cell, stress, licences, download."""

import importlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from ase.data import chemical_symbols

from mlffd.errors import TeacherError

NOT_KNOWN = "not known"


def elements_to(last: str, without: tuple = ()) -> frozenset:
    """Symbols from H to ``last``, less those in ``without``."""
    return frozenset(chemical_symbols[1 : chemical_symbols.index(last) + 1]) - set(without)


# MPtrj (Deng et al., Nat. Mach. Intell. 5, 1031 (2023)); the same 89 are in the type map of 7net-0
MATERIALS_PROJECT = elements_to("Pu", without=("Po", "At", "Rn", "Fr", "Ra"))


@dataclass(frozen=True)
class TeacherFacts:
    """What ``mlffd teachers`` says of a name or a pattern of names such as ``mace-off-*``.

    ``load(name, device=..., directory=..., **settings)`` returns (calculator, version, settings used);
    ``settings`` says in a line what each of its settings does. ``elements`` is a set of symbols, or None
    where the package does not say; ``conservative`` whether forces are the gradient of the energy.
    """

    load: Callable
    about: str
    level: str
    code_licence: str
    weights_licence: str
    install: str
    package: str | None = None  # as its registry calls it, None for what comes with mlffd
    program: str | None = None  # to be found on the PATH, for teachers that are no Python package
    names: tuple = ()  # those known for a pattern
    elements: frozenset | None = None
    elements_note: str = ""
    periodic: str = "optional"  # or "required", "never"
    stress: bool = True
    conservative: bool | None = True
    charged: bool = False  # it takes the total charge and the spin multiplicity of a structure
    download: str = "no"  # or what is fetched at first use, and from where
    settings: dict = field(default_factory=dict)
    note: str = ""

    @property
    def licence(self) -> str:
        """In a line, the weights' first: they are what a student is made of."""
        if self.weights_licence == self.code_licence:
            return self.weights_licence
        return f"{self.weights_licence} (weights), {self.code_licence} (code)"

    def installed(self) -> str | None:
        """The version of the package that is installed here, or None; nothing is imported."""
        if self.program:
            return shutil.which(self.program)
        try:
            return version(self.package or "ase")
        except PackageNotFoundError:
            return None


def elements_of(calculator) -> frozenset | None:
    """Symbols that a loaded calculator says it knows, or None: sevenn, mace-torch and aimnet do."""
    calculator = getattr(calculator, "calculator", calculator)  # of one that is told charge and spin
    numbers = getattr(calculator, "type_map", None)
    if numbers is None:
        numbers = getattr(getattr(calculator, "z_table", None), "zs", None)
    if numbers is None:
        numbers = getattr(calculator, "implemented_species", None)
    return None if numbers is None else frozenset(chemical_symbols[int(z)] for z in numbers)


def import_for(teacher: str, module: str, install: str):
    """A module of a teacher's package.

    Raises:
        TeacherError: it is not installed, with the command that does it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TeacherError(
            f"teacher {teacher} needs {module.partition('.')[0]} ({error}): install it with {install},"
            " if need be in an environment of its own: only the label file has to come back from there"
        ) from error
