"""Training: it learns, it resumes to the same weights, it refuses what cannot be meant."""

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms

from mlffd.bundle import read_bundle
from mlffd.dataset.store import LabelledSet
from mlffd.engine import Engine
from mlffd.errors import ConfigError
from mlffd.students import build_student
from mlffd.train import loop
from mlffd.train.loop import TrainConfig, fit_reference_energies, labelled_graphs, train
from mlffd.train.metrics import evaluate

TEACHER = {
    "family": "lennard_jones", "species": [10, 18], "cutoff": 5.0,
    "epsilon": [0.05, 0.1], "sigma": [2.2, 2.5],
}  # fmt: skip
STUDENT = {"family": "local", "cutoff": 5.0, "channels": 6, "n_radial": 6, "l_max": 2, "hidden": [16]}
CONFIG = TrainConfig(epochs=25, batch_size=2, learning_rate=0.01, validation_fraction=0.2)


@pytest.fixture(scope="module")
def labels() -> LabelledSet:
    """Neon-argon boxes of two sizes, labelled by Lennard-Jones plus an energy for each element."""
    rng = np.random.default_rng(0)
    structures = []
    for k in range(24):
        repeat = (2, 2, 2 + k % 2)
        atoms = Atoms(
            ["Ar", "Ne"], positions=[[0, 0, 0], [2.9, 0, 0]], cell=[5.8, 2.9, 2.9], pbc=True
        ).repeat(repeat)
        atoms.numbers = rng.permutation(rng.choice([10, 18], len(atoms)))
        atoms.rattle(0.15, seed=k)
        structures.append(atoms)
    predictions = Engine(build_student(TEACHER), dtype="float64").evaluate(structures)
    offsets = [
        (atoms.numbers == 10).sum() * -3.0 + (atoms.numbers == 18).sum() * -7.0 for atoms in structures
    ]
    return LabelledSet(
        structures,
        np.array([p.energy for p in predictions]) + offsets,
        [p.forces for p in predictions],
        np.array([p.stress for p in predictions]),
        {"teacher": {"name": "lj"}, "failed": {}},
        "0" * 64,
    )


def weights(path) -> dict:
    return read_bundle(path).student.state_dict()


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_training_learns(labels, tmp_path):
    bundle = train(labels, STUDENT, CONFIG, tmp_path / "s.mlffd")
    frames = labelled_graphs(labels, 5.0, torch.float64)
    errors = evaluate(read_bundle(tmp_path / "s.mlffd").student, frames)
    assert errors["force_rmse_mev_per_angstrom"] < 0.3 * errors["teacher_force_rms_mev_per_angstrom"]
    spread = 1e3 * np.std([e / len(a) for e, a in zip(labels.energies, labels.structures)])
    assert errors["energy_mae_mev_per_atom"] < 0.02 * spread, "reference energies of the elements are found"
    assert set(errors["force_mae_by_element"]) == {"Ne", "Ar"}
    assert bundle.metadata["labels"] == {"sha256": labels.hash, "n_frames": 24}
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


def test_a_finished_training_is_not_repeated(labels, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=1)
    train(labels, STUDENT, config, tmp_path / "s.mlffd")
    written = (tmp_path / "s.mlffd").stat().st_mtime_ns
    train(labels, STUDENT, config, tmp_path / "s.mlffd")
    assert (tmp_path / "s.mlffd").stat().st_mtime_ns == written
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


def test_reference_energies_of_water_are_of_least_norm():
    """Water alone cannot tell oxygen from hydrogen; the fit must not blow up."""
    water = Atoms("OH2", positions=[[0, 0, 0], [0.96, 0, 0], [0, 0.96, 0]])
    structures = [water, water + water]
    labels = LabelledSet(structures, np.array([-15.0, -30.0]), [], np.zeros((0, 3, 3)), {}, "")
    student = build_student({"family": "local", "species": [1, 8], "cutoff": 3.0})
    fit_reference_energies(student, labels)
    hydrogen, oxygen = student.baseline.reference_energies.tolist()
    assert np.isclose(2 * hydrogen + oxygen, -15.0)
    assert np.isclose(hydrogen / oxygen, 2.0)
