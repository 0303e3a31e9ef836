# SPDX-License-Identifier: MIT
"""``mlffd ipi-input``: the shipped inputs come from it, and what it writes has the engine's energies."""

import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from ase.units import Hartree
from conftest import command

from mlffd.__main__ import main
from mlffd.drivers.ipi.input import in_ipi_orientation, plan_run, write_input
from mlffd.engine import Engine
from mlffd.errors import BundleError, ConfigError, UnknownElementError

ROOT = Path(__file__).parents[1]
WATER = ROOT / "ipi_inputs" / "water64.xyz"
STEPS = {"nvt": 200, "pimd": 40, "npt": 200}  # of the inputs shipped
IPI_EV = 0.036749326  # Hartree; i-PI's electronvolt, by 1e-7 not ASE's


def ipi_input(*words) -> int:
    return main(["ipi-input", *map(str, words)])


def written(folder: Path, structure=WATER, student: str = "water", **plan) -> Path:
    output = folder / "test.xml"
    write_input(structure, student, output, plan_run(student, **plan), overwrite=True)
    return output


def element(path: Path, where: str) -> str:
    return ElementTree.parse(path).find(where).text.strip()


@pytest.mark.parametrize(("ensemble", "steps"), STEPS.items())
def test_shipped_inputs_come_from_here(ensemble, steps, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "ipi_inputs", "ipi_inputs", ignore=shutil.ignore_patterns("*.xml"))
    words = ["--student", "water", "--ensemble", ensemble, "--steps", steps]
    assert ipi_input("ipi_inputs/water64.xyz", *words, "-o", f"ipi_inputs/{ensemble}.xml") == 0
    assert Path(f"ipi_inputs/{ensemble}.xml").read_bytes() == (WATER.parent / f"{ensemble}.xml").read_bytes()
    assert sorted(path.name for path in Path("ipi_inputs").iterdir()) == [f"{ensemble}.xml", "water64.xyz"]
    driver = "mlffd-driver water -t ipi_inputs/water64.xyz -u mlffd-water"
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()[1:]]
    assert printed == [f"i-pi ipi_inputs/{ensemble}.xml &", driver]
    comment = Path(f"ipi_inputs/{ensemble}.xml").read_text().split("-->")[0]
    assert all(line in comment for line in printed)


def run_as_printed(runs, text: str) -> np.ndarray:
    """What i-PI tabulates after the commands that were printed, in the folder and with its sockets there."""
    ipi, *driver = (shlex.split(line.removesuffix("&")) for line in text.splitlines()[1:])
    processes = [runs.start(command(ipi[0]), "-S", f"{runs.folder}/", *ipi[1:])]
    for words in driver:
        how = ["--socket-prefix", f"{runs.folder}/", "--dtype", "float64"]
        processes.append(runs.start(command(words[0]), *words[1:], *how))
    assert [runs.end(process) for process in processes] == [0] * len(processes), runs.output()
    (table,) = runs.folder.glob("*.out")
    return np.loadtxt(table)


