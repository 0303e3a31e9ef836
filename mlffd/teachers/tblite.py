# SPDX-License-Identifier: MIT
"""GFN-xTB Hamiltonians (tblite), checked against tblite 0.8.0."""

from dataclasses import replace
from importlib.metadata import version

from mlffd.teachers.charge import CHARGE_SETTINGS, ChargedCalculator
from mlffd.teachers.facts import TeacherFacts, elements_to, import_for

INSTALL = 'pip install "tblite[ase]"'
METHODS = {"gfn1-xtb": "GFN1-xTB", "gfn2-xtb": "GFN2-xTB"}


def load(
    name, device="cpu", directory=".", accuracy=1.0, electronic_temperature=300.0, max_iterations=250,
    charge=0, spin=1,
):  # fmt: skip
    """GFN1-xTB or GFN2-xTB by tblite; periodic cells are treated at the Gamma point."""
    build = import_for(name, "tblite.ase", INSTALL).TBLite
    settings = {
        "accuracy": accuracy,
        "electronic_temperature": electronic_temperature,
        "max_iterations": max_iterations,
    }
    # nothing is kept from the frame before: its charges as a first guess would change the last digits
    calculator = build(method=METHODS[name], verbosity=0, cache_api=False, **settings)
    charged = ChargedCalculator(calculator, charge, spin, tell=_tell)
    return charged, f"tblite {version('tblite')}", {**settings, "charge": charge, "spin": spin}


def _tell(calculator, atoms, charge, spin):
    calculator.set(charge=charge, multiplicity=spin)


GFN2 = TeacherFacts(
    load,
    about="GFN2-xTB, a tight-binding method: molecules, and cells large enough for the Gamma point",
    level="semiempirical",
    code_licence="LGPL-3.0-or-later",
    weights_licence="LGPL-3.0-or-later",
    install=INSTALL,
    package="tblite",
    elements=elements_to("Rn"),
    charged=True,
    settings={
        "accuracy": "of the self-consistent charges: smaller is tighter",
        "electronic_temperature": "K",
        "max_iterations": "of the self-consistent charges",
        **CHARGE_SETTINGS,
    },
)
TEACHERS = {
    "gfn1-xtb": replace(GFN2, about=GFN2.about.replace("GFN2", "GFN1")),
    "gfn2-xtb": GFN2,
}
