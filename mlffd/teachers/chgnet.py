# SPDX-License-Identifier: MIT
"""CHGNet (chgnet), whose weights come inside the package; checked against chgnet 0.4.2."""

from importlib.metadata import version

from mlffd.errors import TeacherError
from mlffd.teachers.facts import MATERIALS_PROJECT, TeacherFacts, import_for

INSTALL = "pip install chgnet"
MODELS = {"0.3.0": "PBE(+U)", "0.2.0": "PBE(+U), superseded", "r2scan": "r2SCAN"}


def load(name, device="cpu", directory=".", model="0.3.0"):
    """CHGNet with the weights `model`; an atom without neighbors is an error rather than a guess."""
    if model not in MODELS:
        known = ", ".join(f'"{key}" ({level})' for key, level in MODELS.items())
        raise TeacherError(f"teacher {name}: model must be one of {known}, not {model!r}")
    network = import_for(name, "chgnet.model.model", INSTALL).CHGNet
    build = import_for(name, "chgnet.model.dynamics", INSTALL).CHGNetCalculator
    weights = network.load(model_name=model, use_device=device, verbose=False)
    calculator = build(weights, use_device=device, on_isolated_atoms="error")
    return calculator, f"chgnet {version('chgnet')}", {"model": model}


TEACHERS = {
    "chgnet": TeacherFacts(
        load,
        about="CHGNet, trained on MPtrj, or transferred to r2SCAN energies",
        level="PBE(+U) or r2SCAN, by model",
        code_licence="BSD (modified)",
        weights_licence="BSD (modified)",
        install=INSTALL,
        package="chgnet",
        elements=MATERIALS_PROJECT,
        periodic="required",
        settings={"model": '"0.3.0" (PBE+U), "r2scan", or the older "0.2.0"'},
    )
}
