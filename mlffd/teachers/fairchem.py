# SPDX-License-Identifier: MIT
"""UMA models (fairchem-core 2), checked against fairchem-core 2.10.0 and 2.24.0."""

from importlib.metadata import version

from mlffd.errors import TeacherError
from mlffd.teachers.charge import CHARGE_SETTINGS, ChargedCalculator
from mlffd.teachers.facts import TeacherFacts, import_for
from mlffd.teachers.weights import WEIGHTS_SETTING, local_weights

INSTALL = "pip install fairchem-core"
TASKS = {
    "omol": "molecules",
    "omat": "inorganic crystals",
    "omc": "molecular crystals",
    "odac": "metal-organic frameworks",
    "oc20": "catalysts",
    "oc25": "catalysts under solvents",
}


def load(name, device="cpu", directory=".", task=None, inference=None, weights=None, charge=0, spin=1):
    """UMA model `name` for a `task`; charge and multiplicity count for "omol" only."""
    if task not in TASKS:
        known = ", ".join(f'"{key}" ({what})' for key, what in TASKS.items())
        raise TeacherError(f"teacher {name} needs a task, one of {known}; not {task!r}")
    mlip = import_for(name, "fairchem.core.calculate.pretrained_mlip", INSTALL)
    build = import_for(name, "fairchem.core", INSTALL).FAIRChemCalculator
    path, used = local_weights(weights, directory)
    inference = inference or _full_precision(name)
    unit = mlip.get_predict_unit(path or name, inference_settings=inference, device=device.partition(":")[0])
    calculator = build(unit, task_name=task)
    used = {"task": task, "inference": inference, **used}
    if task == "omol":
        calculator = ChargedCalculator(calculator, charge, spin)
        used |= {"charge": charge, "spin": spin}
    return calculator, f"fairchem-core {version('fairchem-core')}", used


def _full_precision(name):
    """The preset that computes in full float32: it was the default until the package named it."""
    presets = import_for(name, "fairchem.core.units.mlip_unit.api.inference", INSTALL)
    known = presets.NAME_TO_INFERENCE_SETTING
    return "high-precision" if "high-precision" in known else "default"


TEACHERS = {
    "uma-*": TeacherFacts(
        load,
        about="UMA, trained on OMol25, OMat24, OC20, ODAC and OMC, one model for several tasks",
        level="by task: omol wB97M-V/def2-TZVPD, omat PBE(+U), omc and odac PBE-D3, oc20 RPBE",
        code_licence="MIT",
        weights_licence="FAIR Chemistry License",
        install=INSTALL,
        package="fairchem-core",
        names=("uma-s-1p2p1", "uma-s-1p2", "uma-s-1p1", "uma-m-1p1"),
        charged=True,
        download="from Hugging Face (facebook/UMA), after access was granted there and `hf auth login`",
        settings={
            "task": "; ".join(f'"{key}": {what}' for key, what in TASKS.items()),
            "inference": "preset of the package (default: the one that computes in full float32)",
            **WEIGHTS_SETTING,
            **CHARGE_SETTINGS,
        },
        note="no stress with omol",
    )
}
