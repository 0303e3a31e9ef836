# SPDX-License-Identifier: MIT
"""Orb models (orb-models), both generations of their interface.

Checked against orb-models 0.5.5 (Python 3.10 and 3.11) and 0.7.0 (3.12 and later), whose loaders return
a model, or a model and an adapter that the calculator wants too.
"""

from dataclasses import replace
from importlib.metadata import version

from mlffd.errors import TeacherError
from mlffd.teachers.charge import CHARGE_SETTINGS, ChargedCalculator
from mlffd.teachers.facts import TeacherFacts, import_for
from mlffd.teachers.weights import WEIGHTS_SETTING, local_weights

INSTALL = "pip install orb-models"
# its "float64" would become torch's default for everything else in the process
PRECISIONS = ("float32-highest", "float32-high")
PRECISION = {
    "precision": '"float32-highest" (no TF32 on GPUs) or "float32-high" (faster there)',
    "compile": "compile the model with torch.compile: faster after a slow start",
}


def load(name, device="cpu", directory=".", precision="float32-highest", compile=False, weights=None):
    """Orb model `name`, such as orb-v3-conservative-inf-omat."""
    if precision not in PRECISIONS:
        raise TeacherError(f"teacher {name}: precision must be one of {', '.join(PRECISIONS)}")
    pretrained = import_for(name, "orb_models.forcefield.pretrained", INSTALL)
    builder = pretrained.ORB_PRETRAINED_MODELS.get(name)
    if builder is None:
        known = ", ".join(pretrained.ORB_PRETRAINED_MODELS)
        raise TeacherError(f"teacher {name}: the orb-models installed here has {known}")
    path, used = local_weights(weights, directory)
    local = {"weights_path": path} if path else {}
    loaded = builder(device=device, precision=precision, compile=compile, **local)
    calculator = _calculator(name, loaded, device)
    return calculator, f"orb-models {version('orb-models')}", {"precision": precision, **used}


def _calculator(name, loaded, device):
    if isinstance(loaded, tuple):
        model, adapter = loaded
        newer = import_for(name, "orb_models.forcefield.inference.calculator", INSTALL)
        return newer.ORBCalculator(model, atoms_adapter=adapter, device=device)
    older = import_for(name, "orb_models.forcefield.calculator", INSTALL)
    return older.ORBCalculator(loaded, device=device)


def load_charged(
    name, device="cpu", directory=".", precision="float32-highest", compile=False, weights=None,
    charge=0, spin=1,
):  # fmt: skip
    """An Orb model that takes charge and spin multiplicity."""
    calculator, version_, used = load(name, device, directory, precision, compile, weights)
    return ChargedCalculator(calculator, charge, spin), version_, {**used, "charge": charge, "spin": spin}


DIRECT = TeacherFacts(
    load,
    about="Orb-v2, trained on MPtrj and Alexandria; forces are predicted, not the energy's gradient",
    level="PBE(+U)",
    code_licence="Apache-2.0",
    weights_licence="Apache-2.0",
    install=INSTALL,
    package="orb-models",
    conservative=False,
    download="from the project's store on AWS",
    settings={**PRECISION, **WEIGHTS_SETTING},
)
KINDS = ("20-omat", "inf-omat", "20-mpa", "inf-mpa")
OMOL = {
    "load": load_charged,
    "level": "wB97M-V/def2-TZVPD",
    "names": (),
    "stress": False,
    "charged": True,
    "settings": {**DIRECT.settings, **CHARGE_SETTINGS},
    "note": "trained on molecules and clusters without a cell",
}
TEACHERS = {
    "orb-v2": DIRECT,
    "orb-v3-conservative-omol": replace(DIRECT, about="Orb-v3, trained on OMol25", conservative=True, **OMOL),
    "orb-v3-direct-omol": replace(DIRECT, about="Orb-v3, trained on OMol25; direct forces", **OMOL),
    "orb-v3-conservative-*": replace(
        DIRECT,
        about="Orb-v3, trained on OMat24 (omat) or MPtrj and Alexandria (mpa)",
        names=tuple(f"orb-v3-conservative-{kind}" for kind in KINDS),
        conservative=True,
        note="20 neighbors make its energy jump in places; inf, all within 6 Å, does not",
    ),
    "orb-v3-direct-*": replace(
        DIRECT,
        about="Orb-v3 with direct forces, trained on OMat24 (omat) or MPtrj and Alexandria (mpa)",
        names=tuple(f"orb-v3-direct-{kind}" for kind in KINDS),
    ),
}
