# SPDX-License-Identifier: MIT
"""Every driver says once, and on one rank, what a student's fidelity report says of it."""

import ctypes
import pickle

import numpy as np
import pytest
from ase import Atoms
from cpu_interface import CStudent
from fix_process import run_fix
from lammps_process import run_lammps
from plugin_process import needs, random_student, run_plugin
from test_lammps_run import water_frames

from mlffd.__main__ import main
from mlffd.bundle import Bundle, complete_metadata, read_bundle, write_bundle
from mlffd.drivers import verdict
from mlffd.drivers.ase_calculator import Calculator
from mlffd.drivers.ipi.students import load_engines
from mlffd.drivers.lammps_mliap import export
from mlffd.drivers.lammps_plugin import export_weights
from mlffd.drivers.lammps_program import write_data_file
from mlffd.engine import Engine
from mlffd.kernels.block import weight_block
from mlffd.kernels.cpu import is_compiled
from mlffd.report import judge

SAID = "fidelity of judged: FAILED, 1 of 1 bars of its report of 2026-01-02: force_mae 27 (at most 18 {unit})"
OF_PYTHON = SAID.format(unit="meV/Å")
OF_LOGS = SAID.format(unit="meV/A")
RUN = """
units metal
atom_style atomic
newton on
read_data data
{pair}
neighbor 0.5 bin
run 0
"""


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(verdict, "_said", set())
    monkeypatch.delenv("MLFFD_VERDICT", raising=False)


@pytest.fixture
def path(tmp_path):
    """A student that has failed its report."""
    student = random_student("local")
    bundle = Bundle(student, complete_metadata(student, {"name": "judged", "bars": {"force_mae": 18.0}}))
    line = {"name": "force_mae", "value": 27.0, "error": None, "unit": "meV/Å"}
    report = {"student": {"weights_sha256": bundle.weights_sha256}, "lines": [line], "date": "2026-01-02"}
    judged = bundle.with_report(judge(report, bundle.metadata["bars"], "before training"))
    write_bundle(tmp_path / "judged.mlffd", student, judged.metadata)
    return tmp_path / "judged.mlffd"


def test_the_calculator_says_it_once(path, capsys):
    """Seen to catch: a line for each calculator."""
    for source in (path, read_bundle(path), Engine(path)):
        Calculator(source)
    assert capsys.readouterr().err == f"mlffd: {OF_PYTHON}\n"
    Calculator(read_bundle(path).student)  # nobody knows what it is
    assert capsys.readouterr().err == ""


def test_it_is_silent_on_other_ranks_and_where_it_is_switched_off(path, capsys, monkeypatch):
    with monkeypatch.context() as second_rank:
        second_rank.setenv("PMI_RANK", "1")
        Calculator(path)
    verdict._said.clear()
    monkeypatch.setenv("MLFFD_VERDICT", "off")
    Calculator(path)
    assert capsys.readouterr().err == ""


def test_closed_standard_error_is_no_reason_to_fail(path, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    Calculator(path)


def test_the_ipi_driver_says_it_for_each_member_of_a_committee(path, tmp_path, capsys):
    write_bundle(tmp_path / "other.mlffd", random_student("local"), {"name": "other"})
    template = Atoms("OH2", [[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]])
    load_engines([str(path), str(tmp_path / "other.mlffd")], [template], "cpu", "float32", 64)
    assert capsys.readouterr().err == (
        f"mlffd-driver: {OF_PYTHON}\n"
        "mlffd-driver: fidelity of other: no report, never judged against its teacher\n"
    )


def test_the_exported_object_carries_it(path, tmp_path, capsys):
    pickle.loads(export(path, tmp_path / "judged.pkl").read_bytes())  # noqa: S301 as LAMMPS does
    assert capsys.readouterr().err == f"mlffd: {OF_PYTHON}\n"


def test_info_says_it_beside_the_facts(path, capsys):
    assert main(["info", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"mlffd: {OF_PYTHON}\n"
    assert '"verdict": "failed"' in captured.out


@pytest.mark.skipif(not is_compiled(), reason="the CPU kernels are not compiled")
def test_weight_blocks_carry_it(path, tmp_path):
    """Seen to catch: letters beyond ASCII, which have several bytes."""
    export_weights(path, tmp_path / "judged.weights")
    assert verdict_in((tmp_path / "judged.weights").read_bytes()) == OF_PYTHON
    old = weight_block(random_student("local"))
    assert verdict_in(old) == ""
    strange = np.array([72.5, -3.0, 1e300, 10.0, 105.0])
    assert verdict_in(weight_block(random_student("local"), {"verdict": strange})) == "H   i"


def verdict_in(block: bytes) -> str:
    """What a program in C reads."""
    student = CStudent(block)
    read = student._library.mlffd_verdict
    read.argtypes, read.restype = [ctypes.c_void_p], ctypes.c_char_p
    return read(student._student).decode()


def water(folder) -> None:
    write_data_file(folder / "data", water_frames()["liquid"], ("O", "H"))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_plugin_says_it_in_output_and_log(path, tmp_path, ranks):
    """Twice given, once said. Seen to catch: a line on each rank; a line for each pair_coeff."""
    needs("local")
    water(tmp_path)
    export_weights(path, tmp_path / "judged.weights")
    pair = "pair_style mlffd\npair_coeff * * judged.weights O H\npair_coeff * * judged.weights O H"
    finished = run_plugin(RUN.format(pair=pair), tmp_path, ranks)
    assert finished.status == 0, finished.output
    assert finished.lines("mlffd: fidelity") == [f"mlffd: {OF_PYTHON}"]
    assert (tmp_path / "log.lammps").read_text().count(OF_PYTHON) == 1


@pytest.mark.slow
def test_the_plugin_is_silent_where_it_is_switched_off(path, tmp_path, monkeypatch):
    needs("local")
    water(tmp_path)
    export_weights(path, tmp_path / "judged.weights")
    monkeypatch.setenv("MLFFD_VERDICT", "off")
    pair = "pair_style mlffd\npair_coeff * * judged.weights O H"
    finished = run_plugin(RUN.format(pair=pair), tmp_path)
    assert finished.status == 0, finished.output
    assert finished.lines("mlffd: judged.weights: ")
    assert finished.lines("mlffd: fidelity") == []


@pytest.mark.slow
def test_lammps_run_says_it_in_output_and_log(path, tmp_path):
    water(tmp_path)
    pair = "pair_style mlffd\npair_coeff * * judged.weights O H"
    finished = run_fix(RUN.format(pair=pair), tmp_path, 2, options=("--student", str(path)))
    assert finished.status == 0, finished.output
    assert finished.lines("mlffd: fidelity") == [f"mlffd: {OF_LOGS}"]
    log = (tmp_path / "log.lammps").read_text().splitlines()  # which has the command as well
    assert log.count(f"mlffd: {OF_LOGS}") == 1


@pytest.mark.slow
def test_mliap_says_it_on_one_rank(path, tmp_path):
    water(tmp_path)
    export(path, tmp_path / "judged.pt")
    pair = "pair_style mliap unified judged.pt 0\npair_coeff * * O H"
    finished = run_lammps(RUN.format(pair=pair), tmp_path, 2)
    assert finished.status == 0, finished.output
    assert finished.lines("mlffd: fidelity") == [f"mlffd: {OF_PYTHON}"]
