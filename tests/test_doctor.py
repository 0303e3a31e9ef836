# SPDX-License-Identifier: MIT
"""``mlffd doctor``: passes what is right, fails what is wrong, and says what to do; never hangs or crashes.

The real ``lmp`` is started by two fixtures: as it is, and with faults planted in the Python inside it.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from plugin_process import STOCK, needs

from mlffd.__main__ import main
from mlffd.bundle import write_bundle
from mlffd.drivers import doctor, lammps_probe, lammps_selftest
from mlffd.drivers.lammps_program import (
    COMPONENTS,
    Finished,
    LammpsProgram,
    change_box,
    facts_from,
    find_program,
    run_limited,
)
from mlffd.drivers.lammps_selftest import Trial, random_student, standard_subjects
from mlffd.errors import ConfigError

HELP = """
Large-scale Atomic/Molecular Massively Parallel Simulator - {release}

Usage example: lmp -var t 300 -echo screen -in in.alloy

MPI v5.0: {mpi}

{accelerators}

Installed packages:

{packages}

List of individual style options included in this LAMMPS executable
"""
MPICH = "MPICH Version:      5.0.2"
STUBS = "LAMMPS MPI STUBS for LAMMPS version 4 Jul 2026"


def help_text(release="4 Jul 2026", mpi=MPICH, accelerators="", packages="ML-IAP ML-SNAP\nPYTHON") -> str:
    return HELP.format(release=release, mpi=mpi, accelerators=accelerators, packages=packages)


@dataclass(frozen=True)
class Diagnosis:
    """What ``mlffd doctor`` said."""

    status: int
    printed: str
    progress: str
    report: dict

    def row(self, group: str, name: str) -> dict:
        (found,) = (row for row in self.report["checks"] if (row["group"], row["name"]) == (group, name))
        return found

    def failed(self) -> set[tuple[str, str]]:
        return {(row["group"], row["name"]) for row in self.report["checks"] if row["status"] == "fail"}


def diagnose(folder: Path, *words) -> Diagnosis:
    """Run the command line, and check what holds for every diagnosis."""
    printed, progress, file = io.StringIO(), io.StringIO(), folder / "report.json"
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(progress):
        status = main(["doctor", *map(str, words), "--json", str(file)])
    found = Diagnosis(status, printed.getvalue(), progress.getvalue(), json.loads(file.read_text()))
    check_report(found)
    return found


def check_report(found: Diagnosis) -> None:
    report, rows = found.report, found.report["checks"]
    assert set(report) == {
        "mlffd", "verdict", "passed", "failed", "skipped", "seconds", "lammps", "checks",
    }  # fmt: skip
    for row in rows:
        assert set(row) == {"group", "name", "status", "finding", "advice", "errors"}
        assert row["status"] in ("pass", "fail", "skip")
        assert row["finding"]
        assert "\n" not in row["finding"] + row["advice"]
        assert row["advice"] or row["status"] != "fail", row
        assert row["finding"] in found.printed
    counts = [sum(row["status"] == status for row in rows) for status in ("pass", "fail", "skip")]
    assert counts == [report["passed"], report["failed"], report["skipped"]]
    assert found.status == (1 if report["failed"] else 0)
    assert report["verdict"] == ("fail" if report["failed"] else "pass")
    assert found.printed.splitlines()[-1].startswith("mlffd doctor: ")
    assert ("failed" in found.printed.splitlines()[-1]) == bool(report["failed"])
    assert "Traceback" not in found.printed + found.progress


def program(folder: Path, text: str, name: str = "lmp") -> Path:
    """A shell script that plays LAMMPS."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def fake(folder: Path, text: str, **said) -> Path:
    """One that answers -h as LAMMPS does, and otherwise does what ``text`` says."""
    (folder / "help.txt").write_text(help_text(**said))
    return program(folder, f'[ "$1" = -h ] && exec cat "{folder}/help.txt"\n{text}')


# ---- the real lmp ----


@pytest.fixture(scope="module")
def healthy(lmp, mpiexec, tmp_path_factory) -> Diagnosis:
    """The environment's lmp, on one and four ranks, with a bundle of ours."""
    return diagnose(tmp_path_factory.mktemp("healthy"), "--lammps", lmp, "--ranks", "1,4", "water")


