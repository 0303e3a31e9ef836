# SPDX-License-Identifier: MIT
"""PET-MAD and its relatives (upet), checked against upet 0.3.1."""

from importlib.metadata import version

from mlffd.teachers.facts import TeacherFacts, import_for
from mlffd.teachers.weights import WEIGHTS_SETTING, local_weights

INSTALL = "pip install upet"


def load(name, device="cpu", directory=".", model_version="latest", weights=None):
    """PET model `name`; "pet-mad" alone is its size s. Forces are the energy's gradient."""
    build = import_for(name, "upet.ase", INSTALL).UPETCalculator
    path, used = local_weights(weights, directory)
    if path:
        calculator = build(checkpoint_path=path, device=device)
    else:
        model = "pet-mad-s" if name == "pet-mad" else name
        calculator = build(model=model, version=model_version, device=device)
        used = {"model_version": model_version}
    return calculator, f"upet {version('upet')}", used


TEACHERS = {
    "pet-mad*": TeacherFacts(
        load,
        about="PET-MAD: materials, surfaces and molecules",
        level="r2SCAN (versions before 1.5: PBEsol)",
        code_licence="BSD-3-Clause",
        weights_licence="BSD-3-Clause",
        install=INSTALL,
        package="upet",
        names=("pet-mad", "pet-mad-xs", "pet-mad-s", "pet-mad-m"),
        elements_note="102 (version 1.5 and later)",
        download="from Hugging Face (lab-cosmo/upet)",
        settings={
            "model_version": 'of the weights, such as "1.6.0"; name one, or "latest" may change under you',
            **WEIGHTS_SETTING,
        },
        note="not strictly invariant to rotations: a student is, and averages over them",
    )
}
