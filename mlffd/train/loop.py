"""The training loop: labels in, student bundle out, resumable at any epoch."""

import dataclasses
import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mlffd.allocator import keep_freed_memory
from mlffd.bundle import Bundle, read_bundle, write_bundle
from mlffd.dataset.store import LabelledSet
from mlffd.domain import KEY as DOMAIN
from mlffd.errors import ConfigError
from mlffd.files import replacing
from mlffd.graph import Graph, from_atoms
from mlffd.graph import batch as batch_graphs
from mlffd.predict import predict
from mlffd.students import build_student
from mlffd.students.student import TrainedStudent
from mlffd.train.config import TrainConfig
from mlffd.train.domain import training_domain
from mlffd.train.loss import Target, batch_targets, loss
from mlffd.train.metrics import batches, evaluate

DTYPE = torch.float32


@dataclass
class TrainState:
    """All that a resumed run needs to go on exactly where it was."""

    student: TrainedStudent
    averaged: TrainedStudent
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    n_steps: int = 0


def train(labels: LabelledSet, architecture: dict, config: TrainConfig, output: Path) -> Bundle:
    """Train a student of ``architecture`` on ``labels`` and write it to ``output``.

    After each epoch a checkpoint lies beside ``output``; a run that was stopped goes on from it and ends with
    the same weights, and one that had finished returns what it wrote. The student written is the running
    average of the weights. The validation frames are drawn at random from all: where these follow each other
    in time, the validation error is smaller than that on frames of other trajectories.

    Raises:
        ConfigError: too few frames, the loss diverged, or ``output`` or the checkpoint beside it belongs to
            other labels, sizes or settings.
    """
    architecture = {**architecture, "species": species_of(labels, architecture)}
    keep_freed_memory()
    torch.manual_seed(config.seed)
    student = build_student(architecture)
    fingerprint = describe_run(labels, student.architecture, config)
    if output.exists():
        return finished(output, fingerprint)
    if not output.parent.is_dir():
        raise ConfigError(f"there is no folder {output.parent} to write {output.name} to")
    fit_reference_energies(student, labels)
    student.cast(DTYPE)
    frames = labelled_graphs(labels, student.cutoff)
    training, validation = split(frames, config)
    student.calibrate([graph for graph, _ in training])
    state = new_state(student, config)
    checkpoint = output.with_name(output.name + ".checkpoint")
    resume(state, checkpoint, fingerprint)
    run_epochs(state, training, validation, config, checkpoint, fingerprint)
    errors = evaluate(state.averaged, validation)
    facts = training_facts(labels, config, errors, fingerprint)
    facts[DOMAIN] = training_domain(state.averaged, frames)
    bundle = write_bundle(output, state.averaged.cast(DTYPE), facts)
    checkpoint.unlink(missing_ok=True)
    return bundle


def finished(output: Path, fingerprint: str) -> Bundle:
    """The student that an earlier run has written.

    Raises:
        ConfigError: it comes from other labels, sizes or settings.
    """
    bundle = read_bundle(output)
    if bundle.metadata.get("training", {}).get("fingerprint") != fingerprint:
        raise ConfigError(
            f"{output} was trained on other labels, sizes or settings: move it away to train again"
        )
    return bundle


def run_epochs(
    state: TrainState, training, validation, config: TrainConfig, checkpoint: Path, fingerprint: str
):
    """Run the epochs that are left, with a checkpoint and one line of metrics after each."""
    with tqdm(total=config.epochs, initial=state.epoch, unit="epoch", desc="training") as progress:
        while state.epoch < config.epochs:
            mean_loss = run_epoch(state, training, config)
            state.epoch += 1
            save(state, checkpoint, fingerprint)
            errors = evaluate(state.averaged, validation)
            progress.set_postfix(
                loss=f"{mean_loss:.2e}",
                force_mae=f"{errors['force_mae_mev_per_angstrom']:.1f}",
                energy_mae=f"{errors['energy_mae_mev_per_atom']:.2f}",
            )
            progress.update()


def run_epoch(state: TrainState, training: list, config: TrainConfig) -> float:
    """One pass over the training frames in an order fixed by seed and epoch; returns the mean loss."""
    order = np.random.default_rng([config.seed, state.epoch]).permutation(len(training))
    total_steps = config.epochs * math.ceil(len(training) / config.batch_size)
    losses, parameters = [], list(state.student.parameters())
    for graphs, targets in batches([training[k] for k in order], config.batch_size):
        graph, target = batch_graphs(graphs), batch_targets(targets)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(state.n_steps / total_steps, config)
        prediction = predict(state.student, graph, create_graph=True)
        value = loss(
            prediction, target, graph, config.energy_weight, config.force_weight, config.stress_weight
        )
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]):
            raise ConfigError(
                f"the loss became {losses[-1]} in epoch {state.epoch}: lower learning_rate, check labels"
            )
        state.optimizer.zero_grad()
        value.backward(inputs=parameters)  # and not to the edge vectors, which nobody asks for
        torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
        state.optimizer.step()
        state.n_steps += 1
        update_average(state, config)
    return float(np.mean(losses))


def learning_rate(progress: float, config: TrainConfig) -> float:
    """Short linear warm-up, then half a cosine down to the final rate; ``progress`` runs from 0 to 1."""
    warm_up = min(1.0, (progress + 1e-3) / 0.01)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return warm_up * (
        config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * cosine
    )


