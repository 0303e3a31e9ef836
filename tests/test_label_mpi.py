# SPDX-License-Identifier: MIT
"""Labelling by MPI ranks with the real mpiexec: labels as of one process; nobody waits for a lost rank."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import ase.io
import pytest
from ase.build import bulk
from conftest import COMMANDS

from mlffd.dataset import mpi
from mlffd.dataset.label import label
from mlffd.dataset.store import read_labels
from mlffd.errors import LabelError

MPIEXEC = COMMANDS / "mpiexec"
TIME_LIMIT = 300  # s, for a machine that is busy with other things

pytestmark = pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec beside this Python")

# a teacher that behaves badly on the second rank and the third; the others wait for the second (the first
# one labels in a process that is no rank)
MOODY = """
    import os, time
    from pathlib import Path
    from ase.calculators.lj import LennardJones

    SECOND, THIRD = (os.environ.get("PMI_RANK") == rank for rank in "12")
    HAPPENED = Path(__file__).with_name("happened")
    VERSION = "1"

    class Moody(LennardJones):
        def calculate(self, atoms, *args):
            if SECOND and self.mood != "good":
                HAPPENED.touch()
                if self.mood == "dies":
                    os._exit(7)
                raise SystemExit("I have had enough")
            while self.mood != "good" and atoms.info["number"] > 3 and not HAPPENED.exists():
                time.sleep(0.01)
            super().calculate(atoms, *args)

    def make(mood="good"):
        if mood == "is nowhere" or (mood == "loads once" and HAPPENED.exists()):
            raise RuntimeError("no weights here")
        if mood == "loads once":
            HAPPENED.touch()
        if THIRD and mood == "gives up":
            raise RuntimeError("no weights here")
        calculator = Moody(epsilon=0.01, sigma=3.4, rc=6.0)
        calculator.mood = mood
        return calculator
"""


@pytest.fixture
def folder(tmp_path):
    """Twelve argon crystals, and the teacher."""
    frames = []
    for number in range(12):
        atoms = bulk("Ar", cubic=True)
        atoms.rattle(0.05, seed=number)
        atoms.info["number"] = number
        frames.append(atoms)
    ase.io.write(tmp_path / "frames.xyz", frames)
    (tmp_path / "moody.py").write_text(textwrap.dedent(MOODY))
    return tmp_path


def labelled(folder, mood, n_ranks=2):
    """`mpiexec mlffd label`, finished."""
    command = [MPIEXEC, "-n", str(n_ranks), sys.executable, "-m", "mlffd", "label", "frames.xyz"]
    command += ["--teacher", "moody:make", "--set", f"mood={mood}", "-o", "labels.h5"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT
    )


def serial(folder, mood="good"):
    """The bytes of the same labels by one process."""
    teacher = {"name": "moody:make", "mood": mood}
    label(folder / "frames.xyz", teacher, folder / "serial.h5", directory=folder)
    return (folder / "serial.h5").read_bytes()


@pytest.mark.slow
def test_ranks_write_the_labels_of_one_process(folder):
    """Seen to catch a rank that speaks beside the first one."""
    run = labelled(folder, "good", n_ranks=3)
    assert run.returncode == 0, run.stderr
    assert (folder / "labels.h5").read_bytes() == serial(folder)
    assert run.stdout.split() == [read_labels(folder / "labels.h5").hash]
    assert "labelled 12 frames, 0 failed" in run.stderr


@pytest.mark.slow
def test_ranks_that_cannot_load_the_teacher_or_give_up_are_done_without(folder):
    """Seen to catch a first rank that waits for the answer of a rank that has left."""
    run = labelled(folder, "gives up", n_ranks=3)
    assert "rank 1 died (SystemExit: I have had enough); it is tried once more, alone" in run.stderr
    assert "labelled 12 frames, 0 failed" in run.stderr
    assert len(read_labels(folder / "labels.h5")) == 12


@pytest.mark.slow
def test_a_rank_that_dies_ends_all_and_the_rest_is_labelled_the_next_time(folder):
    run = labelled(folder, "dies")
    assert run.returncode != 0
    assert not (folder / "labels.h5").exists()
    teacher = {"name": "moody:make", "mood": "dies"}
    label(folder / "frames.xyz", teacher, folder / "labels.h5", directory=folder)
    assert (folder / "labels.h5").read_bytes() == serial(folder, "dies")


@pytest.mark.slow
def test_what_is_wrong_is_said_once(folder):
    run = labelled(folder, "is nowhere")
    assert run.returncode != 0
    line = "mlffd: teacher moody:make failed to start: RuntimeError: no weights here"
    assert [text for text in run.stderr.splitlines() if text] == [line]
    assert not (folder / "labels.h5.parts").exists()


@pytest.mark.slow
def test_a_teacher_that_only_the_first_rank_can_load_ends_all(folder):
    """Seen to catch a first rank that waits for the other one."""
    run = labelled(folder, "loads once")
    assert run.returncode != 0
    assert "mlffd: no labelling process could load the teacher: " in run.stderr
    assert "teacher moody:make failed to start: RuntimeError: no weights here" in run.stderr


def test_an_mpi4py_of_another_mpi_is_refused(monkeypatch):
    """Else every rank would take itself for the only one."""
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(LabelError, match="mpiexec started 2 ranks, but mpi4py sees 1"):
        mpi.ranks()


def test_a_missing_mpi4py_is_one_clear_line(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(LabelError, match=r"needs mpi4py .* or leave mpiexec out and say --workers"):
        mpi.ranks()


def test_without_a_launcher_mpi_is_left_alone(monkeypatch):
    for name in (*mpi.SIZE_VARIABLES, *mpi.RANK_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert mpi.ranks() is None
