# SPDX-License-Identifier: MIT
"""What goes wrong while labelling: full disks, kills, damaged files, unwilling teachers, wrong commands."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
from ase.build import bulk

from mlffd.dataset.label import label
from mlffd.dataset.store import LabelStore, frames_hash, read_labels
from mlffd.errors import AuditError, ConfigError, LabelError

LJ = {"name": "lj", "epsilon": 0.01, "sigma": 3.4, "rc": 6.0}
TIME_LIMIT = 300  # s, for a machine that is busy with other things
# a teacher that refuses every third frame while a file named `angry` lies beside it, which says why
TEMPER = """
    from pathlib import Path
    from ase.calculators.lj import LennardJones

    VERSION = "1"

    class Temper(LennardJones):
        def calculate(self, atoms, *args):
            angry = Path(__file__).with_name("angry")
            if angry.exists() and atoms.info["number"] % self.refuses == 0:
                raise RuntimeError(angry.read_text())
            super().calculate(atoms, *args)

    def make(refuses=3):
        calculator = Temper(epsilon=0.01, sigma=3.4, rc=6.0)
        calculator.refuses = refuses
        return calculator
"""


@pytest.fixture
def crystals(tmp_path):
    """A file with six rattled argon crystals, and the teacher."""
    frames = []
    for number in range(6):
        atoms = bulk("Ar", cubic=True)
        atoms.rattle(0.1, seed=number)
        atoms.info["number"] = number
        frames.append(atoms)
    ase.io.write(tmp_path / "frames.xyz", frames)
    (tmp_path / "temper.py").write_text(textwrap.dedent(TEMPER))
    return tmp_path / "frames.xyz"


class FullDisk:
    """Lets so many writes succeed; the next one leaves half of what it should and fails."""

    def __init__(self, monkeypatch, writes):
        self.left, self.was_full = writes, False
        self.savez, self.write = np.savez, Path.write_bytes
        monkeypatch.setattr(np, "savez", self.save_arrays)
        monkeypatch.setattr(Path, "write_bytes", lambda path, content: self.save(path, content))

    def _check(self):
        self.left -= 1
        self.was_full = self.left < 0
        return self.was_full

    def save_arrays(self, file, **arrays):
        if self._check():
            file.write(b"PK half")
            raise OSError(errno.ENOSPC, "No space left on device")
        self.savez(file, **arrays)

    def save(self, path, content):
        if self._check():
            self.write(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.write(path, content)


def stored(frames, output):
    """Everything that is written while labelling, in order: begin, four labels and a failure, the file."""
    store = LabelStore(output)
    with store.locked():
        store.begin({"teacher": {"name": "lj"}, "frames": frames_hash(frames), "n_frames": len(frames)})
        for number in sorted(set(range(len(frames))) - store.done()):
            if number == 1:
                store.fail(number, "no")
            else:
                forces = np.full((len(frames[number]), 3), 0.1 * number)
                store.add(number, frames[number], -1.0, forces, np.eye(3))
        store.finish()


def test_a_disk_full_at_any_write_leaves_whole_files_only(crystals, tmp_path, monkeypatch):
    """Seen to catch parts written in place."""
    frames = ase.io.read(crystals, ":5")
    stored(frames, tmp_path / "undisturbed.h5")
    for writes in range(7):
        output = tmp_path / f"{writes}.h5"
        with monkeypatch.context() as patch:
            FullDisk(patch, writes)
            with pytest.raises(OSError, match="No space left"):
                stored(frames, output)
        assert not output.exists()
        assert len(LabelStore(output).done()) == max(writes - 1, 0)
        stored(frames, output)
        assert output.read_bytes() == (tmp_path / "undisturbed.h5").read_bytes()
    with monkeypatch.context() as patch:
        disk = FullDisk(patch, 7)
        stored(frames, tmp_path / "enough.h5")
        assert disk.left == 0  # no write was left out above


def test_a_file_that_the_system_does_not_let_grow_is_told(crystals, tmp_path):
    """The label file is larger than any of its parts; the limit is the kernel's own."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        with pytest.raises(LabelError, match="stopped: File too large"):
            label(crystals, LJ, tmp_path / "labels.h5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert LabelStore(tmp_path / "labels.h5").done() == set(range(6))
    assert len(read_labels_of(crystals, tmp_path / "labels.h5")) == 6


def read_labels_of(crystals, output):
    label(crystals, LJ, output)
    return read_labels(output)


def test_a_file_cut_off_anywhere_is_one_clear_line(crystals, tmp_path):
    label(crystals, LJ, tmp_path / "labels.h5")
    content = (tmp_path / "labels.h5").read_bytes()
    for length in [*range(0, 200), *range(200, len(content), 97), len(content) - 1]:
        (tmp_path / "cut.h5").write_bytes(content[:length])
        with pytest.raises(LabelError, match=r"cut\.h5 is damaged") as caught:
            read_labels(tmp_path / "cut.h5")
        assert "\n" not in str(caught.value)


def test_bytes_changed_anywhere_give_one_clear_line_or_the_same_labels(crystals, tmp_path):
    """Not every byte of an HDF5 file means something. Seen to catch arrays left out of the hash."""
    sound = read_labels_of(crystals, tmp_path / "labels.h5")
    content = (tmp_path / "labels.h5").read_bytes()
    rng = random.Random(0)
    lines = []
    for _ in range(300):
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (tmp_path / "changed.h5").write_bytes(changed)
        try:
            labels = read_labels(tmp_path / "changed.h5")
        except LabelError as error:
            lines.append(str(error))
        else:
            np.testing.assert_array_equal(labels.energies, sound.energies)
            np.testing.assert_array_equal(labels.forces, sound.forces)
            np.testing.assert_array_equal(labels.stresses, sound.stresses)
            assert labels.structures == sound.structures
    assert len(lines) > 50
    assert all("changed.h5" in line and "\n" not in line for line in lines)


def test_a_file_that_nobody_else_made_is_not_written_over(crystals, tmp_path):
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["energy"] = [1.0]
    before = (tmp_path / "theirs.h5").read_bytes()
    with pytest.raises(LabelError, match="not a label file of mlffd"):
        label(crystals, LJ, tmp_path / "theirs.h5")
    assert (tmp_path / "theirs.h5").read_bytes() == before


def test_what_has_failed_can_be_tried_again(crystals, tmp_path):
    """Seen to catch labels joined in the order they came."""
    label(crystals, "temper:make", tmp_path / "undisturbed.h5", directory=tmp_path)
    (tmp_path / "angry").write_text("not today")
    output = tmp_path / "labels.h5"
    label(crystals, "temper:make", output, directory=tmp_path)
    assert read_labels(output).metadata["failed"] == dict.fromkeys("03", "RuntimeError: not today")

    (tmp_path / "angry").unlink()
    before = output.read_bytes()
    label(crystals, "temper:make", output, directory=tmp_path)
    assert output.read_bytes() == before  # nothing is labelled twice unasked
    label(crystals, "temper:make", output, directory=tmp_path, retry_failed=True)
    assert output.read_bytes() == (tmp_path / "undisturbed.h5").read_bytes()
    assert not LabelStore(output).parts.exists()


def test_a_retry_that_fails_again_keeps_all_labels_and_the_last_reason(crystals, tmp_path):
    """Seen to catch a file that keeps the old reasons."""
    (tmp_path / "angry").write_text("not today")
    output = tmp_path / "labels.h5"
    first = label(crystals, "temper:make", output, directory=tmp_path)
    before = output.read_bytes()
    assert label(crystals, "temper:make", output, directory=tmp_path, retry_failed=True) == first
    assert output.read_bytes() == before
    (tmp_path / "angry").write_text("tomorrow")
    label(crystals, "temper:make", output, directory=tmp_path, retry_failed=True)
    assert read_labels(output).metadata["failed"] == dict.fromkeys("03", "RuntimeError: tomorrow")
    assert len(read_labels(output)) == 4


def test_where_nothing_failed_there_is_nothing_to_try_again(crystals, tmp_path):
    output = tmp_path / "labels.h5"
    label(crystals, LJ, output)
    before = output.stat().st_mtime_ns
    label(crystals, LJ, output, retry_failed=True)
    assert output.stat().st_mtime_ns == before


def test_a_run_that_labelled_nothing_does_not_block_the_corrected_one(crystals, tmp_path):
    (tmp_path / "angry").write_text("not today")
    wrong = {"name": "temper:make", "refuses": 1}
    with pytest.raises(LabelError, match=r"not one frame could be labelled; the first said: .*not today"):
        label(crystals, wrong, tmp_path / "labels.h5", directory=tmp_path)
    assert not LabelStore(tmp_path / "labels.h5").parts.exists()
    LabelStore(tmp_path / "labels.h5").begin(
        {"teacher": {"name": "a killed run"}, "frames": "", "n_frames": 1}
    )
    label(crystals, LJ, tmp_path / "labels.h5")
    assert len(read_labels(tmp_path / "labels.h5")) == 6


@pytest.mark.parametrize(("option", "value"), [("workers", 0), ("workers", -1), ("hessian_rows", -1)])
def test_numbers_that_cannot_be_meant_are_refused_before_anything_is_loaded(tmp_path, option, value):
    with pytest.raises(ConfigError, match=f"{option} must be a whole number"):
        label(tmp_path / "not there.xyz", "no such teacher", tmp_path / "labels.h5", **{option: value})


def test_two_at_once_are_refused(crystals, tmp_path):
    store = LabelStore(tmp_path / "labels.h5")
    with store.locked(), pytest.raises(LabelError, match="another process labels into"):
        label(crystals, LJ, tmp_path / "labels.h5")
    label(crystals, LJ, tmp_path / "labels.h5")


def test_frames_that_cannot_be_meant_are_refused_before_anything_is_labelled(crystals, tmp_path):
    frames = ase.io.read(crystals, ":")
    frames[2].positions[1] = frames[2].positions[0]
    ase.io.write(tmp_path / "overlap.xyz", frames)
    with pytest.raises(AuditError, match="frame 2"):
        label(tmp_path / "overlap.xyz", LJ, tmp_path / "labels.h5")
    assert not LabelStore(tmp_path / "labels.h5").parts.exists()


@pytest.mark.slow
def test_kills_at_any_moment_leave_the_same_bytes(crystals, tmp_path):
    """Seen to catch a file that depends on who labelled what. Kills fall where they fall; none may matter."""
    label(crystals, LJ, tmp_path / "undisturbed.h5", hessian_rows=2)
    rng = random.Random(1)
    command = [
        sys.executable,
        "-m",
        "mlffd",
        "label",
        "frames.xyz",
        "--teacher",
        "lj",
        "--set",
        "epsilon=0.01",
    ]
    command += ["sigma=3.4", "rc=6.0", "--workers", "2", "--hessian-rows", "2", "-o", "killed.h5"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(3):
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(0.3, 3.0))
        except subprocess.TimeoutExpired:
            process.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
            process.wait(TIME_LIMIT)
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=TIME_LIMIT)
    assert (tmp_path / "killed.h5").read_bytes() == (tmp_path / "undisturbed.h5").read_bytes()
    assert not LabelStore(tmp_path / "killed.h5").parts.exists()