@torch.no_grad()
def update_average(state: TrainState, config: TrainConfig) -> None:
    """Move the averaged weights towards the present ones; faster at first, so that the start is forgotten."""
    decay = min(config.average_decay, (1.0 + state.n_steps) / (10.0 + state.n_steps))
    for average, present in zip(state.averaged.parameters(), state.student.parameters()):
        average.lerp_(present, 1.0 - decay)


def new_state(student: TrainedStudent, config: TrainConfig) -> TrainState:
    averaged = build_student(student.architecture).cast(DTYPE)
    averaged.load_state_dict(student.state_dict())
    averaged.requires_grad_(False)
    return TrainState(student, averaged, torch.optim.Adam(student.parameters(), lr=config.learning_rate))


def save(state: TrainState, checkpoint: Path, fingerprint: str) -> None:
    """Write the checkpoint atomically."""
    content = {
        "fingerprint": fingerprint,
        "student": state.student.state_dict(),
        "averaged": state.averaged.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "epoch": state.epoch,
        "n_steps": state.n_steps,
    }
    with replacing(checkpoint) as part:
        torch.save(content, part)


def resume(state: TrainState, checkpoint: Path, fingerprint: str) -> None:
    """Take up a checkpoint if there is one.

    Raises:
        ConfigError: it belongs to other labels, sizes or settings.
    """
    if not checkpoint.exists():
        return
    content = read_checkpoint(checkpoint)
    if content["fingerprint"] != fingerprint:
        raise ConfigError(
            f"{checkpoint} was begun with other labels, sizes or settings: delete it to start afresh, "
            "or restore the settings to go on"
        )
    state.student.load_state_dict(content["student"])
    state.averaged.load_state_dict(content["averaged"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.epoch, state.n_steps = content["epoch"], content["n_steps"]


def read_checkpoint(path: Path) -> dict:
    """The content of a checkpoint that ``save`` wrote.

    Raises:
        ConfigError: damaged, or something else.
    """
    try:
        content = torch.load(path, weights_only=True)
    except Exception as error:  # torch.load raises anything from EOFError to KeyError
        raise ConfigError(f"{path} is damaged: delete it to start afresh") from error
    if not isinstance(content, dict) or "fingerprint" not in content:
        raise ConfigError(f"{path} is no checkpoint of mlffd: delete it to start afresh")
    return content


def species_of(labels: LabelledSet, architecture: dict) -> list[int]:
    """Atomic numbers of the student: those of its config, else those that occur in the labels.

    Raises:
        ConfigError: the labels have elements that the config leaves out.
    """
    found = sorted({int(z) for atoms in labels.structures for z in atoms.numbers})
    species = architecture.get("species", found)
    if not set(found) <= set(species):
        raise ConfigError(f"student species {species} leave out elements of the labels: {found}")
    return list(species)


@torch.no_grad()
def fit_reference_energies(student: TrainedStudent, labels: LabelledSet) -> None:
    """Reference energies by least squares, of least norm where compositions cannot tell elements apart."""
    counts = np.array([[(atoms.numbers == z).sum() for z in student.species] for atoms in labels.structures])
    size = counts.sum(1, keepdims=True)
    energies, *_ = np.linalg.lstsq(counts / size, labels.energies / size[:, 0], rcond=None)
    student.baseline.reference_energies.copy_(torch.from_numpy(energies))


def labelled_graphs(
    labels: LabelledSet, cutoff: float, dtype: torch.dtype = DTYPE
) -> list[tuple[Graph, Target]]:
    """Graphs and targets of all frames; neighbor lists are built once."""
    rows = zip(labels.structures, labels.energies, labels.forces, labels.stresses)
    return [
        (
            from_atoms(atoms, cutoff, dtype),
            Target(
                torch.tensor([energy], dtype=torch.float64),
                torch.as_tensor(forces, dtype=dtype),
                torch.as_tensor(stress, dtype=torch.float64)[None],
            ),
        )
        for atoms, energy, forces, stress in tqdm(rows, total=len(labels.structures), desc="neighbor lists")
    ]


def split(frames: list, config: TrainConfig) -> tuple[list, list]:
    """Training and validation frames, apart by a seeded permutation.

    Raises:
        ConfigError: fewer than two frames.
    """
    if len(frames) < 2:
        raise ConfigError(f"training needs at least two labelled frames, there are {len(frames)}")
    order = np.random.default_rng(config.seed).permutation(len(frames))
    n_validation = max(1, round(config.validation_fraction * len(frames)))
    return [frames[k] for k in order[n_validation:]], [frames[k] for k in order[:n_validation]]


def describe_run(labels: LabelledSet, architecture: dict, config: TrainConfig) -> str:
    """A hash of everything that determines the run."""
    facts = [labels.hash, architecture, dataclasses.asdict(config)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def training_facts(labels: LabelledSet, config: TrainConfig, errors: dict, fingerprint: str) -> dict:
    """What the bundle says of its origin."""
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return {
        "teacher": labels.metadata["teacher"],
        "labels": {"sha256": labels.hash, "n_frames": len(labels.structures)},
        "training": {**dataclasses.asdict(config), "date": date, "fingerprint": fingerprint},
        "errors": {"validation": errors},
    }