@pytest.mark.slow
def test_environments_lmp_is_well(healthy):
    assert healthy.failed() == set()
    assert healthy.status == 0
    facts = healthy.report["lammps"]
    assert {"ML-IAP", "PYTHON"} <= set(facts["packages"])
    assert facts["version"] > 20250000
    assert Path(facts["mpiexec"]).name == "mpiexec"
    assert "this environment's" in healthy.row("LAMMPS", "Python in LAMMPS")["finding"]
    assert "LAMMPS' own MPI" in healthy.row("LAMMPS", "mpi4py in LAMMPS")["finding"]
    assert healthy.row("LAMMPS", "memory of ML-IAP")["status"] == "pass"


@pytest.mark.slow
@pytest.mark.parametrize("route", ["pair_style mliap", "fix external"])
@pytest.mark.parametrize("student", ["local", "painn", "your"])
def test_every_quantity_is_measured_on_all_ranks(healthy, route, student):
    """A quantity that a run did not come to must not pass by being absent."""
    quantities = {quantity: {"1", "4"} for quantity in lammps_selftest.TOLERANCES}
    quantities["empty rank"] = {"4"}
    if student == "your":
        del quantities["isolated atom"], quantities["empty rank"]
    for quantity, ranks in quantities.items():
        assert set(healthy.row(f"{route}, {student} student", quantity)["errors"]) == ranks


@pytest.mark.slow
def test_progress_is_told(healthy):
    for step in ("LAMMPS", "pair_style mliap on 1 rank", "fix external on 4 ranks"):
        assert f"mlffd doctor: {step} ...\n" in healthy.progress


FAULTS = '''
"""Faults that other packages have had, planted in the Python of every process that finds this."""
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder


def turn_virial(module):
    right = module.sum_forces
    def sum_forces(*arguments):
        forces, virial = right(*arguments)
        return forces, -virial
    module.sum_forces = sum_forces


def leave_ghosts_alone(module):
    module.GhostExchange.forward = lambda self, rows: None


def skip_isolated_atoms(module):
    right = module.Frame.hand_back
    def hand_back(self, energies, gradient):
        right(self, energies if self.data.npairs else 0.0 * energies, gradient)
    module.Frame.hand_back = hand_back


FAULTS = {
    "mlffd.drivers.lammps_fix": turn_virial,
    "mlffd.drivers.lammps_exchange": leave_ghosts_alone,
    "mlffd.drivers.lammps_mliap": skip_isolated_atoms,
}


class Planter(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in FAULTS:
            return None
        spec = PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            FAULTS[name](module)
        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Planter())
'''


@pytest.fixture(scope="module")
def faulty(lmp, mpiexec, tmp_path_factory) -> Diagnosis:
    """The same lmp with drivers whose virial has the wrong sign, whose ghosts stay what they are, or which
    leave out isolated atoms; forces and energies are otherwise right."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "sitecustomize.py").write_text(FAULTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        return diagnose(folder, "--lammps", lmp, "--ranks", "1,2")


@pytest.mark.slow
def test_wrong_sign_of_virial_is_found(faulty):
    """By LAMMPS' own energies: neither energies nor forces show it."""
    group = "fix external, local student"
    found = faulty.row(group, "virial")
    assert found["status"] == "fail"
    assert found["errors"] == {"1": pytest.approx(2.0, rel=1e-4), "2": pytest.approx(2.0, rel=1e-4)}
    assert faulty.row(group, "pressure")["status"] == "fail"
    for quantity in ("runs", "energy", "forces", "isolated atom", "empty rank"):
        assert faulty.row(group, quantity)["status"] == "pass"


@pytest.mark.slow
def test_ghosts_without_features_are_found_on_two_ranks(faulty):
    group = "pair_style mliap, painn student"
    for quantity in ("energy", "forces", "forces in float32"):
        found = faulty.row(group, quantity)
        assert found["status"] == "fail"
        assert found["errors"]["1"] < 1e-6 < 1e-3 < found["errors"]["2"]
        assert "on 2 ranks" in found["finding"]
    assert faulty.row("pair_style mliap, local student", "forces")["status"] == "pass"


@pytest.mark.slow
def test_missing_energy_of_an_isolated_atom_is_found(faulty):
    found = faulty.row("pair_style mliap, local student", "isolated atom")
    assert found["status"] == "fail"
    assert min(found["errors"].values()) > 1.0
    assert faulty.row("pair_style mliap, local student", "energy")["status"] == "pass"


