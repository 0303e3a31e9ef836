# SPDX-License-Identifier: MIT
"""How fast is a student on one core: the fused kernels beside plain and compiled PyTorch, by size and phase.

    python benchmarks/cpu_kernels.py [--only local ...] [--sizes 192 1536 ...] [--quick]

Liquid water, students with random weights, one thread. The positions are those of a trajectory with steps of
0.5 fs, so neighbor lists are built as often as in a run, and no evaluation repeats another. Before a backend
is timed, its energy and forces must be those of float64. Writes results/cpu_kernels.json, and from it alone
the page cpu_kernels.md and, where matplotlib is installed, the figure cpu_kernels.svg.

Floating-point operations (flop) are those the best known algorithm needs, not those a kernel makes, so that a
kernel gains nothing by wasting some. For energy and forces, per atom with n neighbors:

local: K radial functions, M = (l_max + 1)^2 harmonics, D = K x species (density columns), C channels
    edges    n (6 K M + 18 K + 12 M)       density, its two derivatives; radial functions and harmonics
    mixing   8 C M D                       2 C channels, forward and backward
    rest     2 C (8 M + 60) + 4 x network  invariants and their derivatives; multiply-adds of the network

painn: F features, L layers
    dense    60 F^2 L - 20 F^2 + 2 F^2     30 F^2 forward a layer; without the first message network, which
                                           depends on the species only, and the last update of the vectors
    edges    n F (32 + 72 (L - 1))         cubic tables of the filters and slopes shared by both directions of
                                           a pair (15), messages (16) and derivatives (41); less in the first
"""

import argparse
import io
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from ase import Atoms
from ase.io import read
from harness import RESULTS, BenchmarkError, facts, load_average, report, set_threads
from ns_per_day import TIME_STEP, WATER, box_facts
from routes import trajectory

import mlffd.engine
import mlffd.neighbors
from mlffd import Engine
from mlffd.files import write_atomically
from mlffd.kernels import cpu
from mlffd.neighbors import neighbor_list
from mlffd.students import build_student
from mlffd.students.student import Student

WATER_SPECIES = [1, 8]
PAINN = dict(family="painn", species=WATER_SPECIES, cutoff=5.0, n_radial=20)
STUDENTS = {
    "local": dict(
        family="local", species=WATER_SPECIES, cutoff=5.5, n_radial=8, l_max=3, channels=32, hidden=[64, 64]
    ),
    "painn-64": dict(**PAINN, features=64, layers=2),
    "painn-128": dict(**PAINN, features=128, layers=3),
}
BACKENDS = {  # name: (label, dtype)
    "eager": ("eager PyTorch", "float32"),
    "compiled": ("torch.compile", "float32"),
    "cpu": ("cpu kernel", "float32"),
    "cpu-64": ("cpu kernel", "float64"),
}
# what is timed apart: (name, owner, attribute)
WATCHED = [
    ("list built", mlffd.neighbors, "build"),
    ("list checked", mlffd.neighbors.NeighborLists, "find"),
    ("edge vectors", cpu, "edge_vectors"),
    ("edge vectors", mlffd.neighbors.Edges, "vectors"),
    ("graph", mlffd.engine, "from_edges"),
    ("student", mlffd.engine, "pair_gradient"),
    ("kernel", cpu.CpuKernel, "evaluate"),
    ("force sums", cpu, "sum_forces"),
]
PHASES = list(dict.fromkeys(name for name, _, _ in WATCHED))
# what the kernels are meant to reach: us/atom, times eager, times torch.compile
GOALS = {"local": (6.0, 8.0, 3.0), "painn-64": (18.0, 15.0, 4.0), "painn-128": (72.0, 15.0, 4.0)}
# relative error of the energy, error of the forces over their RMS; worst atom
TOLERANCES = {"float32": (1e-6, 2e-5), "float64": (1e-11, 1e-10)}
SIZES = (192, 1536, 12288)
JITTER = 0.02  # Å, so that the images of a box differ
WARM_UP = 2
PEAK_SIZE = 1024


