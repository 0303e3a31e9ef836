# SPDX-License-Identifier: MIT
"""A teacher's and a student's trajectory from the same starts, and what is found when they are compared."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mlffd.fidelity.trajectories import Recording

BLOCKS = 10  # of all replicas together, at least
FEW = 10.0  # independent samples, below which a run is called short
NO_ERROR = "too short to judge: no error"
TOO_COLD = 0.03  # of the temperature, by which a run that is long enough does not miss it


@dataclass(frozen=True)
class Pair:
    """The same replicas run by the teacher and by the student; ``time_step`` in fs, ``temperature`` in K."""

    teacher: Sequence[Recording]
    student: Sequence[Recording]
    time_step: float
    temperature: float

    @property
    def both(self) -> tuple[Sequence[Recording], Sequence[Recording]]:
        return self.teacher, self.student

    @property
    def periodic(self) -> bool:
        """In three directions, all of them."""
        return all(replica.start.pbc.all() for replica in self.teacher)

    @property
    def n_blocks(self) -> int:
        """Of each replica."""
        return -(-BLOCKS // len(self.teacher))


@dataclass
class Findings:
    """What a part of the report contributes."""

    lines: list = field(default_factory=list)
    curves: list = field(default_factory=list)
    tables: list = field(default_factory=list)

    def add(self, other: "Findings") -> None:
        self.lines += other.lines
        self.curves += other.curves
        self.tables += other.tables


def thinned(replicas: Sequence[Recording], n_frames: int) -> list[Recording]:
    """All replicas with at most so many frames together."""
    return [replica.thinned(max(n_frames // len(replicas), 1)) for replica in replicas]


def temperature_remark(pair: Pair) -> str:
    """A remark on a run that has not come to its temperature."""
    for who, replicas in zip(("teacher", "student"), pair.both):
        mean = np.concatenate([replica.temperatures for replica in replicas]).mean()
        if abs(mean / pair.temperature - 1.0) > TOO_COLD:
            return f"too short to judge: the {who}'s run was at {mean:.0f} K"
    return ""


def short(independent: float) -> str:
    """A remark on a teacher's run that is too short to judge by."""
    if independent >= FEW:
        return ""
    return f"too short to judge: about {independent:.0f} independent samples of the teacher's"


def notes(*remarks: str) -> str:
    """Those that there are."""
    return "; ".join(filter(None, remarks))
