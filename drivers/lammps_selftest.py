# SPDX-License-Identifier: MIT
"""Runs of a LAMMPS program that show whether its answers are right: what ``mlffd doctor`` is made of.

Small students with random weights, and a user's own, are evaluated by LAMMPS in float64 and compared with
plain PyTorch. Whether pressures are right is asked of LAMMPS alone: its virial has to be the derivative of
its own energies under strain. All frames of all students go through one ``lmp`` for each route and number of
ranks, as starting one takes seconds.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from mlffd.bundle import Bundle, write_bundle
from mlffd.check import random_structure
from mlffd.drivers.lammps_library import VOIGT
from mlffd.drivers.lammps_mliap import export
from mlffd.drivers.lammps_plugin import build_plugin, export_weights, find_lammps
from mlffd.drivers.lammps_probe import LOADS_OBJECTS
from mlffd.drivers.lammps_program import (
    Finished,
    LammpsFacts,
    LammpsProgram,
    SinglePoint,
    read_single_point,
    run_limited,
    single_point,
    strained_energies,
    virial_by_differences,
    write_data_file,
)
from mlffd.engine import Engine
from mlffd.errors import MlffdError
from mlffd.predict import StructurePrediction
from mlffd.students import build_student

STRAIN = 3e-5  # of finite differences: their error is then some 1e-8
SEED = 20261122
SIZES = {
    "local": {"cutoff": 4.0, "n_radial": 6, "channels": 16, "hidden": [16]},
    "painn": {"cutoff": 3.5, "n_radial": 6, "features": 16, "layers": 2},
}

# what is measured, in what, and up to where it passes
TOLERANCES = {
    "energy": (1e-8, "eV/atom"),
    "forces": (1e-8, "eV/Å"),
    "forces in float32": (2e-4, "eV/Å"),
    "pressure": (1e-8, "relative"),
    "virial": (1e-5, "relative to strained energies"),
    "isolated atom": (1e-8, "eV"),
    "empty rank": (1e-8, "eV/Å"),
}


# ---- students and frames ----


@dataclass(frozen=True)
class Subject:
    """A student and the frames that it is tried on: ``bulk``, and perhaps ``alone`` and ``corner``."""

    name: str
    bundle: Bundle
    frames: dict[str, Atoms]

    @property
    def elements(self) -> tuple[str, ...]:
        """Chemical symbols by atom type."""
        return tuple(dict.fromkeys(symbol for atoms in self.frames.values() for symbol in atoms.symbols))

    def write(self, folder: Path) -> None:
        """NAME.mlffd and NAME.FRAME.data."""
        write_bundle(self.bundle_file(folder), self.bundle.student, self.bundle.metadata)
        for frame, atoms in self.frames.items():
            write_data_file(folder / f"{self.name}.{frame}.data", atoms, self.elements)

    def bundle_file(self, folder: Path) -> Path:
        return folder / f"{self.name}.mlffd"

    def expected(self) -> dict[str, StructurePrediction]:
        """What plain PyTorch says in float64 of each frame."""
        engine = Engine(self.bundle, dtype="float64", backend="reference")
        return {frame: engine.evaluate(atoms)[0] for frame, atoms in self.frames.items()}


def standard_subjects() -> list[Subject]:
    """A local student and one of two layers, of water, with the same random weights every time."""
    return [Subject(family, Bundle(random_student(family), {}), water_frames()) for family in SIZES]


def own_subject(bundle: Bundle) -> Subject:
    """A user's student, tried on the structure of ``mlffd check``."""
    return Subject("own", bundle, {"bulk": random_structure(bundle)})


