# SPDX-License-Identifier: MIT
"""Sample structures by molecular dynamics, for a teacher to label.

plan.py tells which trajectories a config asks for. A finished trajectory is kept on disk and never
run again; its random numbers follow from its settings alone. A student runs all trajectories of a stage
in one batch, any other calculator one after the other.
"""

import json
import shutil
from functools import partial
from itertools import groupby
from pathlib import Path

import ase.io
import numpy as np
from ase.calculators.calculator import BaseCalculator, Calculator, all_changes
from ase.optimize import FIRE
from tqdm import tqdm

from mlffd.dataset.pack import density, packed_box
from mlffd.dataset.plan import digest, locate, names, plan
from mlffd.dataset.starts import bare, read_starts, start_near
from mlffd.dynamics import BLOW_UPS, Trajectories
from mlffd.errors import ConfigError, MlffdError
from mlffd.evaluation import evaluate_with
from mlffd.files import replacing, write_atomically
from mlffd.teachers import load_teacher

CHUNK = 50  # steps between two looks at the progress
RELAXED = 0.5  # eV/Å; forces up to this are left to the dynamics


def sample(config, output, load_calculator=None, directory="."):
    """Run every trajectory of `config` and write the frames kept to `output` (extxyz), whole or not at all.

    `load_calculator(spec)` returns the ASE calculator for a calculator table of the config, or an engine; by
    default a teacher. Files that the config names are looked for in `directory`, then here. `output`.json
    tells what became of each trajectory, and why one was cut. Returns that report.
    Raises ConfigError for a config that cannot be meant, MlffdError when not one sane frame came out.
    """
    output, directory = Path(output), Path(directory)
    trajectories = plan(config, directory)
    report_path = output.with_name(output.name + ".json")
    key = digest([t.key for t in trajectories])
    if output.exists() and report_path.exists():
        report = json.loads(report_path.read_text())
        if report["key"] == key:
            return report
    parts = output.with_name(output.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    load = load_calculator or partial(_teacher_calculator, directory=directory)
    with tqdm(total=sum(t.n_steps for t in trajectories), unit="step", desc="sampling") as progress:
        _run_all(trajectories, parts, _Calculators(load), directory, progress)
    runs = [json.loads(_report_part(parts, t).read_text()) for t in trajectories]
    _join(trajectories, parts, output)
    report = {"key": key, "frames": sum(r["kept"] for r in runs), "trajectories": runs}
    write_atomically(report_path, json.dumps(report, indent=1) + "\n")
    shutil.rmtree(parts)
    return report


def _teacher_calculator(spec, directory):
    return load_teacher(spec, directory=directory).calculator


class _Calculators:
    """Calculators or engines by their table of the config, each loaded once."""

    def __init__(self, load):
        self.load, self.loaded = load, {}

    def __getitem__(self, spec):
        key = digest(spec)
        if key not in self.loaded:
            self.loaded[key] = self.load(spec)
        return self.loaded[key]


def _run_all(trajectories, parts, calculators, directory, progress):
    """Run what has not been run, stage by stage, and leave frames and a report of each in `parts`."""
    for _, stage in groupby(trajectories, key=lambda t: t.settings["name"]):
        stage = list(stage)
        missing = [t for t in stage if not _report_part(parts, t).exists()]
        progress.update(sum(t.n_steps for t in stage) - sum(t.n_steps for t in missing))
        if missing:
            calculator = calculators[missing[0].settings["calculator"]]
            one_by_one = isinstance(calculator, BaseCalculator)
            for group in [[t] for t in missing] if one_by_one else [missing]:
                progress.set_postfix_str(group[0].title + (" ..." if len(group) > 1 else ""))
                evaluate = _afresh(calculator) if one_by_one else calculator.evaluate
                for trajectory, found in zip(group, run_trajectories(group, evaluate, directory, progress)):
                    _keep(trajectory, *found, parts, progress)


def _afresh(calculator):
    """Evaluate with a calculator that has forgotten the trajectory before: it may have been run yesterday."""
    if hasattr(calculator, "reset"):
        calculator.reset()
    return evaluate_with(calculator)


def _keep(trajectory, frames, reason, parts, progress):
    """Write what a trajectory came to; its report last."""
    if reason:
        progress.write(f"{trajectory.title} blew up, cut after {len(frames)} frames: {reason}")
    if frames:
        with replacing(_part(parts, trajectory)) as part:
            ase.io.write(part, frames, format="extxyz")
    report = {
        "trajectory": trajectory.key[:16],
        "title": trajectory.title,
        "wanted": trajectory.settings["frames"],
        "kept": len(frames),
        "cut_because": reason,
    }
    write_atomically(_report_part(parts, trajectory), json.dumps(report))


def run_trajectories(trajectories, evaluate, directory=Path("."), progress=None):
    """Run trajectories of one stage in one batch; of each its frames and why it was cut or None.

    `evaluate` is an Evaluate of mlffd.dynamics. Raises what evaluating the starts raises: a set-up that is
    wrong must not pass for a blow-up.
    """
    settings = trajectories[0].settings
    rngs = [np.random.default_rng(int(t.key[:16], 16)) for t in trajectories]
    starts = _starts(trajectories, directory, rngs)
    evaluate(starts)
    frames, cut = [[] for _ in trajectories], [_relax(atoms, evaluate, settings["relax"]) for atoms in starts]
    running = [k for k, reason in enumerate(cut) if reason is None]
    if not running:
        return list(zip(frames, cut))
    md = _dynamics([trajectories[k] for k in running], [starts[k] for k in running], evaluate)
    for n in range(settings["frames"]):
        steps = settings["interval"] + (settings["equilibration"] if n == 0 else 0)
        _advance(md, steps, progress, len(trajectories))
        md.check()
        for k, atoms, reason in zip(running, md.structures, md.cut):
            cut[k] = reason
            if reason is None:
                frames[k].append(_frame(atoms, n, trajectories[k], md.n_steps, rngs[k]))
    return list(zip(frames, cut))


def _starts(trajectories, directory, rngs):
    """A start (Atoms) for each trajectory of a stage."""
    settings = trajectories[0].settings
    if settings["composition"] is not None:
        return [
            packed_box(settings["composition"], t.settings["density"], rng, directory)
            for t, rng in zip(trajectories, rngs)
        ]
    frames = read_starts([locate(path, directory) for path in names(settings["start"])])
    starts = [start_near(frames, t.settings["density"], rng) for t, rng in zip(trajectories, rngs)]
    if settings["strain_fraction"] and any(atoms.cell.rank < 3 for atoms in starts):
        raise ConfigError(f"stage {settings['name']}: a start without a cell cannot be strained")
    return starts


class _Calculator(Calculator):
    """An Evaluate in the clothes that ASE's optimizers know."""

    implemented_properties = ("energy", "forces")

    def __init__(self, evaluate):
        super().__init__()
        self.evaluate = evaluate

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)):
        super().calculate(atoms, properties, system_changes)
        (found,) = self.evaluate([self.atoms])
        self.results = {"energy": found.energy, "forces": found.forces}


