# SPDX-License-Identifier: MIT
"""How far a distillation has come, read from the files that it has written."""

import json
from collections.abc import Iterator
from pathlib import Path

from mlffd.dataset.store import LabelStore, read_labels
from mlffd.distill.config import read_plan
from mlffd.distill.loop import read_history


def status(config_path: Path) -> list[str]:
    """One line for each thing that is done or under way, in order.

    Raises:
        ConfigError, LabelError: the config is wrong, or a file of the run is damaged.
    """
    plan = read_plan(config_path)
    directory = config_path.parent / plan.config.directory
    history = {one.number: one for one in read_history(directory)}
    lines = []
    for number in range(len(plan.config.rounds) + (plan.loop.max_rounds if plan.loop else 0)):
        lines += frames_and_labels(directory, f"round{number}") or draft(directory, number)
        lines += [history[number].summary()] if number in history else []
    lines += student(directory / "final.mlffd", plan.final.epochs)
    lines += frames_and_labels(directory, "test")
    lines += verdict(directory / f"{plan.config.name}.report" / "report.json")
    return lines or [f"nothing is done yet: mlffd distill {config_path} begins"]


def frames_and_labels(directory: Path, name: str) -> list[str]:
    """Of one round, or of the held-out frames."""
    frames, labels = (directory / f"{name}.{suffix}" for suffix in ("xyz", "h5"))
    if labels.exists():
        labelled = read_labels(labels)
        failed = len(labelled.metadata["failed"])
        return [f"{name}: {len(labelled)} frames labelled" + (f", {failed} failed" if failed else "")]
    if frames.exists() and not frames.stat().st_size:
        return []  # nothing new was found
    if frames.exists():
        return [f"{name}: labelling, {len(LabelStore(labels).done())} frames are done"]
    return [f"{name}: looking for frames"] if any(directory.glob(f"{name}.xyz.*")) else []


def draft(directory: Path, number: int) -> list[str]:
    """Of the students that are going to look for the frames of a round."""
    names = (f"draft{number}.mlffd.checkpoint", f"draft{number}-*.mlffd.checkpoint")  # alone, a committee's
    in_training = any(any(directory.glob(name)) for name in names)
    return [f"round{number}: a draft is in training"] if in_training else []


def student(path: Path, epochs: int) -> Iterator[str]:
    """Of the final student."""
    if path.exists():
        yield "final student: trained"
    elif path.with_name(path.name + ".checkpoint").exists():
        yield f"final student: in training, at most {epochs} epochs"


def verdict(report: Path) -> Iterator[str]:
    """Of the report."""
    if report.exists():
        judged = json.loads(report.read_text())
        yield f"report: {judged['verdict']}, see {report.with_suffix('.md')}"
    elif report.parent.exists():
        yield "report: measuring"
