"""Training: it learns, it resumes to the same weights, it refuses what cannot be meant."""

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from train_labels import CONFIG, STUDENT, TEACHER, neon_argon, same, weights

from mlffd.bundle import read_bundle
from mlffd.dataset.store import LabelledSet
from mlffd.engine import Engine
from mlffd.errors import ConfigError
from mlffd.students import build_student
from mlffd.train import loop
from mlffd.train.frames import labelled_graphs
from mlffd.train.loop import train
from mlffd.train.metrics import evaluate
from mlffd.train.references import fit_reference_energies


@pytest.fixture(scope="module")
def labels() -> LabelledSet:
    return neon_argon()


def test_training_learns(labels, tmp_path):
    bundle = train(labels, STUDENT, CONFIG, tmp_path / "s.mlffd")
    frames = labelled_graphs(labels, 5.0, torch.float64)
    errors = evaluate(read_bundle(tmp_path / "s.mlffd").student, frames)
    assert errors["force_rmse_mev_per_angstrom"] < 0.3 * errors["teacher_force_rms_mev_per_angstrom"]
    spread = 1e3 * np.std([e / len(a) for e, a in zip(labels.energies, labels.structures)])
    assert errors["energy_mae_mev_per_atom"] < 0.02 * spread, "reference energies of the elements are found"
    assert set(errors["force_mae_by_element"]) == {"Ne", "Ar"}
    assert bundle.metadata["labels"] == {"sha256": labels.hash, "n_frames": 24, "seen": [labels.hash]}
    assert bundle.metadata["errors"]["validation"]["n_frames"] == 5
    assert not list(tmp_path.glob("*.checkpoint*"))


def test_stress_alone_teaches_the_stress(labels, tmp_path):
    """The sign and unit of the stress in the loss are those of the labels."""
    stress_only = dataclasses.replace(
        CONFIG, epochs=40, energy_weight=0.0, force_weight=0.0, stress_weight=10.0
    )
    bundle = train(labels, STUDENT, stress_only, tmp_path / "s.mlffd")
    predictions = Engine(bundle.student, dtype="float64").evaluate(labels.structures)
    ours = np.array([p.stress for p in predictions]).ravel()
    assert np.corrcoef(ours, labels.stresses.ravel())[0, 1] > 0.9


def test_shuffled_forces_are_not_learned(labels, tmp_path):
    forces = [np.roll(f, 1, axis=0) for f in labels.forces]
    bundle = train(dataclasses.replace(labels, forces=forces), STUDENT, CONFIG, tmp_path / "s.mlffd")
    errors = bundle.metadata["errors"]["validation"]
    assert errors["force_rmse_mev_per_angstrom"] > 0.7 * errors["teacher_force_rms_mev_per_angstrom"]


@pytest.mark.parametrize("family", ["local", "painn"])
def test_resumed_training_ends_with_the_same_weights(family, labels, tmp_path, monkeypatch):
    student = (
        STUDENT if family == "local" else {"family": "painn", "cutoff": 4.0, "features": 8, "n_radial": 5}
    )
    config = dataclasses.replace(CONFIG, epochs=5)
    train(labels, student, config, tmp_path / "whole.mlffd")
    honest, stopped = loop.run_epoch, tmp_path / "stopped.mlffd"

    def dies_in_epoch_3(state, *arguments):
        if state.epoch == 3:
            raise KeyboardInterrupt
        return honest(state, *arguments)

    monkeypatch.setattr(loop, "run_epoch", dies_in_epoch_3)
    with pytest.raises(KeyboardInterrupt):
        train(labels, student, config, stopped)
    assert not stopped.exists()
    monkeypatch.setattr(loop, "run_epoch", honest)
    epochs = []
    monkeypatch.setattr(
        loop, "run_epoch", lambda state, *a: (epochs.append(state.epoch), honest(state, *a))[1]
    )
    train(labels, student, config, stopped)
    assert epochs == [3, 4], "finished epochs are not run again"
    assert same(weights(tmp_path / "whole.mlffd"), weights(stopped))


