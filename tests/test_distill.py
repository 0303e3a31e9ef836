"""The whole line on the Lennard-Jones teacher through the command line, stopped and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mlffd.__main__ import main
from mlffd.bundle import read_bundle
from mlffd.dataset.store import read_labels

CONFIG = """
name = "argon"
directory = "runs"

[teacher]
name = "lj"
rc = 6.0

[student]
cutoff = 6.0
family = "local"
channels = 6
l_max = 2
hidden = [16]

[train]
epochs = 8
learning_rate = 0.01

[[rounds]]
seed = 0
calculator = { name = "lj", rc = 6.0 }
train = { epochs = 6 }

[[rounds.stages]]
name = "liquid"
composition = { Ar = 20 }
temperatures = [90, 150]
densities = [1.2, 1.4]
relax = 30
timestep_fs = 5.0
equilibration = 40
interval = 20
frames = 4

[[rounds]]
calculator = "student"

[[rounds.stages]]
name = "own"
start = "previous"
temperatures = [90, 150]
densities = [1.4]
timestep_fs = 2.0
interval = 10
frames = 3

[test]
seed = 7
calculator = "student"

[[test.stages]]
name = "held out"
start = "previous"
temperatures = [120]
densities = [1.4]
timestep_fs = 2.0
interval = 20
frames = 4
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "argon.toml"
    path.write_text(CONFIG)
    return path


@pytest.mark.slow
def test_distillation_killed_and_gone_on_with(config, tmp_path, capsys):
    """A killed run goes on, ends with the student of an undisturbed one, and does nothing twice."""
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "argon.toml").write_text(CONFIG)
    assert main(["distill", str(whole / "argon.toml")]) == 0
    runs = config.parent / "runs"
    for landmark in ("round0.xyz.parts", "round0.mlffd.checkpoint", "round1.h5"):
        kill_when_there_is(config, runs / landmark)
    assert not (runs / "argon.mlffd").exists()
    assert main(["distill", str(config)]) == 0
    assert (runs / "argon.mlffd").read_bytes() == (whole / "runs" / "argon.mlffd").read_bytes()
    written = {path: path.stat().st_mtime_ns for path in runs.glob("round*")}
    assert main(["distill", str(config)]) == 0
    assert written == {path: path.stat().st_mtime_ns for path in runs.glob("round*")}
    judge(runs)


def kill_when_there_is(config, landmark) -> None:
    """Start the command line and end it without warning once ``landmark`` has appeared."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlffd", "distill", str(config)], env=environment, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not landmark.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert landmark.exists(), "the run did not come as far as it should"
    process.send_signal(signal.SIGKILL)
    process.wait()


def judge(runs) -> None:
    """The student has seen the labels of both rounds, none of the held-out frames, and fits them."""
    bundle = read_bundle(runs / "argon.mlffd")
    seen = [frame for name in ("round0", "round1") for frame in read_labels(runs / f"{name}.h5").structures]
    held_out = read_labels(runs / "test.h5").structures
    assert bundle.metadata["labels"]["n_frames"] == len(seen) == 22
    assert not any((a.positions == b.positions).all() for a in seen for b in held_out if len(a) == len(b))
    errors = bundle.metadata["errors"]["held_out"]
    assert errors == json.loads((runs / "argon.json").read_text())
    assert errors["n_frames"] == 4
    assert errors["force_rmse_mev_per_angstrom"] < 0.5 * errors["teacher_force_rms_mev_per_angstrom"]
    assert bundle.metadata["teacher"]["name"] == "lj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('[teacher]', '[techer]'), "did you mean 'teacher'"),
        (("epochs = 8", "epoch = 8"), "did you mean 'epochs'"),
        (("epochs = 6", "epoch = 6"), "did you mean 'epochs'"),
        (("epochs = 8", 'epochs = "8"'), "epochs must be a whole number"),
        (('family = "local"', 'family = "locale"'), "unknown student family"),
        (('name = "lj"\nrc', 'name = "ljj"\nrc'), "ljj"),
        (("epochs = 8", "epochs = 0"), "epochs = 0 is not between"),
        (("learning_rate = 0.01", "learning_rate = nan"), "learning_rate = nan is not between"),
        (("cutoff = 6.0", "cutoff = -6.0"), "cutoff = -6.0"),
        (("l_max = 2", "l_max = 4"), "l_max = 4"),
        (("channels = 6", 'channels = "6"'), "channels = '6'"),
        (("hidden = [16]", "hidden = [0]"), "hidden = [0]"),
        (("cutoff = 6.0", 'cutoff = 6.0\nspecies = ["Ar"]'), "species = ['Ar']"),
        (('name = "argon"', 'name = "a/b"'), "plain file name"),
        (('[student]', '[student]\nchanels = 3'), "has no chanels"),
        (("temperatures = [120]", "temperatures = 120"), "temperatures must be a list"),
        (("interval = 20", "intervall = 20"), "did you mean 'interval'"),
        (("[student]", "[student"), "not valid TOML"),
    ],
)  # fmt: skip
def test_a_wrong_config_is_one_clear_line(change, message, config, capsys):
    config.write_text(CONFIG.replace(*change))
    assert main(["distill", str(config)]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("mlffd: ")
    assert message in error
    assert not list(config.parent.glob("runs/*.h5")), "nothing was labelled before the mistake was found"


def test_missing_config_and_student_too_early(config, capsys):
    assert main(["distill", str(config.parent / "no.toml")]) == 1
    assert "cannot read" in capsys.readouterr().err
    config.write_text(CONFIG.replace('calculator = { name = "lj", rc = 6.0 }', 'calculator = "student"'))
    assert main(["distill", str(config)]) == 1
    assert "first round" in capsys.readouterr().err
