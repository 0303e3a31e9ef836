# SPDX-License-Identifier: MIT
"""MACE foundation models (mace-torch), checked against mace-torch 0.3.16."""

from dataclasses import replace
from importlib.metadata import version

from mlffd.teachers.charge import CHARGE_SETTINGS, ChargedCalculator
from mlffd.teachers.facts import MATERIALS_PROJECT, TeacherFacts, import_for
from mlffd.teachers.weights import WEIGHTS_SETTING, local_weights

INSTALL = "pip install mace-torch"
ACADEMIC = "ASL (Academic Software License: no commercial use)"
DTYPE = {"dtype": '"float64" or "float32"'}
HEAD = {"head": "level of theory, for models that have several: the package says which it takes"}


def load_materials(
    name, device="cpu", directory=".", dtype="float64", dispersion=False, head=None, weights=None
):
    """`mace_mp` with the model that follows "mace-mp-" in the name."""
    model = name.removeprefix("mace-mp-")
    model = f"mace-{model}" if model.startswith("matpes-") else model
    extra = {"dispersion": dispersion, **({"head": head} if head else {})}
    found = _load("mace_mp", name, model, device, directory, dtype, weights, **extra)
    calculator, version_, used = found
    return calculator, version_, used | {key: value for key, value in extra.items() if value}


def load_organic(name, device="cpu", directory=".", dtype="float64", weights=None):
    """`mace_off` with the model that follows "mace-off-" in the name."""
    return _load("mace_off", name, name.removeprefix("mace-off-"), device, directory, dtype, weights)


def load_omol(name, device="cpu", directory=".", dtype="float64", weights=None, charge=0, spin=1):
    """`mace_omol`, which takes charge and spin multiplicity."""
    calculator, version_, used = _load("mace_omol", name, "extra_large", device, directory, dtype, weights)
    return ChargedCalculator(calculator, charge, spin), version_, {**used, "charge": charge, "spin": spin}


def _load(builder, name, model, device, directory, dtype, weights, **extra):
    models = import_for(name, "mace.calculators.foundations_models", INSTALL)
    path, used = local_weights(weights, directory)
    build = getattr(models, builder)
    calculator = build(model=path or model, device=device, default_dtype=dtype, **extra)
    return calculator, f"mace-torch {version('mace-torch')}", {"dtype": dtype, **used}


MATERIALS = TeacherFacts(
    load_materials,
    about="MACE-MP-0 and MACE-MPA-0, trained on MPtrj (and sAlex)",
    level="PBE(+U)",
    code_licence="MIT",
    weights_licence="MIT",
    install=INSTALL,
    package="mace-torch",
    names=tuple(
        f"mace-mp-{model}"
        for model in (
            "small", "medium", "large", "small-0b", "medium-0b", "small-0b2", "medium-0b2", "large-0b2",
            "medium-0b3", "medium-mpa-0",
        )
    ),
    elements=MATERIALS_PROJECT,
    download="from the project's releases on GitHub",
    settings={
        **DTYPE,
        "dispersion": "add D3(BJ) dispersion for PBE; needs pip install torch-dftd",
        **HEAD,
        **WEIGHTS_SETTING,
    },
    note="pins e3nn 0.4.4, SevenNet wants 0.5 or later: each in an environment of its own",
)  # fmt: skip
RESTRICTED = {"elements": None, "elements_note": "89", "weights_licence": ACADEMIC}
TEACHERS = {
    "mace-mp-*-omat-0": replace(
        MATERIALS,
        about="MACE-OMAT-0, trained on OMat24",
        names=("mace-mp-small-omat-0", "mace-mp-medium-omat-0"),
        **RESTRICTED,
    ),
    "mace-mp-matpes-*": replace(
        MATERIALS,
        about="MACE-MATPES, trained on MatPES",
        level="r2SCAN or PBE, by name",
        names=("mace-mp-matpes-r2scan-0", "mace-mp-matpes-pbe-0"),
        **RESTRICTED,
    ),
    "mace-mp-mh-*": replace(
        MATERIALS,
        about="MACE-MH, several heads, trained on OMat24, OMol25, OC20, MatPES",
        level="PBE(+U), r2SCAN or wB97M-V, by head",
        names=("mace-mp-mh-1", "mace-mp-mh-0"),
        **RESTRICTED,
    ),
    "mace-mp-*": MATERIALS,
    "mace-off-*": replace(
        MATERIALS,
        load=load_organic,
        about="MACE-OFF23, trained on SPICE: neutral organic molecules, liquids, crystals",
        level="wB97M-D3(BJ)/def2-TZVPPD",
        weights_licence=ACADEMIC,
        names=("mace-off-small", "mace-off-medium", "mace-off-large"),
        elements=frozenset(("H", "C", "N", "O", "F", "P", "S", "Cl", "Br", "I")),
        settings={**DTYPE, **WEIGHTS_SETTING},
    ),
    "mace-omol": replace(
        MATERIALS,
        load=load_omol,
        about="MACE-OMOL-0 (extra large), trained on OMol25",
        level="wB97M-V/def2-TZVPD",
        weights_licence=ACADEMIC,
        names=(),
        elements=None,
        elements_note="89",
        charged=True,
        note="trained on molecules and clusters without a cell; " + MATERIALS.note,
        settings={**DTYPE, **WEIGHTS_SETTING, **CHARGE_SETTINGS},
    ),
}
