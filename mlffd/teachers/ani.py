# SPDX-License-Identifier: MIT
"""ANI models: torchani, or ANI-2x by fennol from a .fnx file.

Checked against torchani 2.0 (weights of ANI-1ccx inside), 2.2.4 and 2.9.0 (downloaded) and fennol 2026.6.29.
"""

import warnings
from importlib.metadata import version

from ase.calculators.calculator import Calculator, all_changes

from mlffd.errors import TeacherError
from mlffd.teachers.charge import wanted_together
from mlffd.teachers.facts import TeacherFacts, import_for
from mlffd.teachers.weights import local_weights

INSTALL = "pip install torchani"
INSTALL_SHIPPED = 'pip install torchani==2.0 "setuptools<81"'
DTYPE = {"dtype": '"float64" or "float32"'}


def load_1ccx(name, device="cpu", directory=".", dtype="float64"):
    """ANI-1ccx, the mean of its 8 networks."""
    return _load_torchani(name, "ANI1ccx", device, dtype, INSTALL_SHIPPED)


def load_2x(name, device="cpu", directory=".", dtype="float64", weights=None):
    """ANI-2x: all 8 networks by torchani, or what is in a .fnx file by fennol."""
    if weights is None:
        return _load_torchani(name, "ANI2x", device, dtype, INSTALL)
    if not str(weights).endswith(".fnx"):
        raise TeacherError(f"teacher {name}: weights must be a .fnx file of fennol, not {weights}")
    build = import_for(name, "fennol.ase", "pip install fennol").FENNIXCalculator
    path, used = local_weights(weights, directory)
    calculator = build(path, use_float64=dtype == "float64", gpu_preprocessing=False)
    return calculator, f"fennol {version('fennol')}", {"dtype": dtype, **used}


def _load_torchani(name, model, device, dtype, install):
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about extensions that are optional
        models = import_for(name, "torchani.models", install)
        network = getattr(models, model)(periodic_table_index=True)
    network = network.to(device=device, dtype=getattr(torch, dtype))
    return VoigtStress(network.ase()), f"torchani {version('torchani')}", {"dtype": dtype}


class VoigtStress(Calculator):
    """A calculator whose stress is a full matrix, with stress in the order that ASE wants."""

    def __init__(self, calculator):
        super().__init__()
        self.calculator = calculator
        self.implemented_properties = list(calculator.implemented_properties)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """All that a label needs in one evaluation, and nothing left of the structure before."""
        super().calculate(atoms, properties, system_changes)
        self.calculator.reset()
        wanted = wanted_together(self.calculator, self.atoms, properties)
        self.calculator.calculate(self.atoms.copy(), wanted, all_changes)
        self.results = dict(self.calculator.results)
        stress = self.results.get("stress")
        if stress is not None and stress.shape == (3, 3):
            self.results["stress"] = stress.flat[[0, 4, 8, 5, 2, 1]]


TEACHERS = {
    "ani-1ccx": TeacherFacts(
        load_1ccx,
        about="ANI-1ccx, 8 networks: organic molecules near equilibrium and their liquids",
        level="CCSD(T)*/CBS, by transfer from wB97X",
        code_licence="MIT",
        weights_licence="MIT",
        install=INSTALL_SHIPPED,
        package="torchani",
        elements=frozenset(("H", "C", "N", "O")),
        download="no with torchani 2.0, whose package has the weights; later ones fetch them",
        settings=DTYPE,
    ),
    "ani-2x": TeacherFacts(
        load_2x,
        about="ANI-2x, 8 networks: organic molecules and their liquids",
        level="wB97X/6-31G(d)",
        code_licence="MIT (fennol: LGPL-3.0)",
        weights_licence="MIT",
        install=INSTALL,
        package="torchani",
        elements=frozenset(("H", "C", "N", "O", "F", "S", "Cl")),
        download="by torchani, from the project's releases on GitHub",
        settings={**DTYPE, "weights": "local ani2x.fnx, run by fennol instead (1 network, JAX, no torchani)"},
    ),
}
