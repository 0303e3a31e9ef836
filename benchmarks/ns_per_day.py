# SPDX-License-Identifier: MIT
"""How many nanoseconds a day: a student alone, through ASE, i-PI and LAMMPS, and its teacher through ASE.

    python benchmarks/ns_per_day.py [--student BUNDLE] [--steps N] [--only ase lammps ...] [--molecules 64]

64 and 512 water molecules at 0.997 g/cm3, constant energy, time steps of 0.5 fs, one thread a process. LAMMPS
runs the student in two ways: pair_style mliap through Python, in the lmp of this environment, and the plugin
pair_style mlffd, in any lmp (--plugin-lmp). Writes results/ns_per_day.json and, from it, ns_per_day.md.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read
from harness import (
    RESULTS,
    ROOT,
    SCRIPTS,
    BenchmarkError,
    facts,
    load_average,
    report,
    set_threads,
    summary,
)
from routes import Outcome, Plan, run_alone, run_ase, run_ipi, run_lammps, run_plugin

from mlffd import Calculator, Engine
from mlffd.bundle import locate_bundle
from mlffd.environment import sha256_of
from mlffd.errors import MlffdError
from mlffd.teachers import load_teacher

WATER = ROOT / "ipi_inputs" / "water64.xyz"
COPIES = {64: 1, 512: 2}  # molecules: copies of that box along each direction
STOCK_LMP = Path(sys.prefix) / "stock-lammps" / "bin" / "lmp"  # where `make test` puts one without ML-IAP
TIME_STEP = 0.5  # fs
TEACHER = {"name": "7net-mf-0", "modal": "R2SCAN"}
MASS_OF_UNIT = 1.66053907  # g/cm3 in u/Å^3
# a coupling's energy may differ from the float64 reference by so much, in meV/atom; i-PI prints nine digits
TOLERANCE = {"float32": 1e-2, "float64": 1e-4}
N_BEADS = 8
# name: (label, copies of the system evaluated a step, MPI ranks)
ROUTES = {
    "alone": ("the student alone", 1, 1),
    "ase": ("ASE, velocity Verlet", 1, 1),
    "ipi": ("i-PI, 1 bead", 1, 1),
    "ipi-8": (f"i-PI, {N_BEADS} beads", N_BEADS, 1),
    "lammps": ("LAMMPS, ML-IAP, 1 rank", 1, 1),
    "lammps-2": ("LAMMPS, ML-IAP, 2 ranks", 1, 2),
    "plugin": ("LAMMPS, plugin, 1 rank", 1, 1),
    "plugin-2": ("LAMMPS, plugin, 2 ranks", 1, 2),
    "teacher": ("ASE, the teacher", 1, 1),
}


def main(arguments: list[str] | None = None) -> int:
    """The command line: 1 where something could not be measured, with one line of why."""
    options = parser().parse_args(arguments)
    set_threads(options.threads)
    results = report("ns_per_day", options, measure, markdown)
    return 1 if results is None or any("not_run" in row for row in results["rows"]) else 0


def parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="water", help="student bundle, or name of a shipped one")
    parser.add_argument("--dtype", default="float32", choices=TOLERANCE)
    parser.add_argument("--steps", type=int, default=100, help="steps a repetition, for 64 molecules")
    parser.add_argument("--molecules", type=int, nargs="+", choices=COPIES, default=list(COPIES))
    default = STOCK_LMP if STOCK_LMP.exists() else SCRIPTS / "lmp"
    parser.add_argument("--plugin-lmp", type=Path, default=default, help="an lmp with the package PLUGIN")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=20, help="steps before them, not timed")
    parser.add_argument("--teacher-steps", type=int, default=1, help="the teacher's steps a repetition")
    parser.add_argument("--teacher-repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of each process or rank")
    parser.add_argument("--only", nargs="+", choices=ROUTES, default=list(ROUTES))
    parser.add_argument("--page-only", action="store_true", help="make the page anew from the JSON")
    parser.add_argument("--output", type=Path, default=RESULTS / "ns_per_day.json")
    return parser


def measure(options) -> dict:
    """Everything that goes into the JSON.

    Raises:
        MlffdError: no such student, or an energy that is not the reference's.
    """
    water = read(WATER)
    reference = Calculator(options.student, dtype="float64", backend="reference")
    results = {
        "question": __doc__.splitlines()[0],
        **facts(),
        "time_step_fs": TIME_STEP,
        "student": student_facts(options, reference),
        "teacher": None,
        "force_error": None,
        "boxes": {},
        "rows": [],
    }
    for molecules in options.molecules:
        atoms = water.repeat(COPIES[molecules])
        energy = float(reference.get_potential_energy(atoms))
        results["boxes"][str(molecules)] = {**box_facts(atoms), "reference_energy_ev": energy}
        runs = runs_of(options, atoms)
        if molecules == 64:
            runs["teacher"] = teacher_run(options, atoms, reference, results)
        for name in options.only:
            if name in runs:
                row = {"molecules": molecules, **row_of(name, runs[name], energy, len(atoms), options.dtype)}
                results["rows"].append(row)
                print(progress(row), file=sys.stderr, flush=True)
    return results


def runs_of(options, atoms: Atoms) -> dict[str, Callable[[], Outcome]]:
    """How to run each route with the student; i-PI for the smaller box only. Eight beads are as much work as
    eight times the steps."""
    steps = max(options.steps * 192 // len(atoms), 1)
    plan = Plan(atoms, TIME_STEP, steps, options.repetitions, options.warm_up)
    few = Plan(atoms, TIME_STEP, max(steps // N_BEADS, 1), options.repetitions, options.warm_up)
    student, dtype, lmp = options.student, options.dtype, options.plugin_lmp
    small = {
        "ipi": lambda: run_ipi(plan, student, dtype),
        "ipi-8": lambda: run_ipi(few, student, dtype, N_BEADS),
    }
    return {
        "alone": lambda: run_alone(plan, Engine(student, dtype=dtype)),
        "ase": lambda: run_ase(plan, Calculator(student, dtype=dtype)),
        **(small if len(atoms) == 192 else {}),
        "lammps": lambda: run_lammps(plan, student, dtype),
        "lammps-2": lambda: run_lammps(plan, student, dtype, ranks=2),
        "plugin": lambda: run_plugin(plan, student, dtype, lmp),
        "plugin-2": lambda: run_plugin(plan, student, dtype, lmp, ranks=2),
    }


def teacher_run(options, atoms: Atoms, reference: Calculator, results: dict) -> Callable[[], Outcome]:
    """How to run the teacher; notes in ``results`` who it is and the student's force error on the frame."""

    def run() -> Outcome:
        teacher = load_teacher(TEACHER)
        results["teacher"] = teacher.description()
        results["force_error"] = force_error(
            reference.get_forces(atoms), teacher.calculator.get_forces(atoms).astype(float)
        )
        plan = Plan(atoms, TIME_STEP, options.teacher_steps, options.teacher_repetitions, warm_up=1)
        return run_ase(plan, teacher.calculator)

    return run


