# SPDX-License-Identifier: MIT
"""What LAMMPS costs around a student, what a second rank brings, and whether memory grows.

    python benchmarks/lammps_costs.py [--student BUNDLE] [--only overhead ranks memory]

Overhead: CPU time of a step on one rank, 512 water molecules, less that of the student's kernel on frames of
such a run; the neighbor list counts as overhead. Ranks: 4096 molecules on one rank and on two, in turn.
Memory: what the process holds through 20 000 steps of 64 molecules. Writes results/lammps_costs.json and .md.
"""

import argparse
import sys
import threading
import time
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read
from harness import RESULTS, BenchmarkError, facts, load_average, report, set_threads
from ns_per_day import STOCK_LMP, TIME_STEP, WATER
from routes import Outcome, Plan, run_lammps, run_plugin, trajectory

from mlffd import Engine
from mlffd.neighbors import build

ROUTES = {"plugin": "plugin", "mliap": "ML-IAP"}
MEMORY_STEPS = 20_000
MIB = 2.0**20


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
    """CPU seconds a step of LAMMPS and of the student's kernel alone; three rounds in turn."""
    plan = Plan(read(WATER).repeat(2), TIME_STEP, options.steps, options.repetitions, warm_up=20)
    load, step, kernel = load_average(), [], []
    frames = trajectory(plan.atoms, plan.steps + 1, TIME_STEP)
    for _ in range(3):
        step += run(route, options.student, plan).cpu_seconds_per_step
        kernel.append(kernel_seconds(Engine(options.student), plan.atoms, frames))
    share = 1.0 - np.median(kernel) / np.median(step)
    return {
        "route": route, "atoms": len(plan.atoms), "cpu_seconds_per_step": step, "kernel_cpu_seconds": kernel,
        "outside_the_student": float(share), "load_average": [load, load_average()],
    }  # fmt: skip


def kernel_seconds(engine: Engine, atoms: Atoms, frames: np.ndarray) -> float:
    """Median CPU seconds of the student's kernel over ``frames`` (n_frames, n_atoms, 3), edges given."""
    species_idx = np.searchsorted(engine.species, atoms.numbers).astype(np.int32)
    seconds = []
    for positions in frames:
        one = build(positions, atoms.cell.array, atoms.pbc, engine.cutoff)
        vectors = one.edges.vectors(one.positions, one.cell[None])
        began = time.process_time()
        engine.kernel.evaluate(species_idx, one.edges.first_edge, one.edges.neighbor, vectors)
        seconds.append(time.process_time() - began)
    return float(np.median(seconds[1:]))


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
    """Watches what the children of this process hold, all together, twice a second: ``mib``."""

    def __enter__(self) -> "ResidentMemory":
        self.mib, self._done = [], threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.5):
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
