# SPDX-License-Identifier: MIT
"""What the loop is fed with and what it minimizes: splits, batches, Hessian rows, chunks of a batch."""

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from train_labels import CONFIG, STUDENT, TEACHER, neon_argon

from mlffd.config import settings_from
from mlffd.errors import ConfigError
from mlffd.graph import batch
from mlffd.graph import from_atoms as graph_of
from mlffd.predict import predict
from mlffd.students import build_student
from mlffd.train import loop
from mlffd.train.checkpoint import begin
from mlffd.train.config import StudentConfig, TrainConfig
from mlffd.train.frames import batches, labelled_graphs, split
from mlffd.train.loss import batch_targets, loss, predict_with_hessian
from mlffd.train.ranks import Ranks


def frames_of(trajectories: dict[str, int]) -> list[Atoms]:
    return [Atoms("H", info={"trajectory": name}) for name, n in trajectories.items() for _ in range(n)]


def test_validation_takes_whole_trajectories():
    """Saw: frames drawn one by one leave every trajectory in both parts."""
    structures = frames_of(dict.fromkeys("abcdefgh", 5))
    training, validation = split(structures, TrainConfig(validation_fraction=0.25))
    names = [{structures[k].info["trajectory"] for k in part} for part in (training, validation)]
    assert len(validation) == 10
    assert not names[0] & names[1]
    assert sorted(training + validation) == list(range(40))


def test_of_one_long_trajectory_validation_takes_the_end():
    training, validation = split(frames_of({"a": 20}), TrainConfig(validation_fraction=0.1))
    assert (training, validation) == (list(range(18)), [18, 19])


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.9])
def test_something_is_left_to_train_on(fraction):
    for lengths in ({"a": 2}, {"a": 1, "b": 1}, {"a": 9, "b": 1, "c": 3}):
        structures = frames_of(lengths)
        training, validation = split(structures, TrainConfig(validation_fraction=fraction))
        assert training
        assert validation
        assert sorted(training + validation) == list(range(len(structures)))


