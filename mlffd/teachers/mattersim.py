# SPDX-License-Identifier: MIT
"""MatterSim (mattersim), checked against mattersim 1.2.3."""

from importlib.metadata import version

from mlffd.teachers.facts import TeacherFacts, elements_to, import_for
from mlffd.teachers.weights import WEIGHTS_SETTING, local_weights

INSTALL = "pip install mattersim"


def load(name, device="cpu", directory=".", weights=None):
    """MatterSim-v1.0.0 of the size that ends the name."""
    build = import_for(name, "mattersim.forcefield", INSTALL).MatterSimCalculator
    path, used = local_weights(weights, directory)
    size = name.rpartition("-")[2].upper()
    calculator = build(load_path=path or f"MatterSim-v1.0.0-{size}.pth", device=device)
    return calculator, f"mattersim {version('mattersim')}", used


TEACHERS = {
    "mattersim-*": TeacherFacts(
        load,
        about="MatterSim-v1.0.0 (M3GNet), for bulk materials at 0 to 5000 K and up to 1000 GPa",
        level="PBE(+U)",
        code_licence="MIT",
        weights_licence="MIT",
        install=INSTALL,
        package="mattersim",
        names=("mattersim-1m", "mattersim-5m"),
        elements=elements_to("Pu"),
        elements_note="up to Pu (which of them it was trained on: not known)",
        download="from the project's repository on GitHub",
        settings=WEIGHTS_SETTING,
    )
}
