# SPDX-License-Identifier: MIT
"""A training as a whole: killed anywhere, started from a student, stopped early, in several processes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from train_labels import CONFIG, STUDENT, neon_argon, same, weights

from mlffd import files
from mlffd.__main__ import main
from mlffd.bundle import read_bundle
from mlffd.dataset.store import LabelStore
from mlffd.errors import ConfigError
from mlffd.train import checkpoint, loop
from mlffd.train.loop import train, train_committee

FOUR = dataclasses.replace(CONFIG, epochs=4)
START_LIMIT = 300.0  # s; generous, for busy machines


@pytest.fixture(scope="module")
def labels():
    return neon_argon(10)


@pytest.fixture(scope="module")
def whole(labels, tmp_path_factory) -> Path:
    """The student of an undisturbed run of four epochs."""
    output = tmp_path_factory.mktemp("whole") / "s.mlffd"
    train(labels, STUDENT, FOUR, output)
    return output


def metrics(output: Path) -> list[dict]:
    """Lines of the metrics file, without what depends on the clock."""
    lines = output.with_name(output.name + ".metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


class Killed(BaseException):
    """What no one catches."""


def killed_after(monkeypatch, owner, name: str, n_calls: int, last=None) -> None:
    """Let a function work so many times; then ``last`` is done in its place, and the run is over."""
    honest, calls = getattr(owner, name), []

    def dies(*arguments):
        calls.append(1)
        if len(calls) <= n_calls:
            return honest(*arguments)
        if last:
            last(*arguments)
        raise Killed

    monkeypatch.setattr(owner, name, dies)


def half_a_line(log, line: dict) -> None:
    with open(log.path, "a") as file:
        file.write(json.dumps(line)[:20])


@pytest.mark.parametrize(
    ("owner", "name", "n_calls", "last"),
    [
        (loop, "step", 9, None),  # within an epoch
        (checkpoint.torch, "save", 2, lambda content, part: part.write_bytes(b"half")),
        (files.os, "replace", 3, None),  # the checkpoint is written, but not yet in its place
        (checkpoint.MetricsLog, "add", 2, None),  # after the checkpoint, before its line of metrics
        (checkpoint.MetricsLog, "add", 2, half_a_line),
        (loop, "write_bundle", 0, None),
    ],
)
def test_killed_anywhere_it_ends_with_the_same_weights(
    owner, name, n_calls, last, labels, whole, tmp_path, monkeypatch
):
    """Saw: without the optimizer's state other weights; a line twice, or in part, where the file is only
    appended to; best weights of the wrong epoch where they are left out of the checkpoint."""
    output = tmp_path / "s.mlffd"
    with monkeypatch.context() as patched:
        killed_after(patched, owner, name, n_calls, last)
        with pytest.raises(Killed):
            train(labels, STUDENT, FOUR, output)
    assert not output.exists()
    (tmp_path / "s.mlffd.checkpoint.part").write_bytes(b"half")  # as a real kill leaves it
    train(labels, STUDENT, FOUR, output)
    assert same(weights(output), weights(whole))
    assert metrics(output) == metrics(whole)
    assert len(metrics(output)) == 4


@pytest.mark.slow
def test_killed_for_real_on_the_command_line(labels, tmp_path):
    """SIGKILL after two epochs, then again: the same weights and metrics as of an undisturbed run."""
    store_labels(labels, tmp_path / "l.h5")
    (tmp_path / "c.toml").write_text(config_text({**STUDENT, "family": "local"}, epochs=12))
    command = [sys.executable, "-m", "mlffd", "train", "l.h5", "--config", "c.toml", "-o"]
    subprocess.run([*command, "whole.mlffd"], cwd=tmp_path, check=True, timeout=START_LIMIT)
    log = tmp_path / "s.mlffd.metrics.jsonl"
    process = subprocess.Popen([*command, "s.mlffd"], cwd=tmp_path)
    deadline = time.monotonic() + START_LIMIT
    while not (log.exists() and log.read_text().count("\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=START_LIMIT)
    subprocess.run([*command, "s.mlffd"], cwd=tmp_path, check=True, timeout=START_LIMIT)
    assert same(weights(tmp_path / "s.mlffd"), weights(tmp_path / "whole.mlffd"))
    assert metrics(tmp_path / "s.mlffd") == metrics(tmp_path / "whole.mlffd")


def store_labels(labels, path: Path) -> None:
    store = LabelStore(path)
    store.begin({"teacher": {"name": "lj"}, "frames": "0" * 64, "n_frames": len(labels)})
    rows = zip(labels.structures, labels.energies, labels.forces, labels.stresses)
    for k, (atoms, energy, forces, stress) in enumerate(rows):
        store.add(k, atoms, energy, forces, stress)
    store.finish()


def config_text(student: dict, **settings) -> str:
    tables = {"student": student, "train": {**dataclasses.asdict(CONFIG), **settings}}
    tables["bars"] = {"force_mae": 18.0}
    return "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        for name, table in tables.items()
    )


@pytest.mark.slow
def test_two_processes_train_the_same_student(labels, tmp_path):
    """Batches of three, so that the shares differ, and one that is smaller than the number of processes.

    Saw: gradients averaged rather than summed, and a share that counts its own frames only.
    """
    store_labels(labels, tmp_path / "l.h5")
    (tmp_path / "c.toml").write_text(config_text(STUDENT, epochs=3, batch_size=3, validation_fraction=0.3))
    arguments = ["l.h5", "--config", "c.toml", "-o"]
    one = [sys.executable, "-m", "mlffd", "train", *arguments, "one.mlffd"]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = [*run, "-m", "mlffd", "train", *arguments, "two.mlffd"]
    for command in (one, two):
        subprocess.run(command, cwd=tmp_path, check=True, timeout=START_LIMIT, env=dict(os.environ))
    ours, theirs = weights(tmp_path / "two.mlffd"), weights(tmp_path / "one.mlffd")
    for name, value in theirs.items():
        assert torch.allclose(ours[name].double(), value.double(), rtol=1e-3, atol=1e-5), name
    losses = [[line["loss"] for line in metrics(tmp_path / name)] for name in ("one.mlffd", "two.mlffd")]
    assert len(losses[0]) == 3
    assert np.allclose(*losses, rtol=1e-4)
    assert not list(tmp_path.glob("*.checkpoint*"))


def test_validation_labels_are_what_is_validated_with(labels, tmp_path):
    others = neon_argon(3, first_seed=90, title="9")
    bundle = train(labels, STUDENT, dataclasses.replace(FOUR, epochs=1), tmp_path / "s.mlffd", others)
    assert bundle.metadata["errors"]["validation"]["n_frames"] == 3
    assert bundle.metadata["labels"]["seen"] == sorted([labels.hash, others.hash])
    strange = dataclasses.replace(others, metadata={"teacher": {"name": "mace"}})
    with pytest.raises(ConfigError, match="another teacher"):
        train(labels, STUDENT, FOUR, tmp_path / "t.mlffd", strange)
    with pytest.raises(ConfigError, match="other labels"):
        train(labels, STUDENT, dataclasses.replace(FOUR, epochs=1), tmp_path / "s.mlffd")


def test_training_starts_from_a_student(labels, whole, tmp_path):
    """With steps of nothing it stays that student, but for reference energies that move with the labels."""
    still = dataclasses.replace(FOUR, epochs=1, learning_rate=1e-12, final_learning_rate=0.0)
    start, output = read_bundle(whole), tmp_path / "s.mlffd"
    higher = dataclasses.replace(
        labels, energies=labels.energies + 5.0 * np.array(list(map(len, labels.structures)))
    )
    bundle = train(higher, STUDENT, still, output, start_from=start)
    before, after = start.student.state_dict(), bundle.student.state_dict()
    for name, value in before.items():
        moved = 5.0 if name == "baseline.reference_energies" else 0.0
        assert torch.allclose(after[name].double(), value.double() + moved, atol=0.05 if moved else 1e-6), (
            name
        )
    with pytest.raises(ConfigError, match="channels 6, here 7"):
        train(labels, {**STUDENT, "channels": 7}, still, tmp_path / "other.mlffd", start_from=start)


def scripted_losses(monkeypatch, losses) -> list:
    """Let validation find these losses; returns the list that gets the weights it was asked to judge."""
    losses, seen = iter(losses), []

    def scripted(student, frames, config=None):
        if config is None:
            return {"force_mae_mev_per_angstrom": 1.0}
        seen.append({name: value.clone() for name, value in student.state_dict().items()})
        return {"loss": next(losses)}

    monkeypatch.setattr(loop, "evaluate", scripted)
    return seen


def test_patience_keeps_the_best_weights(labels, tmp_path, monkeypatch):
    """Saw: the last weights written, and a run that goes on for ever after the best epoch was resumed."""
    seen = scripted_losses(monkeypatch, [0.5, 0.2, 0.3, 0.25, 0.1])
    config = dataclasses.replace(CONFIG, epochs=9, patience=2)
    bundle = train(labels, STUDENT, config, tmp_path / "s.mlffd")
    assert len(seen) == 4
    assert bundle.metadata["training"]["best_epoch"] == 2
    assert same(bundle.student.cast(torch.float32).state_dict(), seen[1])
    assert not same(seen[1], seen[3])


@pytest.mark.parametrize(("given", "epoch"), [(False, 3), (True, 2)])
def test_frames_drawn_from_the_labels_choose_no_epoch(given, epoch, labels, tmp_path, monkeypatch):
    """Saw: the epoch that a few frames of one trajectory liked best."""
    seen = scripted_losses(monkeypatch, [0.5, 0.2, 0.3])
    validation = neon_argon(2) if given else None
    config = dataclasses.replace(CONFIG, epochs=3)
    bundle = train(labels, STUDENT, config, tmp_path / "s.mlffd", validation=validation)
    assert bundle.metadata["training"]["best_epoch"] == epoch
    assert same(bundle.student.cast(torch.float32).state_dict(), seen[epoch - 1])


def test_members_of_a_committee_are_single_students_of_their_seeds(labels, tmp_path):
    config = dataclasses.replace(FOUR, epochs=1, seed=3)
    paths = [tmp_path / f"s-{k}.mlffd" for k in range(2)]
    train_committee(labels, STUDENT, config, paths)
    train(labels, STUDENT, dataclasses.replace(config, seed=4), tmp_path / "alone.mlffd")
    assert same(weights(paths[1]), weights(tmp_path / "alone.mlffd"))
    assert not same(weights(paths[0]), weights(paths[1]))


def test_bars_are_those_written_before_training(labels, tmp_path, monkeypatch):
    """Bars that change while a training is interrupted do not count. Saw: the later ones in the bundle."""
    output = tmp_path / "s.mlffd"
    with monkeypatch.context() as patched:
        killed_after(patched, loop, "step", 0)
        with pytest.raises(Killed):
            train(labels, STUDENT, FOUR, output, facts={"bars": {"force_mae": 18.0}})
    bundle = train(labels, STUDENT, FOUR, output, facts={"bars": {"force_mae": 180.0}})
    assert bundle.metadata["bars"] == {"force_mae": 18.0}
    assert "training_domain" in bundle.metadata


def test_command_line_trains_a_committee_with_bars(labels, tmp_path, capsys):
    store_labels(labels, tmp_path / "l.h5")
    (tmp_path / "c.toml").write_text(config_text(STUDENT, epochs=1))
    arguments = ["train", str(tmp_path / "l.h5"), "--config", str(tmp_path / "c.toml"), "--committee", "2"]
    assert main([*arguments, "--validation", str(tmp_path / "l.h5"), "-o", str(tmp_path / "s.mlffd")]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert read_bundle(tmp_path / "s-1.mlffd").metadata["bars"] == {"force_mae": 18.0}
    assert main([*arguments[:-1], "0", "-o", str(tmp_path / "t.mlffd")]) == 1
    assert "--committee must be 1 or more" in capsys.readouterr().err


def test_tensorboard_is_missed_in_one_line(labels, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        train(labels, STUDENT, FOUR, tmp_path / "s.mlffd", tensorboard=True)
