# SPDX-License-Identifier: MIT
"""The measurements of a fidelity report, as the JSON that mlffd/report/ judges and turns into a page.

    {"format": 1, "student": {...}, "teacher": {...}, "conditions": {...}, "environment": {...},
     "command": "...",
     "lines": [{"name", "title", "value", "error", "unit", "note"}],
     "curves": [{"name", "x", "x_label", "y_label", "teacher", "teacher_error", "student", "student_error"}],
     "tables": [{"title", "columns", "rows"}], "files": {...}}

A value of None was not measured, and the note says why. What is done is kept in the report's folder and not
done again; a teacher's trajectory goes on where it was stopped.
"""

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path

import torch

from mlffd.bundle import Bundle, read_bundle
from mlffd.dataset.evaluate import Recipe
from mlffd.dataset.frames import read_frames
from mlffd.dataset.plan import locate, names
from mlffd.dataset.store import LabelledSet, frames_hash, read_labels
from mlffd.domain import KEY as DOMAIN
from mlffd.engine import Engine
from mlffd.environment import commit, cpu_model, installed_version, load_average, sha256_of
from mlffd.errors import ConfigError, TeacherError
from mlffd.evaluation import evaluate_with
from mlffd.fidelity.beside import Findings, Pair
from mlffd.fidelity.compare import compare
from mlffd.fidelity.config import FidelityConfig
from mlffd.fidelity.envelope import outside_line
from mlffd.fidelity.errors import FrameErrors, error_lines, error_tables, frame_errors, write_worst_frames
from mlffd.fidelity.gradient import gradient_test
from mlffd.fidelity.lines import line, plain, table
from mlffd.fidelity.motion import block_groups, cut_line, drift_line, trajectory_table
from mlffd.fidelity.runs import Runs, choose_starts, digest
from mlffd.fidelity.second_teacher import NAMES as BY_SECOND_TEACHER
from mlffd.fidelity.second_teacher import second_teacher_lines
from mlffd.fidelity.speed import speed_lines, time_both
from mlffd.fidelity.teacher import TeacherProcesses, evaluate_afresh
from mlffd.files import write_atomically
from mlffd.teachers import Teacher, load_teacher
from mlffd.teachers.ase_factory import SOURCE

FORMAT = 1
ROOM = Path(__file__).parent
MEASURING = [
    *sorted(ROOM.glob("*.py")),
    *(ROOM.parent / f"{name}.py" for name in ("dynamics", "evaluation", "replicas", "speed")),
]
CODE = [sha256_of(path) for path in MEASURING]
NO_MATTER = ("parts", "workers", "runs")  # settings on which no figure depends
PACKAGES = ("mlffd", "torch", "numpy", "ase", "sevenn")