@pytest.mark.slow
def test_faults_end_with_a_failure(faulty):
    assert faulty.status == 1
    assert "do not use fix external" in faulty.row("fix external, local student", "virial")["advice"]


@pytest.mark.slow
def test_another_student_behind_its_back_is_found(tmp_path):
    """Its virial is the derivative of its energies all right, so only plain PyTorch can tell."""
    needs("local")
    other = write_bundle(tmp_path / "other.mlffd", random_student("local"))
    with torch.no_grad():
        for name, tensor in other.student.named_parameters():
            if name.startswith("networks"):
                tensor.mul_(1.5)
    (tmp_path / "other.weights").write_bytes(other.weight_block())
    swap = f'[ -e local.weights ] && cp "{tmp_path}/other.weights" local.weights'
    lmp = program(tmp_path, f'{swap}\nexec "{STOCK}/lmp" "$@"')
    found = diagnose_plugin(tmp_path, lmp, "--quick")
    group = "pair_style mlffd, local student"
    assert {("energy", "fail"), ("forces", "fail"), ("virial", "pass")} <= {
        (row["name"], row["status"]) for row in found.report["checks"] if row["group"] == group
    }
    assert not any("painn" in group for group, _ in found.failed())


def diagnose_plugin(folder: Path, lmp: Path, *words) -> Diagnosis:
    """``diagnose`` for an lmp that stands for the stock one, whose headers its plugin is built with."""
    with pytest.MonkeyPatch.context() as patch:
        build, find = lammps_selftest.build_plugin, lammps_selftest.find_lammps
        patch.setattr(lammps_selftest, "build_plugin", lambda place: build(STOCK / "lmp"))
        patch.setattr(lammps_selftest, "find_lammps", lambda place: find(STOCK / "lmp"))
        return diagnose(folder, "--lammps", lmp, *words)


@pytest.mark.slow
def test_stock_lmp_runs_the_plugin(tmp_path):
    """On the ranks of its own mpiexec. What it lacks is skipped, and no failure."""
    needs("local", "painn")
    found = diagnose(tmp_path, "--lammps", STOCK / "lmp", "--ranks", "1,2")
    assert found.status == 0
    assert found.report["lammps"]["mpiexec"] == str(STOCK / "mpiexec")
    for name in ("local", "painn"):
        for quantity in lammps_selftest.TOLERANCES:
            assert found.row(f"pair_style mlffd, {name} student", quantity)["status"] == "pass"
    assert "no PYTHON" in found.row("pair_style mliap", "route")["finding"]
    assert found.row("fix external", "route")["status"] == "skip"


@pytest.mark.slow
def test_module_without_lmp_is_run_as_a_library(tmp_path, monkeypatch):
    """`fix external` by `mlffd lammps run`, in an environment with mlffd and the stock LAMMPS."""
    needs("local")
    monkeypatch.delitem(lammps_selftest.ROUTES, "pair_style mlffd")  # would be built anew, for another place
    packages = next((STOCK.parent / "lib").glob("python3*/site-packages"))
    (tmp_path / "packages").mkdir()
    for name in ("lammps", "lammps.libs"):
        (tmp_path / "packages" / name).symlink_to(packages / name)
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin", f'PYTHONPATH="{tmp_path}/packages" exec "{sys.executable}" "$@"', "python")
    program(tmp_path / "bin", f'exec "{STOCK}/mpiexec" "$@"', "mpiexec")
    found = diagnose(tmp_path, "--lammps", tmp_path, "--ranks", "1,2")
    assert found.status == 0, found.printed
    assert found.row("LAMMPS", "program")["finding"].startswith("Python module ")
    for quantity in lammps_selftest.TOLERANCES:
        assert found.row("fix external, painn student", quantity)["status"] == "pass"


# ---- programs that are not well ----


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("echo hello world", "is not LAMMPS: hello world"),
        ("exit 3", "-h` fails: it said nothing"),
        ("echo 'lmp: error while loading shared libraries: libmpi.so.12' >&2; exit 127", "libmpi.so.12"),
        ("kill -SEGV $$", "ended by SIGSEGV"),
        ("sleep 60", "it hung"),
    ],
)
def test_program_that_does_not_answer(tmp_path, text, finding):
    found = diagnose(tmp_path, "--lammps", program(tmp_path, text), "--time-limit", "1")
    assert found.failed() == {("LAMMPS", "program")}
    assert finding in found.row("LAMMPS", "program")["finding"]
    assert found.report["lammps"] is None


