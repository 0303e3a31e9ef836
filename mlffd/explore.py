# SPDX-License-Identifier: MIT
"""The on-policy step: run a student, and choose from where it went the frames that are new to it.

Runs at all temperatures and densities go in one batch. Candidates are frames at regular intervals and, of
runs that blew up, sane ones from shortly before. A teacher labels those chosen; the student learns from them.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms
from tqdm import tqdm

from mlffd.bundle import locate_bundle
from mlffd.dataset.pack import density
from mlffd.dataset.plan import all_positive, digest, locate, names
from mlffd.dataset.select import Environments, choose_new, novelties
from mlffd.dataset.starts import bare, read_starts, start_near
from mlffd.dataset.store import frames_hash
from mlffd.dynamics import Trajectories
from mlffd.engine import Engine
from mlffd.errors import ConfigError, MlffdError
from mlffd.files import replacing, write_atomically
from mlffd.graph import from_atoms
from mlffd.predict import array
from mlffd.students.student import Student

# what is new, and in which measure the report says how new
NOVELTY = {
    "features": "distance to the nearest known environment, in units of their spread",
    "committee": "standard deviation of the committee's forces, eV/Å",
    "random": "not measured",
}
# A run that has come so far from all that is known, in units of its spread, is lost: what follows tells of
# its error only. Water at 900 K came as far as 1.1 from what a student knew of 280 to 450 K; frames in which
# forces were wrong by eV/Å were at 3 and beyond.
LOST = 3.0
POOL = 3  # times as many frames as are wanted: the most disputed ones, of which the most different are chosen


@dataclass(frozen=True)
class Exploration:
    """Settings of one on-policy step, a table of a TOML file."""

    temperatures: list  # K
    frames: int  # to choose
    steps: int = 2000  # of each run
    interval: int = 50  # steps between candidates
    densities: list | None = None  # g/cm3; None: those of the starts
    start: str | list | None = None  # structure files; none: from the frames that are known
    replicas: int = 1  # runs at each temperature and density
    time_step: float = 0.5  # fs
    time_constant: float = 100.0  # fs, of the thermostat
    max_force: float = 50.0  # eV/Å; beyond it a run is cut
    selection: str = "features"  # or committee, of several students; or random, to compare with
    seed: int = 0

    def check(self, n_students: int) -> None:
        """Raise ConfigError if it cannot be meant."""
        wrong = None
        if n_students == 0:
            wrong = "there is no student to run"
        elif self.selection not in NOVELTY:
            wrong = f"no selection {self.selection!r}: one of {', '.join(NOVELTY)}"
        elif self.selection == "committee" and n_students < 2:
            wrong = "a committee has at least two students"
        elif not all_positive(self.temperatures):
            wrong = "temperatures must be above zero K"
        elif self.densities is not None and not all_positive(self.densities):
            wrong = "densities must be above zero g/cm3; leave them out for those of the starts"
        elif not all_positive([self.time_step, self.time_constant, self.max_force]):
            wrong = "time_step, time_constant and max_force must be above zero"
        elif min(self.frames, self.steps, self.interval, self.replicas) < 1:
            wrong = "frames, steps, interval and replicas must be at least 1"
        elif self.interval > self.steps:
            wrong = f"an interval of {self.interval} steps does not fit into {self.steps} steps"
        if wrong:
            raise ConfigError(f"exploration: {wrong}")


def explore(
    students: Sequence[Path | str],
    settings: Exploration,
    known: Sequence[Atoms],
    output: Path,
    directory: Path | str = ".",
) -> dict:
    """Run the first student and write ``frames`` frames that are new to it to ``output`` (extxyz).

    Args:
        students: bundles, or names of shipped ones; several are the committee that judges what is new.
        settings: what to run and how many to choose.
        known: the frames that the student was trained on.
        output: written whole or not at all; ``output``.json beside it holds the report.
        directory: where files that the settings name are looked for, then here.

    Returns:
        The report: ``trajectories`` (``title``, ``steps`` done, ``cut_because`` it blew up or was lost),
        ``n_cut``, ``candidates``, ``wanted`` and ``chosen`` (numbers of frames; fewer are chosen where no
        more are new), ``novelty`` of ``chosen`` and ``rest`` (median and largest). When it has been written
        before for the same settings, students and known frames, nothing is done again.

    Raises:
        ConfigError: settings that cannot be meant. MlffdError: no candidate is left.
    """
    settings.check(len(students))
    output = Path(output)
    report_path = output.with_name(output.name + ".json")
    starts = [locate(path, directory) for path in names(settings.start)]
    students = [locate_bundle(path) for path in students]
    key = _key(students, settings, starts, known)
    if output.exists() and report_path.exists():
        report = json.loads(report_path.read_text())
        if report["key"] == key:
            return report
    engines = [Engine(path) for path in students]
    runs = _Runs(engines[0], settings, read_starts(starts) if starts else known)
    candidates = runs.candidates()
    chosen, novelty = _choose(candidates, known, engines, runs, settings)
    report = {"key": key, **runs.report(), "candidates": len(candidates), "wanted": settings.frames}
    report["chosen"] = len(chosen)
    report["novelty"] = {"of": NOVELTY[settings.selection], **novelty}
    with replacing(output) as part:
        part.touch()  # ASE writes no file of no frames
        ase.io.write(part, [candidates[k] for k in chosen], format="extxyz")
    write_atomically(report_path, json.dumps(report, indent=1) + "\n")
    return report


def _key(students: list[Path], settings: Exploration, starts: list[Path], known: Sequence[Atoms]) -> str:
    """What stands for all that decides which frames are chosen."""
    contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in students]
    files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in starts if path.is_file()]
    return digest([contents, asdict(settings), files, frames_hash(known)])


class _Runs:
    """The student's runs over temperatures x densities x replicas, in one batch."""

    def __init__(self, engine: Engine, settings: Exploration, frames: Sequence[Atoms]):
        self.settings = settings
        if not frames:
            raise ConfigError("exploration: nothing to start from: give start, or frames that are known")
        grid = product(settings.temperatures, settings.densities or [None], range(settings.replicas))
        self.conditions = list(grid)
        # random numbers follow from seed and condition: the same runs, however many frames are chosen
        self.lost = [None] * len(self.conditions)
        self.names = [digest([settings.seed, *condition])[:16] for condition in self.conditions]
        seeds = [int(name, 16) for name in self.names]
        starts = [
            start_near(frames, rho, np.random.default_rng(seed))
            for (_, rho, _), seed in zip(self.conditions, seeds)
        ]
        self.trajectories = Trajectories(
            starts, engine.evaluate, settings.time_step, [t for t, _, _ in self.conditions],
            settings.time_constant, seed=seeds, max_force=settings.max_force,
        )  # fmt: skip

    def candidates(self) -> list[Atoms]:
        """Run, and return frames at regular intervals and from shortly before cuts, run by run.

        Raises:
            MlffdError: there is none.
        """
        found = [[] for _ in self.conditions]
        md, interval = self.trajectories, self.settings.interval
        n_intervals = self.settings.steps // interval
        for _ in tqdm(range(n_intervals), desc="exploring", unit=f" x {interval} steps"):
            md.run(interval)
            md.check()
            for run, atoms in enumerate(md.structures):
                if md.cut[run] is None:
                    found[run].append(self.frame(run, atoms, md.n_steps))
        for run, frames in enumerate(md.before_cut):
            before = [atoms for atoms in frames if atoms.info["step"] % interval]
            found[run] += [self.frame(run, atoms, atoms.info["step"]) for atoms in before]
            found[run].sort(key=lambda frame: frame.info["step"])
        if not any(found):
            raise MlffdError(f"exploration: every run blew up at its start ({md.cut[0]})")
        return [frame for frames in found for frame in frames]

    def until_lost(self, candidates: Sequence[Atoms], new: np.ndarray) -> np.ndarray:
        """Indices of candidates up to the first newer than LOST of each run, which is worth a label."""
        kept = []
        for k, (atoms, novelty) in enumerate(zip(candidates, new)):
            run = self.names.index(atoms.info["trajectory"])
            if self.lost[run] is None:
                kept.append(k)
                if not novelty < LOST:
                    self.lost[run] = (
                        f"left all that is known: novelty {novelty:.1f} at step {atoms.info['step']}"
                    )
        return np.array(kept, int)

    def conditions_of(self, candidates: Sequence[Atoms]) -> list[tuple]:
        """Temperature and density that the runs of the candidates were for."""
        of_name = {name: condition[:2] for name, condition in zip(self.names, self.conditions)}
        return [of_name[atoms.info["trajectory"]] for atoms in candidates]

    def frame(self, run: int, atoms: Atoms, step: int) -> Atoms:
        """A bare copy that tells where it comes from."""
        frame = bare(atoms)
        info = {"stage": "explore", "temperature": float(self.conditions[run][0])}
        frame.info |= {**info, "trajectory": self.names[run], "step": int(step)}
        if frame.cell.rank == 3:
            frame.info["density"] = round(float(density(frame)), 6)
        return frame

    def report(self) -> dict:
        """What became of the runs."""
        cut = self.trajectories.cut
        steps = [self.settings.steps // self.settings.interval * self.settings.interval] * len(cut)
        for run, frames in enumerate(self.trajectories.before_cut):
            if cut[run]:
                steps[run] = frames[-1].info["step"] if frames else 0
        titles = [
            f"{temperature:g} K" + (f" {rho:g} g/cm3" if rho else "") + f" #{replica}"
            for temperature, rho, replica in self.conditions
        ]
        reasons = [lost or why for lost, why in zip(self.lost, cut)]
        rows = [{"title": t, "steps": n, "cut_because": why} for t, n, why in zip(titles, steps, reasons)]
        return {"trajectories": rows, "n_cut": sum(why is not None for why in reasons)}


def _choose(
    candidates: list[Atoms], known: Sequence[Atoms], engines: list[Engine], runs: _Runs, settings: Exploration
) -> tuple[np.ndarray, dict]:
    """Indices of the chosen candidates, how new they and the rest are; tells runs where they were lost."""
    if settings.selection == "random":
        rng = np.random.default_rng(settings.seed)
        return np.sort(rng.permutation(len(candidates))[: settings.frames]), {}
    student = engines[0].student
    found, before = environments(student, candidates), environments(student, known)
    new, conditions = novelties(found, before), runs.conditions_of(candidates)
    kept = pool = runs.until_lost(candidates, new)
    if settings.selection == "committee":
        new[kept] = force_spread(engines, [candidates[k] for k in kept])
        pool = kept[most_in_each(new[kept], [conditions[k] for k in kept], settings.frames)]
    places, _ = choose_new(
        [found[k] for k in pool], before, settings.frames, conditions=[conditions[k] for k in pool]
    )
    chosen, rest = pool[places], np.setdiff1d(kept, pool[places])
    return chosen, {"chosen": _summary(new[chosen]), "rest": _summary(new[rest])}


def most_in_each(values: np.ndarray, conditions: list, count: int) -> np.ndarray:
    """Indices of the largest finite values of each condition: POOL times its share of ``count``."""
    kinds = sorted(set(conditions), key=conditions.index)
    share = POOL * -(-count // len(kinds))
    chosen = []
    for kind in kinds:
        own = np.array([k for k, condition in enumerate(conditions) if condition == kind])
        own = own[np.isfinite(values[own])]
        chosen += own[np.argsort(-values[own], kind="stable")[:share]].tolist()
    return np.array(sorted(chosen), int)


def _summary(values: np.ndarray) -> dict | None:
    if not len(values):
        return None
    return {"median": round(float(np.median(values)), 4), "largest": round(float(values.max()), 4)}


def environments(student: Student, structures: Sequence[Atoms]) -> list[Environments]:
    """The atoms of structures as the student tells them apart.

    Raises:
        ConfigError: it has no features.
    """
    with torch.no_grad():
        graphs = (from_atoms(atoms, student.cutoff, torch.float32) for atoms in structures)
        return [
            Environments(array(student.last_features(graph)), atoms.numbers)
            for graph, atoms in zip(graphs, structures)
        ]


def force_spread(engines: Sequence[Engine], structures: Sequence[Atoms]) -> np.ndarray:
    """How far a committee is apart on each structure (n_structures,) in eV/Å.

    The standard deviation of the forces on an atom, root mean square over atoms: for three small students of
    water it goes with the force error of frames as well as features do (Spearman's correlation 0.90); that of
    the worst atom does less (0.77). Inf where a member cannot evaluate the structure.
    """
    return np.array([_spread(engines, atoms) for atoms in structures])


def _spread(engines: Sequence[Engine], atoms: Atoms) -> float:
    try:
        forces = np.array([engine.evaluate(atoms)[0].forces for engine in engines])
    except MlffdError:
        return np.inf
    return float(np.sqrt(((forces - forces.mean(axis=0)) ** 2).sum(axis=2).mean()))
