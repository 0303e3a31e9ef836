# SPDX-License-Identifier: MIT
"""What LAMMPS costs around a student, what a second rank brings, and whether memory grows.

    python benchmarks/lammps_costs.py [--student BUNDLE] [--only overhead ranks memory]

Overhead: CPU time of a step on one rank, 512 water molecules, and how much of it the student's kernel takes,
by a clock within the process (student_clock.c); the neighbor list counts as overhead. Ranks: 4096 molecules
on one and on two, in turn. Memory: what the process holds through 20 000 steps of 64 molecules. Writes
results/lammps_costs.json and .md.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase.io import read
from harness import RESULTS, BenchmarkError, facts, last_line, load_average, report, set_threads
from ns_per_day import STOCK_LMP, TIME_STEP, WATER
from routes import Outcome, Plan, run_lammps, run_plugin

from mlffd.kernels.cpu import LIBRARY

ROUTES = {"plugin": "plugin", "mliap": "ML-IAP"}
MEMORY_STEPS = 20_000
MIB = 2.0**20
CLOCK = Path(__file__).with_name("student_clock.c")
WARM_UP = 30  # evaluations before the clock starts


def main(arguments: list[str] | None = None) -> int:
    """The command line: 1 where something could not be measured, with one line of why."""
    options = parser().parse_args(arguments)
    set_threads(1)
    return 1 if report("lammps_costs", options, measure, markdown) is None else 0


def parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="water", help="student bundle, or name of a shipped one")
    parser.add_argument("--steps", type=int, default=100, help="a repetition, for 512 molecules")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--page-only", action="store_true", help="make the page anew from the JSON")
    parser.add_argument("--output", type=Path, default=RESULTS / "lammps_costs.json")
    return parser


def measure(options) -> dict:
    """Everything that goes into the JSON."""
    results = {"question": __doc__.splitlines()[0], **facts(), "time_step_fs": TIME_STEP}
    for name in options.only:
        results[name] = [QUESTIONS[name](options, route) for route in ROUTES]
    return results


def overhead(options, route: str) -> dict:
    """CPU seconds a step, and those of them that the student's kernel takes; three runs."""
    plan = Plan(read(WATER).repeat(2), TIME_STEP, options.steps * options.repetitions, 1, warm_up=20)
    load, steps, kernels = load_average(), [], []
    for _ in range(3):
        n_steps, seconds, kernel_seconds = clocked(lambda: run(route, options.student, plan))
        steps.append(seconds / n_steps)
        kernels.append(kernel_seconds / n_steps)
    shares = [1.0 - kernel / step for kernel, step in zip(kernels, steps)]
    return {
        "route": route, "atoms": len(plan.atoms),
        "cpu_seconds_per_step": steps, "kernel_cpu_seconds": kernels,
        "outside_the_student": float(np.median(shares)), "load_average": [load, load_average()],
    }  # fmt: skip


