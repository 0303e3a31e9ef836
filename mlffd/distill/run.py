# SPDX-License-Identifier: MIT
"""The whole distillation: rounds of sampling, labelling and training, then errors on frames held out."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ase.calculators.calculator import Calculator as AseCalculator

from mlffd.bundle import read_bundle, write_bundle
from mlffd.config import check_keys, read_toml, settings_from
from mlffd.dataset.label import label
from mlffd.dataset.plan import plan
from mlffd.dataset.sample import sample
from mlffd.dataset.store import join_labels, read_labels
from mlffd.distill.labels import evaluate_bundle
from mlffd.errors import ConfigError
from mlffd.files import write_atomically
from mlffd.students import build_student
from mlffd.teachers import load_teacher
from mlffd.train.config import TrainConfig
from mlffd.train.loop import train

SAMPLING_KEYS = ("seed", "calculator", "stages", "train")
LATEST_STUDENT = "student"  # a sampling calculator of this name is the student of the round before
PREVIOUS_FRAMES = "previous"  # and a start of this name the frames of the round before
DEFAULT_STUDENT = {"family": "local"}


@dataclass(frozen=True)
class DistillConfig:
    """What ``mlffd distill`` is told; ``rounds`` and ``test`` are sampling configs, see mlffd.dataset.sample.

    A round may have ``train``, settings that differ from the common ones in that round.
    """

    name: str
    teacher: dict | str
    rounds: list
    test: dict
    directory: str = "."  # of everything written, relative to the config file
    workers: int = 1  # processes that label
    student: dict = field(default_factory=lambda: dict(DEFAULT_STUDENT))
    train: dict = field(default_factory=dict)


def distill(config_path: Path, load_calculator: Callable[[dict], AseCalculator]) -> dict:
    """Run a distillation, or the rest of one that was stopped, and return the errors on held-out frames.

    Writes ``NAME.mlffd`` and ``NAME.json`` (the errors) into the config's directory, and beside them frames,
    labels and student of every round. What is finished already is not done again.

    Raises:
        ConfigError, TeacherError, LabelError: with one line that says what is wrong.
    """
    config = settings_from(read_toml(config_path), DistillConfig, str(config_path))
    if not config.rounds:
        raise ConfigError(f"{config_path}: give at least one [[rounds]]")
    run = Distillation(config, config_path.parent, load_calculator)
    return run.run()


class Distillation:
    """One distillation: where its files lie and what each step needs of the others."""

    def __init__(self, config: DistillConfig, home: Path, load_calculator: Callable):
        self.config, self.home, self.load_calculator = config, home, load_calculator
        self.directory = home / config.directory
        self.check()
        self.directory.mkdir(parents=True, exist_ok=True)

    def check(self) -> None:
        """Find mistakes in the config now rather than after hours of labelling.

        Raises:
            ConfigError, TeacherError, BundleError: naming the mistake.
        """
        load_teacher(self.config.teacher, directory=self.home)
        build_student({"species": [1], **self.config.student})
        if Path(self.config.name).name != self.config.name:
            raise ConfigError(f"name = {self.config.name!r} must be a plain file name")
        for number, settings in enumerate([*self.config.rounds, self.config.test]):
            check_keys(settings, SAMPLING_KEYS, f"round {number}")
            self.train_config(settings.get("train", {}), number)
            plan(self.sampling(settings, number), self.home)

    def train_config(self, overrides: dict, number: int) -> TrainConfig:
        """The common training settings with what one round changes of them."""
        check_keys(self.config.train, TrainConfig.__dataclass_fields__, "[train]")
        return settings_from({**self.config.train, **overrides}, TrainConfig, f"training of round {number}")

    def run(self) -> dict:
        for number, settings in enumerate(self.config.rounds):
            print(f"round {number} of {len(self.config.rounds) - 1}", flush=True)
            self.label_round(self.round_name(number), settings, number)
            self.train_round(number, settings.get("train", {}))
        last = len(self.config.rounds)
        print("held-out frames", flush=True)
        held_out = self.label_round("test", self.config.test, last)
        return self.finish(self.student_path(last - 1), held_out)

    def round_name(self, number: int) -> str:
        return f"round{number}"

    def student_path(self, number: int) -> Path:
        return self.directory / f"{self.round_name(number)}.mlffd"

    def label_round(self, name: str, settings: dict, number: int) -> Path:
        """Frames and labels of one round (or of the test); returns the label file."""
        frames, labels = self.directory / f"{name}.xyz", self.directory / f"{name}.h5"
        sample(self.sampling(settings, number), frames, self.load_calculator, directory=self.home)
        label(frames, self.config.teacher, labels, workers=self.config.workers, directory=self.home)
        return labels

    def sampling(self, settings: dict, number: int) -> dict:
        """A round's sampling config, with the student and the frames of the round before named by path."""
        sampling = {key: value for key, value in settings.items() if key != "train"}
        sampling["stages"] = [dict(stage) for stage in settings.get("stages", [])]
        for table in (sampling, *sampling["stages"]):
            if table.get("calculator") == LATEST_STUDENT:
                table["calculator"] = {"bundle": str(self.earlier(number, "mlffd"))}
            if table.get("start") == PREVIOUS_FRAMES:
                table["start"] = str(self.earlier(number, "xyz"))
        return sampling

    def earlier(self, number: int, suffix: str) -> Path:
        if number == 0:
            raise ConfigError("the first round has no student or frames before it to start from")
        return Path(self.config.directory) / f"{self.round_name(number - 1)}.{suffix}"

    def train_round(self, number: int, overrides: dict) -> None:
        """Train on the labels of all rounds so far."""
        output = self.student_path(number)
        labels = join_labels(
            [read_labels(self.directory / f"{self.round_name(k)}.h5") for k in range(number + 1)]
        )
        train(labels, self.config.student, self.train_config(overrides, number), output)

    def finish(self, student_path: Path, held_out: Path) -> dict:
        """Errors on the held-out frames go into the final bundle and beside it."""
        errors = evaluate_bundle(student_path, held_out)
        final = self.directory / f"{self.config.name}.mlffd"
        bundle = read_bundle(student_path)
        facts = {"name": self.config.name, "errors": {**bundle.metadata["errors"], "held_out": errors}}
        write_bundle(final, bundle.student, {**bundle.metadata, **facts})
        write_atomically(final.with_suffix(".json"), json.dumps(errors, indent=1) + "\n")
        return errors
