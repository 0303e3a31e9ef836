# SPDX-License-Identifier: MIT
"""Sample structures by molecular dynamics, for a teacher to label.

A sampling config names a calculator to drive the dynamics and a list of stages; every stage is a
grid of temperatures x densities x replicas, and every point of it is one trajectory. A finished
trajectory is kept on disk and never run again; its random numbers follow from its settings alone.
"""

import difflib
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import ase.io
import numpy as np
from ase import units
from ase.io.formats import UnknownFileTypeError
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.neighborlist import natural_cutoffs, neighbor_list
from ase.optimize import FIRE
from tqdm import tqdm

from mlffd.dataset.pack import density, packed_box
from mlffd.errors import ConfigError, MlffdError
from mlffd.teachers import load_teacher

# a stage's settings; None: no default
STAGE = {
    "name": None,
    "calculator": None,  # as the config's own, for this stage only
    "start": None,  # a structure file; a trajectory starts from a frame of it with the nearest density
    "composition": None,  # or a packed box, such as { H2O = 64 }
    "temperatures": None,  # K
    "densities": None,  # g/cm3; may be left out with `start`
    "frames": None,  # kept per trajectory
    "interval": None,  # steps between kept frames
    "replicas": 1,
    "equilibration": 0,  # steps before the first interval
    "relax": 0,  # most steps of energy minimisation before the dynamics
    "timestep_fs": 0.5,
    "thermostat": "langevin",  # or "bussi"
    "time_constant_fs": 100.0,  # of the thermostat
    "rattle_fraction": 0.0,  # of the kept frames, displaced at random when written
    "rattle_stdev": [0.02, 0.05],  # Å; each rattled frame draws one between these
    "max_force": 50.0,  # eV/Å; beyond it a trajectory counts as blown up
}
REQUIRED = ("name", "temperatures", "frames", "interval")
CHECK_STEPS = 10  # how often a running trajectory is looked at
# what calculators raise for structures out of any order; set-up errors surface before the dynamics
BLOW_UPS = (MlffdError, ValueError, ArithmeticError)


class BlownUpError(MlffdError):
    """A trajectory left all reason; its frames up to the last sane one are kept."""


@dataclass(frozen=True)
class Trajectory:
    """One run: the settings that determine it, and the key (sha256) that stands for them."""

    settings: dict
    key: str

    @property
    def title(self):
        """For people: stage, temperature, density."""
        s = self.settings
        at = f" {s['density']:g} g/cm3" if s["density"] else ""
        return f"{s['name']} {s['temperature']:g} K{at} #{s['replica']}"

    @property
    def n_steps(self):
        """MD steps of the whole run."""
        return self.settings["equilibration"] + self.settings["frames"] * self.settings["interval"]


