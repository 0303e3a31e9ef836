# SPDX-License-Identifier: MIT
"""Runs whose result i-PI itself gives: the folders of its regression tests, and inputs like them
that i-PI runs a second time with a force of its own.

The folders come with the source archives of i-PI up to 3.2.0, not with its wheels. ``make test`` puts them
where ``FOLDERS`` looks; MLFFD_IPI_TESTS names another place, such as a checkout of i-PI.
"""

import os
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from ipi_process import Runs

pytestmark = pytest.mark.slow

FOLDERS = Path(os.environ.get("MLFFD_IPI_TESTS") or Path(sys.prefix) / "ipi-tests")
WAYS = ("single", "several", "batch")  # one connection, one a structure, one with i-PI's native batches
REGRESSIONS = [
    "NVE/NVE_1/harmonic_python",
    "NVE/NVE_6/harmonic",
    "NVT/NVT_pileg_6/harmonic",
    "NVT/NVT_pilel_6/harmonic",
    "IO/FORCES-WATER",
    "EXCHANGE/bosons",
    "GEOP/LBFGS/harmonic",
    "NPT/gas-npzt-PV",
    "LOCK-MODE",
]


def start(runs: Runs, way: str, text: str, evaluator: str, n_atoms: int) -> list:
    """i-PI on an input with a socket called ``ipi``, and the driver that answers it in that way."""
    root = ET.fromstring(text)
    n_structures = int(root.find(".//initialize").get("nbeads")) * max(len(root.findall(".//instance")), 1)
    n_at_once = max(n_structures, 2)  # more than there are, where there is one
    if way == "batch":
        ET.SubElement(root.find("ffsocket"), "batch_size").text = str(n_at_once)
    # not periodic, so that atoms bound to the origin are not wrapped; a harmonic force knows no species
    write(runs.folder / "template.xyz", Atoms(f"H{n_atoms}", np.zeros((n_atoms, 3))), format="extxyz")
    n_connections = n_at_once if way == "several" else 1
    ipi = runs.ipi(ET.tostring(root, encoding="unicode"))
    return [ipi, runs.driver(evaluator, "template.xyz", "ipi", n_connections)]


def evaluator_of(folder: Path) -> str:
    """The force that a regression test asks its driver for."""
    settings = (folder / "test_settings.dat").read_text()
    model = re.search(r"driver_model (\S+)", settings)[1]
    assert model in ("harmonic", "harm3d", "gas")
    return "harmonic:0" if model == "gas" else "harmonic:" + re.search(r"-o (\S+)", settings)[1]


def numbers_of_xyz(path: Path) -> np.ndarray:
    """The coordinates of all frames, without names and comments."""
    lines = path.read_text().splitlines()
    n_atoms = int(lines[0])
    return np.array([line.split()[1:] for k, line in enumerate(lines) if k % (n_atoms + 2) > 1], float)


def assert_matches_reference(found: Path, folder: Path):
    """The comparison of i-PI's regression tests, with their tolerances."""
    checks = [line.split() for line in (folder / "files_to_check.txt").read_text().splitlines()[2:]]
    assert checks
    for reference, form in checks:
        read, atol = (numbers_of_xyz, 1e-6) if form == "xyz" else (np.loadtxt, 1e-15)
        ours = read(found / reference.removeprefix("ref_"))
        np.testing.assert_allclose(ours, read(folder / reference), rtol=1e-7, atol=atol, err_msg=reference)


@pytest.mark.parametrize("name", REGRESSIONS)
def test_regression_of_ipi(runs, name):
    """Seen to fail where the last of several connections was not answered before the next message."""
    found = sorted(FOLDERS.glob(f"**/regression_tests/tests/{name}/input.xml"))
    if not found:
        pytest.skip(f"no regression tests of i-PI in {FOLDERS}: `make test` brings them, see MLFFD_IPI_TESTS")
    folder = found[0].parent
    n_atoms = int(next(folder.glob("init*.xyz")).read_text().split()[0])
    # `lock` binds every bead to a connection of its own
    ways = [way for way in WAYS if way != "single" or name != "LOCK-MODE"]
    started = []
    for way in ways:
        inside = runs.inside(way)
        for file in folder.glob("init*"):
            shutil.copy(file, inside.folder)
        text = re.sub(r"<address>[^<]*<", "<address>ipi<", found[0].read_text())
        started += start(inside, way, text, evaluator_of(folder), n_atoms)
    for process in reversed(started):  # drivers first, so that a mistake shows early
        assert runs.end(process) == 0, runs.output()
    for way in ways:
        assert_matches_reference(runs.folder / way, folder)


