# SPDX-License-Identifier: MIT
"""What an ASE calculator says of structures, asked in one way by labels, sampling and reports."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from subprocess import SubprocessError

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError

from mlffd.errors import TeacherError

# what a calculator of others raises for a structure that it cannot do; a full disk is no fault of a structure
CALCULATOR_FAILURES = (ValueError, ArithmeticError, LookupError, RuntimeError, TypeError, AttributeError)
CALCULATOR_FAILURES += (AssertionError, MemoryError, SubprocessError)
STATE = ("charge", "spin")  # in a structure's info


@dataclass(frozen=True)
class Evaluation:
    """What is said of one structure."""

    energy: float  # eV; of what the forces are the gradient
    forces: np.ndarray  # (n_atoms, 3) eV/Å
    stress: np.ndarray  # (3, 3) eV/Å^3, ASE's sign; nan where there is none


# One Evaluation a structure, or an object with the same attributes.
Evaluate = Callable[[list[Atoms]], Sequence]


def evaluate_with(calculator) -> Evaluate:
    """What runs structures one by one through an ASE calculator.

    Raises:
        TeacherError: it cannot do one; in one line, whatever it said.
    """

    def evaluate(structures: list[Atoms]) -> list[Evaluation]:
        try:
            return [evaluate_atoms(calculator, atoms) for atoms in structures]
        except CALCULATOR_FAILURES as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise TeacherError(f"the calculator failed: {said}") from error

    return evaluate


def evaluate_atoms(calculator, atoms: Atoms) -> Evaluation:
    """Of one structure. Where a calculator tells a free energy from an energy, it is the one whose gradient
    the forces are. Raises what the calculator raises."""
    atoms = atoms.copy()
    atoms.calc = calculator
    forces = raw_forces(atoms)
    consistent = "free_energy" in calculator.implemented_properties
    return Evaluation(float(atoms.get_potential_energy(consistent)), forces, _stress(atoms))


def state_of(atoms: Atoms) -> dict:
    """What its info gives of charge and spin: with the nuclei they decide what is said of a structure."""
    return {key: atoms.info[key] for key in STATE if key in atoms.info}


def raw_forces(atoms: Atoms) -> np.ndarray:
    """(n_atoms, 3) eV/Å, those of frozen atoms, too: they feel them."""
    return np.array(atoms.get_forces(apply_constraint=False), np.float64)


def _stress(atoms: Atoms) -> np.ndarray:
    if atoms.pbc.all() and "stress" in atoms.calc.implemented_properties:
        with suppress(PropertyNotImplementedError):
            return np.array(atoms.get_stress(voigt=False, apply_constraint=False), np.float64)
    return np.full((3, 3), np.nan)