def random_student(family: str):
    """An untrained student in which an atom alone has an energy, and many-body terms count."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        student = build_student({"family": family, "species": [1, 8], **SIZES[family]})
        student.baseline.reference_energies.copy_(torch.tensor([-1.5, -7.25], dtype=torch.float64))
        for name, tensor in student.named_parameters():
            if name.startswith("readout.2"):
                tensor.mul_(5.0)
    return student


def water_frames() -> dict[str, Atoms]:
    """A sheared periodic box of 27 molecules, an atom alone, and two molecules in a corner of a large box."""
    random = np.random.default_rng(SEED)
    molecule = np.array([[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]])
    lattice = np.stack(np.meshgrid(*[np.arange(3) * 3.1 + 0.5] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    bulk = Atoms("OH2" * 27, (lattice + molecule).reshape(-1, 3), cell=[9.3] * 3, pbc=True)
    bulk.positions += random.normal(0.0, 0.08, bulk.positions.shape)
    bulk.set_cell([[9.3, 0, 0], [-1.1, 9.5, 0], [0.8, 1.9, 9.1]], scale_atoms=True)
    alone = Atoms("O", [[5.0, 6.0, 7.0]], cell=[30.0] * 3, pbc=True)
    corner = bulk[:6]
    corner.set_cell([40.0] * 3)
    corner.pbc = False
    corner.positions += 2.0
    return {"bulk": bulk, "alone": alone, "corner": corner}


# ---- routes ----


class NotHere(Exception):
    """Why something cannot be tried; it need not be there."""


@dataclass(frozen=True)
class Route:
    """A way from LAMMPS to a student."""

    name: str
    write: Callable[[Subject, Path], None]  # what LAMMPS loads; raises MlffdError where it cannot be
    potential: Callable[[Subject, str], str]  # input lines, for a dtype
    program: LammpsProgram
    ranks: tuple[int, ...]
    preamble: str = ""


def mliap_route(program: LammpsProgram, facts: LammpsFacts, ranks: tuple[int, ...]) -> Route:
    """``pair_style mliap unified``. Raises NotHere."""
    missing = [package for package in ("ML-IAP", "PYTHON") if package not in facts.packages]
    if missing:
        raise NotHere(f"this LAMMPS has no {' and no '.join(missing)}")
    suffix = "pt" if facts.version >= LOADS_OBJECTS else "pkl"
    return Route("pair_style mliap", partial(write_mliap, suffix), partial(mliap, suffix), program, ranks)


def cuda_route(program: LammpsProgram, facts: LammpsFacts, ranks: tuple[int, ...]) -> Route:
    """The same with the student on a GPU, which the ranks share. Raises NotHere."""
    plain = mliap_route(program, facts, ranks)
    if not torch.cuda.is_available():
        raise NotHere("PyTorch sees no GPU")
    on_gpu = replace(program, environment=program.environment | {"MLFFD_DEVICE": "cuda"})
    return replace(plain, name="pair_style mliap on CUDA", program=on_gpu)


def kokkos_route(program: LammpsProgram, facts: LammpsFacts, ranks: tuple[int, ...]) -> Route:
    """The same with Kokkos, whose ranks exchange messages in another way. Raises NotHere."""
    if not facts.kokkos:
        raise NotHere("this LAMMPS has no KOKKOS")
    plain = mliap_route(program, facts, ranks)
    where = ("g", "1") if {"CUDA", "HIP", "SYCL"} & set(facts.kokkos.split()) else ("t", "1")
    words = ("-k", "on", *where, "-sf", "kk", "-pk", "kokkos", "newton", "on", "neigh", "half")
    return replace(plain, name="pair_style mliap/kk", program=replace(program, options=words))


def write_mliap(suffix: str, subject: Subject, folder: Path) -> None:
    for dtype in ("float64", "float32"):
        export(subject.bundle_file(folder), folder / f"{subject.name}.{dtype}.{suffix}", dtype=dtype)


def mliap(suffix: str, subject: Subject, dtype: str) -> str:
    file = f"{subject.name}.{dtype}.{suffix}"
    return f"pair_style mliap unified {file} 0\npair_coeff * * {elements_of(subject)}"


def plugin_route(program: LammpsProgram, facts: LammpsFacts, ranks: tuple[int, ...]) -> Route:
    """``pair_style mlffd``; builds the plugin if need be. Raises NotHere, or ConfigError from the build."""
    if "PLUGIN" not in facts.packages:
        raise NotHere("this LAMMPS has no PLUGIN")
    try:
        find_lammps(program.place)
    except MlffdError as error:
        raise NotHere(str(error)) from error
    plugin = build_plugin(program.place)
    return Route("pair_style mlffd", write_weights, mlffd, program, ranks, f"plugin load {plugin}\n")


def write_weights(subject: Subject, folder: Path) -> None:
    export_weights(subject.bundle_file(folder), folder / f"{subject.name}.weights")


def mlffd(subject: Subject, dtype: str) -> str:
    weights = f"{subject.name}.weights {elements_of(subject)}"
    return f"pair_style mlffd precision {dtype}\npair_coeff * * {weights}"


def external_route(program: LammpsProgram, facts: LammpsFacts, ranks: tuple[int, ...]) -> Route:
    """``fix external``: by a command in the input where Python is in LAMMPS, else by ``mlffd lammps run``.

    Raises:
        NotHere: LAMMPS has no Python, and is not in an environment with mlffd either.
    """
    if "PYTHON" in facts.packages:
        return Route("fix external", lambda subject, folder: None, external, program, ranks)
    python = Path(program.words[0]).parent / "python"
    if not python.exists():
        raise NotHere("this LAMMPS has no PYTHON, and no Python beside it that could run it as a library")
    both = [python, "-c", "import lammps, mlffd.drivers.lammps_run"]
    with tempfile.TemporaryDirectory() as folder:  # not here, where `import` may find sources
        asked = run_limited(both, Path(folder), 60.0, program.environment)
    if asked.status != 0:
        raise NotHere(f"LAMMPS and mlffd are not in one environment ({python}: {asked.why()})")
    words = (str(python), "-m", "mlffd", "lammps", "run")
    library = replace(program, words=words, input_flag=())
    return Route("fix external", partial(write_mliap, "pt"), partial(mliap, "pt"), library, ranks)


def external(subject: Subject, dtype: str) -> str:
    return EXTERNAL.format(name=subject.name, elements=elements_of(subject), dtype=dtype)


EXTERNAL = """
python source here "import os; os.environ['MLFFD_DTYPE'] = '{dtype}'"
python fix_external input 3 SELF {name}.mlffd "{elements}" format pss here &
       "from mlffd.drivers.lammps_fix import fix_external"
