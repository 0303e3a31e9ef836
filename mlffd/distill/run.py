# SPDX-License-Identifier: MIT
"""The whole distillation: rounds of sampling, the on-policy loop, the final student, and its report."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ase.calculators.calculator import Calculator as AseCalculator

from mlffd.dataset.frames import check_apart, read_frames
from mlffd.dataset.label import label
from mlffd.dataset.plan import locate, names
from mlffd.dataset.plan import plan as plan_sampling
from mlffd.dataset.sample import sample
from mlffd.dataset.store import LabelledSet, join_labels, read_labels
from mlffd.distill.config import DistillPlan, read_plan
from mlffd.distill.labels import evaluate_bundle
from mlffd.distill.loop import LoopRound, reason_to_end, write_history
from mlffd.errors import ConfigError
from mlffd.explore import explore
from mlffd.fidelity.report import report
from mlffd.files import lock
from mlffd.teachers import load_teacher
from mlffd.train.loop import train, train_committee

LATEST_STUDENT = "student"  # a sampling calculator of this name is a student trained on all labels so far
LOCK = ".lock"
PREVIOUS_FRAMES = "previous"  # and a start of this name the frames of the round before


def distill(config_path: Path, load_calculator: Callable[[dict], AseCalculator]) -> dict:
    """Run a distillation, or the rest of one that was stopped; returns the judged report.

    Writes ``NAME.mlffd``, which carries the verdict, and the folder ``NAME.report`` into the config's
    directory, and beside them frames, labels and students of every round. What is finished already is not
    done again.

    Raises:
        ConfigError, TeacherError, LabelError: with one line that says what is wrong.
    """
    run = Distillation(config_path, load_calculator)
    run.check()
    return run.run()


class Distillation:
    """One distillation: where its files lie and what each step needs of the others.

    Round k writes ``round{k}.xyz`` and ``round{k}.h5``; ``draft{k}.mlffd`` is a student trained on the labels
    of the rounds before k, which looks for the frames of round k; ``final.mlffd`` is trained on all labels.
    """

    def __init__(self, config_path: Path, load_calculator: Callable):
        self.plan: DistillPlan = read_plan(config_path)
        self.config, self.home, self.load_calculator = self.plan.config, config_path.parent, load_calculator
        self.directory = self.home / self.config.directory

    def check(self) -> None:
        """Find mistakes in the config now rather than after hours of labelling.

        Raises:
            ConfigError, TeacherError: naming the mistake.
        """
        load_teacher(self.config.teacher, directory=self.home)
        self.check_starts()
        n_frames = [self.count_frames(n, table) for n, table in enumerate(self.config.rounds)]
        self.count_frames(len(n_frames), self.config.test)
        if self.plan.loop and sum(n_frames) > self.plan.loop.max_labels:
            raise ConfigError(
                f"[loop]: max_labels = {self.plan.loop.max_labels} is less than the {sum(n_frames)} frames "
                "of the rounds before the loop"
            )

    def count_frames(self, number: int, settings: dict) -> int:
        """That round ``number`` is going to have, if none blows up."""
        student = self.path("final.mlffd") if number else None
        trajectories = plan_sampling(self.sampling(settings, number, student), self.home)
        return sum(trajectory.settings["frames"] for trajectory in trajectories)

    def check_starts(self) -> None:
        """Raise ConfigError for a start that is neither there nor written by the run."""
        stages = [
            stage for table in (*self.config.rounds, self.config.test) for stage in table.get("stages", [])
        ]
        for k, table in enumerate((*stages, self.config.loop or {}, self.config.fidelity)):
            for name in names(table.get("start")):
                path = locate(name, self.home)
                ours = path.resolve().is_relative_to(self.directory.resolve())
                ours |= name == PREVIOUS_FRAMES and k < len(stages)
                if not ours and not path.is_file():
                    raise ConfigError(f"start = {name!r}: there is no such file beside the config")

    def run(self) -> dict:
        self.directory.mkdir(parents=True, exist_ok=True)
        with lock(self.path(LOCK)) as free:
            if not free:
                raise ConfigError(f"another process distils in {self.directory}: wait for its end")
            return self.run_alone()

    def run_alone(self) -> dict:
        for number, settings in enumerate(self.config.rounds):
            self.say(f"round {number}")
            student = self.train_drafts(number)[0] if uses_student(settings) else None
            self.sample_and_label(f"round{number}", settings, number, student, self.config.hessian_rows)
        n_rounds = self.explore() if self.plan.loop else len(self.config.rounds)
        final = self.train_final(n_rounds)
        self.say("held-out frames")
        self.hold_out(n_rounds, final)
        return self.report(final)

    def say(self, text: str) -> None:
        print(f"{self.config.name}: {text}", flush=True)

    def path(self, name: str) -> Path:
        return self.directory / name

    # frames and labels

    def sample_and_label(
        self, name: str, settings: dict, number: int, student: Path | None, hessian_rows: int = 0
    ) -> None:
        """Write ``NAME.xyz`` and ``NAME.h5`` by one sampling config."""
        sampling = self.sampling(settings, number, student)
        sample(sampling, self.path(f"{name}.xyz"), self.load_calculator, directory=self.home)
        self.label(name, hessian_rows)

    def hold_out(self, n_rounds: int, student: Path) -> None:
        """The held-out frames and their labels.

        Raises:
            ConfigError: one of them is among those of the rounds.
        """
        sampling = self.sampling(self.config.test, n_rounds, student)
        sample(sampling, self.path("test.xyz"), self.load_calculator, directory=self.home)
        check_apart(self.labels_before(n_rounds).structures, read_frames(self.path("test.xyz")))
        self.label("test")

    def sampling(self, settings: dict, number: int, student: Path | None) -> dict:
        """A sampling config, with its student and the frames of the round before named by path."""
        sampling = {**settings, "stages": [dict(stage) for stage in settings.get("stages", [])]}
        for table in (sampling, *sampling["stages"]):
            runs_student = table.get("calculator") == LATEST_STUDENT
            goes_on = table.get("start") == PREVIOUS_FRAMES
            if number == 0 and (runs_student or goes_on):
                raise ConfigError("the first round has no student or frames before it to start from")
            if runs_student:
                table["calculator"] = {"bundle": self.as_config_says(student)}
            if goes_on:
                table["start"] = self.as_config_says(self.path(f"round{number - 1}.xyz"))
        return sampling

    def as_config_says(self, path: Path) -> str:
        """A path as the config would name it: relative to the config."""
        return str(path.relative_to(self.home)) if path.is_relative_to(self.home) else str(path)

    def label(self, name: str, hessian_rows: int = 0) -> None:
        """Write the labels of ``NAME.xyz`` to ``NAME.h5``, where they are not there yet."""
        label(
            self.path(f"{name}.xyz"),
            self.config.teacher,
            self.path(f"{name}.h5"),
            workers=self.config.workers,
            directory=self.home,
            hessian_rows=hessian_rows,
        )

    def labels_before(self, number: int) -> LabelledSet:
        """The labels of all rounds before round ``number``."""
        return join_labels([read_labels(self.path(f"round{k}.h5")) for k in range(number)])

    # students

    def train_drafts(self, number: int) -> list[Path]:
        """Students that look for the frames of round ``number``; the first is the one that runs."""
        size = self.plan.loop.committee if self.plan.loop and number >= len(self.config.rounds) else 1
        names = [f"draft{number}" + (f"-{member}" if member else "") for member in range(size)]
        outputs = [self.path(f"{name}.mlffd") for name in names]
        architecture = self.plan.draft_student.architecture
        train_committee(self.labels_before(number), architecture, self.plan.draft, outputs)
        return outputs

    def train_final(self, n_rounds: int) -> Path:
        """The student of all labels; it carries the bars that it is going to be judged by."""
        output, labels = self.path("final.mlffd"), self.labels_before(n_rounds)
        self.say(f"final student, {len(labels)} labels")
        facts = {"name": self.config.name, "bars": self.plan.bars}
        train(labels, self.plan.student.architecture, self.plan.final, output, facts=facts)
        return output

    # the on-policy loop

    def explore(self) -> int:
        """Rounds in which a student's own runs find what it does not know; returns the number of rounds."""
        history, number = [], len(self.config.rounds)
        while True:
            labels = self.labels_before(number)
            reason = reason_to_end(history, len(labels), self.plan.loop, self.plan.force_mae_to_reach)
            if reason:
                self.say(f"exploring ends: {reason}")
                return number
            self.say(f"round {number}: exploring with {len(labels)} labels")
            history.append(self.explore_once(number, labels))
            self.say(history[-1].summary())
            write_history(self.directory, history)
            number += history[-1].n_found > 0

    def explore_once(self, number: int, labels: LabelledSet) -> LoopRound:
        """One round: run drafts, choose what is new, label it, and see how wrong the draft was there."""
        drafts, settings = self.train_drafts(number), self.plan.exploration
        frames = self.frames_to_find(number, len(labels))
        settings = replace(settings, frames=frames, seed=settings.seed + number)
        found = explore(drafts, settings, labels.structures, self.path(f"round{number}.xyz"), self.home)
        n_found, force_mae = found["chosen"], None
        if n_found:
            self.label(f"round{number}", self.config.hessian_rows)
            errors = evaluate_bundle(drafts[0], self.path(f"round{number}.h5"))
            n_found, force_mae = errors["n_frames"], errors["force_mae_mev_per_angstrom"]
        return LoopRound(number, len(labels), found["n_cut"], len(found["trajectories"]), n_found, force_mae)

    def frames_to_find(self, number: int, n_labels: int) -> int:
        """As many as the budget allows; a round that is labelled stays as it is when that is changed."""
        frames = self.plan.exploration.frames
        found = self.path(f"round{number}.xyz.json")
        if self.path(f"round{number}.h5").exists() and found.exists():
            wanted = json.loads(found.read_text()).get("wanted")
            if wanted is not None and wanted <= frames:
                return wanted
        return min(frames, self.plan.loop.max_labels - n_labels)

    # the report

    def report(self, student: Path) -> dict:
        """Measure and judge the student, write the page, and ``NAME.mlffd`` with the verdict."""
        folder = self.path(f"{self.config.name}.report")
        self.say(f"report, to be read in {folder / 'report.html'}")
        return report(
            student,
            read_labels(self.path("test.h5")),
            self.config.teacher,
            self.plan.fidelity,
            self.plan.bars,
            folder,
            self.home,
            into=self.path(f"{self.config.name}.mlffd"),
        )


def uses_student(settings: dict) -> bool:
    """Whether a sampling config runs the latest student."""
    return LATEST_STUDENT in [table.get("calculator") for table in (settings, *settings.get("stages", []))]
