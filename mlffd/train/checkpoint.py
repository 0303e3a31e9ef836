# SPDX-License-Identifier: MIT
"""Where a training stands, on disk: the checkpoint after each epoch, and its metrics as JSON lines."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mlffd.errors import ConfigError
from mlffd.files import replacing, write_atomically
from mlffd.students import build_student
from mlffd.students.student import TrainedStudent
from mlffd.train.optimizer import StudentOptimizer


@dataclass
class TrainState:
    """All that a resumed run needs to go on exactly where it was."""

    student: TrainedStudent
    averaged: TrainedStudent  # running average of the weights
    best: TrainedStudent  # that average in the epoch that counts
    optimizer: StudentOptimizer
    facts: dict  # for the bundle, as they were given when training began
    epoch: int = 0
    n_steps: int = 0
    best_loss: float = math.inf
    best_epoch: int = 0
    history: list = field(default_factory=list)  # of metrics, one line an epoch


MODULES = ("student", "averaged", "best", "optimizer")
COUNTS = ("epoch", "n_steps", "best_loss", "best_epoch")


def begin(student: TrainedStudent, facts: dict) -> TrainState:
    """A training that has not made a step."""
    averaged, best = (copy_of(student).requires_grad_(False) for _ in range(2))
    return TrainState(student, averaged, best, StudentOptimizer(student), facts)


def copy_of(student: TrainedStudent) -> TrainedStudent:
    copy = build_student(student.architecture).cast(next(student.parameters()).dtype)
    copy.load_state_dict(student.state_dict())
    return copy


def save(state: TrainState, checkpoint: Path, fingerprint: str) -> None:
    """Write the checkpoint atomically."""
    content = {name: getattr(state, name).state_dict() for name in MODULES}
    content |= {name: getattr(state, name) for name in COUNTS}
    content |= {"facts": json.dumps(state.facts), "history": json.dumps(state.history)}
    with replacing(checkpoint) as part:
        torch.save({"fingerprint": fingerprint, **content}, part)


def resume(state: TrainState, checkpoint: Path, fingerprint: str) -> None:
    """Take up a checkpoint if there is one.

    Raises:
        ConfigError: damaged, or it belongs to other labels, sizes or settings.
    """
    if not checkpoint.exists():
        return
    content = read_checkpoint(checkpoint)
    if content["fingerprint"] != fingerprint:
        raise ConfigError(
            f"{checkpoint} was begun with other labels, sizes or settings: delete it to start afresh, "
            "or restore the settings to go on"
        )
    for name in MODULES:
        getattr(state, name).load_state_dict(content[name])
    for name in COUNTS:
        setattr(state, name, content[name])
    state.facts, state.history = json.loads(content["facts"]), json.loads(content["history"])


def read_checkpoint(path: Path) -> dict:
    """The content of a checkpoint that ``save`` wrote.

    Raises:
        ConfigError: damaged, or something else.
    """
    try:
        content = torch.load(path, weights_only=True)
    except Exception as error:  # torch.load raises anything from EOFError to KeyError
        raise ConfigError(f"{path} is damaged: delete it to start afresh") from error
    if not isinstance(content, dict) or not {"fingerprint", "history", *MODULES, *COUNTS} <= set(content):
        raise ConfigError(f"{path} is no checkpoint of this mlffd: delete it to start afresh")
    return content


class MetricsLog:
    """One JSON object a line and epoch, in a file and, if asked for, in TensorBoard."""

    def __init__(self, path: Path, history: list, board: Path | None = None):
        """Bring the file to ``history``: a run that was killed may have left a line more, or a part of one.

        Raises:
            ConfigError: TensorBoard is asked for and not installed.
        """
        self.path = path
        self.board = summary_writer(board, len(history)) if board else None
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in history))

    def add(self, line: dict) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
        if self.board:
            for name in line.keys() - {"epoch"}:
                self.board.add_scalar(name, line[name], line["epoch"])
            self.board.flush()


def summary_writer(folder: Path, n_epochs: int):
    """TensorBoard's writer, for what comes after ``n_epochs``.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "TensorBoard is not installed: pip install tensorboard, or train without --tensorboard"
        ) from error
    return SummaryWriter(str(folder), purge_step=n_epochs + 1)