def test_program_that_is_not_there(tmp_path):
    (tmp_path / "text").write_text("nothing to run")
    for place, finding in [("nowhere", "does not exist"), ("text", "is not a program"), ("", "no lmp in")]:
        found = diagnose(tmp_path, "--lammps", tmp_path / place)
        assert found.failed() == {("LAMMPS", "program")}
        assert finding in found.row("LAMMPS", "program")["finding"]


def test_no_lammps_at_all_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "find_program", lambda given: find_program_nowhere())
    found = diagnose(tmp_path)
    assert found.status == 0
    assert found.row("LAMMPS", "program")["status"] == "skip"


def find_program_nowhere():
    raise ConfigError("no LAMMPS here")


def test_hanging_run_is_ended_with_all_its_ranks(tmp_path):
    """Also what a shell started: left behind where only the process itself was ended."""
    seconds = f"{600 + time.monotonic() % 100:.6f}"  # to be told from other sleepers
    lmp = fake(tmp_path, f"echo starting; sleep {seconds}")
    start = time.monotonic()
    found = diagnose(tmp_path, "--lammps", lmp, "--time-limit", "0.5")
    assert time.monotonic() - start < 300
    assert found.failed() == {("LAMMPS", "a first run")}
    assert "it hung and was ended; it last said: starting" in found.row("LAMMPS", "a first run")["finding"]
    assert seconds not in subprocess.run(["ps", "-ef"], capture_output=True, text=True, check=True).stdout


def test_crashing_run_is_told_by_its_last_words(tmp_path):
    lmp = fake(tmp_path, "echo 'LAMMPS (4 Jul 2026)'; echo reading; kill -SEGV $$", mpi=STUBS)
    found = diagnose(tmp_path, "--lammps", lmp)
    assert found.row("LAMMPS", "a first run")["finding"] == "ended by SIGSEGV; it last said: reading"


GRID = 'echo "  1 by 1 by 1 MPI processor grid"'


def test_failing_students_are_told_once_by_the_error(tmp_path):
    """A serial LAMMPS that runs, but no student."""
    said = "ERROR on proc 0: weights_only unpickling"
    lmp = fake(tmp_path, f"if grep -q unified in.lammps; then echo '{said}'; exit 1; fi\n{GRID}", mpi=STUBS)
    found = diagnose(tmp_path, "--lammps", lmp)
    row = found.row("pair_style mliap, local student", "runs")
    assert row["finding"] == f"1 rank: {said}"
    assert "FILE.pkl" in row["advice"]
    assert found.row("LAMMPS", "Python in LAMMPS")["status"] == "fail"  # it wrote nothing
    assert "serial" in found.row("LAMMPS", "MPI")["finding"]
    assert "serial" in found.row("LAMMPS", "several ranks")["finding"]


def test_run_without_results_is_a_failure(tmp_path):
    """It ends well, and nothing was measured: it passed as long as only its exit status counted."""
    found = diagnose(tmp_path, "--lammps", fake(tmp_path, GRID, mpi=STUBS))
    for name in ("local", "painn"):
        row = found.row(f"pair_style mliap, {name} student", "runs")
        assert row["status"] == "fail"
        assert "did not write energy, forces" in row["finding"]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("start\nValueError: x\nERROR: Python failed\nLast input line: run 0", "ValueError: x"),
        ("ERROR: Python failed (pair.cpp:7)\nLast input line: run 0", "ERROR: Python failed (pair.cpp:7)"),
        ("mlffd: cannot load the student: y\nTypeError: x\nERROR: z", "mlffd: cannot load the student: y"),
        ("one\ntwo\n", "it last said: two"),
        ("", "it said nothing"),
    ],
)
def test_reason_of_a_failure_is_the_most_telling_line(said, why):
    assert Finished(1, said).why() == why


