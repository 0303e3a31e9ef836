# SPDX-License-Identifier: MIT
"""Forces that are known without a student, for the loop of ``mlffd-driver``; also a small driver itself:

python tests/ipi_evaluators.py harmonic:0.1 --template FILE --path SOCKET [--report FILE]
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.units import Bohr, Hartree

from mlffd.drivers.ipi import loop
from mlffd.drivers.ipi.client import drive
from mlffd.drivers.ipi.loop import Address
from mlffd.drivers.ipi.protocol import header
from mlffd.drivers.ipi.template import read_template
from mlffd.errors import StructureError


def argon(seed: int = 0) -> Atoms:
    """A small triclinic crystal with displaced atoms, in i-PI's orientation (upper triangular)."""
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
    atoms.set_cell([[5.2, 0, 0], [0.7, 5.4, 0], [-0.5, 0.9, 5.6]], scale_atoms=True)
    atoms.rattle(0.15, seed=seed)
    return atoms


def lennard_jones() -> LennardJones:
    """Argon, cut off inside the second shell."""
    return LennardJones(sigma=3.4, epsilon=0.0104, rc=6.0)


def message_stream(structures: list[Atoms]) -> bytes:
    """What i-PI sends for one batch, from STATUS to GETFORCE."""
    n_atoms = len(structures[0])
    n_structures = len(structures)
    parameters = (f" , batch_size:{n_structures}" if n_structures > 1 else " ").encode()
    cells = np.array([[h := atoms.cell.array.T / Bohr, np.linalg.inv(h)] for atoms in structures])
    positions = np.array([atoms.positions / Bohr for atoms in structures])
    blocks = [np.int32(n_atoms).tobytes(), cells.tobytes()]
    return b"".join(
        [
            header("STATUS"), header("INIT"), np.array([3, len(parameters)], np.int32).tobytes(), parameters,
            header("STATUS"), header("POSDATA"), *(blocks[::-1] if n_structures == 1 else blocks),
            positions.tobytes(),
            header("STATUS"), header("GETFORCE"), header("STATUS"), header("EXIT"),
        ]
    )  # fmt: skip


@dataclass
class Result:
    """What the loop needs of a prediction."""

    energy: float  # eV
    forces: np.ndarray  # (n_atoms, 3) eV/Å
    virial: np.ndarray  # (3, 3) eV


def harmonic(k: float):
    """Every atom bound to the origin, ``k`` in Hartree/Bohr^2; no virial, as in i-PI's own ``harmonic``."""
    k = k * Hartree / Bohr**2

    def evaluate_one(atoms: Atoms) -> Result:
        return Result(0.5 * k * (atoms.positions**2).sum(), -k * atoms.positions, np.zeros((3, 3)))

    return lambda structures: [evaluate_one(atoms) for atoms in structures]


def from_calculator(calculator):
    """An ASE calculator's energy, forces and, where all directions are periodic, virial."""

    def evaluate_one(atoms: Atoms) -> Result:
        atoms.calc = calculator
        virial = np.zeros((3, 3))
        if atoms.pbc.all():
            virial = -atoms.get_stress(voigt=False) * atoms.get_volume()
        return Result(atoms.get_potential_energy(), atoms.get_forces(), virial)

    return lambda structures: [evaluate_one(atoms) for atoms in structures]


class Recorder:
    """Remembers every list of structures it is asked for, and passes it on."""

    def __init__(self, evaluate):
        self.evaluate = evaluate
        self.calls: list[list[Atoms]] = []

    def __call__(self, structures: list[Atoms]) -> list[Result]:
        self.calls.append([atoms.copy() for atoms in structures])
        return self.evaluate(structures)


class Spoiled:
    """Good until a number of calls is reached; then ``how`` says: NaN, or forces beyond all bounds, or a
    refusal, or no memory, or an answer that never comes, or one that comes after a second."""

    def __init__(self, evaluate, good_calls: int, how: str):
        self.evaluate, self.good_calls, self.how = evaluate, good_calls, how

    def __call__(self, structures: list[Atoms]) -> list[Result]:
        self.good_calls -= 1
        results = self.evaluate(structures)
        if self.good_calls >= 0:
            return results
        if self.how == "refuse":
            raise StructureError("atoms too close")
        if self.how == "memory":
            raise MemoryError("none left")
        if self.how == "sleep":
            Path("asleep").touch()
            time.sleep(3600)
        if self.how == "slow":
            Path("asleep").touch()
            time.sleep(1)
            return results
        if self.how == "explode":
            results[-1].forces[0] *= 1e9
            return results
        results[-1].forces[0, 0] = np.nan
        return results


def named(text: str):
    """``argon``, ``harmonic:K``, or one of Spoiled's ways and N: a harmonic force, spoiled after N calls."""
    kind, _, value = text.partition(":")
    if kind == "argon":
        return from_calculator(lennard_jones())
    return harmonic(float(value)) if kind == "harmonic" else Spoiled(harmonic(0.1), int(value), kind)


def main() -> int:
    """Runs the loop until the server ends; returns the driver's exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("evaluator", type=named)
    parser.add_argument("--template", required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--connect-timeout", type=float, default=20.0)
    parser.add_argument("-n", type=int, default=1)
    parser.add_argument("--persist", action="store_true")
    parser.add_argument("--patience", type=float, default=loop.PATIENCE)
    parser.add_argument("--report")
    options = parser.parse_args()
    template = read_template(options.template)
    loop.PATIENCE = options.patience
    return drive(
        template,
        options.evaluator,
        Address(path=options.path),
        options.connect_timeout,
        report=options.report,
        n_connections=options.n,
        persist=options.persist,
    )


if __name__ == "__main__":
    sys.exit(main())
