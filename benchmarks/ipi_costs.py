# SPDX-License-Identifier: MIT
"""What path integrals through i-PI cost: mlffd-driver beside i-PI alone, one batch, and ASE's client.

    python benchmarks/ipi_costs.py [--beads 1 8 32] [--steps N] [--rounds N] [--only driver alone ...]

64 water molecules with ipi_inputs/pimd.xml, whose number of beads and forcefield are exchanged. A round has
each route once, one after the other, so that all see the same noise of the machine; ratios are taken within a
round. Times of steps are those that i-PI prints, the first ones left out. Writes results/ipi_costs.json and,
from it, ipi_costs.md.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.socketio import actualunixsocketname
from ase.io import read
from harness import (
    RESULTS,
    ROOT,
    SECONDS_PER_DAY,
    BenchmarkError,
    Program,
    facts,
    last_line,
    load_average,
    program,
    repetition_means,
    report,
    set_threads,
    time_steps,
)
from routes import IPI_STEP

from mlffd import Engine
from mlffd.bundle import locate_bundle
from mlffd.drivers.ipi.input import LATENCY_A_BEAD, PES_FILE
from mlffd.drivers.ipi.students import load_engines
from mlffd.drivers.ipi.template import read_template
from mlffd.environment import sha256_of

PIMD = ROOT / "ipi_inputs" / "pimd.xml"
ADDRESS = f"mlffd-costs-{os.getpid()}"
IPI_DEFAULT_LATENCY = 1e-4  # s
OF_THIS_MACHINE = ("bundles", "versions", "python", "cpu", "device_name", "commit")  # in the head
TIME_LIMIT = 900.0  # s, of one run
ROUTES = {
    "driver": "mlffd-driver, one connection",
    "alone": "i-PI alone, forces of zero",
    "model": "the student alone, one batch",
    "pes": "ffdirect, the PES file",
    "ase": "ASE's SocketClient",
    "ase-8": "ASE's SocketClient, 8 processes",
}


@dataclass(frozen=True)
class Plan:
    """What every run of a benchmark with one number of beads does."""

    n_beads: int
    student: str
    steps: int  # timed
    warm_up: int  # steps before them

    @property
    def total_steps(self) -> int:
        return self.warm_up + self.steps


@dataclass
class Outcome:
    """What one run took, a step; CPU seconds of i-PI and of all its clients."""

    seconds: float
    median_seconds: float
    ipi_cpu_seconds: float | None = None
    clients_cpu_seconds: float | None = None
    report: dict = field(default_factory=dict)  # of mlffd-driver


def main(arguments: list[str] | None = None) -> int:
    """The command line: 1 where something could not be measured, with one line of why."""
    options = parser().parse_args(arguments)
    set_threads(1)
    return 1 if report("ipi_costs", options, measure, markdown) is None else 0


def parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="water", help="student bundle, or name of a shipped one")
    parser.add_argument("--beads", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--steps", type=int, default=200, help="timed steps of a run with 32 beads")
    parser.add_argument("--warm-up", type=int, default=20, help="steps before them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, help="s; instead of that of mlffd ipi-input")
    parser.add_argument("--only", nargs="+", choices=ROUTES, default=list(ROUTES))
    parser.add_argument("--page-only", action="store_true", help="make the page anew from the JSON")
    parser.add_argument("--output", type=Path, default=RESULTS / "ipi_costs.json")
    return parser


def measure(options) -> dict:
    """Everything that goes into the JSON.

    Raises:
        BenchmarkError: i-PI is not installed, or one of the programs fails.
    """
    program("i-pi")
    path = locate_bundle(options.student)
    # the one that mlffd-driver has, to the number of atoms in a batch
    (engine,) = load_engines([options.student], [read_template(structure_file())], "cpu", "float32")
    student = {"name": path.stem, "sha256": sha256_of(path), "dtype": engine.dtype, "backend": engine.backend}
    results = {
        "question": __doc__.splitlines()[0],
        **facts(),
        "time_step_fs": time_step(),
        "student": student,
    }
    rows = [row for n_beads in options.beads for row in rows_of(options, n_beads, engine)]
    return results | {
        "rows": rows,
        "ratios": [ratio_row(rows, n) for n in options.beads if ratio_row(rows, n)],
    }


def rows_of(options, n_beads: int, engine: Engine) -> list[dict]:
    """All routes with one number of beads, round after round."""
    steps = max(options.steps * 32 // max(n_beads, 8), 1)
    plan = Plan(n_beads, str(options.student), steps, options.warm_up)
    latency = options.latency or LATENCY_A_BEAD * n_beads
    runs = routes(plan, latency, engine)
    rows = {
        name: {"beads": n_beads, "route": name, "steps": steps, "rounds": [], "load_average": []}
        for name in options.only
        if name in runs
    }
    for _ in range(options.rounds):
        for name, row in rows.items():
            row["load_average"].append(load_average())
            row["rounds"].append(vars(runs[name]()))
            print(progress(row), file=sys.stderr, flush=True)
    for row in rows.values():
        row |= summary(row["rounds"])
    if "driver" in rows:
        rows["driver"] |= {"latency": latency, **batches(rows["driver"]["rounds"], plan)}
    return list(rows.values())


def routes(plan: Plan, latency: float, engine: Engine) -> dict[str, Callable[[], Outcome]]:
    """How to run each route."""
    recorded = []  # the model is to see what i-PI would send: recorded when it is first needed

    def run_model() -> Outcome:
        if not recorded:
            recorded.append(record(plan, latency))
        return time_model(engine, recorded[0], plan)

    native = socket_forcefield(plan, plan.n_beads, latency)
    serial = socket_forcefield(plan, 1, IPI_DEFAULT_LATENCY)
    runs = {
        "driver": lambda: run_ipi(plan, native, [driver_words(plan)]),
        "alone": lambda: run_ipi(plan, direct_forcefield(plan.n_beads, {"pes": "dummy"})),
        "model": run_model,
        "pes": lambda: run_ipi(plan, direct_forcefield(plan.n_beads, pes_of(plan), "true")),
        "ase": lambda: run_ipi(plan, serial, [ase_words(plan)]),
        "ase-8": lambda: run_ipi(plan, serial, [ase_words(plan)] * 8),
    }
    return {name: run for name, run in runs.items() if name != "ase-8" or plan.n_beads >= 8}


# ---- inputs ----


def time_step() -> float:
    """Of pimd.xml, in fs."""
    return float(ET.parse(PIMD).find(".//timestep").text)


def element(tag: str, text: str = "", **attributes: str) -> ET.Element:
    """With text."""
    made = ET.Element(tag, attributes)
    made.text = text
    return made


def socket_forcefield(plan: Plan, batch_size: int, latency: float) -> ET.Element:
    """<ffsocket> whose clients evaluate so many structures together."""
    forcefield = ET.Element("ffsocket", mode="unix", pbc="false")
    forcefield.extend([
        element("address", ADDRESS), element("latency", repr(latency)), element("exit_on_disconnect", "True"),
        element("parameters", f"{{timestep: {time_step()}, beads: {plan.n_beads}}}"),
    ])  # fmt: skip
    if batch_size > 1:
        forcefield.append(element("batch_size", str(batch_size)))
    return forcefield


def direct_forcefield(batch_size: int, contents: dict[str, str], threaded: str = "false") -> ET.Element:
    """<ffdirect>, in i-PI's own process."""
    forcefield = ET.Element("ffdirect", pbc="false", threaded=threaded)
    forcefield.extend([element(tag, text) for tag, text in contents.items()])
    if batch_size > 1:
        forcefield.append(element("batch_size", str(batch_size)))
    return forcefield