def measure(
    bundle_path: str | Path,
    held_out: LabelledSet,
    teacher_spec: dict | str | None,
    settings: FidelityConfig,
    folder: str | Path,
    directory: str | Path = ".",
    command: str | None = None,
) -> dict:
    """Measure a student beside its teacher, and return the report's JSON.

    Args:
        bundle_path: student bundle, or name of a shipped student.
        held_out: labels that the student was not trained on.
        teacher_spec: for ``load_teacher``, files it names being relative to ``directory``; None: there is no
            teacher here, and what needs one is left out.
        settings: how long, how hot, which parts.
        folder: for trajectories, label file of the teacher's own dynamics, worst frames.
        command: that asked for it; by default that of this process.

    Raises:
        ConfigError: the student was trained on these labels, or they are of another teacher.
        BundleError, TeacherError, LabelError, StructureError: with one line that says what is wrong.
    """
    return Measurement(
        read_bundle(bundle_path), held_out, teacher_spec, settings, Path(folder), Path(directory), command
    ).report()


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One report in the making; see ``measure``."""

    bundle: Bundle
    held_out: LabelledSet
    teacher_spec: dict | str | None
    settings: FidelityConfig
    folder: Path
    directory: Path
    command: str | None = None

    def report(self) -> dict:
        self.check()
        (self.folder / "parts").mkdir(parents=True, exist_ok=True)
        found = Findings()
        try:
            measured = {name: self.part(name) for name in self.settings.parts}
        finally:
            if self.crew:
                self.crew.end()
        for name in ORDER:
            part = measured.get(name, {})
            found.add(Findings(*(part.get(kind, []) for kind in ("lines", "curves", "tables"))))
        if "errors" in measured:  # another student's report may have left its own there
            copy_if_different(self.kept(WORST), self.folder / WORST)
        files = {key: name for part in measured.values() for key, name in part.get("files", {}).items()}
        return {
            "format": FORMAT,
            "student": self.student_facts(),
            "teacher": {**(self.teacher_facts or {}), **measured.get("gradient", {}).get("teacher", {})},
            "conditions": self.conditions(),
            "environment": environment(),
            "command": self.command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            **vars(found),
            "files": files,
        }

    def check(self) -> None:
        """Refuse what would make a report that means nothing."""
        of_training = self.bundle.metadata.get("labels", {})
        seen = {of_training.get("sha256"), *of_training.get("seen", [])}
        if seen & set(self.held_out.hashes):
            raise ConfigError(
                "the student was trained on these labels, or chosen by them: a report needs held-out ones"
            )
        labelled_by, students = self.held_out.metadata["teacher"], self.bundle.metadata.get("teacher")
        for who, other in (("the teacher here", self.teacher_facts), ("the student's", students)):
            if other and identity(other) != identity(labelled_by):
                raise ConfigError(
                    f"the held-out labels are by {identity(labelled_by)}, {who} is {identity(other)}"
                )

    @cached_property
    def teacher(self):
        """The loaded teacher; None where there is none."""
        return (
            None if self.teacher_spec is None else load_teacher(self.teacher_spec, directory=self.directory)
        )

    @cached_property
    def teacher_facts(self) -> dict | None:
        return self.teacher and self.teacher.description()

    @cached_property
    def evaluate_teacher(self) -> Callable | None:
        return self.teacher and evaluate_afresh(self.teacher.calculator)

    @cached_property
    def second(self) -> Teacher | None:
        """The second teacher, where one is named."""
        spec = self.settings.second_teacher
        return None if spec is None else load_teacher(spec, directory=self.directory)

    @cached_property
    def crew(self) -> TeacherProcesses | None:
        """For the trajectory, where several processes are wanted."""
        if self.teacher is None or self.settings.workers == 1:
            return None
        recipe = Recipe(self.teacher_spec, directory=str(self.directory))
        return TeacherProcesses(recipe, min(self.settings.workers, self.settings.replicas))

    @cached_property
    def exact(self) -> Engine:
        """The student in float64, for errors."""
        return Engine(self.bundle, dtype="float64")

    @cached_property
    def runs(self) -> Runs:
        settings = self.settings
        files = [locate(path, self.directory) for path in names(settings.start)]
        structures = [atoms for path in files for atoms in read_frames(path)] or self.held_out.structures
        starts = choose_starts(structures, settings.replicas, settings.temperature)
        evaluate = self.crew or self.evaluate_teacher
        folder = self.directory / settings.runs if settings.runs else self.folder / "runs"
        return Runs(self.bundle, starts, settings, folder, self.teacher_facts, evaluate)

    def part(self, name: str) -> dict:
        """Lines, curves, tables and files of a part; from disk if measured under the same conditions."""
        try:
            path = self.kept(f"{name}.json", of_teacher=name == "gradient", **self.conditions_of(name))
            if path.exists():
                return json.loads(path.read_text())
            found = PARTS_OF[name](self)
        except TeacherError as error:  # not kept, so that it is tried again
            return nothing(str(error), BY_TEACHER.get(name, ()))
        write_atomically(path, json.dumps(plain_part(found), indent=1) + "\n")
        return found

    def kept(self, name: str, of_teacher: bool = False, **more) -> Path:
        """The file of that name for these labels, this teacher, these settings and starts, and, but for what
        is ``of_teacher`` alone, this student; for the code that measured, whose figures it has; and for
        ``more``."""
        settings = {key: value for key, value in vars(self.settings).items() if key not in NO_MATTER}
        starts = frames_hash(self.runs.raw_starts)
        facts = [CODE, self.held_out.hash, self.teacher_facts, settings, starts, more]
        if not of_teacher:
            facts += [self.bundle.weights_sha256, self.bundle.metadata.get(DOMAIN)]
        return self.folder / "parts" / f"{digest(facts)}_{name}"

    def conditions_of(self, part: str) -> dict:
        """What else the figures of a part depend on."""
        if part == "speed":
            return {"cpu": cpu_model(), "threads": torch.get_num_threads()}
        if part == "second_teacher" and self.second is not None:
            return {"second": self.second.description()}
        if part in BY_RUNS:
            return {"base": self.runs.base.name, "fast": self.runs.fast.weights_sha256}
        return {}

    def student_facts(self) -> dict:
        student = self.bundle.student
        return {
            "name": self.bundle.name, "family": student.family,
            "parameters": sum(parameter.numel() for parameter in student.parameters()),
            "weights_sha256": self.bundle.weights_sha256, "architecture": student.architecture,
        }  # fmt: skip

    def conditions(self) -> dict:
        """The settings, and what was judged on."""
        labels = self.held_out
        facts = {
            "sha256": labels.hash,
            "n_frames": len(labels),
            "n_failed": len(labels.metadata.get("failed", {})),
        }
        return {**dataclasses.asdict(self.settings), "held_out": facts}

    # the parts

    def errors(self) -> dict:
        """On the held-out frames."""
        found = frame_errors(self.exact, self.held_out)
        path = self.kept(WORST)
        rows = write_worst_frames(path, self.exact, self.held_out, found, self.settings.worst_frames)
        columns = ["frame", "force MAE, meV/Å", "worst atom", "its error, meV/Å"]
        worst = table(f"Worst held-out frames ({WORST})", columns, rows)
        tables = [*error_tables(found, self.held_out.structures), worst]
        return {"lines": error_lines(found), "tables": tables, "files": {"worst_frames": WORST}}

    def gradient(self) -> dict:
        """Of the teacher."""
        name = "teacher_gradient_error"
        if self.teacher is None:
            return nothing(NO_TEACHER, [name])
        settings = self.settings
        found = gradient_test(
            self.evaluate_teacher, self.runs.raw_starts, settings.gradient_directions, settings.seed
        )
        if found is None:
            return nothing("all forces vanish", [name])
        return {"lines": [found.line()], "teacher": {"conservative": found.conservative}}

    def second_teacher(self) -> dict:
        """Where one is named."""
        if self.second is None:
            return {}
        return {"lines": second_teacher_lines(self.exact, self.held_out, self.second)}

    def student(self) -> dict:
        """The student's own runs at the temperature."""
        runs = self.runs
        lines = [cut_line("cut_trajectories", runs, runs.student, self.settings.temperature, "student")]
        lines.append(outside_line(Engine(self.bundle), runs.student))
        return {
            "lines": lines,
            "tables": [trajectory_table("Student's trajectories", runs.student, self.settings)],
        }

    def hot(self) -> dict:
        temperature = self.settings.temperature * self.settings.hot_factor
        return {"lines": [cut_line("cut_trajectories_hot", self.runs, self.runs.hot, temperature, "hot")]}

    def constant_energy(self) -> dict:
        return {"lines": [drift_line(self.runs.constant_energy, self.settings.time_step)]}

    def speed(self) -> dict:
        """Of both, one after the other, at the first start."""
        start, began, engine = self.runs.raw_starts[0], load_average(), Engine(self.bundle)
        teacher = self.teacher and evaluate_with(self.teacher.calculator)  # it may remember what helps it
        student, teacher = time_both(engine.evaluate, teacher, start)
        note = f"{len(start)} atoms, {torch.get_num_threads()} threads, backend {engine.backend}, "
        note += f"load {began:g} before and {load_average():g} after"
        lines = speed_lines(student, teacher, note)
        if teacher is None:
            lines += nothing(NO_TEACHER, BY_TEACHER["speed"][1:])["lines"]
        return {"lines": lines}

    def teacher_part(self) -> dict:
        """The teacher's own trajectory: what its labels say, and the student's trajectory beside it."""
        if self.teacher is None:
            return nothing(NO_TEACHER, BY_TRAJECTORIES)
        runs = self.runs
        if not runs.starts:
            return nothing("every start blew up while the student equilibrated it", BY_TRAJECTORIES)
        tables = [trajectory_table(runs.how_the_teacher_ran, runs.teacher_md, self.settings)]
        if not any(len(replica) for replica in runs.teacher_md):
            why = f"the teacher's run was cut at once: {runs.teacher_md[0].cut}"
            return {**nothing(why, BY_TRAJECTORIES), "tables": tables}
        path = self.folder / "teacher_md.h5"
        runs.write_teacher_labels(path)
        along = frame_errors(self.exact, read_labels(path))
        along = dataclasses.replace(along, groups=block_groups(runs.teacher_md))
        found = self.side_by_side()
        found["lines"] = [teacher_md_line(along), *found["lines"]]
        return {**found, "tables": tables + found.get("tables", []), "files": {"teacher_md": path.name}}

    def side_by_side(self) -> dict:
        """The replicas that came through with both, after they have settled."""
        runs, settings = self.runs, self.settings
        both = zip(runs.teacher_md, runs.student)
        settled = [(one.after(settings.settling), other.after(settings.settling)) for one, other in both]
        whole = [pair for pair in settled if all(run.cut is None and len(run) for run in pair)]
        if not whole:
            return nothing("no replica came through with both teacher and student", BY_TRAJECTORIES[1:])
        pair = Pair(*zip(*whole), settings.time_step, settings.temperature)
        return vars(compare(pair, settings.rdf_range, n_lost=len(settled) - len(whole)))


