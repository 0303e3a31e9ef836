# SPDX-License-Identifier: MIT
"""What the user of ``mlffd-driver`` sees: lines, a status line, a closing summary, a report as JSON."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mlffd.files import write_atomically

STATUS_INTERVAL = 0.5  # s between two status lines


def say(line: str) -> None:
    """One line for the user, even where a status line stands."""
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(f"{clear}mlffd-driver: {line}", file=sys.stderr, flush=True)


@dataclass
class Tally:
    """What has been done so far; waiting counts from the first evaluation on."""

    evaluations: int = 0  # calls of the student
    structures: int = 0  # structures it evaluated
    repeats: int = 0  # structures answered with a copy of another one's result
    model_seconds: float = 0.0
    waiting_seconds: float = 0.0
    after_each: Callable[["Tally"], None] = field(default=lambda tally: None, repr=False)

    def count(self, n_evaluated: int, n_asked: int, seconds: float) -> None:
        """Adds one call of the student."""
        self.evaluations += 1
        self.structures += n_evaluated
        self.repeats += n_asked - n_evaluated
        self.model_seconds += seconds
        self.after_each(self)

    def learn(self, parameters: dict[str, str], batch_size: int) -> None:
        """Takes what the server said in INIT: beads and timestep (fs) among the parameters, batch size."""

    def waited(self, seconds: float) -> None:
        """Adds a wait for the server."""
        if self.evaluations:
            self.waiting_seconds += seconds


def summary(tally: Tally) -> str:
    """The tally in one line."""
    n = max(tally.evaluations, 1)
    seconds = tally.model_seconds + tally.waiting_seconds
    rate = tally.evaluations / seconds if seconds else 0.0
    repeats = f" ({tally.repeats} repeats not evaluated)" if tally.repeats else ""
    return (
        f"{tally.evaluations} evaluations of {tally.structures} structures{repeats}, {rate:.1f}/s: "
        f"{1e3 * tally.model_seconds / n:.2f} ms in the student, "
        f"{1e3 * tally.waiting_seconds / n:.2f} ms waiting for i-PI each"
    )


class StatusLine:
    """Keeps the summary so far on the last line of a terminal."""

    def __init__(self):
        self.shown_at = 0.0

    def __call__(self, tally: Tally) -> None:
        """Called after each evaluation; writes at most twice a second."""
        now = time.monotonic()
        if now - self.shown_at > STATUS_INTERVAL:
            self.shown_at = now
            print(f"\r\x1b[K{summary(tally)}", end="", file=sys.stderr, flush=True)


def write_report(path: str | Path, tally: Tally, facts: dict) -> None:
    """The tally and more facts as JSON; the file is complete or not there."""
    counts = {name: value for name, value in vars(tally).items() if not callable(value)}
    write_atomically(Path(path), json.dumps({**facts, **counts}, indent=1) + "\n")
