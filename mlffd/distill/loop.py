# SPDX-License-Identifier: MIT
"""When the on-policy loop has done its work."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mlffd.distill.config import LoopConfig
from mlffd.files import write_atomically

FILE = "loop.json"  # in the directory of the distillation


@dataclass(frozen=True)
class LoopRound:
    """What one round of exploring came to.

    ``force_mae`` (meV/Å) is that of the draft on the frames it found, before any student has learned them:
    the newest of what it met, so that its error elsewhere is smaller. None where nothing new was found.
    """

    number: int
    n_labels: int  # that the draft was trained on
    n_cut: int  # trajectories that blew up
    n_trajectories: int
    n_found: int
    force_mae: float | None

    def summary(self) -> str:
        found = f"{self.n_found} new frames"
        if self.force_mae is not None:
            found += f", on which it is wrong by {self.force_mae:.1f} meV/Å"
        return f"round {self.number}: {self.n_cut} of {self.n_trajectories} trajectories blew up; {found}"


def reason_to_end(
    history: list[LoopRound], n_labels: int, config: LoopConfig, force_mae_to_reach: float
) -> str | None:
    """Why no further round is needed or allowed, or None; ``n_labels`` are there now."""
    if history:
        last = history[-1]
        if last.n_cut == 0 and last.n_found == 0:
            return "no trajectory blew up, and none met anything new"
        if last.n_found == 0:
            return "trajectories blow up, and no frame of them is new"
        if last.n_cut == 0 and last.force_mae <= force_mae_to_reach:
            return f"no trajectory blew up, and what was new was known to {last.force_mae:.1f} meV/Å"
    if len(history) >= config.max_rounds:
        return "one round is done" if config.max_rounds == 1 else f"{config.max_rounds} rounds are done"
    if n_labels >= config.max_labels:
        return f"{config.max_labels} labels are spent"
    return None


def write_history(directory: Path, history: list[LoopRound]) -> None:
    """For people, and for ``read_history``."""
    write_atomically(directory / FILE, json.dumps([asdict(one) for one in history], indent=1) + "\n")


def read_history(directory: Path) -> list[LoopRound]:
    """The rounds that ``write_history`` wrote; none before the first."""
    path = directory / FILE
    return [LoopRound(**entry) for entry in json.loads(path.read_text())] if path.exists() else []