def main(arguments: list[str] | None = None) -> int:
    """The command line: 1 where something could not be measured, with one line of why."""
    options = parser().parse_args(arguments)
    if options.quick:
        options.frames, options.seconds, options.repetitions = 8, 0.1, 2
    set_threads(1)
    results = report("cpu_kernels", options, measure, markdown)
    if results is None:
        return 1
    draw(results, options.output.with_suffix(".svg"))
    return 0


def parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--sizes", nargs="+", type=int, choices=SIZES, default=list(SIZES), help="atoms")
    parser.add_argument("--frames", type=int, default=1000, help="of the trajectory; one an evaluation")
    parser.add_argument("--seconds", type=float, default=5.0, help="roughly, for each row")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="for a test: a few frames only")
    parser.add_argument("--page-only", action="store_true", help="make page and figure anew from the JSON")
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu_kernels.json")
    return parser


def measure(options) -> dict:
    """Everything that goes into the JSON.

    Raises:
        MlffdError: energy or forces of a backend are not those of float64.
    """
    water = read(WATER)
    results = {
        "question": __doc__.splitlines()[0],
        **facts(),
        "box": box_facts(water),
        "time_step_fs": TIME_STEP,
        "peak_gflops": {name: blas_peak(name) for name in TOLERANCES},
        "peak_gflops_avx512": {name: avx512_peak(name) for name in TOLERANCES},
        "students": {},
        "rows": [],
    }
    frames = trajectory(water, options.frames, TIME_STEP)
    with limited_memory() as n_bytes:
        results["memory_limit_gb"] = round(n_bytes / 1e9, 1)
        for name in options.only:
            measure_student(name, water, frames, options, results)
    return results


def measure_student(name: str, water: Atoms, frames: np.ndarray, options, results: dict) -> None:
    """Add a student and its rows, all sizes and backends, to ``results``.

    Raises:
        BenchmarkError: energy or forces of a backend are not those of float64.
    """
    torch.manual_seed(0)
    student = build_student(STUDENTS[name])
    results["students"][name] = {
        "architecture": student.architecture,
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
    }
    engines = {backend: make_engine(student, backend) for backend in options.backends}
    for n_atoms in options.sizes:
        frame = partial(box, water, frames, n_atoms)
        oracle = Oracle(student, frame(0))
        for backend, engine in engines.items():
            row = measure_row(name, backend, engine, oracle, frame, options)
            results["rows"].append(row)
            print(progress(row), file=sys.stderr, flush=True)