def test_ranks_that_do_not_meet_are_found(tmp_path):
    """As under the mpiexec of another MPI: every rank is a LAMMPS of its own, and ends well."""
    lmp = fake(tmp_path, GRID, packages="MOLECULE")
    program(tmp_path, 'shift 2; "$@"; "$@"', "mpiexec")
    found = diagnose(tmp_path, "--lammps", lmp)
    assert ("LAMMPS", "MPI") in found.failed()
    assert "MPICH 5.0.2" in found.row("LAMMPS", "MPI")["advice"]


def test_time_limit_and_ranks_are_checked(capsys):
    for words in (["--ranks", "0"], ["--ranks", "two"], ["--ranks", ""], ["--time-limit", "0"]):
        assert main(["doctor", *words]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"mlffd: {words[0]} ")
        assert error.count("\n") == 1


def test_bundle_that_is_none(tmp_path):
    (tmp_path / "x.mlffd").write_text("no bundle")
    found = diagnose(tmp_path, tmp_path / "x.mlffd", "--lammps", tmp_path / "nowhere")
    assert ("bundle", str(tmp_path / "x.mlffd")) in found.failed()


def test_report_on_standard_output_is_all_there_is(tmp_path, capsys):
    assert main(["doctor", "--lammps", str(tmp_path / "nowhere"), "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "fail"


# ---- what LAMMPS says of itself ----


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("4 Jul 2026", 20260704),
        ("22 Jul 2025 - Update 4\nGit info (HEAD / stable_22Jul2025_update4)", 20250722),
        ("10 Sep 2025 - Development\nGit info (develop / patch_10Sep2025-667-g8ec0f2643d)", 20250910),
        ("29 September 2021", 20210929),
    ],
)
def test_facts_of_releases(release, version):
    facts = facts_from(help_text(release))
    assert facts.version == version
    assert facts.release == release.split("\n")[0]
    assert facts.packages == ("ML-IAP", "ML-SNAP", "PYTHON")


@pytest.mark.parametrize(
    ("said", "mpi"),
    [
        (MPICH, "MPICH 5.0.2"),
        ("Open MPI v4.1.4, package: Debian OpenMPI", "Open MPI 4.1.4"),
        (STUBS, "serial"),
    ],
)
def test_facts_of_mpi(said, mpi):
    assert facts_from(help_text(mpi=said)).mpi == mpi


def test_facts_of_accelerators():
    said = "KOKKOS package API: CUDA Serial\nKOKKOS package precision: double\nGPU package API: OpenCL"
    facts = facts_from(help_text(accelerators=said))
    assert (facts.kokkos, facts.gpu) == ("CUDA Serial", "OpenCL")
    assert facts_from(help_text()).kokkos == ""


KOKKOS = {"accelerators": "KOKKOS package API: CUDA Serial"}


@pytest.mark.parametrize(
    ("release", "wrong"),
    [
        ("22 Jul 2025 - Update 4", False),
        ("10 Sep 2025", False),
        ("10 Sep 2025 - Development", True),
        ("10 Dec 2025", True),
        ("11 Feb 2026", False),
    ],
)
def test_builds_with_the_wrong_kokkos_exchange_are_named(release, wrong):
    found = doctor.kokkos_exchange_check(facts_from(help_text(release, **KOKKOS)))
    assert found.status == ("fail" if wrong else "pass")
    assert "15 December 2025" in found.finding


@pytest.mark.parametrize(("release", "wrong"), [("4 Feb 2025", True), ("12 Jun 2025", False)])
def test_builds_that_refuse_pt_files_are_named_and_tried_with_pkl(release, wrong, tmp_path):
    facts = facts_from(help_text(release))
    assert doctor.torch_load_check(facts).status == ("fail" if wrong else "pass")
    route = lammps_selftest.mliap_route(LammpsProgram(("lmp",), tmp_path), facts, (1,))
    subject = standard_subjects()[0]
    subject.write(tmp_path)
    route.write(subject, tmp_path)
    suffix = "pkl" if wrong else "pt"
    assert (tmp_path / f"local.float64.{suffix}").is_file()
    assert f"unified local.float64.{suffix} 0" in route.potential(subject, "float64")