SYSTEMS = {
    "molecule": ([0, 0, 0], False),
    "tilted, left-handed": ([[1, 2, 6], [6, -1, 0.5], [0.5, 7, -2]], True),
    "slab along y": ([[0, 0, 6.1], [0, 0, 0], [5.7, 0, 1.2]], [True, False, True]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_any_system_has_the_engine_s_energy(name, runs, monkeypatch, capsys):
    """Names with spaces and hyphens, too. Seen to fail for the slab where the structure is not
    rotated: i-PI reads half of the cell.
    """
    cell, pbc = SYSTEMS[name]
    atoms = Atoms("OH2", molecule("H2O").positions + [2, 1, 7], cell=cell, pbc=pbc)
    atoms.set_masses([15.995, 2.014, 2.014])
    write(runs.folder / "start.traj", atoms)
    monkeypatch.chdir(runs.folder)
    shutil.copy(ROOT / "mlffd/zoo/water.mlffd", "my student.mlffd")
    words = ["--student", "my student.mlffd", "--steps", 2, "--temperature", 150, "--beads", 4]
    assert ipi_input("start.traj", *words, "-o", f"{name}--in put.xml") == 0
    table = run_as_printed(runs, capsys.readouterr().out)
    expected = Engine("water", dtype="float64").evaluate([atoms])[0].energy
    assert table[0, 5] * IPI_EV == pytest.approx(expected / Hartree, abs=1e-8)  # positions have 8 decimals
    assert np.ptp(table[:, 5]) > 1e-5  # eV: it moves
    found = read(runs.folder / f"{name}--in put.xyz")
    np.testing.assert_allclose(found.get_masses(), atoms.get_masses())
    assert found.pbc.tolist() == atoms.pbc.tolist()


@pytest.mark.slow
def test_in_process_needs_one_command(runs, monkeypatch, capsys):
    """All beads by i-PI's ffdirect and the PES file; path integrals at constant pressure. Seen to fail where
    the file is not told how many beads a step has."""
    monkeypatch.chdir(runs.folder)
    shutil.copy(WATER, runs.folder)
    words = ["--ensemble", "npt", "--beads", 4, "--steps", 3, "--in-process"]
    assert ipi_input("water64.xyz", "--student", "water", *words, "-o", "direct.xml") == 0
    table = run_as_printed(runs, capsys.readouterr().out)
    expected = Engine("water").evaluate([read(WATER)])[0].energy
    assert len(table) == 4
    assert table[0, 5] * IPI_EV == pytest.approx(expected / Hartree, abs=1e-5)
    assert np.ptp(table[:, 8]) > 0.0  # Å^3
    summary = runs.output()
    assert "3 steps of 4 beads" in summary
    assert "ns/day" in summary


def test_pes_path_is_printed_without_torch():
    code = (
        "import sys; from mlffd.__main__ import main; main(['ipi-pes-path']); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    path, has_torch = run.stdout.splitlines()
    assert "__DRIVER_CLASS__" in Path(path).read_text()
    assert has_torch == "False"


def test_rotated_structures_keep_their_distances_and_handedness():
    """Seen to fail where a left-handed cell stays left-handed."""
    rng = np.random.default_rng(0)
    for sign in (1, -1):
        cell = rng.normal(size=(3, 3)) + np.diag([6, 6, 6 * sign])
        atoms = Atoms("OHHOH", rng.uniform(0, 6, (5, 3)), cell=cell @ np.roll(np.eye(3), 1, 0), pbc=True)
        rotated = in_ipi_orientation(atoms)
        assert (np.triu(rotated.cell.array, 1) == 0.0).all()
        assert (np.diag(rotated.cell.array) > 0.0).all()
        for mic in (True, False):
            before, after = (a.get_all_distances(mic=mic) for a in (atoms, rotated))
            np.testing.assert_allclose(after, before, atol=1e-9)
        chirality = [np.linalg.det(a.positions[1:4] - a.positions[0]) for a in (atoms, rotated)]
        assert chirality[0] == pytest.approx(chirality[1])


def test_conditions_are_in_the_input(tmp_path):
    path = written(
        tmp_path, ensemble="npt", temperature=350, pressure=-2.5, beads=8, seed=7, address="here", steps=5000
    )
    assert element(path, "system/ensemble/temperature") == "350"
    assert element(path, "system/ensemble/pressure") == "-2.5"
    assert element(path, "system/initialize/velocities") == "350"
    assert element(path, "system/motion/dynamics/timestep") == "0.25"
    assert element(path, "prng/seed") == "7"
    assert element(path, "ffsocket/address") == "here"
    assert element(path, "ffsocket/batch_size") == "8"
    assert element(path, "ffsocket/parameters") == "{timestep: 0.25, beads: 8}"
    tree = ElementTree.parse(path)
    assert tree.find("system/initialize").get("nbeads") == "8"
    assert tree.find("system/motion/dynamics/thermostat").get("mode") == "pile_g"
    assert element(written(tmp_path, time_step=1.0), "system/motion/dynamics/timestep") == "1"
    assert ElementTree.parse(tmp_path / "test.xml").find("ffsocket/batch_size") is None


@pytest.mark.parametrize("wrong", [
    {"ensemble": "nve"}, {"temperature": 0.0}, {"time_step": float("nan")}, {"steps": 0}, {"seed": -1},
    {"pressure": float("inf")}, {"beads": 0}, {"ensemble": "pimd", "beads": 1}, {"address": "/tmp/a b"},
    {"address": 100 * "a"},
])  # fmt: skip
def test_wrong_plans_are_refused(wrong):
    with pytest.raises(ConfigError, match=list(wrong)[-1].replace("_", ".")):
        plan_run("water", **wrong)


def test_wrong_input_is_refused_and_nothing_is_written(tmp_path):
    write(tmp_path / "salt.xyz", Atoms("NaCl", [[0, 0, 0], [2.3, 0, 0]]))
    write(tmp_path / "molecule.xyz", molecule("H2O"))
    (tmp_path / "text.xyz").write_text("this is no structure\n")
    (tmp_path / "a,b.xyz").write_bytes(WATER.read_bytes())
    for error, structure, plan in [
        (UnknownElementError, "salt.xyz", {}),
        (ConfigError, "molecule.xyz", {"ensemble": "npt"}),
        (ConfigError, "text.xyz", {}),
        (ConfigError, "nowhere.xyz", {}),
        (ConfigError, "a,b.xyz", {"in_process": True}),
    ]:
        with pytest.raises(error):
            written(tmp_path, tmp_path / structure, **plan)
    with pytest.raises(BundleError):
        written(tmp_path, student="nobody")
    assert list(tmp_path.glob("test.*")) == []


def test_files_are_not_lost(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write("water.xyz", molecule("H2O"))
    shutil.copy("water.xyz", "other.xyz")
    before = Path("water.xyz").read_bytes()
    words = ["--student", "water", "-o"]
    # its own .xyz would take the place of the structure, whatever is said
    assert ipi_input("water.xyz", *words, "water.xml", "--force") == 1
    assert ipi_input("water.xyz", *words, "other.xml") == 1
    assert ipi_input("water.xyz", *words, "other.xyz", "--force") == 1
    assert ipi_input("water.xyz", *words, "nowhere/new.xml") == 1
    assert ipi_input("water.xyz", *words, "new.xml") == 0
    assert ipi_input("water.xyz", *words, "new.xml") == 1
    complaints = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in complaints] == [
        "water.xyz is the structure itself", "other.xyz is there already", "other.xyz", "nowhere/new.xyz",
        "new.xyz is there already",
    ]  # fmt: skip
    assert ipi_input("water.xyz", *words, "new.xml", "--force", "--steps", 7) == 0
    assert "<total_steps>7<" in Path("new.xml").read_text()
    assert Path("water.xyz").read_bytes() == Path("other.xyz").read_bytes() == before