def row_of(name: str, run: Callable[[], Outcome], reference_energy: float, n_atoms: int, dtype: str) -> dict:
    """One line of the table; where a route cannot be run it says why.

    Raises:
        BenchmarkError: the route's energy is not the reference's: its speed would mean nothing.
    """
    label, copies, ranks = ROUTES[name]
    entry = {"route": name, "label": label, "copies": copies, "ranks": ranks}
    load = load_average()
    try:
        outcome = run()
    except MlffdError as error:
        return {**entry, "not_run": str(error)}
    entry |= summary(outcome.seconds_per_step, TIME_STEP)
    entry |= {"timed_by": outcome.timed_by, "load_average": [load, load_average()]}
    if outcome.cpu_seconds_per_step:
        entry |= {"cpu_seconds_per_step": outcome.cpu_seconds_per_step}
        entry |= {"median_cpu_seconds_per_step": float(np.median(outcome.cpu_seconds_per_step))}
    if name != "teacher":
        entry["energy_difference_ev"] = outcome.first_energy - reference_energy
        check_energy(entry, reference_energy, dtype, n_atoms)
    return entry


def check_energy(entry: dict, reference_energy: float, dtype: str, n_atoms: int) -> None:
    """Raises BenchmarkError where the energy of ``entry`` is too far from the reference."""
    difference = 1e3 * abs(entry["energy_difference_ev"]) / n_atoms
    if not difference <= TOLERANCE[dtype]:
        raise BenchmarkError(
            f"{entry['label']}: its energy is {difference:.3g} meV/atom off the float64 reference "
            f"{reference_energy:.6f} eV: it computes something else, and how fast is of no interest"
        )


def force_error(student: np.ndarray, teacher: np.ndarray) -> dict:
    """Of forces (n_atoms, 3) in eV/Å, in meV/Å."""
    difference = 1e3 * (student - teacher)
    return {
        "mae_mev_per_angstrom": float(np.abs(difference).mean()),
        "rmse_mev_per_angstrom": float(np.sqrt((difference**2).mean())),
        "teacher_rms_mev_per_angstrom": float(1e3 * np.sqrt((teacher**2).mean())),
    }


def box_facts(atoms: Atoms) -> dict:
    """What is simulated."""
    density = MASS_OF_UNIT * atoms.get_masses().sum() / atoms.get_volume()
    return {
        "formula": atoms.get_chemical_formula(),
        "n_atoms": len(atoms),
        "density_g_per_cm3": round(float(density), 4),
    }


def student_facts(options, reference: Calculator) -> dict:
    """Which student it was, and the backend it ran on."""
    engine, path = reference.engine, locate_bundle(options.student)
    return {
        "name": path.stem,
        "sha256": sha256_of(path),
        "parameters": sum(parameter.numel() for parameter in engine.student.parameters()),
        "architecture": engine.student.architecture,
        "dtype": options.dtype,
        "backend": Engine(options.student, dtype=options.dtype).backend,
    }


