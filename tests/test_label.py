# SPDX-License-Identifier: MIT
"""Labelling: the same bytes whatever happens on the way, and no frame lost without a word."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms

from mlffd.__main__ import parser
from mlffd.commands.arguments import given_teacher
from mlffd.dataset.label import label
from mlffd.dataset.store import LabelStore, read_labels
from mlffd.errors import LabelError, TeacherError
from mlffd.teachers import load_teacher

LJ = {"name": "lj", "epsilon": 0.01, "sigma": 3.4, "rc": 6.0}
# a teacher that takes its time, refuses helium, gives NaN for neon and takes the process down at krypton
TEMPER = """
    import os, time
    import numpy as np
    from ase.calculators.lj import LennardJones

    class Temper(LennardJones):
        def calculate(self, atoms, *args):
            time.sleep(self.pause)
            if "He" in atoms.symbols:
                raise RuntimeError("helium is beneath me")
            if "Kr" in atoms.symbols:
                os._exit(7)
            super().calculate(atoms, *args)
            if "Ne" in atoms.symbols:
                self.results["forces"] = np.full((len(atoms), 3), np.nan)

    def make(pause=0.0):
        calculator = Temper(epsilon=0.01, sigma=3.4, rc=6.0)
        calculator.pause = pause
        return calculator
