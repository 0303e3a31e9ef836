# SPDX-License-Identifier: MIT
"""``mlffd-driver`` with real ``i-pi`` processes: i-PI's own client, energy, stress, shipped inputs."""

import os
import shutil
import socket
import subprocess
from functools import partial

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones
from ase.io import read, write
from ase.neighborlist import neighbor_list
from ase.units import Bohr, Hartree
from conftest import command
from ipi import read_trajectory
from ipi_evaluators import argon
from ipi_process import HERE

from mlffd.bundle import write_bundle
from mlffd.students import build_student

pytestmark = pytest.mark.slow

EPSILON, SIGMA, CUTOFF = 0.0104, 3.4, 6.0  # eV, Å, Å
HARMONIC = 0.05  # Hartree/Bohr^2


def trajectory_with(runs, n_beads: int, batch_size: int, driver) -> tuple[np.ndarray, np.ndarray]:
    """Properties (steps, ...) and positions (steps, n_atoms, 3) of the first bead with a harmonic force."""
    ipi = runs.argon(steps=30, n_beads=n_beads, batch_size=batch_size)
    client = driver()
    assert runs.end(ipi) == 0, runs.output()
    runs.end(client)
    first_bead = min(runs.folder.glob("out.pos_*"))
    return runs.table(), np.array([frame.positions for frame in read(first_bead, ":", format="extxyz")])


def test_same_run_as_with_the_driver_of_ipi(runs):
    """i-PI's own client judges: the same force gives the same run; 4 of 6 beads leave a padded batch."""
    n_beads, batch_size = 6, 4

    def of_ipi():
        where = ["-u", "-a", "argon", "-S", f"{runs.folder}/"]
        runs.wait_for("argon")
        return runs.start(command("i-pi-driver-py"), *where, "-m", "harmonic", "-o", HARMONIC)

    expected = trajectory_with(runs, n_beads, 1, of_ipi)
    for file in [*runs.folder.glob("out.*"), *runs.folder.glob("RESTART*")]:
        file.unlink()
    # not periodic, so that atoms bound to the origin are not wrapped
    write(runs.folder / "template.xyz", Atoms(argon().numbers, argon().positions), format="extxyz")
    ours = partial(runs.driver, f"harmonic:{HARMONIC}", "template.xyz")
    found = trajectory_with(runs, n_beads, batch_size, ours)
    assert np.ptp(expected[1], axis=0).max() > 0.01  # it moves
    for ours, theirs in zip(found, expected):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-7)
    report = runs.report()
    assert report["structures"] + report["repeats"] == batch_size * report["evaluations"]
    # all beads start from one structure, which a batch may take for repeats of one another
    assert 30 * n_beads < report["structures"] <= 31 * n_beads


def ase_results(atoms: Atoms) -> tuple[float, np.ndarray]:
    """Energy (eV) without ASE's shift at the cutoff, and virial / volume (eV/Å^3), of one structure."""
    atoms = atoms.copy()
    atoms.calc = LennardJones(epsilon=EPSILON, sigma=SIGMA, rc=CUTOFF)
    n_pairs = len(neighbor_list("i", atoms, CUTOFF)) / 2
    at_cutoff = 4 * EPSILON * ((SIGMA / CUTOFF) ** 12 - (SIGMA / CUTOFF) ** 6)
    return atoms.get_potential_energy() + n_pairs * at_cutoff, -atoms.get_stress()[[0, 1, 2, 5, 4, 3]]


def lennard_jones_driver(runs, *where) -> subprocess.Popen:
    """The command itself, with a bundle."""
    architecture = dict(family="lennard_jones", species=[18], cutoff=CUTOFF, epsilon=[EPSILON], sigma=[SIGMA])
    write_bundle(runs.folder / "argon.mlffd", build_student(architecture), {})
    how = ["--dtype", "float64", "--report", "report.json"]
    return runs.start(command("mlffd-driver"), "argon.mlffd", "-t", "start.xyz", *where, *how)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        return sock.getsockname()[1]


@pytest.mark.parametrize(("n_beads", "batch_size"), [(1, 1), (8, 8)])
def test_energy_and_stress_along_a_run_are_ase_s(runs, n_beads, batch_size):
    """One of the two over TCP."""
    steps = 20
    if batch_size == 1:
        port = free_port()
        ipi = runs.argon(steps, n_beads, mode="inet", address="localhost", port=port)
        driver = lennard_jones_driver(runs, "--host", "localhost", "--port", port)
    else:
        ipi = runs.argon(steps, n_beads, batch_size)
        driver = lennard_jones_driver(runs, "-u", "argon", "--socket-prefix", f"{runs.folder}/")
    assert [runs.end(driver), runs.end(ipi)] == [0, 0], runs.output()
    beads = [read(runs.folder / f"out.pos_{k}.extxyz", index=":") for k in range(n_beads)]
    table = runs.table()
    assert len(table) == len(beads[0]) == steps + 1
    for row, *frames in zip(table, *beads):
        energies, virials = zip(*map(ase_results, frames))
        # the printed positions have 8 decimals
        assert row[1] * Hartree == pytest.approx(np.mean(energies), abs=2e-7)
        np.testing.assert_allclose(row[2:] * Hartree / Bohr**3, np.sum(virials, axis=0), atol=2e-9 * n_beads)
    report = runs.report()
    assert report["structures"] + report["repeats"] == batch_size * report["evaluations"]
    # at the start all beads are one and the same structure
    assert n_beads * steps < report["structures"] <= n_beads * (steps + 1)


@pytest.mark.parametrize("name", ["nvt", "pimd"])
def test_shipped_inputs_run_as_they_stand(runs, name):
    """Seen to fail where i-PI writes centroids for ASE, whose readers then find all atoms at the origin."""
    shutil.copytree(HERE.parent / "ipi_inputs", runs.folder / "ipi_inputs")
    server = runs.start(command("i-pi"), "-S", f"{runs.folder}/", f"ipi_inputs/{name}.xml")
    driver = runs.driver("harmonic:0", "ipi_inputs/water64.xyz", "mlffd-water")
    assert [runs.end(driver), runs.end(server)] == [0, 0], runs.output()
    table = np.loadtxt(runs.folder / f"water-{name}.out")
    assert np.isfinite(table).all()
    start = read(HERE.parent / "ipi_inputs" / "water64.xyz")
    trajectory = "pos_0.extxyz" if name == "nvt" else "xc.xyz"
    first = read_trajectory(str(runs.folder / f"water-{name}.{trajectory}"))[0]
    np.testing.assert_allclose(first.positions, start.positions, atol=1e-4)
    np.testing.assert_allclose(first.cell.array, start.cell.array, atol=1e-4)
    if name == "pimd":  # i-PI splits waves on a busy machine; one bead at a time would be 32 evaluations
        assert runs.report()["evaluations"] <= 4 * len(table)


def test_command_refuses_wrong_input_in_one_line(runs):
    write(runs.folder / "start.xyz", argon(), format="extxyz")
    for words, complaint in (
        (["missing.mlffd", "-t", "start.xyz", "-u", "argon"], "missing.mlffd"),
        (["argon.mlffd", "-t", "missing.xyz", "-u", "argon"], "missing.xyz does not exist"),
    ):
        process = runs.start(command("mlffd-driver"), *words)
        assert runs.end(process) == 1
        assert complaint in process.log.read_text()
        assert process.log.read_text().count("\n") == 1
        assert "Traceback" not in process.log.read_text()
    assert os.listdir(runs.folder).count("report.json") == 0