def test_kokkos_route_turns_kokkos_on(tmp_path):
    lmp = LammpsProgram(("lmp",), tmp_path)
    on_gpu = lammps_selftest.kokkos_route(lmp, facts_from(help_text(**KOKKOS)), (1,))
    assert on_gpu.program.options[:6] == ("-k", "on", "g", "1", "-sf", "kk")
    on_host = facts_from(help_text(accelerators="KOKKOS package API: OpenMP Serial"))
    assert lammps_selftest.kokkos_route(lmp, on_host, (1,)).program.options[2:4] == ("t", "1")
    with pytest.raises(lammps_selftest.NotHere, match="no KOKKOS"):
        lammps_selftest.kokkos_route(lmp, facts_from(help_text()), (1,))


def test_cuda_route_puts_students_on_the_gpu(tmp_path, monkeypatch):
    lmp, facts = LammpsProgram(("lmp",), tmp_path), facts_from(help_text())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    route = lammps_selftest.cuda_route(lmp, facts, (1,))
    assert route.program.environment["MLFFD_DEVICE"] == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(lammps_selftest.NotHere, match="no GPU"):
        lammps_selftest.cuda_route(lmp, facts, (1,))


@pytest.mark.parametrize(
    ("driver", "built_for", "status"), [(False, "12.8", "skip"), (True, None, "skip"), (True, "12.8", "fail")]
)
def test_gpu_that_pytorch_does_not_see(driver, built_for, status, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(doctor, "NVIDIA_DRIVER", tmp_path if driver else tmp_path / "nowhere")
    assert doctor.cuda_check("").status == status


@pytest.mark.gpu
def test_gpu_computes_what_the_cpu_does():
    assert doctor.cuda_check("").status == "pass"


@pytest.mark.parametrize(
    ("text", "faulty"),
    [
        ("exit 0", False),
        ("echo 'ERROR: Failed to allocate 20480000000 bytes for MLIAPData:lmp_firstneigh'; exit 1", True),
        ("echo 'ERROR: something else'; exit 1", None),
    ],
)
def test_memory_fault_is_told_from_other_failures(tmp_path, text, faulty):
    lmp = LammpsProgram((str(program(tmp_path, text)),), tmp_path)
    found = lammps_probe.memory_fault(lmp, tmp_path, 10.0)
    assert found[0] is faulty
    status = {False: "pass", True: "fail", None: "skip"}[faulty]
    assert doctor.memory_check(*found).status == status


def python_inside(**facts) -> dict:
    found = {"version": "3.11.2", "prefix": "/elsewhere", "mlffd": "/elsewhere/mlffd", "error": ""}
    return {**found, "mpi4py": "4.1.2", "mpi_library": "Open MPI v4", "shares_mpi": True, **facts}


def probe_of(python: dict | None, led: dict | None = None) -> lammps_probe.Probe:
    lmp = LammpsProgram(("lmp",), Path("lmp"))
    return lammps_probe.Probe(lmp, True, (), python, led, "it said nothing")


def test_python_without_mlffd_is_told_how_to_find_it():
    without = python_inside(mlffd="")
    facts = facts_from(help_text())
    advice = doctor.python_check(facts, probe_of(without, led=python_inside())).advice
    assert f"PYTHONEXECUTABLE={sys.executable}" in advice
    advice = doctor.python_check(facts, probe_of(without, led=without)).advice
    assert "install mlffd for Python 3.11.2" in advice
    assert doctor.python_check(facts, probe_of(python_inside())).status == "pass"
    assert doctor.python_check(facts, probe_of(None)).status == "fail"


def test_mpi4py_of_another_mpi_is_found():
    found = doctor.mpi4py_check(probe_of(python_inside(shares_mpi=False)))
    assert found.status == "fail"
    assert "Open MPI v4" in found.finding
    assert doctor.mpi4py_check(probe_of(python_inside(mpi4py=""))).status == "skip"
    assert doctor.mpi4py_check(probe_of(python_inside())).status == "pass"
    assert doctor.mpi4py_check(probe_of(python_inside(mpi4py=""), led=python_inside())).status == "pass"


# ---- judgement ----


def trial(route="a", ranks=1, failure="", **errors) -> Trial:
    return Trial(route, "local", ranks, failure, errors)


def checks_of(*trials: Trial) -> dict[tuple[str, str], doctor.Check]:
    return {(check.group, check.name): check for check in doctor.trial_checks(list(trials))}


def test_one_rank_of_many_fails_a_row():
    found = checks_of(trial(ranks=1, forces=1e-12), trial(ranks=2, forces=0.5))["a, local student", "forces"]
    assert found.status == "fail"
    assert "5.0e-01 on 2 ranks" in found.finding
    assert found.advice == "do not use a for such students on 2 ranks here; 1 rank passed"


def test_another_route_that_passed_is_advised():
    found = checks_of(trial("a", virial=2.0), trial("b", virial=1e-9))
    assert found["a, local student", "virial"].advice.endswith("; b passed")
    assert found["b, local student", "virial"].status == "pass"


@pytest.mark.parametrize("error", [np.nan, np.inf, 1e-3])
def test_what_is_not_small_fails(error):
    """Not a number passed where `not error > tolerance` was asked."""
    assert checks_of(trial(energy=error))["a, local student", "energy"].status == "fail"


def test_failure_of_a_run_is_advised_on():
    said = "ERROR: ModuleNotFoundError: No module named 'mlffd'"
    found = checks_of(trial(failure=said), trial(ranks=2, failure=said))["a, local student", "runs"]
    assert found.finding == f"1, 2 ranks: {said}"
    assert "PYTHONEXECUTABLE" in found.advice


def test_students_are_the_same_every_time_and_leave_random_numbers_alone():
    torch.manual_seed(1)
    once, again = (random_student("painn").state_dict() for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)


@pytest.mark.parametrize("family", ["local", "painn"])
def test_students_feel_what_is_tested(family):
    """Forces, virials, energies of atoms alone, and for message passing atoms beyond the cutoff; a student of
    one layer does not feel them."""
    subject = next(subject for subject in standard_subjects() if subject.name == family)
    expected = subject.expected()
    assert np.abs(expected["bulk"].forces).max() > 0.1
    assert np.abs(expected["bulk"].virial[np.triu_indices(3)]).min() > 0.01
    assert abs(expected["alone"].energy) > 1.0
    assert np.abs(expected["corner"].forces).max() > 0.1
    moved = subject.frames["bulk"].copy()
    moved.positions[0] += 0.05
    after = replace(subject, frames={"bulk": moved}).expected()["bulk"]
    far = moved.get_distances(0, range(len(moved)), mic=True) > subject.bundle.student.cutoff + 0.1
    changes = np.abs(after.atomic_energies - expected["bulk"].atomic_energies)[far]
    assert changes.max() > 1e-5 if family == "painn" else changes.max() < 1e-12


def test_box_changes_strain_all_lattice_vectors():
    cell = np.array([[9.0, 0, 0], [1.0, 8.0, 0], [-0.5, 0.25, 7.0]])
    words = change_box(cell).split()
    assert words[:3] == ["change_box", "all", "x"]
    assert [float(words[words.index(name) + 2]) for name in ("xy", "xz", "yz")] == [1.0, -0.5, 0.25]
    assert [float(words[words.index(name) + 3]) for name in "xyz"] == [9.0, 8.0, 7.0]
    for a, b in COMPONENTS:  # upper triangular strains keep the cell lower triangular
        strain = np.eye(3)
        strain[a, b] += 0.1
        assert np.allclose(np.triu(cell @ strain.T, 1), 0.0)


def test_output_of_a_command_that_leaves_a_child_is_not_waited_for(tmp_path):
    """A pipe would stay open as long as the child."""
    start = time.monotonic()
    finished = run_limited(["sh", "-c", "sleep 30 & echo done"], tmp_path, 20.0)
    assert (finished.status, finished.output) == (0, "done\n")
    assert time.monotonic() - start < 20.0


def test_environment_is_handed_on_but_for_dtype(monkeypatch, tmp_path):
    """MLFFD_DTYPE would turn float64 into float32 behind our back."""
    monkeypatch.setenv("MLFFD_DTYPE", "float32")
    monkeypatch.setenv("MLFFD_DEVICE", "cpu")
    lmp = find_program(program(tmp_path, 'echo "$MLFFD_DTYPE,$MLFFD_DEVICE,$MLFFD_GUARD"'))
    assert lmp.run("", tmp_path).output == ",cpu,off\n"


def test_names_of_lmp_are_found(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    lmp = program(tmp_path / "bin", "exit 0", "lmp_serial")
    assert find_program(tmp_path).place == lmp
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert shutil.which("lmp_serial") == str(lmp)
