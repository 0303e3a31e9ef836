# SPDX-License-Identifier: MIT
"""What the user of ``mlffd-driver`` sees: lines, a status line, a closing summary, a report as JSON."""

import json
import math
import os
import platform
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from mlffd import environment
from mlffd.errors import ConfigError
from mlffd.files import write_atomically

STATUS_INTERVAL = 0.5  # s between two status lines on a terminal
LONGEST_INTERVAL = 60.0  # s between two in a log file; the first ones come sooner
SECONDS_PER_DAY = 86400.0
RESOLUTION = 1.01  # of medians: durations are counted in bins whose edges have this ratio
PACKAGES = ("mlffd", "torch", "numpy", "ase", "ipi")


def say(text: str) -> None:
    """One line or more for the user, even where a status line stands."""
    clear = "\r\x1b[K" if on_terminal() else ""
    tell(clear + "".join(f"mlffd-driver: {line}\n" for line in text.splitlines()))


def tell(text: str) -> None:
    """To standard error. Once that is full or broken nobody is told any more, and the run goes on."""
    if sys.stderr is None:  # or closed from the beginning
        return
    try:
        print(text, end="", file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = None  # what is left in it would spoil the exit status


def on_terminal() -> bool:
    """Whether somebody may be looking on."""
    return sys.stderr is not None and sys.stderr.isatty()


def open_standard_streams() -> None:
    """Has the null device stand in for those that are closed. A socket would get their numbers, and i-PI what
    libraries print there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


class Durations:
    """How long something took each time: sum, largest and median, in a memory that does not grow."""

    def __init__(self):
        self.count = 0
        self.total = 0.0  # s
        self.largest = 0.0  # s
        self._bins = Counter()

    def add(self, seconds: float) -> None:
        """One more; nothing is shorter than a nanosecond."""
        self.count += 1
        self.total += seconds
        self.largest = max(self.largest, seconds)
        self._bins[round(math.log(max(seconds, 1e-9), RESOLUTION))] += 1

    def median(self) -> float:
        """In s, off by half a percent at most; the upper one of an even number. 0 where there is nothing."""
        passed = 0
        for place, number in sorted(self._bins.items()):
            passed += number
            if 2 * passed > self.count:
                return min(RESOLUTION**place, self.largest)
        return 0.0

    def facts(self, name: str) -> dict:
        """Median, mean and largest in ms."""
        mean = self.total / max(self.count, 1)
        values = {"median": self.median(), "mean": mean, "largest": self.largest}
        return {f"{which}_ms_{name}": round(1e3 * value, 4) for which, value in values.items()}


@dataclass(frozen=True)
class Moment:
    """What had been done at the end of an evaluation."""

    seconds: float = 0.0  # since the first evaluation, without the time between two servers
    evaluations: int = 0
    structures: int = 0
    model_seconds: float = 0.0
    waiting_seconds: float = 0.0


@dataclass(frozen=True)
class Pace:
    """How fast it went between two moments."""

    steps_per_second: float
    ns_per_day: float | None  # None where the timestep is not known
    structures_per_evaluation: float
    ms_model: float  # each evaluation, as the others
    ms_waiting: float  # for i-PI
    ms_driver: float  # neither: messages read and written, structures wrapped and checked

    def __str__(self) -> str:
        ns_per_day = "" if self.ns_per_day is None else f"{self.ns_per_day:.3g} ns/day, "
        return (
            f"{self.steps_per_second:.3g} steps/s, {ns_per_day}"
            f"{self.structures_per_evaluation:.3g} structures a batch, "
            f"{self.ms_model:.2f} ms in the model, {self.ms_waiting:.2f} ms waiting for i-PI"
        )


@dataclass
class Tally:
    """What has been done so far.

    A step is one evaluation of every bead of every system: structures divided by the numbers of both. Beads
    and timestep are those given here, else those that the first server announces, else the batch size and
    unknown.
    """

    timestep: float | None = None  # fs
    n_beads: int | None = None
    n_systems: int = 1  # that one server moves side by side
    evaluations: int = 0  # calls of the student
    structures: int = 0  # structures it evaluated
    repeats: int = 0  # structures answered with a copy of another one's result
    model: Durations = field(default_factory=Durations)
    waiting: Durations = field(default_factory=Durations)
    first: Moment = field(default_factory=Moment)
    latest: Moment = field(default_factory=Moment)
    after_each: Callable[["Tally"], None] = field(default=lambda tally: None, repr=False)

    def __post_init__(self):
        self.beads_known_from = "as given" if self.n_beads else "unknown: taken to be 1"
        self._waited = 0.0  # since the latest evaluation
        self._mark = time.perf_counter()

    @property
    def steps(self) -> float:
        """So far; not a whole number while some beads of a step wait for the next batch."""
        return self.structures / self.structures_a_step

    @property
    def structures_a_step(self) -> int:
        """As far as is known."""
        return (self.n_beads or 1) * self.n_systems

    def learn(self, parameters: dict[str, str], batch_size: int) -> None:
        """Takes what a server said in INIT: ``beads`` and ``timestep`` (fs) of its parameters, batch size.

        The time since the last evaluation was none of this server's, and is not counted.
        """
        self._mark, self._waited = time.perf_counter(), 0.0
        if self.n_beads is None:
            self.n_beads, self.beads_known_from = beads_in(parameters, batch_size)
        if self.timestep is None:
            self.timestep = positive_number(parameters.get("timestep", ""))

    def count(self, n_evaluated: int, n_asked: int, seconds: float) -> None:
        """Adds one call of the student, which has just ended."""
        self.model.add(seconds)
        if self.evaluations:
            self.waiting.add(self._waited)
        now = time.perf_counter()
        elapsed = self.latest.seconds + (now - self._mark if self.evaluations else 0.0)
        self._mark, self._waited = now, 0.0
        self.evaluations += 1
        self.structures += n_evaluated
        self.repeats += n_asked - n_evaluated
        sums = (self.evaluations, self.structures, self.model.total, self.waiting.total)
        self.latest = Moment(elapsed, *sums)
        if self.evaluations == 1:
            self.first = self.latest
        self.after_each(self)

    def waited(self, seconds: float) -> None:
        """Adds a wait for the server; counts with the next evaluation, not before the first."""
        self._waited += seconds

    def pace(self, since: Moment | None = None) -> Pace | None:
        """From then on, by default from the end of the first evaluation; None if there were none since."""
        since = since or self.first
        evaluations = self.latest.evaluations - since.evaluations
        seconds = self.latest.seconds - since.seconds
        if evaluations <= 0 or seconds <= 0.0:
            return None
        structures = self.latest.structures - since.structures
        steps_per_second = structures / self.structures_a_step / seconds
        model = self.latest.model_seconds - since.model_seconds
        waiting = self.latest.waiting_seconds - since.waiting_seconds
        return Pace(
            steps_per_second,
            self.timestep and 1e-6 * self.timestep * SECONDS_PER_DAY * steps_per_second,
            structures / evaluations,
            *(1e3 * part / evaluations for part in (model, waiting, max(seconds - model - waiting, 0.0))),
        )

    def facts(self) -> dict:
        """All of it, as in the report."""
        pace = self.pace()
        return {
            "evaluations": self.evaluations, "structures": self.structures, "repeats": self.repeats,
            "beads": self.n_beads or 1, "beads_known_from": self.beads_known_from,
            "systems": self.n_systems, "timestep_fs": self.timestep,
            "steps": self.steps, "steps_counted_as": "structures / (beads * systems)",
            "pace": pace and asdict(pace),
            "model_seconds": self.model.total, "waiting_seconds": self.waiting.total,
            **self.model.facts("model"), **self.waiting.facts("waiting"),
        }  # fmt: skip


def beads_in(parameters: dict[str, str], batch_size: int) -> tuple[int | None, str]:
    """The number of beads, None if there is no telling, and how it is known."""
    announced = positive_number(parameters.get("beads", ""))
    if announced is not None and announced.is_integer():
        return int(announced), "announced by i-PI"
    if batch_size > 1:
        return batch_size, "the batch size"
    return None, "unknown: taken to be 1"


def positive_number(text: str) -> float | None:
    """None where it is something else: the parameters are the user's, and may be for other programs."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0.0 < number < math.inf else None


def summary(tally: Tally) -> str:
    """The tally in two lines, or in one after a single evaluation."""
    repeats = f" ({tally.repeats} repeats not evaluated)" if tally.repeats else ""
    counts = {"beads": tally.n_beads or 1, "systems": tally.n_systems}
    several = " and ".join(f"{count} {what}" for what, count in counts.items() if count > 1)
    steps = f"{tally.steps:.0f} steps of {several}" if several else f"{tally.steps:.0f} steps"
    pace = "" if tally.pace() is None else f"\n{tally.pace()}"
    return f"{steps} in {tally.evaluations} evaluations of {tally.structures} structures{repeats}{pace}"


class StatusLine:
    """Shows the pace since it last did so: on the last line of a terminal, or, where stderr is a file, as a
    line after 1, 2, 4, ... seconds and then once a minute."""

    def __init__(self):
        self.on_terminal = on_terminal()
        self.interval = STATUS_INTERVAL if self.on_terminal else 1.0
        self.due_at = time.monotonic() + self.interval
        self.shown: Moment | None = None

    def __call__(self, tally: Tally) -> None:
        """Called after each evaluation."""
        now = time.monotonic()
        if now < self.due_at:
            return
        pace = tally.pace(self.shown)
        if pace is not None:
            self.show(f"step {tally.steps:.0f}, {pace}")
        self.shown = tally.latest
        self.due_at = now + self.interval

    def show(self, line: str) -> None:
        """Where it belongs; a terminal would not take back a line that is wider than itself."""
        if self.on_terminal:
            width = shutil.get_terminal_size().columns - 1
            tell(f"\r\x1b[K{line[:width]}")
        else:
            say(line)
            self.interval = min(2.0 * self.interval, LONGEST_INTERVAL)


def run_facts(bundles: Sequence[str], engine) -> dict:
    """What a run with an engine, or with several alike, is to be known by: bundles, machine, versions.

    ``bundles`` are names or paths; ``engine`` is an ``mlffd.Engine`` made from one of them.
    """
    import torch  # late: importing it takes seconds

    from mlffd.bundle import locate_bundle

    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "bundles": [bundle_facts(name, locate_bundle(name)) for name in bundles],
        "backend": engine.backend,
        "dtype": engine.dtype,
        "device": str(engine.device),
        "device_name": environment.device_name(str(engine.device)),
        "cpu": environment.cpu_model(),
        "threads": torch.get_num_threads(),
        "max_batch_atoms": engine.max_batch_atoms,
        "python": platform.python_version(),
        "versions": {name: environment.installed_version(name) for name in PACKAGES},
        "commit": environment.commit(),
    }


def bundle_facts(name: str, path: Path) -> dict:
    """The name as it was given, the file that it stands for, and its sha256."""
    return {"name": str(name), "path": str(Path(path).resolve()), "sha256": environment.sha256_of(path)}


def check_writable(path: str | Path) -> None:
    """Before a run of days: ConfigError where no report could be written at its end."""
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"--report {path} is a folder: give the name of a file")
    if not path.parent.is_dir():
        raise ConfigError(f"--report {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--report {path}: the folder {path.parent} is not writable")


def write_report(path: str | Path, tally: Tally, facts: dict) -> None:
    """The tally and more facts as JSON; the file is complete or not there. Says so where it cannot be."""
    try:
        write_atomically(Path(path), json.dumps({**facts, **tally.facts()}, indent=1) + "\n")
    except OSError as error:  # a run that went well must not end with another exit status for this
        say(f"the report {path} cannot be written: {error}")