def clocked(start: Callable[[], Outcome]) -> tuple[int, float, float]:
    """Evaluations, CPU seconds and those in the student's kernel of the ``lmp`` that ``start`` runs.

    Raises:
        BenchmarkError: the clock cannot be compiled, or has not seen the student.
    """
    with tempfile.TemporaryDirectory(prefix="mlffd-") as folder:
        clock, said = Path(folder, "clock.so"), Path(folder, "said")
        command = [
            "cc",
            "-O2",
            "-shared",
            "-fPIC",
            f"-DWARM_UP={WARM_UP}",
            f"-I{LIBRARY.parent}",
            "-o",
            clock,
        ]
        done = subprocess.run([*command, CLOCK, "-ldl"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchmarkError(f"{CLOCK.name} cannot be compiled: {last_line(done.stderr)}")
        variables = {"LD_PRELOAD": clock, "STUDENT_LIBRARY": LIBRARY, "STUDENT_CLOCK": said}
        os.environ.update({name: str(value) for name, value in variables.items()})
        try:
            start()
        finally:
            for name in variables:
                del os.environ[name]
        if not said.exists():
            raise BenchmarkError("the student was not called by the name mlffd_evaluate_pairs")
        n_steps, seconds, kernel_seconds = said.read_text().split()
    return int(n_steps), float(seconds), float(kernel_seconds)


def ranks(options, route: str) -> dict:
    """Wall seconds a step on one and on two ranks, in turn, three times."""
    plan = Plan(read(WATER).repeat(4), TIME_STEP, max(options.steps // 8, 1), options.repetitions, warm_up=5)
    load, seconds = load_average(), {1: [], 2: []}
    for _ in range(3):
        for n_ranks, series in seconds.items():
            series += run(route, options.student, plan, n_ranks).seconds_per_step
    one, two = (float(np.median(series)) for series in seconds.values())
    return {
        "route": route, "atoms": len(plan.atoms), "speed_up": one / two,
        "seconds_per_step": {str(n): series for n, series in seconds.items()},
        "load_average": [load, load_average()],
    }  # fmt: skip


def memory(options, route: str) -> dict:
    """MiB that ``lmp`` and what it starts hold, at each tenth of a run of MEMORY_STEPS."""
    plan = Plan(read(WATER), TIME_STEP, MEMORY_STEPS, 1, warm_up=20)
    with ResidentMemory() as watched:
        run(route, options.student, plan)
    if len(watched.mib) < 20:
        raise BenchmarkError("the run was too short to watch its memory")
    tenths = [float(np.median(part)) for part in np.array_split(watched.mib[len(watched.mib) // 10 :], 9)]
    return {"route": route, "atoms": len(plan.atoms), "steps": MEMORY_STEPS, "resident_mib": tenths}


class ResidentMemory:
    """Watches what the children of this process hold, all together, ten times a second: ``mib``."""

    def __enter__(self) -> "ResidentMemory":
        self.mib, self._done = [], threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            total = resident_bytes(children_of("self"))
            if total:
                self.mib.append(total / MIB)


def children_of(pid: str) -> list[str]:
    """Processes started by ``pid``, and by these."""
    try:
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        started = [child for task in tasks for child in task.read_text().split()]
    except OSError:  # it has just ended
        return []
    return started + [grandchild for child in started for grandchild in children_of(child)]


def resident_bytes(pids: list[str]) -> int:
    """Bytes of main memory that processes hold; what they share counts for each."""
    total = 0
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:  # it has just ended
            continue
        total += sum(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return total


def run(route: str, student: str, plan: Plan, n_ranks: int = 1) -> Outcome:
    """One LAMMPS run in float32."""
    if route == "plugin":
        return run_plugin(plan, student, "float32", STOCK_LMP, n_ranks)
    return run_lammps(plan, student, "float32", n_ranks)


QUESTIONS = {"overhead": overhead, "ranks": ranks, "memory": memory}


def markdown(results: dict) -> str:
    """The page."""
    head = (
        f"# What LAMMPS costs around a student\n\n{results['cpu']}, one thread a rank, float32, "
        f"{results['date']}, commit {results['commit']}, PyTorch {results['versions']['torch']}. "
        "Made by `python benchmarks/lammps_costs.py`.\n"
    )
    return "\n".join([head, *(TABLES[name](results[name]) for name in QUESTIONS if name in results)])


def overhead_table(rows: list[dict]) -> str:
    """CPU time of a step and the student's share."""
    lines = [("route", "atoms", "ms/step (CPU)", "the student", "outside of it", "load")]
    for row in rows:
        times = [median_ms(row[key]) for key in ("cpu_seconds_per_step", "kernel_cpu_seconds")]
        lines.append((*subject(row), *times, f"{row['outside_the_student']:.0%}", loads(row)))
    return table(lines)


def ranks_table(rows: list[dict]) -> str:
    """One rank and two."""
    lines = [("route", "atoms", "ms/step, 1 rank", "2 ranks", "times as fast", "load")]
    for row in rows:
        times = [median_ms(row["seconds_per_step"][n]) for n in "12"]
        lines.append((*subject(row), *times, f"{row['speed_up']:.2f}", loads(row)))
    return table(lines)


def memory_table(rows: list[dict]) -> str:
    """What a run holds."""
    lines = [("route", "atoms", "steps", "MiB held, by tenths of the run from the second on")]
    for row in rows:
        lines.append((*subject(row), row["steps"], " ".join(f"{mib:.1f}" for mib in row["resident_mib"])))
    return table(lines)


TABLES = {"overhead": overhead_table, "ranks": ranks_table, "memory": memory_table}


def table(lines: list[tuple]) -> str:
    """A Markdown table, its first line the head."""
    head, *rows = lines
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in (head, ("---",) * len(head), *rows))


def subject(row: dict) -> tuple[str, int]:
    return ROUTES[row["route"]], row["atoms"]


def median_ms(seconds: list[float]) -> str:
    return f"{1e3 * np.median(seconds):.2f}"


def loads(row: dict) -> str:
    """Load averages before and after."""
    return " to ".join(f"{load:g}" for load in row["load_average"])


if __name__ == "__main__":
    sys.exit(main())
