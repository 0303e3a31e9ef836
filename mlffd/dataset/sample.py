# SPDX-License-Identifier: MIT
"""Sample structures by molecular dynamics, for a teacher to label.

plan.py tells which trajectories a config asks for. A finished trajectory is kept on disk and never
run again; its random numbers follow from its settings alone.
"""

import json
import shutil
import warnings
from functools import partial
from pathlib import Path

import ase.io
import numpy as np
from ase.io.formats import UnknownFileTypeError
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary
from ase.neighborlist import natural_cutoffs, neighbor_list
from ase.optimize import FIRE
from tqdm import tqdm

from mlffd.dataset.pack import density, packed_box
from mlffd.dataset.plan import digest, locate, plan
from mlffd.errors import ConfigError, MlffdError
from mlffd.files import replacing, write_atomically
from mlffd.teachers import load_teacher
from mlffd.units import BOLTZMANN, FEMTOSECOND

CHECK_STEPS = 10  # how often a running trajectory is looked at
# what calculators raise for structures out of any order; set-up errors surface before the dynamics
BLOW_UPS = (MlffdError, ValueError, ArithmeticError)


class BlownUpError(MlffdError):
    """A trajectory left all reason; its frames up to the last sane one are kept."""


def sample(config, output, load_calculator=None, directory="."):
    """Run every trajectory of `config` and write the frames kept to `output` (extxyz), whole or not at all.

    `load_calculator(spec)` returns the ASE calculator for a calculator table of the config; by default
    a teacher. Files that the config names are looked for in `directory`, then here. `output`.json tells what
    became of each trajectory, and why one was cut. Returns that report.
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
    write_atomically(report_path, json.dumps(report, indent=1) + "\n")
    shutil.rmtree(parts)
    return report


def _teacher_calculator(spec, directory):
    return load_teacher(spec, directory=directory).calculator


class _Calculators:
    """Calculators by their table in the config, each loaded once."""

    def __init__(self, load):
        self.load, self.loaded = load, {}

    def __getitem__(self, spec):
        key = digest(spec)
        if key not in self.loaded:
            self.loaded[key] = self.load(spec)
        return self.loaded[key]


def _finished_or_run(trajectory, parts, calculators, directory, progress):
    """Report of a trajectory, from disk if it has been run; the report is written last."""
    report_path = parts / f"{trajectory.key[:16]}.json"
    if report_path.exists():
        progress.update(trajectory.n_steps)
        return json.loads(report_path.read_text())
    end = progress.n + trajectory.n_steps
    calculator = calculators[trajectory.settings["calculator"]]
    frames, reason = run_trajectory(trajectory, calculator, directory, progress)
    progress.update(end - progress.n)  # a trajectory that was cut is over, too
    if reason:
        progress.write(f"{trajectory.title} blew up, cut after {len(frames)} frames: {reason}")
    if frames:
        _write_frames(_part(parts, trajectory), frames)
    report = {
        "trajectory": trajectory.key[:16],
        "title": trajectory.title,
        "wanted": trajectory.settings["frames"],
        "kept": len(frames),
        "cut_because": reason,
    }
    write_atomically(report_path, json.dumps(report))
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
    path = locate(settings["start"], directory)
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
    temperature, fs = settings["temperature"], FEMTOSECOND
    width = np.sqrt(atoms.get_masses() * BOLTZMANN * temperature)[:, None]
    atoms.set_momenta(rng.standard_normal((len(atoms), 3)) * width)  # Maxwell and Boltzmann's
    Stationary(atoms)
    time_constant = settings["time_constant_fs"] * fs
    timestep = settings["timestep_fs"] * fs
    if settings["thermostat"] == "bussi":
        dynamics = Bussi(atoms, timestep, temperature_K=temperature, taut=time_constant, rng=rng)
    else:
        with warnings.catch_warnings():
            # ASE >= 3.28 says of its default that it keeps the center of mass in place, as we want it
            warnings.simplefilter("ignore", FutureWarning)
            friction = 1 / time_constant
            dynamics = Langevin(atoms, timestep, temperature_K=temperature, friction=friction, rng=rng)
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
    with replacing(path) as part:
        ase.io.write(part, frames, format="extxyz")


def _join(trajectories, parts, output):
    texts = [_part(parts, t).read_text() for t in trajectories if _part(parts, t).exists()]
    if not texts:
        raise MlffdError("sampling kept not one frame: every trajectory blew up at its start")
    write_atomically(output, "".join(texts))
