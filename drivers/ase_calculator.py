"""The student as an ASE calculator."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from mlffd.bundle import Bundle
from mlffd.drivers.verdict import say_verdict
from mlffd.engine import Engine
from mlffd.predict import StructurePrediction
from mlffd.students.student import Student

SEEN = ("positions", "numbers", "cell", "pbc")  # by a student, under ASE's names


class Calculator(AseCalculator):
    """ASE calculator of a student: energy, free_energy, energies (eV), forces (eV/Å), stress (eV/Å^3, Voigt).

    ``source``, ``device``, ``dtype`` and ``backend`` are those of ``mlffd.Engine``, and so are the errors.
    Stress is given where the structure is periodic in three directions. Caching is ASE's own. What the
    student's fidelity report says of it is printed once, see drivers/verdict.py.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]

    def __init__(
        self,
        source: Engine | Bundle | Student | str | Path,
        device: str = "cpu",
        dtype: str = "float32",
        backend: str = "auto",
    ):
        super().__init__()
        self.engine = source if isinstance(source, Engine) else Engine(source, device, dtype, backend)
        say_verdict(self.engine)

    def calculate(
        self, atoms: Atoms | None = None, properties=("energy",), system_changes=all_changes
    ) -> None:
        """Called by ASE when something changed; see ``Engine.evaluate`` for what it raises."""
        if atoms is not None and self.check_state(atoms):
            self.atoms = atoms.copy()
        (prediction,) = self.engine.evaluate([self.atoms])
        self.results = ase_results(prediction, periodic=self.atoms.pbc.all())

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What has changed since the last calculation, of all that a student sees; exact, whatever ``tol``.

        ASE's own comparison takes as long as a tenth of the evaluation of 64 waters.
        """
        if self.atoms is None:
            return list(SEEN)
        return [name for name in SEEN if not np.array_equal(getattr(atoms, name), getattr(self.atoms, name))]

    def calculate_many(self, structures: Sequence[Atoms]) -> list[dict]:
        """Results of many structures, of any sizes, from batched evaluations: one dictionary a structure."""
        predictions = self.engine.evaluate(structures)
        return [ase_results(p, periodic=atoms.pbc.all()) for p, atoms in zip(predictions, structures)]


def ase_results(prediction: StructurePrediction, periodic: bool) -> dict:
    """A prediction under ASE's names."""
    results = dict(
        energy=prediction.energy,
        free_energy=prediction.energy,
        energies=prediction.atomic_energies,
        forces=prediction.forces,
    )
    if periodic:
        results["stress"] = full_3x3_to_voigt_6_stress(prediction.stress)
    return results
