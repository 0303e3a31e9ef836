# SPDX-License-Identifier: MIT
"""ASE, i-PI and LAMMPS say the same of the same frames, and all three say what LAMMPS' own lj/cut says."""

from dataclasses import dataclass

import numpy as np
import pytest
from ase import Atoms
from lammps_process import read_result, run_lammps, single_point
from plugin_process import needs, run_plugin
from test_ipi import Talk, ask
from test_lammps_run import (
    LENNARD_JONES,
    LJ_CUT,
    NOBLE,
    mliap,
    noble_frames,
    random_local_student,
    water_frames,
)

from mlffd import Calculator
from mlffd.bundle import write_bundle
from mlffd.drivers.lammps_mliap import export
from mlffd.drivers.lammps_plugin import export_weights
from mlffd.drivers.lammps_program import write_data_file
from mlffd.engine import Engine
from mlffd.students import build_student

pytestmark = pytest.mark.slow

PERIODIC = (
    ("solid", "sheared"),
    ("liquid", "sheared"),
)  # orthorhombic and triclinic, of noble gases and of water
WATER = ("O", "H")
PLUGIN = f"pair_style mlffd precision PRECISION\npair_coeff * * lj.weights {' '.join(NOBLE)}"
VOIGT = [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]  # LAMMPS' order


@dataclass(frozen=True)
class Answer:
    """What one coupling says of a frame; what it has no place for is None."""

    energy: float  # eV
    forces: np.ndarray  # (n_atoms, 3) eV/Å
    pressure: np.ndarray  # (6,) eV/Å^3: xx yy zz xy xz yz
    atomic_energies: np.ndarray | None = None  # (n_atoms,) eV


def through_ase(bundle, atoms: Atoms, dtype: str) -> Answer:
    atoms = atoms.copy()
    atoms.calc = Calculator(bundle, dtype=dtype)
    return Answer(
        atoms.get_potential_energy(), atoms.get_forces(), -atoms.get_stress(voigt=False)[VOIGT],
        atoms.get_potential_energies(),
    )  # fmt: skip


def through_ipi(bundle, atoms: Atoms, dtype: str) -> Answer:
    """i-PI's server side asks, the loop of mlffd-driver answers."""
    talk = Talk(atoms, Engine(bundle, dtype=dtype).evaluate)
    try:
        energy, forces, virial = ask(talk.servers[0], atoms)
    finally:
        talk.close()
    return Answer(energy, forces, virial[VOIGT] / atoms.cell.volume)


def from_lammps(folder, name: str) -> Answer:
    result = read_result(folder, name)
    return Answer(result.energy, result.forces, result.pressure, result.atomic_energies)


@pytest.fixture(scope="module", params=[1, 2], ids=["1rank", "2ranks"])
def folder(request, tmp_path_factory):
    """Bundles, and what LAMMPS says of all frames on so many ranks."""
    folder = tmp_path_factory.mktemp(f"couplings{request.param}")
    write_bundle(folder / "lj.mlffd", build_student(LENNARD_JONES))
    write_bundle(folder / "local.mlffd", random_local_student())
    export(folder / "lj.mlffd", folder / "lj.pt", dtype="float64")
    script = ""
    for name in PERIODIC[0]:
        write_data_file(folder / f"{name}.noble", noble_frames()[name], NOBLE)
        for kind, potential in (("lj", mliap("lj.pt", NOBLE)), ("lj_cut", LJ_CUT)):
            script += single_point(f"{name}.{kind}", f"{name}.noble", noble_frames()[name], potential)
    for dtype in ("float64", "float32"):
        export(folder / "local.mlffd", folder / f"{dtype}.pt", dtype=dtype)
        for name in PERIODIC[1]:
            write_data_file(folder / f"{name}.water", water_frames()[name], WATER)
            potential = mliap(f"{dtype}.pt", WATER)
            script += single_point(f"{name}.{dtype}", f"{name}.water", water_frames()[name], potential)
    finished = run_lammps(script, folder, request.param)
    assert finished.status == 0, finished.output
    return folder


@pytest.mark.parametrize("frame", PERIODIC[0])
def test_lennard_jones_is_lj_cut_through_every_coupling(folder, frame):
    atoms, bundle = noble_frames()[frame], folder / "lj.mlffd"
    reference = from_lammps(folder, f"{frame}.lj_cut")
    assert abs(reference.forces).max() > 1e-2
    assert abs(reference.pressure).max() > 1e-5
    for answer in (
        through_ase(bundle, atoms, "float64"),
        through_ipi(bundle, atoms, "float64"),
        from_lammps(folder, f"{frame}.lj"),
    ):
        agree(answer, reference, 1e-9, energy_tolerance=1e-9, pressure_tolerance=1e-12)


@pytest.mark.parametrize("ranks", [1, 2])
def test_lennard_jones_is_lj_cut_through_the_plugin(ranks, tmp_path):
    """Seen to fail when unlike pairs take the arithmetic mean of sigma."""
    needs("lennard_jones")
    write_bundle(tmp_path / "lj.mlffd", build_student(LENNARD_JONES))
    export_weights(tmp_path / "lj.mlffd", tmp_path / "lj.weights")
    script = ""
    for name in PERIODIC[0]:
        write_data_file(tmp_path / f"{name}.noble", noble_frames()[name], NOBLE)
        for kind, potential in {"lj_cut": LJ_CUT, "float64": PLUGIN, "float32": PLUGIN}.items():
            potential = potential.replace("PRECISION", kind)
            script += single_point(f"{name}.{kind}", f"{name}.noble", noble_frames()[name], potential)
    finished = run_plugin(script, tmp_path, ranks)
    assert finished.status == 0, finished.output
    for name in PERIODIC[0]:
        reference = from_lammps(tmp_path, f"{name}.lj_cut")
        assert abs(reference.forces).max() > 1e-2
        agree(from_lammps(tmp_path, f"{name}.float64"), reference, 1e-9, 1e-9, 1e-12)
        agree(from_lammps(tmp_path, f"{name}.float32"), reference, 1e-6, 1e-5, 1e-8)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 2e-4)])
@pytest.mark.parametrize("frame", PERIODIC[1])
def test_all_couplings_give_the_same_forces(folder, frame, dtype, tolerance):
    atoms, bundle = water_frames()[frame], folder / "local.mlffd"
    exact = through_ase(bundle, atoms, "float64")
    assert abs(exact.forces).max() > 0.1
    of_sums = 0.1 * tolerance * len(atoms)
    for answer in (
        through_ase(bundle, atoms, dtype),
        through_ipi(bundle, atoms, dtype),
        from_lammps(folder, f"{frame}.{dtype}"),
    ):
        agree(answer, exact, tolerance, of_sums, of_sums / atoms.cell.volume)


def agree(
    answer: Answer, reference: Answer, tolerance: float, energy_tolerance: float, pressure_tolerance: float
):
    """Forces (eV/Å) and atomic energies (eV) to ``tolerance``, energy and pressure (eV/Å^3) to theirs."""
    assert answer.energy == pytest.approx(reference.energy, abs=energy_tolerance)
    np.testing.assert_allclose(answer.forces, reference.forces, rtol=0, atol=tolerance)
    np.testing.assert_allclose(answer.pressure, reference.pressure, rtol=1e-9, atol=pressure_tolerance)
    if answer.atomic_energies is not None:
        np.testing.assert_allclose(answer.atomic_energies, reference.atomic_energies, rtol=0, atol=tolerance)
