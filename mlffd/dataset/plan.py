# SPDX-License-Identifier: MIT
"""What a sampling config asks for: a list of trajectories, each fully determined by its settings.

A config names a calculator that drives the dynamics and a list of stages; every stage is a grid of
temperatures x densities x replicas, and every point of it is one trajectory.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path

from mlffd.config import check_keys, settings_from
from mlffd.errors import ConfigError


@dataclass(frozen=True)
class Stage:
    """Settings of one [[stages]] table: a grid of trajectories, and how each is run."""

    name: str
    temperatures: list  # K
    frames: int  # kept per trajectory
    interval: int  # steps between kept frames
    calculator: str | dict | None = None  # instead of the config's own
    start: str | list | None = None  # structure files; of their frames one of the nearest density
    composition: dict | None = None  # or a packed box, such as { H2O = 64, "ethanol.xyz" = 8 }
    densities: list | None = None  # g/cm3; may be left out with `start`
    replicas: int = 1
    equilibration: int = 0  # steps before the first interval
    relax: int = 0  # most steps of energy minimization before the dynamics
    time_step: float = 0.5  # fs
    time_constant: float = 100.0  # fs, of the thermostat, Langevin's
    rattle_fraction: float = 0.0  # of the kept frames, displaced at random when written
    rattle_stdev: list = field(default_factory=lambda: [0.02, 0.05])  # Å; a frame draws one between these
    strain_fraction: float = 0.0  # of the kept frames, strained at random with their cell when written
    strain_stdev: list = field(default_factory=lambda: [0.01, 0.03])  # of each component; drawn likewise
    max_force: float = 50.0  # eV/Å; beyond it a trajectory counts as blown up

    def check(self):
        """Raise ConfigError if the stage cannot be meant."""
        wrong = None
        if self.calculator is None:
            wrong = "calculator is missing"
        elif (self.start is None) == (self.composition is None):
            wrong = "give either start or composition"
        elif self.composition is not None and not self.densities:
            wrong = "a composition needs densities (g/cm3)"
        elif self.start == []:
            wrong = "start is an empty list: name at least one file"
        elif not all_positive(self.temperatures):
            wrong = "temperatures must be above zero K"
        elif self.densities is not None and not all_positive(self.densities):
            wrong = "densities must be above zero g/cm3"
        elif not all_positive([self.time_step, self.time_constant, self.max_force]):
            wrong = "time_step, time_constant and max_force must be above zero"
        elif min(self.frames, self.interval, self.replicas) < 1:
            wrong = "frames, interval and replicas must be at least 1"
        elif min(self.equilibration, self.relax) < 0:
            wrong = "equilibration and relax must be 0 or more"
        elif not all(0 <= fraction <= 1 for fraction in (self.rattle_fraction, self.strain_fraction)):
            wrong = "rattle_fraction and strain_fraction are between 0 and 1"
        elif not all(len(stdev) == 2 and 0 <= stdev[0] <= stdev[1] for stdev in self._stdevs()):
            wrong = "rattle_stdev and strain_stdev are two numbers, the smaller one first"
        if wrong:
            raise ConfigError(f"stage {self.name}: {wrong}")

    def _stdevs(self):
        return self.rattle_stdev, self.strain_stdev


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


def all_positive(numbers):
    """Are there numbers, and all finite and above zero?"""
    return bool(numbers) and all(isinstance(x, int | float) and 0 < x < float("inf") for x in numbers)


def plan(config, directory="."):
    """The list of Trajectory that a sampling config asks for, checked."""
    check_keys(config, ("seed", "calculator", "stages"), "sampling config")
    if not config.get("stages"):
        raise ConfigError("the sampling config has no [[stages]]")
    stages = []
    for number, table in enumerate(config["stages"], start=1):
        table = {"calculator": config.get("calculator"), **table}
        stages.append(settings_from(table, Stage, f"stage {table.get('name', number)}"))
        stages[-1].check()
    if len({stage.name for stage in stages}) < len(stages):
        raise ConfigError("two stages share a name")
    return [t for stage in stages for t in _grid(stage, config.get("seed", 0), Path(directory))]


def _grid(stage, seed, directory):
    """Trajectories of a stage: temperatures x densities x replicas."""
    grid = ("temperatures", "densities", "replicas")
    common = {key: value for key, value in asdict(stage).items() if key not in grid}
    molecules = [name for name in stage.composition or () if Path(name).suffix]
    named = [*names(stage.start), *molecules, *_bundle(stage.calculator)]
    named = {str(name): locate(name, directory) for name in named}
    # what a named file holds decides what is run, so another content means another trajectory
    common["files"] = {name: _file_digest(path) for name, path in named.items() if path.is_file()}
    for temperature, rho, replica in product(
        stage.temperatures, stage.densities or [None], range(stage.replicas)
    ):
        settings = {**common, "temperature": temperature, "density": rho, "replica": replica, "seed": seed}
        yield Trajectory(settings, digest(settings))


def names(start):
    """The files that ``start`` of a table names: it is one, a list of them, or None."""
    return [start] if isinstance(start, str) else start or []


def locate(path, directory):
    """A file that a config names: beside the config, else where we are."""
    beside = Path(directory) / path
    return beside if beside.is_file() else Path(path)


def _bundle(spec):
    return [spec["bundle"]] if isinstance(spec, dict) and "bundle" in spec else []


def digest(settings):
    """sha256 of anything that fits into JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _file_digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
