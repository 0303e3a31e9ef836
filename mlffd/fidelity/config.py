# SPDX-License-Identifier: MIT
"""What a fidelity report is told: how long, how hot, from where."""

import math
from dataclasses import dataclass, field, fields

from mlffd.config import check_keys, check_type
from mlffd.errors import ConfigError
from mlffd.teachers import facts_of, teacher_name

PARTS = (
    "errors", "gradient", "second_teacher", "student", "hot", "constant_energy", "speed", "teacher",
)  # dearest last # fmt: skip


@dataclass(frozen=True)
class FidelityConfig:
    """Table ``[fidelity]`` of a config; times of trajectories are in steps.

    The student equilibrates ``replicas`` structures; from there it and the teacher run at the same
    conditions, each with its own number of steps, of which the first ``settling`` are not looked at. The
    teacher's trajectory costs one evaluation of the teacher a replica every ``slow_every`` steps, between
    which the student moves the atoms (r-RESPA, mlffd/dynamics.py); with 1 it is the teacher alone. It is the
    teacher's own for motions slow enough: of vibrations whose quarter period is shorter than ``slow_every``
    steps it says nothing, and half a period resonates. In water, with a student 3 % too soft, O-H bonds
    stretched as at 335 K instead of 300 K with impulses every 4 fs, and not noticeably with every 2 fs; the
    report says so (mlffd/fidelity/stretch.py).

    Raises:
        ConfigError: values that cannot be meant.
        TeacherError: there is no such second teacher.
    """

    parts: list = field(default_factory=lambda: list(PARTS))  # which to measure
    start: str | list | None = None  # structure files; None: from the held-out frames, near the temperature
    replicas: int = 4
    temperature: float = 300.0  # K
    hot_factor: float = 1.5  # times the temperature: a test of stability
    time_step: float = 0.5  # fs
    time_constant: float = 100.0  # fs, of the thermostat; a longer one wants longer runs
    equilibration: int = 2000
    settling: int = 200
    teacher_steps: int = 2000
    slow_every: int = 4
    student_steps: int = 20000
    interval: int = 16  # steps between frames of the student that are looked at
    hot_steps: int = 10000
    constant_energy_steps: int = 40000
    rdf_range: float = 6.0  # Å
    worst_frames: int = 10  # of the held-out ones, to save
    second_teacher: str | dict | None = None  # whose forces on the held-out frames are looked at beside
    gradient_directions: int = 4  # in which the teacher's energy is differentiated
    seed: int = 0
    workers: int = 1  # processes that share the teacher's replicas
    runs: str | None = None  # folder of trajectories; that of another report, to share the teacher's

    def __post_init__(self):
        for entry in fields(self):
            check_type(getattr(self, entry.name), entry, "[fidelity]")
        check_keys(dict.fromkeys(self.parts), PARTS, "[fidelity] parts")
        for name in POSITIVE:
            value = getattr(self, name)
            if not 0.0 < value < math.inf:
                raise ConfigError(f"[fidelity]: {name} must be greater than 0, not {value}")
        for name in ("settling", "worst_frames", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"[fidelity]: {name} must not be less than 0, but is {getattr(self, name)}")
        if self.second_teacher is not None:
            facts_of(teacher_name(self.second_teacher))
        shortest = min(self.teacher_steps, self.student_steps)
        if self.settling >= shortest:
            raise ConfigError(f"[fidelity]: settling = {self.settling} leaves nothing of {shortest} steps")


TABLES = ("teacher", "fidelity", "bars")


def report_tables(config: dict, where: str) -> dict:
    """The tables ``teacher``, ``fidelity`` and ``bars`` of a config, those that there are; those that ``mlffd
    train`` reads may stand beside them.

    Raises:
        ConfigError: another key, where it is not the config of a distillation, which has a name.
    """
    if "name" not in config:
        check_keys(config, (*TABLES, "student", "train"), where)
    return {name: config[name] for name in TABLES if name in config}


POSITIVE = (
    "replicas", "temperature", "hot_factor", "time_step", "time_constant", "equilibration",
    "teacher_steps", "slow_every", "student_steps", "interval", "hot_steps", "constant_energy_steps",
    "rdf_range", "gradient_directions", "workers",
)  # fmt: skip