@contextmanager
def limited_memory() -> Iterator[float]:
    """In the block this process may take three quarters of the memory that is free now, in bytes: what needs
    more is refused in words rather than ended by the kernel."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (3 * free // 4, before[1]))
    try:
        yield 3 * free // 4
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def blas_peak(dtype: str, **environment: str) -> float:
    """``gemm_peak`` in a process of its own: OpenBLAS reads the number of threads and the instructions from
    the environment, and only when it starts."""
    command = [sys.executable, "-c", f"import cpu_kernels; print(cpu_kernels.gemm_peak({dtype!r}))"]
    everything, folder = {**os.environ, **environment}, Path(__file__).parent
    answer = subprocess.run(command, env=everything, cwd=folder, check=True, capture_output=True, text=True)
    return float(answer.stdout)


def avx512_peak(dtype: str) -> float | None:
    """The same when OpenBLAS is told to use AVX-512, which it does not do by itself on all processors that
    have it; None without AVX-512."""
    if " avx512f " not in Path("/proc/cpuinfo").read_text():
        return None
    return blas_peak(dtype, OPENBLAS_CORETYPE="SKYLAKEX")


def gemm_peak(dtype: str) -> float:
    """GFLOP/s of a large matrix product, by the BLAS of NumPy or of PyTorch, whichever is faster."""
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    a, b = (random.random((PEAK_SIZE, PEAK_SIZE)).astype(dtype) for _ in range(2))
    torch_a, torch_b = torch.from_numpy(a), torch.from_numpy(b)
    products = (partial(np.matmul, a, b, out=a.copy()), partial(torch.mm, torch_a, torch_b))
    seconds = min(fastest(product, 12) for product in products)
    return 2e-9 * PEAK_SIZE**3 / seconds


def fastest(call: Callable[[], object], n: int) -> float:
    """CPU seconds of the fastest of ``n`` calls."""
    call()
    seconds = []
    for _ in range(n):
        began = time.process_time()
        call()
        seconds.append(time.process_time() - began)
    return min(seconds)


def flop_per_atom(architecture: dict, neighbors: float) -> float:
    """Floating-point operations for the energy and forces of an atom; see the top of this file.

    ``neighbors``: mean number within the cutoff.
    """
    if architecture["family"] == "painn":
        features, layers = architecture["features"], architecture["layers"]
        dense = features**2 * (60 * layers - 20 + 2)
        return dense + neighbors * features * (32 + 72 * (layers - 1))
    radial, channels = architecture["n_radial"], architecture["channels"]
    l_max, n_species = architecture["l_max"], len(architecture["species"])
    harmonics = (l_max + 1) ** 2
    edges = neighbors * (6 * radial * harmonics + 18 * radial + 12 * harmonics)
    mixing = 8 * channels * harmonics * radial * n_species
    sizes = [channels * (2 + l_max + (2 if l_max >= 2 else 0)), *architecture["hidden"], 1]
    network = sum(a * b for a, b in zip(sizes, sizes[1:]))
    return edges + mixing + 2 * channels * (8 * harmonics + 60) + 4 * network


def make_engine(student: Student, backend: str) -> Engine:
    """The engine of a backend. torch.compile takes what was learned, forward and backward, for any number of
    edges; reference energies and repulsion stay eager, and so does what the compiler cannot take in."""
    dtype = BACKENDS[backend][1]
    engine = Engine(student, dtype=dtype, backend="cpu" if backend.startswith("cpu") else "reference")
    if backend == "compiled":
        engine.student.interaction = torch.compile(engine.student.interaction, dynamic=True)
    return engine


def box(water: Atoms, frames: np.ndarray, n_atoms: int, k: int) -> Atoms:
    """Frame ``k`` of the trajectory as a box of ``n_atoms``: images of ``water``, each a bit different."""
    copies = round((n_atoms / len(water)) ** (1 / 3))
    atoms = water.copy()
    atoms.positions = frames[k]
    atoms = atoms.repeat(copies)
    atoms.positions += np.random.default_rng(n_atoms).normal(size=atoms.positions.shape, scale=JITTER)
    return atoms


class Oracle:
    """Energy and forces of a structure in float64: by the reference where memory allows, else by the kernel,
    which the reference has judged at smaller sizes."""

    def __init__(self, student: Student, atoms: Atoms):
        self.atoms, self.backend = atoms, "reference"
        try:
            (self.prediction,) = Engine(student, dtype="float64", backend="reference").evaluate(atoms)
        except (RuntimeError, MemoryError) as error:
            if not is_about_memory(error):
                raise
            self.backend = "cpu"
            (self.prediction,) = Engine(student, dtype="float64", backend="cpu").evaluate(atoms)

    def check(self, engine: Engine) -> dict:
        """How far an engine is off: of the energy to the sum of magnitudes of atomic energies, and of the
        force on the worst atom to the RMS of forces.

        Raises:
            BenchmarkError: too far, so that its speed would mean nothing.
        """
        (found,) = engine.evaluate(self.atoms)
        expected = self.prediction
        force_rms = np.sqrt((expected.forces**2).mean())
        energy = abs(found.energy - expected.energy) / np.abs(expected.atomic_energies).sum()
        forces = np.abs(found.forces - expected.forces).max() / force_rms
        if not (energy <= TOLERANCES[engine.dtype][0] and forces <= TOLERANCES[engine.dtype][1]):
            raise BenchmarkError(
                f"{engine.backend}, {engine.dtype}, {len(self.atoms)} atoms: energy and forces are "
                f"{energy:.2g} and {forces:.2g} off float64; how fast that is computed is of no interest"
            )
        return {
            "checked_against": f"{self.backend}, float64",
            "energy_ev": found.energy,
            "force_rms_ev_per_angstrom": float(force_rms),
            "energy_error": float(energy),
            "force_error": float(forces),
        }


def measure_row(name: str, backend: str, engine: Engine, oracle: Oracle, frame: Callable, options) -> dict:
    """One backend at one size; ``frame(k)`` is the k-th structure. Says why where memory does not suffice.

    Raises:
        BenchmarkError: its energy or forces are wrong.
    """
    label, dtype = BACKENDS[backend]
    n_atoms = len(oracle.atoms)
    row = {"student": name, "backend": backend, "label": label, "dtype": dtype, "n_atoms": n_atoms}
    load = load_average()
    try:
        row |= oracle.check(engine)
        row |= timed(engine, frame, options)
    except (RuntimeError, MemoryError) as error:
        if not is_about_memory(error):
            raise
        return {**row, "not_run": "needs more memory than there is"}
    neighbors = mean_neighbors(oracle.atoms, engine.cutoff)
    flop = flop_per_atom(engine.student.architecture, neighbors)
    return {**row, "neighbors": neighbors, "flop_per_atom": flop, "load_average": [load, load_average()]}


def is_about_memory(error: Exception) -> bool:
    """Whether memory was refused; PyTorch has an error and words of its own for that."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error)


