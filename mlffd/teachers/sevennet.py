# SPDX-License-Identifier: MIT
"""SevenNet foundation models (sevenn): some come inside the package, others are downloaded.

Checked against sevenn 0.13.0.
"""

import warnings
from dataclasses import replace

from mlffd.errors import TeacherError
from mlffd.teachers.facts import MATERIALS_PROJECT, TeacherFacts, import_for
from mlffd.teachers.weights import WEIGHTS_SETTING, local_weights

INSTALL = 'pip install "mlffd[sevenn]"'
OMNI_HEADS = (
    "mpa", "omat24", "matpes_pbe", "matpes_r2scan", "mp_r2scan", "oc20", "oc22", "odac23",
    "omol25_low", "omol25_high", "spice", "qcml", "pet_mad",
)  # fmt: skip
# heads of models that have several; for other names of the pattern the package says which it takes
MODALS = {"7net-mf-0": ("R2SCAN", "PBE"), "7net-mf-ompa": ("mpa", "omat24"), "7net-omni": OMNI_HEADS}


def load(name, device="cpu", directory=".", modal=None, weights=None):
    """SevenNet `name` on `device`; a model of several heads needs `modal`."""
    heads = MODALS.get(name.removesuffix("-i8").removesuffix("-i12"))
    if heads and modal not in heads:
        wanted = " or ".join(f'"{head}"' for head in heads)
        raise TeacherError(f"teacher {name} takes modal = {wanted}, not {modal!r}")
    sevenn = import_for(name, "sevenn", INSTALL)
    build = import_for(name, "sevenn.calculator", INSTALL).SevenNetCalculator
    path, used = local_weights(weights, directory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about accelerators that are optional
        calculator = build(path or name, modal=modal, device=device)
    return calculator, f"sevenn {sevenn.__version__}", ({"modal": modal} if modal else {}) | used


def load_shipped(name, device="cpu", directory=".", modal=None):
    """A model whose weights are in the package."""
    return load(name, device, directory, modal)


def load_single(name, device="cpu", directory="."):
    """A model with one head whose weights are in the package."""
    return load(name, device, directory)


SHIPPED = TeacherFacts(
    load_single,
    about="SevenNet-0 (11 July 2024), trained on MPtrj",
    level="PBE(+U)",
    code_licence="MIT",
    weights_licence="MIT",
    install=INSTALL,
    package="sevenn",
    elements=MATERIALS_PROJECT,
    note="wants e3nn 0.5 or later, MACE pins 0.4.4: each in an environment of its own",
)
TEACHERS = {
    "7net-0": SHIPPED,
    "7net-l3i5": replace(SHIPPED, about="SevenNet-l3i5, trained on MPtrj: more accurate, 4 times as slow"),
    "7net-mf-0": replace(
        SHIPPED,
        load=load_shipped,
        about="SevenNet-MF-0, multi-fidelity, trained on Materials Project data",
        level="r2SCAN or PBE(+U), by modal",
        settings={"modal": '"R2SCAN" or "PBE": the level of theory'},
    ),
    "7net-mf-*": replace(
        SHIPPED,
        load=load,
        about="SevenNet-MF-ompa, trained on OMat24, sAlex, MPtrj",
        names=("7net-mf-ompa",),
        download="from the project's releases on GitHub",
        elements=None,
        settings={"modal": '"mpa" or "omat24": DFT settings of that training set', **WEIGHTS_SETTING},
    ),
    "7net-omni*": replace(
        SHIPPED,
        load=load,
        about="SevenNet-Omni, trained on 15 sets of crystals, molecules and surfaces",
        level="by modal: mpa PBE(+U), matpes_r2scan r2SCAN, omol25_low wB97M-V and more",
        names=("7net-omni", "7net-omni-i8", "7net-omni-i12"),
        download="from the project's releases on GitHub",
        elements=None,
        settings={"modal": "one of " + ", ".join(OMNI_HEADS), **WEIGHTS_SETTING},
    ),
}
