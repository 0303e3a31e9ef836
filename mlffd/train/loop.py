"""The training loop: labels in, student bundle out, resumable at any epoch."""

import hashlib
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mlffd.allocator import keep_freed_memory
from mlffd.bundle import Bundle, read_bundle, write_bundle
from mlffd.dataset.store import LabelledSet
from mlffd.domain import KEY as DOMAIN
from mlffd.errors import ConfigError
from mlffd.graph import batch as batch_graphs
from mlffd.predict import predict
from mlffd.students import build_student
from mlffd.students.student import TrainedStudent
from mlffd.train.checkpoint import MetricsLog, TrainState, begin, resume, save
from mlffd.train.config import OFF, TrainConfig
from mlffd.train.domain import training_domain
from mlffd.train.frames import DTYPE, Frame, batches, cut, labelled_graphs, species_of, split
from mlffd.train.loss import batch_targets, hessian_loss, loss, predict_with_hessian
from mlffd.train.metrics import evaluate
from mlffd.train.ranks import Ranks, join_ranks
from mlffd.train.references import fit_reference_energies

CHUNK_ATOMS = 512  # of a batch are computed at a time: memory stays bounded, and the gradient is the same


def train(
    labels: LabelledSet,
    architecture: dict,
    config: TrainConfig,
    output: Path,
    validation: LabelledSet | None = None,
    start_from: Bundle | None = None,
    facts: dict | None = None,
    tensorboard: bool = False,
) -> Bundle:
    """Train a student of ``architecture`` on ``labels`` and write it to ``output``.

    After each epoch a checkpoint lies beside ``output``, and a line of metrics in ``OUTPUT.metrics.jsonl``; a
    run that was stopped goes on from it and ends with the same weights, and one that had finished returns
    what it wrote. The student written is the running average of the weights: with ``validation`` or patience
    that of the epoch with the least validation loss, else that of the last one. Under torchrun every process
    takes a share of each batch, and the first one writes.

    Args:
        validation: frames to validate with; without it some of ``labels``, see ``mlffd.train.frames.split``.
        start_from: a student of the same architecture whose weights training starts from.
        facts: entries for the metadata of the bundle, such as the bars that the student will be judged by;
            those count that were given when the training began.
        tensorboard: write metrics for TensorBoard as well, to the folder ``OUTPUT.tensorboard``.

    Raises:
        ConfigError: too few frames, the loss diverged, ``start_from`` does not fit, TensorBoard is missing,
            or ``output`` or the checkpoint beside it belongs to other labels, sizes or settings.
    """
    keep_freed_memory()
    ranks = join_ranks()
    student = new_student(labels, architecture, config, start_from)
    fingerprint = describe_run(labels, student.architecture, config, validation, start_from)
    checkpoint = beside(output, "checkpoint")
    if output.exists():
        bundle = finished(output, fingerprint)
        checkpoint.unlink(missing_ok=True)  # of a run that was killed when all was written
        return bundle
    if not output.parent.is_dir():
        raise ConfigError(f"there is no folder {output.parent} to write {output.name} to")
    if config.hessian_weight and not any(getattr(labels, "hessian_rows", None) or []):
        raise ConfigError("hessian_weight needs labels with Hessian rows: mlffd label --hessian-rows")
    training_frames, validation_frames = frames_of(labels, validation, student.cutoff, config)
    note = calibrate(student, labels, training_frames, start_from)
    if note and ranks.rank == 0:
        print(f"mlffd: {note}", file=sys.stderr)
    state = begin(student, facts or {})
    resume(state, checkpoint, fingerprint)
    # a few frames drawn from the labels, all of one trajectory perhaps, are a poor judge of epochs
    choose_best = validation is not None or config.patience > 0
    log = None
    if ranks.rank == 0:
        board = beside(output, "tensorboard") if tensorboard else None
        log = MetricsLog(beside(output, "metrics.jsonl"), state.history, board)
        save(state, checkpoint, fingerprint)
    with tqdm(total=config.epochs, initial=state.epoch, unit="epoch", disable=ranks.rank > 0) as progress:
        while state.epoch < config.epochs and not out_of_patience(state, config):
            line = run_epoch(state, training_frames, validation_frames, config, ranks, choose_best)
            if log:
                save(state, checkpoint, fingerprint)
                log.add(line)
            progress.set_postfix({name: f"{line[name]:.4g}" for name in SHOWN if name in line})
            progress.update()
    if state.best_epoch == 0:
        raise ConfigError("the validation loss was never finite: check the validation frames")
    if ranks.rank == 0:
        errors = evaluate(state.best, validation_frames)
        entries = training_facts(labels, validation, config, state, errors, fingerprint, note)
        seen = training_frames if validation else training_frames + validation_frames
        entries[DOMAIN] = training_domain(state.best, seen)
        write_bundle(output, state.best.cast(DTYPE), {**state.facts, **entries})
        checkpoint.unlink(missing_ok=True)
    ranks.wait()
    return read_bundle(output)