def mean_neighbors(atoms: Atoms, cutoff: float) -> float:
    """Of an atom, within ``cutoff`` in Å."""
    return neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)[0].shape[1] / len(atoms)


def timed(engine: Engine, frame: Callable[[int], Atoms], options) -> dict:
    """Seconds of an evaluation, wall clock and CPU, whole and by phase, in repetitions of equally many."""
    for k in range(WARM_UP):
        seconds = evaluate(engine, frame(k))["wall"]
    repetitions = options.repetitions
    room = (options.frames - WARM_UP) // repetitions
    n_steps = int(np.clip(options.seconds / repetitions / seconds, 1, room))
    frames = (frame(k) for k in range(WARM_UP, WARM_UP + repetitions * n_steps))
    n_builds, system_time = engine.neighbor_lists.n_builds, resource.getrusage(resource.RUSAGE_SELF).ru_stime
    taken = [evaluate(engine, atoms) for atoms in frames]
    system_time = resource.getrusage(resource.RUSAGE_SELF).ru_stime - system_time
    names = sorted({name for one in taken for name in one})
    table = np.array([[one.get(name, 0.0) for name in names] for one in taken])
    means = dict(zip(names, table.reshape(repetitions, n_steps, -1).mean(axis=1).T.tolist()))
    return {
        "steps": n_steps,
        "steps_per_list": len(taken) / max(engine.neighbor_lists.n_builds - n_builds, 1),
        "system_share": system_time / sum(one["cpu"] for one in taken),
        "seconds_per_step": means.pop("wall"),
        "cpu_seconds_per_step": means.pop("cpu"),
        "phase_cpu_seconds_per_step": means,
    }


def evaluate(engine: Engine, atoms: Atoms) -> dict[str, float]:
    """Wall seconds, CPU seconds, and CPU seconds of each phase, of one evaluation."""
    with stopwatches() as taken:
        wall, cpu_time = time.perf_counter(), time.process_time()
        engine.evaluate(atoms)
        taken |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu_time}
    return taken


@contextmanager
def stopwatches() -> Iterator[dict[str, float]]:
    """CPU seconds spent in each phase while the block runs; of one inside another, in the inner one."""
    taken, running = {}, []
    with ExitStack() as stack:
        for name, owner, attribute in WATCHED:
            watched = watch(getattr(owner, attribute), name, taken, running)
            stack.enter_context(patch.object(owner, attribute, watched))
        yield taken


def watch(function: Callable, name: str, taken: dict[str, float], running: list[str]) -> Callable:
    """``function``, which adds what it takes to ``taken[name]``; ``running`` are those it is called from."""

    def watched(*arguments, **options):
        running.append(name)
        began = time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            seconds = time.process_time() - began
            running.pop()
            taken[name] = taken.get(name, 0.0) + seconds
            if running:
                taken[running[-1]] = taken.get(running[-1], 0.0) - seconds

    return watched


def microseconds(row: dict, phase: str | None = None) -> float:
    """CPU time of an atom, the median of repetitions; of one phase or of the whole."""
    seconds = row["phase_cpu_seconds_per_step"][phase] if phase else row["cpu_seconds_per_step"]
    return 1e6 * float(np.median(seconds)) / row["n_atoms"]