def pes_of(plan: Plan) -> dict[str, str]:
    """The PES file with the student."""
    parameters = f"{{student: {absolute(plan.student)}, template: {structure_file()}}}"
    return {"pes": "custom", "pes_path": str(PES_FILE), "parameters": parameters}


def write_input(folder: Path, plan: Plan, forcefield: ET.Element, record: bool = False) -> None:
    """pimd.xml with another forcefield, beads and steps; ``record``: positions of all beads at each step."""
    root = ET.parse(PIMD).getroot()
    root.set("verbosity", "high")  # for the time of every step
    root.find("total_steps").text = str(plan.total_steps)
    root.find("system/initialize").set("nbeads", str(plan.n_beads))
    forcefield.set("name", root.find("ffsocket").get("name"))
    root[list(root).index(root.find("ffsocket"))] = forcefield
    root.find("system/initialize/file").text = str(structure_file())
    if record:
        output = root.find("output")
        output.append(element("trajectory", "positions{ase}", filename="recorded", stride="1", format="ase"))
    (folder / "input.xml").write_text(ET.tostring(root, encoding="unicode"))


def structure_file() -> Path:
    """That of pimd.xml."""
    return ROOT / ET.parse(PIMD).find("system/initialize/file").text.strip()


def absolute(student: str) -> str:
    """The student as any folder understands it."""
    return str(locate_bundle(student).resolve())


def driver_words(plan: Plan) -> list:
    """The command, which leaves its report in the folder of the run."""
    where = ["-t", structure_file(), "-u", ADDRESS]
    return [program("mlffd-driver"), absolute(plan.student), *where, "--report", "report.json"]