def _relax(atoms, evaluate, most_steps):
    """Minimize the energy in place; why that cannot be done, or None."""
    if most_steps == 0:
        return None
    atoms.calc = _Calculator(evaluate)
    try:
        FIRE(atoms, logfile=None).run(fmax=RELAXED, steps=most_steps)
    except BLOW_UPS as error:
        return f"{type(error).__name__}: {error}"
    finally:
        atoms.calc = None
    return None


def _dynamics(trajectories, starts, evaluate):
    settings = trajectories[0].settings
    return Trajectories(
        starts,
        evaluate,
        settings["time_step"],
        [t.settings["temperature"] for t in trajectories],
        settings["time_constant"],
        seed=[int(t.key[16:32], 16) for t in trajectories],
        max_force=settings["max_force"],
    )


def _advance(md, steps, progress, n_trajectories):
    done = 0
    while done < steps:
        chunk = min(CHUNK, steps - done)
        md.run(chunk)
        done += chunk
        if progress is not None:
            progress.update(chunk * n_trajectories)


def _frame(atoms, n, trajectory, step, rng):
    """A bare copy of the atoms that tells where it comes from, rattled or strained if it is its turn."""
    settings = trajectory.settings
    frame = bare(atoms)
    frame.info |= {
        "stage": settings["name"],
        "temperature": float(settings["temperature"]),
        "trajectory": trajectory.key[:16],
        "step": int(step),
    }
    if atoms.cell.rank == 3:
        frame.info["density"] = round(float(density(frame)), 6)
    if _turn(n, settings["rattle_fraction"]):
        stdev = rng.uniform(*settings["rattle_stdev"])
        frame.positions += rng.normal(scale=stdev, size=frame.positions.shape)
        frame.info["rattle"] = round(float(stdev), 6)
    if _turn(
        settings["frames"] - 1 - n, settings["strain_fraction"]
    ):  # others than those rattled, if it can be
        stdev = rng.uniform(*settings["strain_stdev"])
        strain = rng.normal(scale=stdev, size=(3, 3))
        frame.set_cell(frame.cell.array @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
        frame.info["strain"] = round(float(stdev), 6)
    return frame


def _turn(n, fraction):
    """Is it the turn of number n, so that `fraction` of all have one?"""
    return int((n + 1) * fraction + 1e-9) > int(n * fraction + 1e-9)


def _part(parts, trajectory):
    return parts / f"{trajectory.key[:16]}.xyz"


def _report_part(parts, trajectory):
    return parts / f"{trajectory.key[:16]}.json"


def _join(trajectories, parts, output):
    texts = [_part(parts, t).read_text() for t in trajectories if _part(parts, t).exists()]
    if not texts:
        raise MlffdError("sampling kept not one frame: every trajectory blew up at its start")
    write_atomically(output, "".join(texts))