def test_frames_that_name_no_trajectory_are_drawn_one_by_one():
    config = TrainConfig(validation_fraction=0.25)
    drawn = [split([Atoms("H")] * 40, dataclasses.replace(config, seed=k))[1] for k in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 10
    assert np.ptp(drawn[0]) > 10


@pytest.fixture(scope="module")
def frames():
    return labelled_graphs(neon_argon(6), 5.0)  # of 16 and 24 atoms in turn


def test_batches_keep_to_structures_and_atoms(frames):
    def sizes(**settings):
        return [len(b) for b in batches(range(6), frames, TrainConfig(**settings))]

    assert sizes(batch_size=4) == [4, 2]
    assert sizes(batch_size=4, batch_atoms=40) == [2, 2, 2]
    assert sizes(batch_size=4, batch_atoms=1) == [1] * 6, "one structure at the least"


@pytest.mark.parametrize("family", ["local", "painn"])
def test_hessian_rows_are_derivatives_of_forces(family):
    """Against central differences of forces, one row of each of two structures.

    Saw: a wrong sign, and rows of the second structure where the first one's belong.
    """
    torch.manual_seed(0)
    student = build_student({"family": family, "species": [10, 18], "cutoff": 4.0})
    structures = neon_argon(2).structures
    n = len(structures[0])
    components = [4, 3 * n + 7]
    graph = batch([graph_of(atoms, 4.0) for atoms in structures])
    rows = predict_with_hessian(student, graph, torch.tensor(components))[1].detach().numpy()
    step = 1e-4
    for atoms, component, found in zip(structures, (4, 7), np.split(rows, [n])):
        moved = []
        for sign in (1, -1):
            shifted = atoms.copy()
            shifted.positions[divmod(component, 3)] += sign * step
            moved.append(predict(student, graph_of(shifted, 4.0)).forces.detach().numpy())
        assert np.allclose(found, -(moved[0] - moved[1]) / (2 * step), atol=1e-5, rtol=1e-5)


def gradient_of_batch(frames, config, architecture=STUDENT) -> dict:
    torch.manual_seed(0)
    student = build_student({**architecture, "species": [10, 18]}).cast(torch.float32)
    state = begin(student, {})
    config = dataclasses.replace(config, gradient_clip=1e12)
    value = loop.step(state, frames, list(range(len(frames))), 0.0, config, Ranks())
    return {"loss": torch.tensor(value), **{k: p.grad.clone() for k, p in student.named_parameters()}}


def with_rows(labels, n_rows: int):
    """The labels with so many random rows of the teacher's Hessian for every frame."""
    teacher, rows = build_student(TEACHER), []
    for k, atoms in enumerate(labels.structures):
        graph = graph_of(atoms, TEACHER["cutoff"])
        components = np.random.default_rng(k).permutation(3 * len(atoms))[:n_rows]
        found = [predict_with_hessian(teacher, graph, torch.tensor([c]))[1].detach() for c in components]
        rows.append((components, np.stack([row.numpy().ravel() for row in found])))
    return dataclasses.replace(labels, hessian_rows=rows)


@pytest.mark.parametrize("hessian_weight", [0.0, 1e3])
def test_a_batch_in_chunks_has_the_same_gradient(hessian_weight, monkeypatch):
    """Saw: chunks weighted by their own sizes, and rows taken from another frame of the batch."""
    labels = with_rows(neon_argon(6), 6)
    rows = [row if k % 2 else None for k, row in enumerate(labels.hessian_rows)]
    frames = labelled_graphs(dataclasses.replace(labels, hessian_rows=rows), 5.0)
    config = dataclasses.replace(CONFIG, hessian_weight=hessian_weight)
    whole = gradient_of_batch(frames, config)
    monkeypatch.setattr(loop, "CHUNK_ATOMS", 40)
    parts = gradient_of_batch(frames, config)
    for name, value in whole.items():
        assert torch.allclose(parts[name], value, rtol=1e-4, atol=1e-4 * float(value.abs().max())), name


def test_structures_with_large_forces_weigh_less():
    """By the square of the ratio; those with forces below the scale, or none, as they did."""
    graphs, targets = zip(*labelled_graphs(neon_argon(4), 5.0, torch.float64))
    targets = [dataclasses.replace(t, forces=s * t.forces) for s, t in zip((0.0, 1e-3, 1.0, 4.0), targets)]
    graph, target = batch(list(graphs)), batch_targets(targets)
    student = build_student({**STUDENT, "species": [10, 18]})
    alike = loss(predict(student, graph), target, graph, CONFIG)
    size = [float((t.forces**2).mean() ** 0.5) for t in targets]
    scaled = loss(predict(student, graph), target, graph, dataclasses.replace(CONFIG, force_scale=size[2]))
    weights = [1.0, 1.0, 1.0, (size[2] / size[3]) ** 2]
    assert torch.allclose(scaled / alike, torch.tensor(weights, dtype=torch.float64))


def test_the_teacher_itself_has_no_loss():
    """Saw: rows of every structure sought in the first one of the batch."""
    frames = labelled_graphs(with_rows(neon_argon(4), 3), TEACHER["cutoff"], torch.float64)
    state = begin(build_student(TEACHER), {})
    config = dataclasses.replace(CONFIG, energy_weight=0.0, hessian_weight=1.0)
    assert float(loop.batch_loss(state, frames, [0, 1, 2, 3], config).detach()) < 1e-12


@pytest.mark.slow
def test_hessian_rows_alone_teach_the_hessian(tmp_path):
    """On frames of their own.

    Saw: no correlation with the weight ignored, a negative one with the sign of rows wrong.
    """
    labels, others = with_rows(neon_argon(24), 4), with_rows(neon_argon(4, first_seed=50), 2)
    config = dataclasses.replace(
        CONFIG, epochs=15, energy_weight=0.0, force_weight=0.0, stress_weight=0.0, hessian_weight=1.0
    )
    student = loop.train(labels, STUDENT, config, tmp_path / "s.mlffd", validation=others).student
    ours, theirs = [], []
    for graph, target in labelled_graphs(others, 5.0, torch.float64):
        for component, row in zip(*target.hessian_rows):
            ours.append(predict_with_hessian(student, graph, component[None])[1].detach().ravel())
            theirs.append(row)
    assert np.corrcoef(torch.cat(ours), torch.cat(theirs))[0, 1] > 0.8


def test_labels_without_hessian_rows_are_refused_where_they_count(tmp_path):
    config = dataclasses.replace(CONFIG, hessian_weight=1.0)
    with pytest.raises(ConfigError, match="--hessian-rows"):
        loop.train(neon_argon(4), STUDENT, config, tmp_path / "s.mlffd")


def test_settings_of_a_student_are_checked():
    student = settings_from({"family": "painn", "features": 16}, StudentConfig, "[student]")
    assert student.architecture == {"family": "painn", "features": 16}
    assert StudentConfig().architecture == {"family": "local"}
    with pytest.raises(ConfigError, match="did you mean 'channels'"):
        settings_from({"chanels": 16}, StudentConfig, "[student]")
    with pytest.raises(ConfigError, match="a painn student has no channels"):
        StudentConfig(family="painn", channels=16)
    with pytest.raises(ConfigError, match="unknown student family 'mace'"):
        StudentConfig(family="mace")
