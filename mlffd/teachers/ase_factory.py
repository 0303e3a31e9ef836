# SPDX-License-Identifier: MIT
"""Any ASE calculator as a teacher, named `module:factory`."""

import hashlib
import importlib
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

from ase.calculators.calculator import BaseCalculator

from mlffd.errors import TeacherError
from mlffd.teachers.facts import NOT_KNOWN, TeacherFacts

SOURCE = "source sha256 "  # how the version begins of a module that has none
# what a stranger's factory may raise when its settings or its weights are wrong
FACTORY_FAILURES = (ValueError, TypeError, LookupError, RuntimeError, OSError, ImportError, AttributeError)


def load(name, device="cpu", directory=".", **settings):
    """Call `factory(**settings)` of `module`: a file `module.py` in `directory` or here, else any import.

    The factory gets `device` only if it is among the settings: most calculators have no such argument.
    Its module may define LICENCE and VERSION; else the version is a digest of its source.
    """
    module_name, _, factory_name = name.partition(":")
    module = _import_module(module_name, Path(directory))
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise TeacherError(f"teacher {name}: {module_name} has no callable named {factory_name!r}")
    try:
        calculator = factory(**settings)
    except FACTORY_FAILURES as error:
        raise TeacherError(f"teacher {name} failed to start: {type(error).__name__}: {error}") from error
    if not isinstance(calculator, BaseCalculator):
        raise TeacherError(f"teacher {name} returned a {type(calculator).__name__}, not an ASE calculator")
    version = getattr(module, "VERSION", None) or _source_digest(module)
    return calculator, str(version), settings, _facts(calculator, getattr(module, "LICENCE", "not stated"))


def _facts(calculator, licence):
    """What can be said of a stranger's calculator once it is there."""
    return replace(
        FACTORY,
        code_licence=str(licence),
        weights_licence=str(licence),
        stress="stress" in calculator.implemented_properties,
    )


def _import_module(name, directory):
    for folder in (directory, Path(".")):
        path = (folder / f"{name}.py").resolve()
        if path.is_file():
            return _import_file(name, path)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        where = directory.resolve()
        raise TeacherError(f"no {name}.py in {where} and cannot import {name}: {error}") from error


def _import_file(name, path):
    # registered under a name of its own: two folders may each hold a module of the same name
    unique = f"_mlffd_teacher_{name}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except (*FACTORY_FAILURES, SyntaxError, NameError) as error:
        del sys.modules[unique]
        raise TeacherError(f"{path} does not run: {type(error).__name__}: {error}") from error
    return module


def _source_digest(module):
    path = getattr(module, "__file__", None)
    if path is None:
        return "not stated"
    return SOURCE + hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]


FACTORY = TeacherFacts(
    load,
    about="any ASE calculator: a callable in module.py beside the config, or in an installed module",
    level="that of the calculator",
    code_licence="LICENCE of the module, else " + NOT_KNOWN,
    weights_licence="LICENCE of the module, else " + NOT_KNOWN,
    install="nothing: name your own file",
    elements_note="those of the calculator",
    conservative=None,
    settings={"...": "whatever the factory takes"},
)