def train_committee(
    labels: LabelledSet, architecture: dict, config: TrainConfig, outputs: Sequence[Path], **options
) -> list[Bundle]:
    """Train one student for each of ``outputs``, alike but for their seeds: ``config.seed`` and those after.

    ``options`` are those of ``train``. Without validation labels each draws its own frames to validate with.
    """
    return [
        train(labels, architecture, replace(config, seed=config.seed + k), output, **options)
        for k, output in enumerate(outputs)
    ]


SHOWN = ("loss", "validation_loss", "force_mae_mev_per_angstrom", "energy_mae_mev_per_atom")


def run_epoch(
    state: TrainState,
    training: list[Frame],
    validation: list[Frame],
    config: TrainConfig,
    ranks: Ranks,
    choose_best: bool,
) -> dict:
    """One pass over the training frames in an order fixed by seed and epoch; returns its line of metrics."""
    start = time.monotonic()
    order = np.random.default_rng([config.seed, state.epoch]).permutation(len(training))
    losses, n_seen = [], 0
    for chosen in batches(order, training, config):
        rate = learning_rate((state.epoch + n_seen / len(order)) / config.epochs, config)
        losses.append(len(chosen) * step(state, training, chosen, rate, config, ranks))
        n_seen += len(chosen)
    state.epoch += 1
    errors = evaluate(state.averaged, validation, config) if ranks.rank == 0 else {"loss": 0.0}
    validation_loss = ranks.from_first(errors.pop("loss"))
    if validation_loss <= state.best_loss or (not choose_best and math.isfinite(validation_loss)):
        state.best_loss, state.best_epoch = validation_loss, state.epoch
        state.best.load_state_dict(state.averaged.state_dict())
    scalars = {name: value for name, value in errors.items() if isinstance(value, float)}
    line = {"epoch": state.epoch, "loss": sum(losses) / n_seen, "validation_loss": validation_loss}
    line |= {"learning_rate": rate, **scalars, "seconds": round(time.monotonic() - start, 3)}
    state.history.append(line)
    return line


def step(
    state: TrainState, frames: list[Frame], chosen: list[int], rate: float, config: TrainConfig, ranks: Ranks
) -> float:
    """One step of the optimizer on a batch of frames; returns its loss.

    Raises:
        ConfigError: the loss is not finite.
    """
    parameters = list(state.student.parameters())
    state.optimizer.zero_grad()
    value = 0.0
    for chunk in cut(ranks.share(chosen), frames, len(chosen), CHUNK_ATOMS):
        part = batch_loss(state, [frames[k] for k in chunk], chunk, config) / len(chosen)
        part.backward(inputs=parameters)  # and not to the edge vectors, which nobody asks for
        value += float(part.detach())
    value = ranks.sum_gradients(parameters, value)
    if not math.isfinite(value):
        raise ConfigError(
            f"the loss became {value} in epoch {state.epoch}: lower learning_rate, check labels"
        )
    torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
    state.optimizer.step(rate)
    state.n_steps += 1
    update_average(state, config)
    return value


def batch_loss(
    state: TrainState, frames: list[Frame], numbers: list[int], config: TrainConfig
) -> torch.Tensor:
    """The sum of the losses of some frames; ``numbers`` (theirs among all) fix the draw of Hessian rows."""
    graph, target = batch_graphs([graph for graph, _ in frames]), batch_targets([t for _, t in frames])
    known = [t.hessian_rows is not None for _, t in frames]
    if not config.hessian_weight or not any(known):
        return loss(predict(state.student, graph, create_graph=True), target, graph, config).sum()
    components, rows, first = [], [], 0
    for number, (one, one_target) in zip(numbers, frames):
        if one_target.hessian_rows is None:
            rows.append(one.edge_vectors.new_zeros(one.n_atoms, 3))
        else:
            drawn = np.random.default_rng([config.seed, state.epoch, number])
            pick = int(drawn.integers(len(one_target.hessian_rows[0])))
            components.append(3 * first + int(one_target.hessian_rows[0][pick]))
            rows.append(one_target.hessian_rows[1][pick].view(-1, 3))
        first += one.n_atoms
    prediction, found = predict_with_hessian(state.student, graph, torch.tensor(components))
    curvature = hessian_loss(found, torch.cat(rows), torch.tensor(known), graph, config.hessian_weight)
    return (loss(prediction, target, graph, config) + curvature).sum()


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