def ase_words(plan: Plan) -> list:
    """The other client's command."""
    script = Path(__file__).with_name("ipi_ase_client.py")
    return [sys.executable, script, absolute(plan.student), structure_file(), ADDRESS]


# ---- runs ----


def run_ipi(plan: Plan, forcefield: ET.Element, clients: Sequence[list] = (), record: Path | None = None):
    """i-PI and its clients, each in a folder of its own, to the end; ``record``: leave positions there.

    Raises:
        BenchmarkError: one of them failed, or it took too long.
    """
    with tempfile.TemporaryDirectory(prefix="mlffd-") as name:
        folder = record or Path(name)
        write_input(folder, plan, forcefield, record is not None)
        everyone = []
        try:
            everyone.append(Program([program("i-pi"), "input.xml"], folder))
            for k, words in enumerate(clients):
                home = Path(name, f"client-{k}")
                home.mkdir()
                everyone.append(Program(words, home))
            cpu = watch(everyone, plan)
        finally:
            for one in everyone:
                one.end()
            Path(actualunixsocketname(ADDRESS)).unlink(missing_ok=True)
        seconds = [float(text) for text in IPI_STEP.findall(everyone[0].printed())]
        written = Path(name, "client-0", "report.json")
        said = json.loads(written.read_text()) if written.exists() else {}
        said = {key: value for key, value in said.items() if key not in OF_THIS_MACHINE}
    (mean,) = repetition_means(seconds, plan.steps, 1, plan.warm_up)
    return Outcome(mean, float(np.median(seconds[plan.warm_up :])), *cpu, said)


def watch(everyone: list[Program], plan: Plan) -> tuple[float | None, float | None]:
    """Waits until all have ended; CPU seconds a step of i-PI and of the others, None if it was too short."""
    samples, deadline, running = [], time.monotonic() + TIME_LIMIT, True
    while running:
        running = any(one.process.poll() is None for one in everyone)
        for one in everyone:
            if one.process.poll():
                raise BenchmarkError(f"{one} failed: {last_line(one.printed())}")
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{everyone[0]} did not end within {TIME_LIMIT:g} s")
        sample = [n_steps(everyone[0]), *(cpu_seconds(one) for one in everyone)]
        if plan.warm_up <= sample[0] < plan.total_steps and None not in sample:
            samples.append(sample)
        time.sleep(0.1)
    if len(samples) < 2 or samples[-1][0] == samples[0][0]:
        return None, None
    steps, ipi, *clients = np.subtract(samples[-1], samples[0])
    return float(ipi / steps), float(sum(clients) / steps)


def n_steps(ipi: Program) -> int:
    """That i-PI has made."""
    return len(IPI_STEP.findall(ipi.printed()))


