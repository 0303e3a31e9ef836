# SPDX-License-Identifier: MIT
"""Which student to take: families and sizes trained on the same labels, their error against their speed.

    force_mae_at_most = 18.0         # meV/Å on the held-out frames
    labels = ["round0.h5", "round1.h5"]
    held_out = "test.h5"             # they choose, so a report needs others
    name = "water"                   # the chosen student becomes FOLDER/water.mlffd
    [train]                          # as in mlffd train
    epochs = 100
    [[students]]                     # as [student] in mlffd train
    family = "painn"
    [grid]                           # every combination of these as well
    channels = [8, 16, 32]
    cutoff = [4.0, 5.0]

Every student lies in the folder when it is trained; a sweep that was stopped goes on where it was. Students
are timed side by side when all are there.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path

import torch

from mlffd.bundle import Bundle, read_bundle, write_bundle
from mlffd.config import settings_from
from mlffd.dataset.frames import check_apart
from mlffd.dataset.store import LabelledSet
from mlffd.engine import Engine
from mlffd.environment import commit, cpu_model, device_name, installed_version, load_average
from mlffd.errors import ConfigError
from mlffd.files import write_atomically
from mlffd.report.pareto import write_sweep_page
from mlffd.speed import time_side_by_side
from mlffd.train.config import StudentConfig, TrainConfig
from mlffd.train.loop import labelled_graphs, train
from mlffd.train.metrics import evaluate

FORMAT = 1
PACKAGES = ("mlffd", "torch", "numpy", "ase", "vesin")


@dataclass(frozen=True)
class SweepConfig:
    """What ``mlffd sweep`` is told; see the top of this file."""

    force_mae_at_most: float  # meV/Å
    labels: list = field(default_factory=list)  # files, of the command line
    held_out: str = ""
    name: str = "chosen"
    students: list = field(default_factory=list)
    grid: dict = field(default_factory=dict)
    train: dict = field(default_factory=dict)
    device: str = "cpu"
    threads: int = 1
    timing_runs: int = 7
    timing_seconds: float = 0.3  # of a run of one student

    def check(self) -> None:
        """Find mistakes before anything is trained.

        Raises:
            ConfigError: naming the mistake.
        """
        if Path(self.name).name != self.name or self.name in self.candidates:
            raise ConfigError(f"name = {self.name!r} must be a plain file name, and none of a candidate")
        for name in ("force_mae_at_most", "threads", "timing_runs", "timing_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be greater than 0, not {getattr(self, name)}")
        settings_from(self.train, TrainConfig, "[train]")

    @property
    def candidates(self) -> dict[str, StudentConfig]:
        """By a name made of what was given for each.

        Raises:
            ConfigError: there is none, one is there twice, or a key is misspelt.
        """
        for key, values in self.grid.items():
            if not isinstance(values, list) or not values:
                raise ConfigError(f"[grid]: {key} must be a list of values, not {values!r}")
        combinations = product(*self.grid.values()) if self.grid else ()
        tables = [*self.students, *(dict(zip(self.grid, values)) for values in combinations)]
        found = {}
        for number, table in enumerate(tables):
            student = settings_from(table, StudentConfig, f"student {number}")
            name = title_of(student)
            if name in found:
                raise ConfigError(f"the student {name} is there twice")
            found[name] = student
        if not found:
            raise ConfigError("name candidates, as [[students]] or in [grid]")
        return found


def title_of(student: StudentConfig) -> str:
    """``local-channels8-cutoff4.5``, a file name."""
    given = {key: value for key, value in student.architecture.items() if key not in ("family", "species")}
    words = [
        f"{key}{'x'.join(map(str, v)) if isinstance(v, list) else v}" for key, v in sorted(given.items())
    ]
    return "-".join([student.family, *words])


def sweep(labels: LabelledSet, held_out: LabelledSet, settings: SweepConfig, folder: Path) -> dict:
    """Train all candidates, measure them, and choose.

    Writes into ``folder``: a bundle for each candidate, ``sweep.json``, ``sweep.md``, ``sweep.html``, the
    figure, and the chosen student as ``NAME.mlffd``. A sweep that is finished does nothing.

    Returns:
        What ``sweep.json`` holds; ``chosen`` is None if no candidate is within ``force_mae_at_most``.

    Raises:
        ConfigError: not one candidate could be trained, the folder holds students of another sweep, or the
            held-out frames are among those of training.
    """
    settings.check()
    folder = Path(folder)
    fingerprint = describe(labels, held_out, settings)
    done = finished(folder / "sweep.json", fingerprint)
    if done is not None:
        return done
    check_apart(labels.structures, held_out.structures)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        train_candidate(name, student, labels, held_out, settings, folder)
        for name, student in settings.candidates.items()
    ]
    trained = [row for row in rows if "failed" not in row]
    if not trained:
        raise ConfigError(f"not one candidate could be trained; {rows[0]['name']}: {rows[0]['failed']}")
    measure_speeds(trained, held_out, settings, folder)
    mark_front(trained)
    result = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "name": settings.name,
        "force_mae_at_most": settings.force_mae_at_most,
        **choice(trained, settings.force_mae_at_most),
        "candidates": rows,
        "labels": {"sha256": labels.hash, "n_frames": len(labels)},
        "held_out": {"sha256": held_out.hash, "n_frames": len(held_out), "seen": held_out.hashes},
        "teacher": labels.metadata["teacher"],
        "train": asdict(settings_from(settings.train, TrainConfig, "[train]")),
        "environment": environment(settings),
    }
    if result["chosen"]:
        hand_over(result, settings.name, folder)
    write_sweep_page(result, folder)
    write_atomically(folder / "sweep.json", json.dumps(result, indent=1) + "\n")
    return result


def describe(labels: LabelledSet, held_out: LabelledSet, settings: SweepConfig) -> str:
    """A hash of everything that determines a sweep, apart from the machine's speed."""
    facts = [FORMAT, labels.hash, held_out.hash, asdict(settings)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def finished(path: Path, fingerprint: str) -> dict | None:
    """What an earlier run of the same sweep has written; None if there is none."""
    try:
        result = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return result if isinstance(result, dict) and result.get("fingerprint") == fingerprint else None


def train_candidate(
    name: str,
    student: StudentConfig,
    labels: LabelledSet,
    held_out: LabelledSet,
    settings: SweepConfig,
    folder: Path,
) -> dict:
    """Train one, or take the one that was trained before; its errors, or why it could not be trained."""
    print(f"training {name}", flush=True)
    row = {"name": name, "student": student.architecture, "bundle": f"{name}.mlffd"}
    config = settings_from(settings.train, TrainConfig, "[train]")
    try:
        train(labels, student.architecture, config, folder / row["bundle"])
    except ConfigError as error:
        if (folder / row["bundle"]).exists():  # of other labels or settings, which the message says
            raise
        return {**row, "failed": str(error)}
    bundle = read_bundle(folder / row["bundle"])  # in float64
    frames = labelled_graphs(held_out, bundle.student.cutoff, torch.float64)
    errors = evaluate(bundle.student, frames)
    n_parameters = sum(parameter.numel() for parameter in bundle.student.parameters())
    return {
        **row,
        "parameters": n_parameters,
        "force_mae": errors["force_mae_mev_per_angstrom"],
        "energy_mae": errors["energy_mae_mev_per_atom"],
        "stress_mae": errors.get("stress_mae_gpa"),
        "errors": errors,
    }


def measure_speeds(rows: list[dict], held_out: LabelledSet, settings: SweepConfig, folder: Path) -> None:
    """Time all candidates side by side on the largest held-out frame; into their rows."""
    atoms = max(held_out.structures, key=len)
    with threads(settings.threads):
        engines = [Engine(folder / row["bundle"], device=settings.device) for row in rows]
        timings = time_side_by_side(
            [engine.evaluate for engine in engines], atoms, settings.timing_runs, settings.timing_seconds
        )
    for row, engine, timing in zip(rows, engines, timings):
        row["us_per_atom"], row["timing"] = timing.median, asdict(timing)
        row["backend"] = engine.backend


@contextmanager
def threads(number: int) -> Iterator[None]:
    """So many threads of PyTorch and of the kernels within."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def mark_front(rows: list[dict]) -> None:
    """Add to each whether none of the others is both faster and more accurate: the Pareto front."""
    for row in rows:
        row["on_front"] = not any(dominates(other, row) for other in rows)


def dominates(one: dict, other: dict) -> bool:
    """Whether ``one`` is at least as good in error and speed, and better in one of them."""
    figures = [(one[key], other[key]) for key in ("force_mae", "us_per_atom")]
    return all(a <= b for a, b in figures) and any(a < b for a, b in figures)


def choice(rows: list[dict], force_mae_at_most: float) -> dict:
    """Names of the fastest candidate within the error, if there is one, and of the most accurate."""
    within = [row for row in rows if row["force_mae"] <= force_mae_at_most]
    fastest = min(within, key=lambda row: row["us_per_atom"], default=None)
    return {
        "chosen": fastest and fastest["name"],
        "most_accurate": min(rows, key=lambda row: row["force_mae"])["name"],
    }


def hand_over(result: dict, name: str, folder: Path) -> Bundle:
    """Write the chosen student under the name of the sweep, with its held-out errors."""
    row = next(row for row in result["candidates"] if row["name"] == result["chosen"])
    bundle = read_bundle(folder / row["bundle"])
    errors = {**bundle.metadata.get("errors", {}), "held_out": row["errors"]}
    labels = bundle.metadata["labels"]
    labels = {**labels, "seen": [*labels.get("seen", []), *result["held_out"]["seen"]]}  # they chose it
    facts = {"name": name, "errors": errors, "labels": labels, "chosen_from": len(result["candidates"])}
    return write_bundle(folder / f"{name}.mlffd", bundle.student, {**bundle.metadata, **facts})


def environment(settings: SweepConfig) -> dict:
    """What the times were taken with."""
    return {
        "device": device_name(settings.device),
        "processor": cpu_model(),
        "threads": settings.threads,
        "load": load_average(),
        "commit": commit(),
        "versions": {package: installed_version(package) for package in PACKAGES},
    }
