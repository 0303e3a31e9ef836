# SPDX-License-Identifier: MIT
"""AIMNet2 (aimnet), checked against aimnet 0.2.5."""

from dataclasses import replace
from importlib.metadata import version

from mlffd.teachers.charge import CHARGE_SETTINGS, ChargedCalculator
from mlffd.teachers.facts import TeacherFacts, import_for
from mlffd.teachers.weights import WEIGHTS_SETTING, local_weights

INSTALL = 'pip install "aimnet[ase]"'
ELEMENTS = ("H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "As", "Se", "Br", "I")


def load(name, device="cpu", directory=".", member=0, weights=None, charge=0, spin=1):
    """AIMNet2 `name`, one network of its committee of 4; spin counts for aimnet2-nse only."""
    calculators = import_for(name, "aimnet.calculators", INSTALL)
    path, used = local_weights(weights, directory)
    base = calculators.AIMNet2Calculator(path or name, device=device, ensemble_member=member)
    calculator = ChargedCalculator(calculators.AIMNet2ASE(base, charge=charge, mult=spin), charge, spin)
    used = {"member": member, **used, "charge": charge, "spin": spin}
    return calculator, f"aimnet {version('aimnet')}", used


AIMNET2 = TeacherFacts(
    load,
    about="AIMNet2: organic and elemental-organic molecules, neutral or charged",
    level="wB97M-D3",
    code_licence="MIT",
    weights_licence="not known apart from the code's MIT",
    install=INSTALL,
    package="aimnet",
    elements=frozenset(ELEMENTS),
    charged=True,
    download="from the project's store on Google Cloud",
    settings={"member": "network of the committee, 0 to 3", **WEIGHTS_SETTING, **CHARGE_SETTINGS},
)
TEACHERS = {
    "aimnet2": AIMNET2,
    "aimnet2-*": replace(
        AIMNET2,
        about="AIMNet2 at B97-3c, for open shells (nse), reactions (rxn) or palladium (pd)",
        level="wB97M-D3, B97-3c by name",
        names=("aimnet2-b973c", "aimnet2-2025", "aimnet2-nse", "aimnet2-rxn", "aimnet2-pd"),
        elements=None,
    ),
}