def cpu_seconds(one: Program) -> float | None:
    """Of all threads so far; None where it has ended."""
    try:
        words = Path(f"/proc/{one.process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def record(plan: Plan, latency: float) -> list[list[Atoms]]:
    """What i-PI asks for, step by step: every bead's structure. In a run of its own: writing takes long."""
    short = Plan(plan.n_beads, plan.student, min(plan.steps, 40), plan.warm_up)
    with tempfile.TemporaryDirectory(prefix="mlffd-") as name:
        forcefield = socket_forcefield(plan, plan.n_beads, latency)
        run_ipi(short, forcefield, [driver_words(plan)], record=Path(name))
        beads = [read(file, ":", format="extxyz") for file in sorted(Path(name).glob("*recorded*"))]
    if len(beads) != plan.n_beads:
        raise BenchmarkError(f"i-PI wrote positions of {len(beads)} beads instead of {plan.n_beads}")
    return [list(structures) for structures in zip(*beads)]


def time_model(engine: Engine, recorded: list[list[Atoms]], plan: Plan) -> Outcome:
    """One batched evaluation of each step's structures, neighbor lists included, in this process."""
    steps, shown = iter(recorded[1:]), [recorded[0]]

    def step() -> None:
        shown[0] = next(steps)
        engine.evaluate(shown[0])

    n_steps = len(recorded) - 1 - plan.warm_up
    seconds = time_steps(step, lambda: shown[0][0].positions, 1, n_steps, plan.warm_up)
    return Outcome(float(np.mean(seconds)), float(np.median(seconds)))


# ---- rows ----


def summary(rounds: list[dict]) -> dict:
    """Medians over the rounds."""
    keys = ("seconds", "median_seconds", "ipi_cpu_seconds", "clients_cpu_seconds")
    values = {key: [one[key] for one in rounds if one[key] is not None] for key in keys}
    return {f"{key}_per_step": float(np.median(found)) for key, found in values.items() if found}


def batches(rounds: list[dict], plan: Plan) -> dict:
    """From the driver's reports: its evaluations, and structures above those that the steps need."""
    needed = plan.total_steps + 1  # the forces at the start come before the first step
    return {
        "evaluations_per_step": float(np.median([one["report"]["evaluations"] / needed for one in rounds])),
        "duplicates": max(max(0, one["report"]["structures"] - needed * plan.n_beads) for one in rounds),
    }


def ratio_row(rows: list[dict], n_beads: int) -> dict | None:
    """The driver's step in units of i-PI alone and one batched evaluation; None where one was not run."""
    found = {row["route"]: row["rounds"] for row in rows if row["beads"] == n_beads}
    if not {"driver", "alone", "model"} <= set(found):
        return None
    entry = {"beads": n_beads}
    for key in ("seconds", "median_seconds"):
        series = ([one[key] for one in found[name]] for name in ("driver", "alone", "model"))
        entry[f"ratios_of_{key}"] = [driver / (alone + model) for driver, alone, model in zip(*series)]
    return entry


def progress(row: dict) -> str:
    """A line while others still run."""
    return f"{row['beads']} beads, {ROUTES[row['route']]}: {1e3 * row['rounds'][-1]['seconds']:.2f} ms a step"


def markdown(results: dict) -> str:
    """The page made from the JSON, and from nothing else."""
    student = results["student"]
    lines = [
        "# What path integrals through i-PI cost",
        "",
        f"64 water molecules, `ipi_inputs/pimd.xml` with the numbers of beads below, time step "
        f"{results['time_step_fs']} fs. Student `{student['name']}`, {student['dtype']}, backend "
        f"{student['backend']}.",
        "",
        *ratio_table(results),
        "| beads | route | ms a step (range) | median step | steps/s | ns/day | CPU ms, i-PI | clients "
        "| load |",
        "|---|---|---|---|---|---|---|---|---|",
        *(table_row(row, results["time_step_fs"]) for row in results["rows"]),
        "",
        "Times are wall clock, means over the steps of a run and medians of "
        f"{max(len(row['rounds']) for row in results['rows'])} runs, one after the other with the other "
        "routes in between; output is written in all of them but the student alone, which evaluates "
        "structures that i-PI has sent, one batch a call, neighbor lists included. CPU time is for each "
        "step. ASE's client has a batch of 1 and i-PI's default latency. Load averages are those before "
        "each run.",
        "",
        f"{results['cpu']}, {results['cores']} cores, {results['threads']} thread a process. "
        f"{results['date']}, commit {results['commit']}, "
        + ", ".join(f"{name} {number}" for name, number in results["versions"].items() if number)
        + ". Made by `python benchmarks/ipi_costs.py`.",
    ]
    return "\n".join(lines) + "\n"


def ratio_table(results: dict) -> list[str]:
    """What is lost between i-PI and the student."""
    if not results["ratios"]:
        return []
    lines = [
        "| beads | i-PI alone | one batch | mlffd-driver | times the sum (range) | of median steps "
        "| evaluations a step | duplicates evaluated | latency |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in results["ratios"]:
        rows = {row["route"]: row for row in results["rows"] if row["beads"] == entry["beads"]}
        times = [f"{1e3 * rows[name]['seconds_per_step']:.2f} ms" for name in ("alone", "model", "driver")]
        ratios, driver = entry["ratios_of_seconds"], rows["driver"]
        lines.append(
            f"| {entry['beads']} | {' | '.join(times)} | {spread(ratios, '.2f')} "
            f"| {np.median(entry['ratios_of_median_seconds']):.2f} | {driver['evaluations_per_step']:.3f} "
            f"| {driver['duplicates']} | {driver['latency']:g} s |"
        )
    return [*lines, ""]


def table_row(row: dict, time_step_fs: float) -> str:
    """One line of the table."""
    seconds = row["seconds_per_step"]
    speeds = ["", ""] if row["route"] in ("alone", "model") else [
        f"{1.0 / seconds:.1f}", f"{1e-6 * time_step_fs * SECONDS_PER_DAY / seconds:.3g}",
    ]  # fmt: skip
    cpu = [row.get(f"{who}_cpu_seconds_per_step") for who in ("ipi", "clients")]
    cells = [
        row["beads"], ROUTES[row["route"]],
        spread([1e3 * one["seconds"] for one in row["rounds"]], ".2f"),
        f"{1e3 * row['median_seconds_per_step']:.2f}", *speeds,
        *("" if each is None else f"{1e3 * each:.1f}" for each in cpu),
        f"{min(row['load_average']):g} to {max(row['load_average']):g}",
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def spread(values: list[float], form: str) -> str:
    """Median and range."""
    return f"{np.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    sys.exit(main())
