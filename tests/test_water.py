# SPDX-License-Identifier: MIT
"""The shipped water student: what its real teacher says, and short runs of it."""

import shutil
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from conftest import command
from lammps_process import run_lammps

from mlffd import Calculator
from mlffd.bundle import read_bundle
from mlffd.drivers.lammps_log import summarize
from mlffd.errors import MlffdError
from mlffd.teachers import load_teacher

INPUTS = Path(__file__).parents[1] / "ipi_inputs"
FORCE_BAR = 25.0  # meV/Å, mean absolute error on held-out frames


@pytest.fixture
def water():
    return ase.io.read(INPUTS / "water64.xyz")


def test_bundle_says_where_it_is_from():
    metadata = read_bundle("water").metadata
    assert metadata["teacher"]["settings"]["modal"] == "R2SCAN"
    assert metadata["teacher"]["licence"] == "MIT"
    assert metadata["labels"]["n_frames"] >= 300
    (force_mae,) = [line for line in metadata["fidelity"]["lines"] if line["name"] == "force_mae"]
    assert force_mae["value"] < FORCE_BAR


@pytest.mark.slow
def test_the_real_teacher_agrees(water):
    """On a frame displaced here and now, so that it can be in nobody's training set."""
    pytest.importorskip("sevenn", reason="needs the extra `sevenn`")
    water.rattle(0.02, seed=1)
    water.calc = load_teacher({"name": "7net-mf-0", "modal": "R2SCAN"}).calculator
    forces, stress = water.get_forces(), water.get_stress()
    water.calc = Calculator("water")
    assert 1e3 * np.abs(water.get_forces() - forces).mean() < FORCE_BAR
    assert np.abs(water.get_stress() - stress).mean() / units.GPa < 0.1


@pytest.mark.slow
def test_dynamics_stay_near_their_temperature(water):
    """A tenth of a picosecond; what 100 of them looked like is in the student's card."""
    rng = np.random.default_rng(0)
    water.calc = Calculator("water")
    MaxwellBoltzmannDistribution(water, temperature_K=300, rng=rng)
    step = 0.5 * units.fs
    dynamics = Langevin(water, step, temperature_K=300, friction=0.02 / units.fs, rng=rng, fixcm=False)
    temperatures = []
    dynamics.attach(lambda: temperatures.append(water.get_temperature()), interval=10)
    dynamics.run(200)
    assert 200 < np.mean(temperatures) < 400
    bonds = np.array([water.get_distances(o, [o + 1, o + 2], mic=True) for o in range(0, 192, 3)])
    assert 0.8 < bonds.min() < bonds.max() < 1.3


@pytest.mark.slow
def test_512_molecules_in_lammps(tmp_path):
    """`lmp -in in.water` as `make water` runs it, and the summary that judges the temperature."""
    for name in ("in.water", "water512.data"):
        shutil.copy(INPUTS.parent / "lammps_inputs" / name, tmp_path)
    finished = run_lammps(tmp_path / "in.water", tmp_path)
    assert finished.status == 0, finished.output
    assert "ns/day" in summarize(tmp_path / "log.lammps", expected_temperature=300.0)
    with pytest.raises(MlffdError, match="lost its way"):
        summarize(tmp_path / "log.lammps", expected_temperature=600.0)


@pytest.mark.slow
def test_path_integral_run_has_the_energies_ase_has(runs):
    """`i-pi ipi_inputs/pimd.xml` with `mlffd-driver water`, as README prints it."""
    shutil.copytree(INPUTS, runs.folder / "ipi_inputs")
    text = (runs.folder / "ipi_inputs/pimd.xml").read_text()  # which writes beads rarely
    (runs.folder / "ipi_inputs/pimd.xml").write_text(text.replace('"pos" stride="100"', '"pos" stride="10"'))
    ipi = runs.start(command("i-pi"), "-S", f"{runs.folder}/", "ipi_inputs/pimd.xml")
    where = ["-u", "mlffd-water", "--socket-prefix", f"{runs.folder}/", "--report", "report.json"]
    driver = runs.start(command("mlffd-driver"), "water", "-t", "ipi_inputs/water64.xyz", *where)
    assert [runs.end(driver), runs.end(ipi)] == [0, 0], runs.output()
    potential = np.loadtxt(runs.folder / "water-pimd.out")[::10, 5]
    beads = [ase.io.read(path, ":") for path in sorted(runs.folder.glob("water-pimd.pos_*.extxyz"))]
    assert len(beads) == 32
    calculator = Calculator("water")
    of_beads = [[r["energy"] for r in calculator.calculate_many(frames)] for frames in beads]
    mean = np.mean(of_beads, axis=0)
    assert np.ptp(potential) > 0.1  # eV: the beads spread and gain energy
    np.testing.assert_allclose(potential, mean, rtol=0, atol=2e-3)
    assert runs.report()["evaluations"] <= 4 * 41  # not 32 a step