def test_seed_fixes_the_student(labels, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=2)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(labels, STUDENT, dataclasses.replace(config, seed=seed), tmp_path / name)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_checkpoint_of_another_run_is_refused(labels, tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, epochs=2)
    monkeypatch.setattr(loop, "write_bundle", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(labels, STUDENT, config, tmp_path / "s.mlffd")
    with pytest.raises(ConfigError, match="other labels, sizes or settings"):
        train(labels, STUDENT, dataclasses.replace(config, learning_rate=1e-4), tmp_path / "s.mlffd")


def test_a_number_is_the_same_setting_with_and_without_a_point(labels):
    """Caught: drafts were refused for ``energy_weight = 10``, which is the default."""
    student = {"family": "local"}
    whole, point = (dataclasses.replace(CONFIG, energy_weight=weight) for weight in (10, 10.0))
    assert loop.describe_run(labels, student, whole) == loop.describe_run(labels, student, point)
    other = dataclasses.replace(CONFIG, energy_weight=11)
    assert loop.describe_run(labels, student, other) != loop.describe_run(labels, student, point)


def test_a_finished_training_is_not_repeated(labels, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=1)
    train(labels, STUDENT, config, tmp_path / "s.mlffd")
    written = (tmp_path / "s.mlffd").stat().st_mtime_ns
    (tmp_path / "s.mlffd.checkpoint").write_bytes(b"of a run that was killed when all was written")
    train(labels, STUDENT, config, tmp_path / "s.mlffd")
    assert (tmp_path / "s.mlffd").stat().st_mtime_ns == written
    assert not (tmp_path / "s.mlffd.checkpoint").exists()
    with pytest.raises(ConfigError, match="other labels, sizes or settings"):
        train(labels, {**STUDENT, "channels": 7}, config, tmp_path / "s.mlffd")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x80\x04]."])
def test_a_damaged_checkpoint_is_refused(content, labels, tmp_path):
    (tmp_path / "s.mlffd.checkpoint").write_bytes(content)
    with pytest.raises(ConfigError, match="delete it to start afresh"):
        train(labels, STUDENT, CONFIG, tmp_path / "s.mlffd")


def test_environments_that_are_all_alike(labels, tmp_path):
    """One species only as isolated atoms: its invariants have no spread to scale by."""
    argon = [Atoms(np.full(len(a), 18), a.positions, cell=a.cell, pbc=True) for a in labels.structures[:6]]
    structures = argon + [Atoms([10])] * 4
    predictions = Engine(build_student(TEACHER), dtype="float64").evaluate(structures)
    mixed = LabelledSet(
        structures, np.array([p.energy for p in predictions]), [p.forces for p in predictions],
        np.array([p.stress for p in predictions]), labels.metadata, "1" * 64,
    )  # fmt: skip
    bundle = train(mixed, STUDENT, dataclasses.replace(CONFIG, epochs=2), tmp_path / "s.mlffd")
    assert np.isfinite(bundle.metadata["errors"]["validation"]["force_mae_mev_per_angstrom"])


def test_a_training_that_diverges_says_so(labels, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "loss", lambda *a: torch.tensor(torch.nan, requires_grad=True))
    with pytest.raises(ConfigError, match="loss became nan"):
        train(labels, STUDENT, CONFIG, tmp_path / "s.mlffd")
    assert not (tmp_path / "s.mlffd").exists()


def test_bad_labels_are_refused(labels, tmp_path):
    one = dataclasses.replace(labels, structures=labels.structures[:1], energies=labels.energies[:1])
    with pytest.raises(ConfigError, match="at least two"):
        train(one, STUDENT, CONFIG, tmp_path / "s.mlffd")
    with pytest.raises(ConfigError, match="leave out"):
        train(labels, {**STUDENT, "species": [18]}, CONFIG, tmp_path / "s.mlffd")


@pytest.mark.parametrize(
    ("compositions", "undetermined"),
    [(["H2O", "H4O2"], "H, O"), (["H2O", "H2O2"], ""), (["H2O", "OH2Ne"], "H, O")],
)
def test_reference_energies_fit_what_compositions_tell(compositions, undetermined):
    """Water alone cannot tell oxygen from hydrogen: the fit must not blow up, and says so.

    Saw: a note for all elements, and none at all, with the null space taken from the wrong rows.
    """
    true = {1: -3.0, 8: -9.0, 10: -2.0}
    structures = [Atoms(formula) for formula in compositions]
    energies = np.array([sum(true[z] for z in atoms.numbers) for atoms in structures])
    labels = LabelledSet(structures, energies, [], np.zeros((0, 3, 3)), {}, "")
    student = build_student({"family": "local", "species": [1, 8, 10], "cutoff": 3.0})
    note = fit_reference_energies(student, labels)
    fitted = dict(zip(student.species, student.baseline.reference_energies.tolist()))
    assert np.allclose([sum(fitted[z] for z in atoms.numbers) for atoms in structures], energies)
    assert max(map(abs, fitted.values())) < 20.0
    present = {z for atoms in structures for z in atoms.numbers}
    wanted = undetermined if 10 in present else ", ".join(filter(None, [undetermined, "Ne"]))
    assert (f"energies of {wanted} one by one" in note) == bool(wanted)