def progress(entry: dict) -> str:
    """A line while others still run."""
    if "not_run" in entry:
        return f"{entry['label']}: not run: {entry['not_run']}"
    return f"{entry['label']}: {1e3 * entry['median_seconds_per_step']:.2f} ms a step"


def markdown(results: dict) -> str:
    """The page made from the JSON, and from nothing else."""
    student = results["student"]
    lines = [
        "# ns/day of liquid water",
        "",
        f"Constant energy, time step {results['time_step_fs']} fs. Student `{student['name']}` "
        f"({student['architecture']['family']}, {student['parameters']} parameters, {student['dtype']}, "
        f"backend {student['backend']}). {error_sentence(results)}",
    ]
    for molecules, box in results["boxes"].items():
        lines += ["", *box_section(int(molecules), box, results)]
    lines += [
        "",
        "us/atom is for one evaluation of one copy of the box; CPU time where it is known, of one rank. The "
        "student alone is the engine on the frames of a trajectory, neighbor lists included. "
        f"{results['cpu']}, {results['cores']} cores, load average {results['load_average']} at the start; "
        f"{results['threads']} thread(s) a process or rank. Medians of repetitions after a warm-up; the "
        "atoms move before every evaluation. ASE is timed around each step, LAMMPS and i-PI by what they "
        "print.",
        "",
        f"{results['date']}, commit {results['commit']}, "
        + ", ".join(f"{name} {number}" for name, number in results["versions"].items() if number),
    ]
    return "\n".join(lines) + "\n"


def box_section(molecules: int, box: dict, results: dict) -> list[str]:
    """The table of one box."""
    rows = [row for row in results["rows"] if row["molecules"] == molecules]
    return [
        f"## {molecules} molecules",
        "",
        f"{box['formula']} ({box['n_atoms']} atoms, {box['density_g_per_cm3']:.3f} g/cm3).",
        "",
        "| through | ms a step (range) | ns/day | us/atom | CPU time | of that alone | times the teacher "
        "| energy off float64 |",
        "|---|---|---|---|---|---|---|---|",
        *(table_row(entry, results) for entry in rows),
    ]


def error_sentence(results: dict) -> str:
    """How faithful the student is, where the teacher was there to tell."""
    error, teacher = results["force_error"], results["teacher"]
    if error is None:
        return "The teacher was not run, so nothing is said of the student's error."
    settings = " ".join(map(str, teacher["settings"].values()))
    return (
        f"Its forces differ from the teacher's ({teacher['name']} {settings}) by "
        f"{error['mae_mev_per_angstrom']:.1f} meV/Å (mean absolute; the teacher's are "
        f"{error['teacher_rms_mev_per_angstrom']:.0f}, RMS) on the first frame."
    )


def table_row(entry: dict, results: dict) -> str:
    """One line of the table; ratios are those of us/atom: of CPU times where they are known, for one rank."""
    if "not_run" in entry:
        return f"| {entry['label']} | not run: {entry['not_run']} | | | | | | |"
    median, low, high = (
        1e3 * entry[f"{which}_seconds_per_step"] for which in ("median", "lowest", "highest")
    )
    cpu, alone = per_atom(entry, results, "median_cpu"), find(results, "alone", entry["molecules"])
    comparable = cpu and alone and entry["ranks"] == 1 and entry["route"] != "teacher"
    of_alone = cpu / per_atom(alone, results, "median_cpu") if comparable else None
    which = "median_cpu" if cpu and entry["ranks"] == 1 else "median"
    teacher = find(results, "teacher")
    faster = per_atom(teacher, results, which) / per_atom(entry, results, which) if teacher else None
    off = f"{1e3 * entry['energy_difference_ev']:.2g} meV" if "energy_difference_ev" in entry else ""
    return (
        f"| {entry['label']} | {median:.2f} ({low:.2f} to {high:.2f}) | {entry['ns_per_day']:.3g} "
        f"| {per_atom(entry, results):.1f} | {cell(cpu, '.1f')} | {cell(of_alone, '.2f')} "
        f"| {cell(faster, '.0f')} | {off} |"
    )


def per_atom(entry: dict, results: dict, which: str = "median") -> float | None:
    """Microseconds of one evaluation of one copy of the box, per atom; None where it is not known."""
    seconds = entry.get(f"{which}_seconds_per_step")
    n_atoms = results["boxes"][str(entry["molecules"])]["n_atoms"]
    return 1e6 * seconds / (entry["copies"] * n_atoms) if seconds else None


def find(results: dict, route: str, molecules: int | None = None) -> dict | None:
    """The row of a route that ran, for a box or for any; None where there is none."""
    for row in results["rows"]:
        if row["route"] == route and "not_run" not in row and molecules in (None, row["molecules"]):
            return row
    return None


def cell(number: float | None, form: str) -> str:
    """A number as it stands in a table, or nothing."""
    return "" if number is None else f"{number:{form}}"


if __name__ == "__main__":
    sys.exit(main())
