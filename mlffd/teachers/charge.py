# SPDX-License-Identifier: MIT
"""Total charge and spin multiplicity for teachers that take them: of each frame, else of the settings."""

from ase import Atoms
from ase.calculators.calculator import BaseCalculator, Calculator, all_changes

from mlffd.errors import TeacherError

CHARGE_SETTINGS = {
    "charge": "total charge (e) of a frame that has no charge in atoms.info",
    "spin": "spin multiplicity 2S+1 of a frame that has no spin in atoms.info",
}


def charge_and_spin(atoms: Atoms, charge: int = 0, spin: int = 1) -> tuple[int, int]:
    """Total charge (e) and multiplicity 2S+1: what the frame's info says, else what is given."""
    return int(atoms.info.get("charge", charge)), int(atoms.info.get("spin", spin))


def impossible_spin(atoms: Atoms, charge: int, spin: int) -> str | None:
    """Why a structure cannot have this charge and multiplicity, or None: unpaired electrons and the
    number of electrons are both even or both odd."""
    electrons = int(atoms.numbers.sum()) - charge
    if spin >= 1 and electrons >= spin - 1 and (electrons - (spin - 1)) % 2 == 0:
        return None
    return (
        f"{electrons} electrons (charge {charge:+d}) cannot have spin multiplicity {spin}:"
        " give charge and spin in the frame's info or to the teacher"
    )


class ChargedCalculator(Calculator):
    """An ASE calculator that is told charge and multiplicity with every structure.

    ``tell(calculator, atoms, charge, spin)`` hands them over; the default puts them into ``atoms.info``
    as ``charge`` and ``spin``, where most packages look. Nothing is carried over from the structure before.
    """

    def __init__(self, calculator: BaseCalculator, charge: int = 0, spin: int = 1, tell=None):
        super().__init__()
        self.implemented_properties = list(calculator.implemented_properties)
        self.calculator, self.charge, self.spin = calculator, charge, spin
        self.tell = tell or _tell_by_info

    def check_state(self, atoms, tol=1e-15):
        """ASE does not look at info, and would answer with what it had for another charge."""
        changes = super().check_state(atoms, tol=tol)
        if not changes and self._charge_and_spin(self.atoms) != self._charge_and_spin(atoms):
            changes.append("info")
        return changes

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Hand the structure on; TeacherError if its charge and multiplicity do not go together."""
        super().calculate(atoms, properties, system_changes)
        charge, spin = self._charge_and_spin(self.atoms)
        wrong = impossible_spin(self.atoms, charge, spin)
        if wrong:
            raise TeacherError(wrong)
        inner = self.atoms.copy()
        self.calculator.reset()
        self.tell(self.calculator, inner, charge, spin)
        inner.calc = self.calculator  # some packages prepare themselves here
        self.calculator.calculate(inner, wanted_together(self.calculator, inner, properties), all_changes)
        self.results = dict(self.calculator.results)

    def _charge_and_spin(self, atoms):
        return charge_and_spin(atoms, self.charge, self.spin)


def wanted_together(calculator: BaseCalculator, atoms: Atoms, properties) -> list[str]:
    """Also what a label needs besides ``properties``, so that one evaluation gives it all."""
    label = ["energy", "forces"] + (["stress"] if atoms.pbc.all() else [])
    return [name for name in {*label, *properties} if name in calculator.implemented_properties]


def _tell_by_info(calculator, atoms, charge, spin):
    atoms.info.update(charge=charge, spin=spin)