def model_phase(row: dict) -> str:
    """The phase in which edge vectors become energies and gradients."""
    return "kernel" if row["backend"].startswith("cpu") else "student"


def gflops(row: dict) -> float:
    """Useful GFLOP/s in that phase."""
    return 1e-3 * row["flop_per_atom"] / microseconds(row, model_phase(row))


def limit(row: dict, results: dict, which: str = "peak_gflops") -> float | None:
    """Microseconds an atom needs at the rate of a large matrix product."""
    peak = results[which][row["dtype"]]
    return 1e-3 * row["flop_per_atom"] / peak if peak else None


def share(row: dict, results: dict, which: str = "peak_gflops") -> str:
    """Of that rate which a kernel reaches, as a cell."""
    fastest_possible = limit(row, results, which)
    if fastest_possible is None:
        return ""
    return f"{100 * fastest_possible / microseconds(row, model_phase(row)):.0f} %"


def progress(row: dict) -> str:
    """A line while others still run."""
    what = f"{row['student']}, {row['n_atoms']} atoms, {row['label']} {row['dtype']}"
    if "not_run" in row:
        return f"{what}: not run: {row['not_run']}"
    phases = ", ".join(f"{name} {microseconds(row, name):.2f}" for name in row["phase_cpu_seconds_per_step"])
    return f"{what}: {microseconds(row):.2f} us/atom ({phases})"


def markdown(results: dict) -> str:
    """The page made from the JSON, and from nothing else."""
    peaks = ", ".join(
        f"{results['peak_gflops'][dtype]:.0f} in {dtype}{avx512_note(results, dtype)}" for dtype in TOLERANCES
    )
    lines = [
        "# Students on one core",
        "",
        "Energy and forces of liquid water along a trajectory, neighbor lists included, one thread, random "
        "weights. Microseconds of CPU time per atom; medians of repetitions, in which the atoms moved before "
        f"every evaluation. A large matrix product makes {peaks} GFLOP/s in this run; what the flop are is "
        "said in `benchmarks/cpu_kernels.py`.",
        "",
        "![us/atom](cpu_kernels.svg)",
    ]
    for name, facts_of_student in results["students"].items():
        lines += ["", *student_section(name, facts_of_student, results)]
    lines += [
        "",
        f"{results['cpu']}, {results['cores']} cores, load average {results['load_average']} at the start; "
        f"memory up to {results['memory_limit_gb']} GB. Errors are relative: of the energy to the sum of "
        "magnitudes of atomic energies, of the worst force to the RMS, off the reference in float64, or "
        "off the kernel in float64 where the reference needs more memory than there is.",
        "",
        f"{results['date']}, commit {results['commit']}, "
        + ", ".join(f"{name} {number}" for name, number in results["versions"].items() if number),
    ]
    return "\n".join(lines) + "\n"


def avx512_note(results: dict, dtype: str) -> str:
    """What BLAS reaches with AVX-512, where it was measured."""
    peak = results["peak_gflops_avx512"][dtype]
    return f" ({peak:.0f} told to use AVX-512)" if peak else ""


def student_section(name: str, student: dict, results: dict) -> list[str]:
    """Tables of one student: times, phases, and how it stands to its goals."""
    rows = [row for row in results["rows"] if row["student"] == name]
    ran = [row for row in rows if "not_run" not in row]
    sizes = ", ".join(f"{key} {value}" for key, value in student["architecture"].items() if key != "family")
    return [
        f"## {name}",
        "",
        f"{student['architecture']['family']}, {student['parameters']} parameters: {sizes}.",
        "",
        "| atoms | backend | us/atom (wall clock, range) | model alone | GFLOP/s | of BLAS | of BLAS, "
        "AVX-512 | times eager | times compiled | energy, force error |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(table_row(row, ran, results) for row in rows),
        "",
        "Phases, means in us/atom, and the share of the time that the operating system takes, most of it to "
        "hand out memory:",
        "",
        "| atoms | backend | " + " | ".join(PHASES) + " | the rest | in the system |",
        "|---|---|" + "---|" * (len(PHASES) + 2),
        *(phase_row(row) for row in ran),
        "",
        *(goal_sentence(row, ran, results) for row in ran if row["backend"] == "cpu"),
    ]