def sample(config, output, load_calculator=None, directory="."):
    """Run every trajectory of `config` and write the frames kept to `output` (extxyz), whole or not at all.

    `load_calculator(spec)` returns the ASE calculator for a calculator table of the config; by default
    a teacher. Files named in the config are relative to `directory`. `output`.json tells what became
    of each trajectory, and why one was cut. Returns that report.
    Raises ConfigError for a config that cannot be meant, MlffdError when not one sane frame came out.
    """
    output, directory = Path(output), Path(directory)
    trajectories = plan(config, directory)
    report_path = output.with_name(output.name + ".json")
    key = _digest([t.key for t in trajectories])
    if output.exists() and report_path.exists():
        report = json.loads(report_path.read_text())
        if report["key"] == key:
            return report
    parts = output.with_name(output.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    if load_calculator is None:
        load_calculator = partial(_teacher_calculator, directory=directory)
    calculators = _Calculators(load_calculator)
    runs = []
    with tqdm(total=sum(t.n_steps for t in trajectories), unit="step", desc="sampling") as progress:
        for trajectory in trajectories:
            progress.set_postfix_str(trajectory.title)
            runs.append(_finished_or_run(trajectory, parts, calculators, directory, progress))
    _join(trajectories, parts, output)
    report = {"key": key, "frames": sum(r["kept"] for r in runs), "trajectories": runs}
    _write_atomic(report_path, json.dumps(report, indent=1) + "\n")
    shutil.rmtree(parts)
    return report


def _teacher_calculator(spec, directory):
    return load_teacher(spec, directory=directory).calculator


def plan(config, directory="."):
    """The list of Trajectory that a sampling config asks for, checked."""
    _check_keys("the sampling config", config, ("seed", "calculator", "stages"))
    if not config.get("stages"):
        raise ConfigError("the sampling config has no [[stages]]")
    stages = [_stage(stage, config) for stage in config["stages"]]
    names = [stage["name"] for stage in stages]
    if len(set(names)) < len(names):
        raise ConfigError(f"two stages share a name: {', '.join(sorted(names))}")
    return [t for stage in stages for t in _grid(stage, config.get("seed", 0), Path(directory))]


def _stage(stage, config):
    _check_keys("a stage", stage, STAGE)
    stage = {**STAGE, **stage}
    stage["calculator"] = stage["calculator"] or config.get("calculator")
    missing = [key for key in (*REQUIRED, "calculator") if stage[key] is None]
    if missing:
        raise ConfigError(f"stage {stage['name']}: {missing[0]} is missing")
    if (stage["start"] is None) == (stage["composition"] is None):
        raise ConfigError(f"stage {stage['name']}: give either start or composition")
    if stage["composition"] is not None and not stage["densities"]:
        raise ConfigError(f"stage {stage['name']}: a composition needs densities (g/cm3)")
    if stage["thermostat"] not in ("langevin", "bussi"):
        raise ConfigError(f"stage {stage['name']}: no thermostat {stage['thermostat']}: langevin or bussi")
    return stage


def _check_keys(what, table, known):
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
            raise ConfigError(f"{what} has no setting {key!r}: {hint}")


def _grid(stage, seed, directory):
    """Trajectories of a stage: temperatures x densities x replicas."""
    common = {k: v for k, v in stage.items() if k not in ("temperatures", "densities", "replicas")}
    common["files"] = {
        path: _file_digest(directory / path)
        for path in (stage["start"], _bundle(stage["calculator"]))
        if path is not None and (directory / path).is_file()
    }
    for temperature, rho, replica in product(
        stage["temperatures"], stage["densities"] or [None], range(stage["replicas"])
    ):
        settings = {**common, "temperature": temperature, "density": rho, "replica": replica, "seed": seed}
        yield Trajectory(settings, _digest(settings))


def _bundle(spec):
    return spec.get("bundle") if isinstance(spec, dict) else None


def _digest(settings):
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _file_digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Calculators:
    """Calculators by their table in the config, each loaded once."""

    def __init__(self, load):
        self.load, self.loaded = load, {}

    def __getitem__(self, spec):
        key = _digest(spec)
        if key not in self.loaded:
            self.loaded[key] = self.load(spec)
        return self.loaded[key]


def _finished_or_run(trajectory, parts, calculators, directory, progress):
    """Report of a trajectory, from disk if it has been run; the report is written last."""
    report_path = parts / f"{trajectory.key[:16]}.json"
    if report_path.exists():
        progress.update(trajectory.n_steps)
        return json.loads(report_path.read_text())
    calculator = calculators[trajectory.settings["calculator"]]
    frames, reason = run_trajectory(trajectory, calculator, directory, progress)
    if reason:
        progress.write(f"{trajectory.title}: cut after {len(frames)} frames: {reason}")
    if frames:
        _write_frames(_part(parts, trajectory), frames)
    report = {
        "trajectory": trajectory.key[:16],
        "title": trajectory.title,
        "wanted": trajectory.settings["frames"],
        "kept": len(frames),
        "cut_because": reason,
    }
    _write_atomic(report_path, json.dumps(report))
    return report


def run_trajectory(trajectory, calculator, directory=Path("."), progress=None):
    """Frames (list of Atoms without calculator) of one trajectory, and why it was cut or None."""
    settings = trajectory.settings
    rng = np.random.default_rng(int(trajectory.key[:16], 16))
    atoms = _start(settings, directory, rng)
    atoms.calc = calculator
    atoms.get_forces()  # what is wrong with the set-up itself must not pass for a blow-up
    frames = []
    try:
        if settings["relax"]:
            FIRE(atoms, logfile=None).run(fmax=0.5, steps=settings["relax"])
        dynamics = _dynamics(atoms, settings, rng)
        for n in range(settings["frames"]):
            steps = settings["interval"] + (settings["equilibration"] if n == 0 else 0)
            _advance(dynamics, steps, progress)
            _check_sane(atoms, settings)
            frames.append(_frame(atoms, n, trajectory, dynamics.nsteps, rng))
    except BLOW_UPS as error:
        return frames, f"{type(error).__name__}: {error}".removeprefix("BlownUpError: ")
    return frames, None


def _start(settings, directory, rng):
    if settings["composition"] is not None:
        return packed_box(settings["composition"], settings["density"], rng)
    path = directory / settings["start"]
    try:
        frames = ase.io.read(path, index=":")
    except (OSError, ValueError, KeyError, UnknownFileTypeError) as error:
        raise ConfigError(f"cannot read start structures from {path}: {error}") from error
    target = settings["density"]
    if target is not None:
        misfits = np.array([abs(density(frame) - target) for frame in frames])
        frames = [frames[k] for k in np.flatnonzero(misfits < misfits.min() + 1e-3)]
    chosen = frames[rng.integers(len(frames))]
    atoms = type(chosen)(chosen.numbers, positions=chosen.positions, cell=chosen.cell, pbc=chosen.pbc)
    if target is not None:
        atoms.set_cell(atoms.cell * (density(atoms) / target) ** (1 / 3), scale_atoms=True)
    return atoms


def _dynamics(atoms, settings, rng):
    temperature, fs = settings["temperature"], units.fs
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    Stationary(atoms)
    time_constant = settings["time_constant_fs"] * fs
    timestep = settings["timestep_fs"] * fs
    if settings["thermostat"] == "bussi":
        dynamics = Bussi(atoms, timestep, temperature_K=temperature, taut=time_constant, rng=rng)
    else:
        dynamics = Langevin(atoms, timestep, temperature_K=temperature, friction=1 / time_constant, rng=rng)
    dynamics.attach(lambda: _check_motion(atoms, temperature), interval=CHECK_STEPS)
    return dynamics


def _advance(dynamics, steps, progress):
    done = 0
    while done < steps:
        chunk = min(50, steps - done)
        dynamics.run(chunk)
        done += chunk
        if progress is not None:
            progress.update(chunk)


def _check_motion(atoms, temperature):
    """Cheap enough to be looked at often: are the atoms where and as fast as atoms can be?"""
    now = atoms.get_temperature()
    if not (np.isfinite(atoms.positions).all() and np.isfinite(now)):
        raise BlownUpError("positions or velocities are not finite")
    if now > 3 * temperature + 1000:
        raise BlownUpError(f"temperature rose to {now:.0f} K at a target of {temperature:g} K")


def _check_sane(atoms, settings):
    _check_motion(atoms, settings["temperature"])
    forces = atoms.get_forces()
    largest = np.linalg.norm(forces, axis=1).max()
    if not largest < settings["max_force"]:
        raise BlownUpError(f"largest force is {largest:.3g} eV/Å")
    if len(neighbor_list("i", atoms, natural_cutoffs(atoms, mult=0.5))):
        raise BlownUpError("two atoms are closer than half their covalent bond length")


def _frame(atoms, n, trajectory, step, rng):
    """A bare copy of the atoms, rattled if it is this frame's turn, telling where it comes from."""
    settings = trajectory.settings
    frame = type(atoms)(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    frame.info = {
        "stage": settings["name"],
        "temperature": float(settings["temperature"]),
        "trajectory": trajectory.key[:16],
        "step": int(step),
    }
    if atoms.cell.rank == 3:
        frame.info["density"] = round(float(density(frame)), 6)
    fraction = settings["rattle_fraction"]
    if int((n + 1) * fraction + 1e-9) > int(n * fraction + 1e-9):
        stdev = rng.uniform(*settings["rattle_stdev"])
        frame.positions += rng.normal(scale=stdev, size=frame.positions.shape)
        frame.info["rattle"] = round(float(stdev), 6)
    return frame


def _part(parts, trajectory):
    return parts / f"{trajectory.key[:16]}.xyz"


def _write_frames(path, frames):
    temporary = path.with_name(path.name + ".tmp")
    ase.io.write(temporary, frames, format="extxyz")
    os.replace(temporary, path)


def _join(trajectories, parts, output):
    texts = [_part(parts, t).read_text() for t in trajectories if _part(parts, t).exists()]
    if not texts:
        raise MlffdError("sampling kept not one frame: every trajectory blew up at its start")
    _write_atomic(output, "".join(texts))


def _write_atomic(path, text):
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