def out_of_patience(state: TrainState, config: TrainConfig) -> bool:
    return 0 < config.patience <= state.epoch - state.best_epoch


def new_student(
    labels: LabelledSet, architecture: dict, config: TrainConfig, start_from: Bundle | None
) -> TrainedStudent:
    """The student before its first step, in float64: initialized by the seed, or ``start_from``'s weights.

    Raises:
        ConfigError: ``start_from`` is of another architecture, or does not know an element of the labels.
    """
    if start_from is not None and "species" not in architecture:
        architecture = {**architecture, "species": list(start_from.student.species)}
    torch.manual_seed(config.seed)
    student = build_student({**architecture, "species": species_of(labels, architecture)})
    if start_from is None:
        return student
    ours, theirs = student.architecture, start_from.student.architecture
    if ours != theirs:
        differing = [k for k in sorted({*ours, *theirs}) if ours.get(k) != theirs.get(k)]
        words = ", ".join(f"{k} {theirs.get(k)!r}, here {ours.get(k)!r}" for k in differing)
        raise ConfigError(f"the student to start from has other sizes ({words}): give [student] the same")
    student.load_state_dict(start_from.student.state_dict())
    return student


def frames_of(
    labels: LabelledSet, validation: LabelledSet | None, cutoff: float, config: TrainConfig
) -> tuple[list[Frame], list[Frame]]:
    """Frames to train on and to validate with.

    Raises:
        ConfigError: too few frames, or another teacher labelled those to validate with.
    """
    if validation is not None:
        if validation.metadata["teacher"] != labels.metadata["teacher"]:
            raise ConfigError("the validation labels are another teacher's: label the frames with this one")
        return labelled_graphs(labels, cutoff), labelled_graphs(validation, cutoff)
    training_numbers, validation_numbers = split(labels.structures, config)
    frames = labelled_graphs(labels, cutoff)
    return [frames[k] for k in training_numbers], [frames[k] for k in validation_numbers]


def calibrate(
    student: TrainedStudent, labels: LabelledSet, training: list[Frame], start_from: Bundle | None
) -> str:
    """Fit reference energies, cast to training's precision, set scales; a note on the references, or ""."""
    if start_from is None:
        note = fit_reference_energies(student, labels)
        student.cast(DTYPE).calibrate([graph for graph, _ in training])
        return note
    with torch.no_grad():
        graphs = [graph for graph, _ in labelled_graphs(labels, student.cutoff, torch.float64)]
        predicted = np.array([float(student(graph).sum()) for graph in graphs])
    note = fit_reference_energies(student, labels, predicted)
    student.cast(DTYPE)
    return note


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


def describe_run(
    labels: LabelledSet,
    architecture: dict,
    config: TrainConfig,
    validation: LabelledSet | None = None,
    start_from: Bundle | None = None,
) -> str:
    """A hash of everything that determines the run."""
    weights = hashlib.sha256(start_from.to_bytes()).hexdigest() if start_from else None
    settings = {key: value for key, value in asdict(config).items() if OFF.get(key) != value}
    settings = {key: type(getattr(TrainConfig, key))(value) for key, value in settings.items()}  # 10 is 10.0
    facts = [labels.hash, architecture, settings, validation and validation.hash, weights]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def training_facts(
    labels: LabelledSet,
    validation: LabelledSet | None,
    config: TrainConfig,
    state: TrainState,
    errors: dict,
    fingerprint: str,
    note: str,
) -> dict:
    """What the bundle says of its origin."""
    seen = sorted({hash_ for one in (labels, validation) if one for hash_ in one.hashes})
    date = time.strftime("%Y-%m-%d", time.gmtime())
    training = {**asdict(config), "date": date, "fingerprint": fingerprint, "best_epoch": state.best_epoch}
    return {
        "teacher": labels.metadata["teacher"],
        "labels": {"sha256": labels.hash, "n_frames": len(labels.structures), "seen": seen},
        "training": {**training, "note": note} if note else training,
        "errors": {"validation": errors},
    }


def beside(output: Path, suffix: str) -> Path:
    """The file OUTPUT.SUFFIX."""
    return output.with_name(f"{output.name}.{suffix}")