python fix_external invoke
"""


def elements_of(subject: Subject) -> str:
    return " ".join(subject.elements)


ROUTES = {
    "pair_style mliap": mliap_route,
    "pair_style mliap on CUDA": cuda_route,
    "pair_style mliap/kk": kokkos_route,
    "pair_style mlffd": plugin_route,
    "fix external": external_route,
}


# ---- trials ----


@dataclass(frozen=True)
class Trial:
    """One student on one route and number of ranks."""

    route: str
    subject: str
    ranks: int
    failure: str = ""  # why LAMMPS did not come to its end
    errors: dict[str, float] = field(default_factory=dict)  # by the names of TOLERANCES
    seconds: float = 0.0
    hung: bool = False


def try_route(
    route: Route, subjects: list[Subject], folder: Path, time_limit: float, say: Callable[[str], None]
) -> list[Trial]:
    """Trials of all subjects on all ranks, but no more of them once one hung or all have failed.

    ``subjects`` have been written to ``folder``, and so have the files of ``route``.
    """
    trials = []
    for ranks in route.ranks:
        say(f"{route.name} on {ranks} rank{'s' * (ranks > 1)}")
        latest = try_ranks(route, subjects, ranks, folder, time_limit)
        trials += latest
        if any(trial.hung for trial in latest) or all(trial.failure for trial in latest):
            break
    return trials


def try_ranks(
    route: Route, subjects: list[Subject], ranks: int, folder: Path, time_limit: float
) -> list[Trial]:
    """One LAMMPS for all subjects; where it fails, one for each, as others need not fail with the first."""
    start = time.monotonic()
    finished = run_subjects(route, subjects, ranks, folder, time_limit)
    if finished.status not in (0, None) and len(subjects) > 1:
        return [trial for one in subjects for trial in try_ranks(route, [one], ranks, folder, time_limit)]
    seconds, hung = time.monotonic() - start, finished.status is None
    trials = []
    for one in subjects:
        errors = errors_of(route, one, ranks, folder)
        failure = "" if finished.status == 0 else finished.why()
        missing = [quantity for quantity in awaited(one, ranks) if quantity not in errors]
        if missing and not failure:
            failure = f"it ended without an error, but did not write {', '.join(missing)}"
        trials.append(Trial(route.name, one.name, ranks, failure, errors, seconds, hung))
    return trials


def awaited(subject: Subject, ranks: int) -> list[str]:
    """Names of TOLERANCES that a run gives."""
    absent = {"isolated atom": "alone" not in subject.frames}
    absent["empty rank"] = "corner" not in subject.frames or ranks == 1
    return [quantity for quantity in TOLERANCES if not absent.get(quantity)]


def run_subjects(
    route: Route, subjects: list[Subject], ranks: int, folder: Path, time_limit: float
) -> Finished:
    for subject in subjects:
        for stale in folder.glob(f"{stem(route, subject, ranks)}.*"):
            stale.unlink()
    script = route.preamble + "".join(subject_input(route, subject, ranks) for subject in subjects)
    return route.program.run(script, folder, ranks, time_limit)


def stem(route: Route, subject: Subject, ranks: int) -> str:
    return f"{route.name.split()[-1].replace('/', '.')}.{ranks}.{subject.name}"


def subject_input(route: Route, subject: Subject, ranks: int) -> str:
    """The input that evaluates all frames of a subject and writes the results beside it."""
    first, lines = stem(route, subject, ranks), ""
    for frame, atoms in subject.frames.items():
        point = partial(single_point, file=f"{subject.name}.{frame}.data", atoms=atoms)
        cut = f"{ranks} 1 1" if frame == "corner" else "* * *"  # all but one rank are left without atoms
        exact = route.potential(subject, "float64")
        lines += point(f"{first}.{frame}", potential=exact, processors=cut)
        if frame == "bulk":
            lines += strained_energies(f"{first}.bulk", atoms.cell.array, STRAIN)
            lines += point(f"{first}.single", potential=route.potential(subject, "float32"))
    return lines


def errors_of(route: Route, subject: Subject, ranks: int, folder: Path) -> dict[str, float]:
    """How far LAMMPS is off, by the names of TOLERANCES; what it did not come to is not among them."""
    expected, first = subject.expected(), stem(route, subject, ranks)
    found = {name: read_single_point(folder, f"{first}.{name}") for name in (*expected, "single")}
    errors = {}
    if found["bulk"]:
        slopes = virial_by_differences(folder, f"{first}.bulk", STRAIN)
        errors |= bulk_errors(found["bulk"], expected["bulk"], subject.frames["bulk"].cell.volume, slopes)
    if found["single"]:
        errors["forces in float32"] = force_error(found["single"], expected["bulk"])
    if found.get("alone"):
        errors["isolated atom"] = abs(found["alone"].energy - expected["alone"].energy)
    if found.get("corner") and ranks > 1:
        of_energy = abs(found["corner"].energy - expected["corner"].energy)
        errors["empty rank"] = max(of_energy, force_error(found["corner"], expected["corner"]))
    return errors


def bulk_errors(
    found: SinglePoint, expected: StructurePrediction, volume: float, slopes: np.ndarray | None
) -> dict[str, float]:
    """``slopes`` are -dE/dstrain (6,) in eV, of energies that LAMMPS gave."""
    virial = found.pressure * volume
    reference = expected.virial[VOIGT]
    errors = {
        "energy": abs(found.energy - expected.energy) / len(expected.forces),
        "forces": force_error(found, expected),
        "pressure": relative(virial, reference),
    }
    return errors if slopes is None else errors | {"virial": relative(virial, slopes)}


def force_error(found: SinglePoint, expected: StructurePrediction) -> float:
    """Largest difference in eV/Å, where forces exceed 1 eV/Å relative to the largest."""
    if found.forces.shape != expected.forces.shape:
        return np.inf
    return float(np.abs(found.forces - expected.forces).max() / max(1.0, np.abs(expected.forces).max()))


def relative(values: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference relative to the largest expected value."""
    return float(np.abs(values - expected).max() / max(np.abs(expected).max(), 1e-12))


def passes(quantity: str, error: float) -> bool:
    return bool(error <= TOLERANCES[quantity][0])  # not where the error is NaN