def table_row(row: dict, ran: list[dict], results: dict) -> str:
    """One line of the table of times; ``ran`` are the rows to compare with."""
    start = f"| {row['n_atoms']} | {row['label']} {row['dtype']} |"
    if "not_run" in row:
        return f"{start} not run: {row['not_run']} | | | | | | | |"
    wall = [1e6 * seconds / row["n_atoms"] for seconds in row["seconds_per_step"]]
    note = "" if row["checked_against"].startswith("reference") else " (off the kernel)"
    return (
        f"{start} {microseconds(row):.3g} ({np.median(wall):.3g}, {min(wall):.3g} to {max(wall):.3g}) "
        f"| {microseconds(row, model_phase(row)):.3g} | {gflops(row):.3g} "
        f"| {share(row, results)} | {share(row, results, 'peak_gflops_avx512')} "
        f"| {times(row, ran, 'eager')} | {times(row, ran, 'compiled')} "
        f"| {row['energy_error']:.1e}, {row['force_error']:.1e}{note} |"
    )


def phase_row(row: dict) -> str:
    """One line of the table of phases, in microseconds an atom: means, as lists are built now and then."""
    per_atom = 1e6 / row["n_atoms"]
    parts = {name: per_atom * np.mean(found) for name, found in row["phase_cpu_seconds_per_step"].items()}
    cells = [f"{parts[name]:.3g}" if name in parts else "" for name in PHASES]
    rest = per_atom * np.mean(row["cpu_seconds_per_step"]) - sum(parts.values())
    return (
        f"| {row['n_atoms']} | {row['label']} {row['dtype']} | {' | '.join(cells)} | {rest:.2g} "
        f"| {100 * row['system_share']:.0f} % |"
    )


def ratio(row: dict, ran: list[dict], backend: str) -> float | None:
    """How many times faster than another backend at the same size, if that ran."""
    others = [other for other in ran if (other["backend"], other["n_atoms"]) == (backend, row["n_atoms"])]
    return microseconds(others[0]) / microseconds(row) if others else None


def times(row: dict, ran: list[dict], backend: str) -> str:
    """The ratio as a cell."""
    value = ratio(row, ran, backend)
    return "" if value is None else f"{value:.3g}"


def goal_sentence(row: dict, ran: list[dict], results: dict) -> str:
    """How the float32 kernel stands to what was asked of it."""
    microsecond_goal, eager_goal, compiled_goal = GOALS[row["student"]]
    found = [
        f"{microseconds(row):.2f} us/atom (at most {microsecond_goal:g})",
        f"{share(row, results)} of the rate of BLAS, at which it would be {limit(row, results):.2f} us/atom "
        "(at least 50 %)",
    ]
    for backend, goal in (("eager", eager_goal), ("compiled", compiled_goal)):
        value = ratio(row, ran, backend)
        if value is not None:
            found.append(f"{value:.1f} times {BACKENDS[backend][0]} (at least {goal:g})")
    return f"- {row['n_atoms']} atoms: " + ", ".join(found)


def draw(results: dict, path: Path) -> None:
    """Microseconds an atom by size, a panel a student; nothing where matplotlib is not installed."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        print("no figure: matplotlib is not installed", file=sys.stderr)
        return
    names = list(results["students"])
    figure = Figure(figsize=(3.2 * len(names), 3.4), layout="constrained")
    for name, axes in zip(names, np.atleast_1d(figure.subplots(1, len(names), sharey=True))):
        for backend, (label, dtype) in BACKENDS.items():
            rows = [row for row in results["rows"] if (row["student"], row["backend"]) == (name, backend)]
            points = [(row["n_atoms"], microseconds(row)) for row in rows if "not_run" not in row]
            axes.loglog(*(zip(*points) if points else ([], [])), "o-", label=f"{label}, {dtype}")
        axes.axhline(GOALS[name][0], color="gray", linestyle=":", label="goal")
        axes.set(title=name, xlabel="atoms")
    figure.axes[0].set_ylabel("us/atom, one core")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
    )
    image = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):  # text as text
        figure.savefig(image, format="svg", metadata={"Date": None})
    write_atomically(path, image.getvalue())


if __name__ == "__main__":
    sys.exit(main())
