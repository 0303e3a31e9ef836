# SPDX-License-Identifier: MIT
"""Molecular dynamics of many replicas at once: one batched evaluation a step, cells fixed.

Langevin dynamics by the splitting BAOAB (Leimkuhler and Matthews, Appl. Math. Res. Express 2013, 34), or
velocity Verlet; with a second, slow force by r-RESPA (Tuckerman, Berne and Martyna, J. Chem. Phys. 97, 1990,
1992). A replica is the same whatever runs beside it, in however many calls, and goes on by itself when another
one is cut because it blew up.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.data import covalent_radii

from mlffd.errors import ConfigError, MlffdError, StructureError
from mlffd.neighbors import half_list
from mlffd.units import BOLTZMANN, FEMTOSECOND

# One object a structure with .energy (eV), .forces (n_atoms, 3) eV/Å and .stress (3, 3) eV/Å^3, ASE's sign.
Evaluate = Callable[[list[Atoms]], Sequence]

CHECK_STEPS = 10  # between two looks for atoms on top of each other; what passes is remembered
REMEMBERED = (0, 1, 2, 4, 8, 16, 32)  # looks before the last one, which a cut replica keeps: up to 0.2 ps
OVERLAP = 0.5  # of the sum of two covalent radii; no bond is as short
MAX_FORCE = 50.0  # eV/Å
NOISE_STEPS = 16  # random numbers are drawn for so many steps at once
# what evaluating a structure out of any order may raise; a set-up that is wrong shows before the first step
BLOW_UPS = (MlffdError, ValueError, ArithmeticError)


@dataclass(frozen=True)
class Evaluation:
    """What an ASE calculator says of one structure."""

    energy: float  # eV; of what the forces are the gradient
    forces: np.ndarray  # (n_atoms, 3) eV/Å
    stress: np.ndarray  # (3, 3) eV/Å^3, ASE's sign; nan where there is none


def evaluate_with(calculator) -> Evaluate:
    """What runs structures one by one through an ASE calculator."""

    def evaluate(structures: list[Atoms]) -> list[Evaluation]:
        return [_evaluation(calculator, atoms) for atoms in structures]

    return evaluate


def _evaluation(calculator, atoms: Atoms) -> Evaluation:
    forces = np.array(calculator.get_property("forces", atoms), np.float64)
    consistent = "free_energy" in calculator.implemented_properties
    energy = calculator.get_property("free_energy" if consistent else "energy", atoms)
    stress = np.full((3, 3), np.nan)
    if atoms.pbc.all() and "stress" in calculator.implemented_properties:
        try:
            xx, yy, zz, yz, xz, xy = calculator.get_property("stress", atoms)
            stress = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        except PropertyNotImplementedError:
            pass
    return Evaluation(float(energy), forces, stress)


class Trajectories:
    """Molecular dynamics of replicas, which may differ in everything.

    Args:
        structures: starts, which are copied; constraints are not kept. Momenta they carry are taken, others
            drawn from Maxwell and Boltzmann's distribution (zero at constant energy).
        evaluate: see ``Evaluate``; ``Engine.evaluate`` is one. It gets all structures that still run.
        time_step: fs.
        temperatures: K, of Langevin's thermostat, one or one a structure; None: constant energy.
        time_constant: fs, of the thermostat; the friction is its inverse.
        seed: of all random numbers; or one seed a structure, which then fixes them whatever runs beside it.
        slow: forces that really act, too dear for every step. ``evaluate`` is then the fast force at every
            step, and what ``slow`` differs from it acts as an impulse every ``slow_every`` steps.
        fixed_center: the center of mass does not move: right for forces that only atoms exert on each other.
        first_step: steps already done by the run that this one goes on with, from structures with momenta.
        max_force: eV/Å; a replica with an atom beyond it is cut.

    Attributes:
        structures: list of Atoms with momenta, changed in place; of a cut replica the last sane one.
        predictions, slow_predictions: what was last evaluated of each, None for a cut one;
            slow predictions are of the present positions whenever ``run`` returns.
        cut: for each replica why it was cut, or None.
        before_cut: for each cut replica sane structures from shortly before, info["step"] telling when,
            the latest last; empty for the others.
        n_steps: steps done.

    Raises:
        ConfigError: settings that cannot be meant.
        Whatever evaluating the starts raises.
    """

    def __init__(
        self,
        structures: Sequence[Atoms],
        evaluate: Evaluate,
        time_step: float,
        temperatures: float | Sequence[float] | None = None,
        time_constant: float = 100.0,
        seed: int | Sequence[int] = 0,
        slow: Evaluate | None = None,
        slow_every: int = 1,
        fixed_center: bool = True,
        first_step: int = 0,
        max_force: float = MAX_FORCE,
    ):
        raise NotImplementedError

    def run(self, n_steps: int) -> None:
        """Do so many steps, a multiple of ``slow_every``; replicas that blow up are cut on the way."""

    @property
    def temperatures_now(self) -> np.ndarray:
        """Kinetic temperatures (n_structures,) in K; nan of a cut replica."""

    @property
    def conserved(self) -> np.ndarray:
        """What must not drift (n_structures,) in eV: total energy less the heat from the thermostat (Bussi and
        Parrinello, Phys. Rev. E 75, 056707, 2007, eq. 17); nan of a cut replica."""