WORST = "worst.xyz"
NO_TEACHER = "there is no teacher here to measure with"
BY_TRAJECTORIES = (
    "teacher_md_force_mae", "rdf_peak_position", "rdf_peak_height", "pressure_difference", "diffusion_ratio",
)  # fmt: skip
BY_RUNS = ("teacher", "student", "hot", "constant_energy")  # parts that trajectories are run for
BY_TEACHER = {
    "teacher": BY_TRAJECTORIES,
    "speed": ("student_us_per_atom", "teacher_us_per_atom", "speedup"),
    "gradient": ("teacher_gradient_error",),
    "second_teacher": BY_SECOND_TEACHER,
}
PARTS_OF = {
    "errors": Measurement.errors, "gradient": Measurement.gradient,
    "second_teacher": Measurement.second_teacher, "teacher": Measurement.teacher_part,
    "student": Measurement.student, "hot": Measurement.hot, "constant_energy": Measurement.constant_energy,
    "speed": Measurement.speed,
}  # fmt: skip
ORDER = (
    "errors", "second_teacher", "teacher", "student", "hot", "constant_energy", "speed", "gradient",
)  # on the page # fmt: skip


def identity(teacher: dict) -> str:
    """What tells a teacher from another: name, settings, and of somebody's own module its source."""
    words = [str(teacher.get("name")), json.dumps(teacher.get("settings", {}), sort_keys=True)]
    version = str(teacher.get("version", ""))
    return " ".join([*words, version] if version.startswith(SOURCE) else words)


def nothing(why: str, names: Sequence[str]) -> dict:
    """Lines that could not be measured."""
    return {"lines": [line(name, None, None, why) for name in names]}


def teacher_md_line(along: FrameErrors) -> dict:
    """Force error along the teacher's own trajectory; energies and stresses in the note."""
    force, _, energy, *rest = error_lines(along)
    others = [f"{one['unit']}: {one['value']:.3g}" for one in (energy, *rest) if one["value"] is not None]
    note = f"{len(along.energies)} frames, teacher_md.h5; MAE of energy and stress, " + ", ".join(others)
    return {**line("teacher_md_force_mae", force["value"], force["error"], note)}


def copy_if_different(source: Path, target: Path) -> None:
    content = source.read_bytes()
    if not target.exists() or target.read_bytes() != content:
        write_atomically(target, content)


def plain_part(found: dict) -> dict:
    return {
        key: plain_part(value) if isinstance(value, dict) else plain(value) for key, value in found.items()
    }


def environment() -> dict:
    """Where, when and with what it was measured."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "commit": commit() or "unknown",
        "cpu": cpu_model(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "load_average": load_average(), "versions": {name: installed_version(name) for name in PACKAGES},
    }  # fmt: skip