# Like the folders, with smaller steps and more atoms

INPUT = """
<simulation verbosity="low" floatformat="%20.12e">
  <total_steps>20</total_steps>
  <prng><seed>31415</seed></prng>
  <output prefix="out">
    <properties filename="energies" stride="1">{properties}</properties>
    <trajectory filename="pos" stride="1">positions</trajectory>
  </output>
  {forcefield}
  <system>
    <initialize nbeads="{n_beads}">
      <file mode="xyz">start.xyz</file>
      <cell mode="abc" units="angstrom">[10, 10, 10]</cell>
      <velocities mode="thermal" units="kelvin">300</velocities>
    </initialize>
    <forces><force forcefield="driver"/></forces>
    <ensemble>
      <temperature units="kelvin">300</temperature>
      <pressure units="megapascal">50</pressure>
    </ensemble>
    {motion}
  </system>
</simulation>
"""
SOCKET = '<ffsocket name="driver" mode="unix" pbc="false"{more}><address>ipi</address></ffsocket>'
OWN_FORCE = """
  <ffdirect name="driver" pbc="false"><pes>harmonic</pes><parameters>{{k1: {k}}}</parameters></ffdirect>"""
START = "3\n\nO 0.5 -0.2 0.1\nH 1.0 0.6 -0.3\nH -0.4 0.2 0.9\n"
DYNAMICS = """
    <motion mode="dynamics">
      <dynamics mode="{ensemble}"><timestep units="femtosecond">0.2</timestep>{more}</dynamics>
    </motion>"""
THERMOSTAT = '<thermostat mode="{mode}"><tau units="femtosecond">20</tau></thermostat>'
BAROSTAT = """
        <barostat mode="isotropic">
          <tau units="femtosecond">50</tau>
          <thermostat mode="langevin"><tau units="femtosecond">50</tau></thermostat>
        </barostat>"""
OPTIMIZER = '<motion mode="minimize"><optimizer mode="lbfgs"/></motion>'
CONSERVED = "[step, potential, conserved, kinetic_cv, spring]"


def thermostatted(ensemble: str, mode: str, more: str = "") -> str:
    """A <motion> with that thermostat."""
    return DYNAMICS.format(ensemble=ensemble, more=THERMOSTAT.format(mode=mode) + more)


# thermostats for beads and bosons are among i-PI's own tests
# name: beads, spring constant in Hartree/Bohr^2, <motion>, properties
PHYSICS = {
    "nve": (6, 0.05, DYNAMICS.format(ensemble="nve", more=""), CONSERVED),
    "lbfgs": (1, 0.05, OPTIMIZER, "[step, potential]"),
    "gas": (2, 0.0, thermostatted("npt", "langevin", BAROSTAT), "[step, conserved, volume, kinetic_md]"),
}


@pytest.mark.parametrize("physics", PHYSICS)
def test_run_is_the_one_with_a_force_of_ipi(runs, physics):
    """Seen to fail with answers that go to another connection."""
    n_beads, k, motion, properties = PHYSICS[physics]
    force_field = {"own": OWN_FORCE.format(k=k), "lock": SOCKET.format(more=' matching="lock"')}
    ways = ["own", *WAYS, "lock"] if physics == "nve" else ["own", *WAYS]
    started = []
    for way in ways:
        inside = runs.inside(way)
        (inside.folder / "start.xyz").write_text(START)
        text = INPUT.format(
            n_beads=n_beads, motion=motion, properties=properties,
            forcefield=force_field.get(way, SOCKET.format(more="")),
        )  # fmt: skip
        if way == "own":
            started.append(inside.ipi(text))
        else:
            started += start(inside, "several" if way == "lock" else way, text, f"harmonic:{k}", 3)
    for process in reversed(started):
        assert runs.end(process) == 0, runs.output()
    expected = [np.loadtxt(runs.folder / "own" / "out.energies"), *positions_in(runs.folder / "own")]
    assert len(expected) == 1 + n_beads
    assert np.ptp(expected[1][::3], axis=0).min() > 1e-3  # it moves
    for way in ways[1:]:
        found = [np.loadtxt(runs.folder / way / "out.energies"), *positions_in(runs.folder / way)]
        for ours, theirs in zip(found, expected):
            np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-10, err_msg=way)


def positions_in(folder: Path) -> list[np.ndarray]:
    """The trajectory of each bead, (n_frames * n_atoms, 3) in Bohr."""
    return [numbers_of_xyz(path) for path in sorted(folder.glob("out.pos_*.xyz"))]
