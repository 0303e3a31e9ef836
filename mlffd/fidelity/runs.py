# SPDX-License-Identifier: MIT
"""The runs of a report: where they start, at which conditions, and in which folders they are kept."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from ase import Atoms

from mlffd.bundle import Bundle, read_bundle, write_bundle
from mlffd.dataset.starts import bare
from mlffd.dataset.store import frames_hash
from mlffd.dynamics import Trajectories
from mlffd.engine import Engine
from mlffd.evaluation import Evaluate
from mlffd.fidelity.config import FidelityConfig
from mlffd.fidelity.trajectories import Recording, Remembering, record, write_labels
from mlffd.files import replacing

CHUNK, TEACHER_CHUNK = 250, 10  # frames, after which a trajectory is written down
LEAST_SPACING = 8  # steps between frames of the teacher that are kept
QUICK = 100.0  # fs, time constant where only the temperature matters
FAST = "fast.mlffd"  # the student that moved the atoms between evaluations of the teacher


def digest(facts) -> str:
    """Of what a run depends on, for names of files."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def choose_starts(structures: Sequence[Atoms], n: int, temperature: float) -> list[Atoms]:
    """``n`` structures, bare: those sampled nearest to the temperature, evenly over them, and again where
    there are fewer."""
    misfits = np.array([abs(float(a.info.get("temperature", temperature)) - temperature) for a in structures])
    nearest = np.flatnonzero(misfits <= misfits.min() + 1e-6)
    chosen = nearest[np.arange(n) * len(nearest) // n]
    return [bare(structures[k]) for k in chosen]


@dataclass(frozen=True)
class Runs:
    """All trajectories of one report; each is run when it is first asked for.

    bundle: the student to judge; raw_starts: before equilibration; folder: of trajectories, those of other
    students too; teacher: its description (None: there is none) and ``evaluate_teacher``, what evaluates with
    it.
    """

    bundle: Bundle
    raw_starts: Sequence[Atoms]
    settings: FidelityConfig
    folder: Path
    teacher: dict | None
    evaluate_teacher: Evaluate | None

    @cached_property
    def base(self) -> Path:
        """Folder of the teacher's trajectory and of the starts: of another student's report, too, unless
        atoms blew up in it, as they do under a bad student."""
        conditions = ("temperature", "time_step", "time_constant", "equilibration", "slow_every", "seed")
        facts = [
            self.teacher,
            frames_hash(self.raw_starts),
            *(getattr(self.settings, name) for name in conditions),
        ]
        name, number = f"teacher_{digest(facts)}", 0
        while True:
            base = self.folder / (f"{name}_{number}" if number else name)
            if not (base / FAST).exists():
                base.mkdir(parents=True, exist_ok=True)
                write_bundle(base / FAST, self.bundle.student, self.bundle.metadata)
                return base
            if not (base / "blew_up").exists() or self._is_mine(base):
                return base
            number += 1

    def _is_mine(self, base: Path) -> bool:
        return read_bundle(base / FAST).weights_sha256 == self.bundle.weights_sha256

    @cached_property
    def fast(self) -> Bundle:
        """The student under the teacher's trajectory."""
        return read_bundle(self.base / FAST)

    @property
    def by_other_student(self) -> bool:
        return self.fast.weights_sha256 != self.bundle.weights_sha256

    @cached_property
    def equilibration(self) -> list[Recording]:
        """All replicas; its ends are the starts of all other runs."""
        steps = self.settings.equilibration
        begin = self._begin(self.fast, self.settings.temperature, QUICK)
        done = self._record(
            self.base / "equilibration", self.raw_starts, begin, steps, steps, 1, "equilibration"
        )
        self._note_blow_ups(done)
        return done

    def _note_blow_ups(self, replicas: Sequence[Recording]) -> None:
        if any(replica.cut for replica in replicas):
            (self.base / "blew_up").touch()

    @cached_property
    def own_equilibration(self) -> list[Recording]:
        """By the student that is judged, from the raw starts: how it gets on there is its own."""
        if not self.by_other_student:
            return self.equilibration
        steps = self.settings.equilibration
        begin = self._begin(self.bundle, self.settings.temperature, QUICK)
        return self._own("equilibration", begin, steps, self.raw_starts)

    @cached_property
    def starts(self) -> list[Atoms]:
        """Those that equilibrated."""
        return [replica.end for replica in self.equilibration if replica.cut is None]

    @cached_property
    def student(self) -> list[Recording]:
        """The student's trajectories, beside the teacher's."""
        settings = self.settings
        begin = self._begin(self.bundle, settings.temperature, settings.time_constant)
        return self._own("student", begin, settings.student_steps, self.starts)

    @cached_property
    def hot(self) -> list[Recording]:
        """At a temperature that is ``hot_factor`` times as high."""
        begin = self._begin(self.bundle, self.settings.temperature * self.settings.hot_factor, QUICK)
        return self._own("hot", begin, self.settings.hot_steps, [bare(atoms) for atoms in self.starts])

    @cached_property
    def constant_energy(self) -> list[Recording]:
        begin = self._begin(self.bundle, None, QUICK)
        return self._own("constant_energy", begin, self.settings.constant_energy_steps, self.starts)

    def _own(self, name: str, begin: Callable, steps: int, starts: Sequence[Atoms]) -> list[Recording]:
        settings = self.settings
        facts = [
            name,
            self.bundle.weights_sha256,
            self.base.name,
            self.fast.weights_sha256,
            settings.temperature * settings.hot_factor,
        ]
        folder = self.folder / f"{name}_{digest([*facts, settings.interval])}"
        return self._record(folder, starts, begin, steps, min(settings.interval, steps), CHUNK, name)

    @cached_property
    def teacher_md(self) -> list[Recording]:
        """The teacher's trajectory, with the student as the fast force between its evaluations."""
        settings = self.settings
        teacher = Remembering(self.evaluate_teacher)
        every = settings.slow_every * -(-LEAST_SPACING // settings.slow_every)
        if settings.slow_every == 1:
            begin = self._begin(None, settings.temperature, settings.time_constant, evaluate=teacher)
        else:
            respa = {"slow": teacher, "slow_every": settings.slow_every}
            begin = self._begin(self.fast, settings.temperature, settings.time_constant, **respa)
        done = self._record(
            self.base / "teacher", self.starts, begin, settings.teacher_steps, every, TEACHER_CHUNK, "teacher"
        )
        self._note_blow_ups(done)
        return done

    @property
    def how_the_teacher_ran(self) -> str:
        every = self.settings.slow_every
        if every == 1:
            return "Teacher's trajectories"
        whose = "another student" if self.by_other_student else "the student"
        between = f"{whose} ({self.fast.weights_sha256[:12]}) in between"
        return f"Teacher's trajectories: r-RESPA, the teacher every {every} steps, {between}"

    def write_teacher_labels(self, output: Path) -> None:
        """All that the teacher said along its trajectory, as a label file."""
        name = f"labels_{self.settings.teacher_steps:09d}.h5"
        write_labels(self.base / name, self.teacher_md, self.teacher, self.settings.temperature)
        with replacing(output) as part:
            shutil.copyfile(self.base / name, part)

    def _begin(
        self, bundle: Bundle | None, temperature: float | None, time_constant: float, **respa
    ) -> Callable:
        """What begins dynamics; an engine of its own for each chunk, with neighbor lists of its own."""

        def begin(structures: list[Atoms], seeds: list[int], first_step: int) -> Trajectories:
            force = {"evaluate": Engine(bundle).evaluate} if bundle else {}
            return Trajectories(
                structures, time_step=self.settings.time_step, temperatures=temperature,
                time_constant=time_constant, seed=seeds, first_step=first_step, **force, **respa,
            )  # fmt: skip

        return begin

    def _record(
        self,
        folder: Path,
        starts: Sequence[Atoms],
        begin: Callable,
        steps: int,
        every: int,
        frames: int,
        title: str,
    ) -> list[Recording]:
        seed = int(digest([self.settings.seed, title]), 16)  # noise of its own for each run
        return record(folder, starts, begin, steps, every, every * frames, seed, title)