"""


@pytest.fixture
def crystals(tmp_path):
    """A file with ten rattled argon crystals."""
    frames = []
    for number in range(10):
        atoms = bulk("Ar", cubic=True) * (2, 1, 1)
        atoms.rattle(0.1, seed=number)
        atoms.info["number"] = number
        frames.append(atoms)
    ase.io.write(tmp_path / "frames.xyz", frames)
    (tmp_path / "temper.py").write_text(textwrap.dedent(TEMPER))
    return tmp_path / "frames.xyz"


def test_labels_are_what_the_teacher_says(crystals, tmp_path):
    label(crystals, LJ, tmp_path / "labels.h5")
    labels = read_labels(tmp_path / "labels.h5")
    calculator = load_teacher(LJ).calculator
    assert len(labels) == 10
    for number, atoms in enumerate(ase.io.read(crystals, ":")):
        atoms.calc = calculator
        assert labels.energies[number] == atoms.get_potential_energy()
        np.testing.assert_array_equal(labels.forces[number], atoms.get_forces())
        np.testing.assert_array_equal(labels.stresses[number], atoms.get_stress(voigt=False))
        assert labels.structures[number].info["number"] == number


def test_a_label_does_not_depend_on_the_frames_before_it(crystals, tmp_path):
    """Seen to catch a calculator that goes on with the neighbor list of another frame."""
    frames = [ase.io.read(crystals)]
    for number in range(5):
        frames.append(frames[0].copy())
        frames[-1].rattle(0.02, seed=number)  # within the skin of a list
    ase.io.write(tmp_path / "one.xyz", frames)
    ase.io.write(tmp_path / "reversed.xyz", frames[::-1])
    label(tmp_path / "one.xyz", LJ, tmp_path / "one.h5")
    label(tmp_path / "reversed.xyz", LJ, tmp_path / "reversed.h5")
    one, other = read_labels(tmp_path / "one.h5"), read_labels(tmp_path / "reversed.h5")
    np.testing.assert_array_equal(one.forces, other.forces[::-1])


def wait_until(condition, seconds=30):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited in vain"
        time.sleep(0.02)


def group_is_gone(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_settings_add_up():
    """Seen to fail: of several --set the last one counted."""
    words = ["label", "f.xyz", "--teacher", "gfn2-xtb", "--set", "charge=-1", "--set", "spin=2", "-o", "l.h5"]
    assert given_teacher(parser().parse_args(words)) == {"name": "gfn2-xtb", "charge": -1, "spin": 2}


def test_killed_and_resumed_gives_the_same_bytes_and_leaves_no_process(crystals, tmp_path):
    slow = {"name": "temper:make", "pause": 0.15}
    output = tmp_path / "killed.h5"
    call = f"label({str(crystals)!r}, {slow}, {str(output)!r}, workers=2, directory={str(tmp_path)!r})"
    script = tmp_path / "killed.py"
    script.write_text(f"from mlffd.dataset.label import label\nif __name__ == '__main__':\n    {call}\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, script], start_new_session=True, env=environment)
    wait_until(lambda: len(list(tmp_path.glob("killed.h5.parts/*.npz"))) >= 3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: group_is_gone(process.pid))
    kept = {part.name: part.stat().st_mtime_ns for part in tmp_path.glob("killed.h5.parts/*.npz")}
    assert 3 <= len(kept) < 10
    assert not output.exists()

    # the frames labelled before the kill must not be paid for again
    assert LabelStore(output).done() == {int(name[:7]) for name in kept}
    resumed = label(crystals, slow, output, workers=2, directory=tmp_path)
    undisturbed = label(crystals, slow, tmp_path / "undisturbed.h5", directory=tmp_path)
    assert resumed == undisturbed
    assert output.read_bytes() == (tmp_path / "undisturbed.h5").read_bytes()


def test_a_finished_file_is_not_labelled_again(crystals, tmp_path):
    first = label(crystals, LJ, tmp_path / "labels.h5")
    before = (tmp_path / "labels.h5").stat().st_mtime_ns
    assert label(crystals, LJ, tmp_path / "labels.h5") == first
    assert (tmp_path / "labels.h5").stat().st_mtime_ns == before
    with pytest.raises(LabelError, match=r"begun with another teacher: settings"):
        label(crystals, {**LJ, "rc": 5.0}, tmp_path / "labels.h5")


def with_frame(crystals, symbol):
    frames = ase.io.read(crystals, ":3")
    frames[1].symbols[0] = symbol
    ase.io.write(crystals, frames)


@pytest.mark.parametrize(
    ("symbol", "reason"), [("He", "RuntimeError: helium is beneath me"), ("Ne", "not finite")]
)
def test_failed_frames_are_recorded(crystals, tmp_path, symbol, reason):
    with_frame(crystals, symbol)
    label(crystals, "temper:make", tmp_path / "labels.h5", directory=tmp_path)
    labels = read_labels(tmp_path / "labels.h5")
    assert [a.info["number"] for a in labels.structures] == [0, 2]
    assert list(labels.metadata["failed"]) == ["1"]
    assert reason in labels.metadata["failed"]["1"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_frame_that_takes_its_process_down_has_failed_and_the_others_are_labelled(
    crystals, tmp_path, workers
):
    """Seen to catch a process that is not replaced, and a frame that is given up without a try alone."""
    with_frame(crystals, "Kr")
    label(crystals, "temper:make", tmp_path / "labels.h5", workers=workers, directory=tmp_path)
    labels = read_labels(tmp_path / "labels.h5")
    assert [a.info["number"] for a in labels.structures] == [0, 2]
    assert "died (exit code 7" in labels.metadata["failed"]["1"]


def test_a_full_disk_is_told_and_costs_nothing_labelled(crystals, tmp_path, monkeypatch):
    real, left = np.savez, [3]

    def until_full(*args, **arrays):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args, **arrays)

    monkeypatch.setattr(np, "savez", until_full)
    with pytest.raises(LabelError, match="No space left"):
        label(crystals, LJ, tmp_path / "labels.h5")
    assert LabelStore(tmp_path / "labels.h5").done() == {0, 1, 2}
    monkeypatch.undo()
    assert label(crystals, LJ, tmp_path / "labels.h5") == label(crystals, LJ, tmp_path / "other.h5")


def test_molecules_have_no_stress_and_frozen_atoms_keep_their_forces(tmp_path):
    dimer = Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 3.5]], constraint=FixAtoms([0, 1]))
    ase.io.write(tmp_path / "dimer.xyz", dimer)
    label(tmp_path / "dimer.xyz", LJ, tmp_path / "labels.h5")
    labels = read_labels(tmp_path / "labels.h5")
    assert np.isnan(labels.stresses).all()
    assert abs(labels.forces[0][0, 2]) > 1e-3


@pytest.mark.parametrize("content", ["", "not a structure\n", None])
def test_unreadable_frames_are_refused(tmp_path, content):
    path = tmp_path / "frames.xyz"
    if content is not None:
        path.write_text(content)
    with pytest.raises(LabelError, match=r"frames\.xyz"):
        label(path, LJ, tmp_path / "labels.h5")
    assert not (tmp_path / "labels.h5.parts").exists()


def test_an_unknown_teacher_starts_nothing(crystals, tmp_path):
    with pytest.raises(TeacherError):
        label(crystals, "lk", tmp_path / "labels.h5")
    assert not (tmp_path / "labels.h5.parts").exists()
