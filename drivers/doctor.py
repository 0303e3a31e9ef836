# SPDX-License-Identifier: MIT
"""``mlffd doctor``: what is here, what works, what is known to be wrong, and what to do about it.

Checks what students run on (PyTorch, compiled kernels, GPU, ASE, i-PI), looks LAMMPS over, and has it run
students on every route and number of ranks: see lammps_selftest.py. What is not installed is skipped and is
no failure.

The report as JSON has ``mlffd`` (version), ``verdict`` (``pass`` or ``fail``), ``passed``, ``failed``,
``skipped`` (numbers), ``seconds``, ``lammps`` (facts, or null) and ``checks``, each with ``group``, ``name``,
``status`` (``pass``, ``fail`` or ``skip``), ``finding``, ``advice`` (empty unless there is one), and
``errors`` by number of ranks where one was measured.
"""

import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mlffd.bundle import mlffd_version, read_bundle
from mlffd.check import check as check_bundle
from mlffd.check import rms
from mlffd.drivers import lammps_probe
from mlffd.drivers.lammps_program import LammpsFacts, LammpsProgram, ask, find_program
from mlffd.drivers.lammps_selftest import (
    ROUTES,
    TOLERANCES,
    NotHere,
    Route,
    Subject,
    Trial,
    own_subject,
    passes,
    standard_subjects,
    try_route,
    water_frames,
)
from mlffd.engine import Engine
from mlffd.errors import ConfigError, MlffdError
from mlffd.files import write_atomically
from mlffd.kernels import cpu

NVIDIA_DRIVER = Path("/proc/driver/nvidia")
WORDS = {"pass": "ok", "fail": "FAIL", "skip": "skip"}


@dataclass(frozen=True)
class Check:
    """One row of the table."""

    group: str
    name: str
    status: str  # pass, fail or skip
    finding: str
    advice: str = ""
    errors: dict[int, float] = field(default_factory=dict)  # by number of ranks


@dataclass(frozen=True)
class Plan:
    """What is to be examined."""

    lammps: Path | None = None  # an lmp, or the folder of an environment or build; None finds one
    bundle: str | None = None  # a user's own student
    ranks: tuple[int, ...] = (1, 2, 4)
    time_limit: float = 60.0  # s, of one run of LAMMPS

    def __post_init__(self):
        if not self.ranks or min(self.ranks) < 1:
            raise ConfigError("--ranks takes numbers of ranks from 1 on, such as 1,2,4")
        if not self.time_limit > 0:
            raise ConfigError(f"--time-limit must be greater than 0 s, not {self.time_limit:g}")


class Doctor:
    """An examination: ``checks`` grows as it goes on."""

    def __init__(self, plan: Plan, say: Callable[[str], None] = lambda line: None):
        self.plan, self.say = plan, say
        self.checks: list[Check] = []
        self.facts: LammpsFacts | None = None
        self.program: LammpsProgram | None = None

    def examine(self) -> None:
        """Everything, in the order of the table."""
        self.say("this environment")
        self.checks += environment_checks()
        own = self._examine_bundle() if self.plan.bundle else None
        self._examine_lammps(own)

    # ---- the bundle ----

    def _examine_bundle(self) -> Subject | None:
        group, name = "bundle", str(self.plan.bundle)
        self.say(f"bundle {name}")
        try:
            bundle = read_bundle(name)
            rows = check_bundle(bundle)
        except MlffdError as error:
            self._add(group, name, "fail", str(error), "give a student bundle, or name a shipped student")
            return None
        for what, passed, figure in rows:
            advice = "" if passed else "train or export the student again; do not run it"
            self._add(group, what, "pass" if passed else "fail", figure, advice)
        return own_subject(bundle)

    # ---- LAMMPS ----

    def _examine_lammps(self, own: Subject | None) -> None:
        self.say("LAMMPS")
        try:
            program = find_program(self.plan.lammps)
        except ConfigError as error:
            status = "skip" if self.plan.lammps is None else "fail"
            advice = 'give one with --lammps, or `pip install "lammps[mpi]"`'
            self._add("LAMMPS", "program", status, str(error), advice)
            return
        try:
            self.facts = ask(program, min(30.0, self.plan.time_limit))
        except ConfigError as error:
            self._add("LAMMPS", "program", "fail", str(error), "give an lmp that runs with --lammps")
            return
        with tempfile.TemporaryDirectory(prefix="mlffd-doctor-") as folder:
            probe = lammps_probe.probe(program, self.facts, Path(folder), self.plan.time_limit)
            self.program = probe.program
            self.checks += lammps_checks(program, self.facts, probe)
            if not probe.runs:
                return
            self.say("faults that builds of LAMMPS are known for")
            self.checks += fault_checks(probe.program, self.facts, Path(folder), self.plan.time_limit)
        self._try_routes(own)

    def _try_routes(self, own: Subject | None) -> None:
        ranks = self.plan.ranks if self.program.mpiexec else (1,)
        if ranks != self.plan.ranks:
            why = "LAMMPS is serial" if self.facts.is_serial else "no mpiexec fits"
            self._add("LAMMPS", "several ranks", "skip", f"not tried: {why}")
        subjects = [*standard_subjects(), *([own] if own else [])]
        trials = []
        for name, prepare in ROUTES.items():
            self.say(f"preparing {name}")
            try:
                route = prepare(self.program, self.facts, ranks)
            except NotHere as reason:
                self._add(name, "route", "skip", str(reason))
            except MlffdError as error:
                self._add(name, "route", "fail", str(error), f"mend that, or use another route than {name}")
            else:
                trials += self._try_route(route, subjects)
        self.checks += trial_checks(trials)

    def _try_route(self, route: Route, subjects: list[Subject]) -> list[Trial]:
        with tempfile.TemporaryDirectory(prefix="mlffd-doctor-") as folder:
            ready = []
            for subject in subjects:
                try:
                    subject.write(Path(folder))
                    route.write(subject, Path(folder))
                    ready.append(subject)
                except MlffdError as error:
                    self._add(group_of(route.name, subject.name), "route", "skip", str(error))
            return try_route(route, ready, Path(folder), self.plan.time_limit, self.say) if ready else []

    def _add(self, group: str, name: str, status: str, finding: str, advice: str = "") -> None:
        self.checks.append(Check(group, name, status, finding, advice))


# ---- this environment ----


def environment_checks() -> Iterator[Check]:
    """PyTorch, CUDA, kernels and libraries."""
    group = f"mlffd {mlffd_version()}"
    yield Check(group, "Python", "pass", f"{platform.python_version()}, {sys.executable}")
    yield Check(group, "PyTorch", "pass", f"{torch.__version__}, {count(torch.get_num_threads(), 'thread')}")
    yield cuda_check(group)
    yield kernel_check(group)
    for library, package, use in (
        ("ASE", "ase", ""),
        ("i-PI", "ipi", "for path integrals: `pip install mlffd[ipi]`"),
        ("mpi4py", "mpi4py", "for several ranks in Python: `pip install mlffd[lammps]`"),
    ):
        try:
            yield Check(group, library, "pass", version(package))
        except PackageNotFoundError:
            yield Check(group, library, "skip", f"not installed; {use}")


def cuda_check(group: str) -> Check:
    """Whether there is a GPU and plain PyTorch computes the same forces on it."""
    if not torch.cuda.is_available():
        if not NVIDIA_DRIVER.exists():
            return Check(group, "CUDA", "skip", "no NVIDIA GPU here")
        if torch.version.cuda is None:
            return Check(group, "CUDA", "skip", "there is an NVIDIA GPU, but this PyTorch is for CPUs only")
        advice = "compare `nvidia-smi` with `python -m torch.utils.collect_env`: the driver may be too old"
        finding = f"PyTorch is for CUDA {torch.version.cuda}, but sees no GPU"
        return Check(group, "CUDA", "fail", finding, advice)
    names = ", ".join(torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count()))
    student, atoms = standard_subjects()[-1].bundle.student, water_frames()["bulk"]
    forces = [
        Engine(student, device=device, dtype="float64", backend="reference").evaluate(atoms)[0].forces
        for device in ("cpu", "cuda")
    ]
    error = rms(forces[1] - forces[0]) / rms(forces[0])
    if error < 1e-8:
        return Check(group, "CUDA", "pass", f"{torch.version.cuda}, {names}; forces agree with the CPU's")
    advice = "do not use this GPU: set MLFFD_DEVICE=cpu, and test the GPU's memory"
    return Check(group, "CUDA", "fail", f"{names}: forces differ from the CPU's by {error:.1e}", advice)


def kernel_check(group: str) -> Check:
    """Whether the C++ kernels are there, and for which instructions of this processor."""
    try:
        kernel = cpu.CpuKernel(standard_subjects()[0].bundle.student)
    except cpu.KernelsNotCompiled as error:
        status = "fail" if cpu.LIBRARY.is_file() else "skip"
        advice = "install mlffd again where there is a C++ compiler; until then students run on plain PyTorch"
        return Check(group, "CPU kernels", status, str(error), advice)
    except ConfigError as error:
        return Check(group, "CPU kernels", "fail", str(error), "unset MLFFD_INSTRUCTIONS")
    return Check(group, "CPU kernels", "pass", f"compiled, for {kernel.instructions} here")


# ---- LAMMPS as it is ----


def lammps_checks(program: LammpsProgram, facts: LammpsFacts, probe: lammps_probe.Probe) -> Iterator[Check]:
    """What LAMMPS and the probe said."""
    group = "LAMMPS"
    kind = "Python module " if program.is_module else ""
    yield Check(group, "program", "pass", f"{kind}{program.place}: {facts.release}")
    yield Check(group, "packages", "pass", packages_in_words(facts))
    if not probe.runs:
        advice = remedy(probe.why) or f"make `{program.place} -in FILE` run, or give another with --lammps"
        yield Check(group, "a first run", "fail", probe.why, advice)
        return
    yield mpi_check(facts, probe)
    if "PYTHON" in facts.packages:
        yield python_check(facts, probe)
        if not facts.is_serial:
            yield mpi4py_check(probe)
    else:
        yield Check(group, "Python in LAMMPS", "skip", "not linked; only pair_style mliap needs it")
    if facts.kokkos:
        yield Check(group, "Kokkos", "pass", facts.kokkos)
    else:
        yield Check(group, "Kokkos", "skip", "not in this build")


def packages_in_words(facts: LammpsFacts) -> str:
    of_note = ("ML-IAP", "PYTHON", "PLUGIN", "KOKKOS", "GPU", "KSPACE", "MOLECULE")
    here, absent = (
        " ".join(name for name in of_note if (name in facts.packages) == wanted) for wanted in (True, False)
    )
    return f"{len(facts.packages)}, among them {here or 'none of'}; without {absent or 'none'}"


def mpi_check(facts: LammpsFacts, probe: lammps_probe.Probe) -> Check:
    name = "MPI"
    if facts.is_serial:
        return Check("LAMMPS", name, "skip", "a serial build: one rank only")
    if probe.program.mpiexec:
        return Check("LAMMPS", name, "pass", f"{facts.mpi}; {probe.program.mpiexec} starts it")
    if not probe.tried_mpiexecs:
        return Check("LAMMPS", name, "skip", f"{facts.mpi}, but there is no mpiexec: one rank only")
    advice = f"put the mpiexec of LAMMPS' own MPI ({facts.mpi}) first on PATH"
    finding = f"{facts.mpi}; two ranks do not meet by {', '.join(probe.tried_mpiexecs)}: {probe.why}"
    return Check("LAMMPS", name, "fail", finding, advice)


def python_check(facts: LammpsFacts, probe: lammps_probe.Probe) -> Check:
    name, python = "Python in LAMMPS", probe.python
    if python is None:
        advice = "give LAMMPS a Python that works: build it by tools/build_lammps.py, or mend its libpython"
        return Check("LAMMPS", name, "fail", f"does not run: {probe.why}", advice)
    which = f"{python['version']} of {python['prefix']}"
    if not python["mlffd"]:
        own = probe.python_led
        if own and own["mlffd"]:
            scripts = Path(sys.executable).parent
            advice = f"export PYTHONEXECUTABLE={sys.executable} PATH={scripts}:$PATH before starting lmp"
        else:
            advice = f"install mlffd for Python {python['version']}, or build LAMMPS by tools/build_lammps.py"
        return Check("LAMMPS", name, "fail", f"{which} has no mlffd", advice)
    if python["prefix"] == sys.prefix:
        return Check("LAMMPS", name, "pass", f"{python['version']}, this environment's")
    return Check("LAMMPS", name, "pass", f"{which}, another environment's; mlffd in {python['mlffd']}")


def mpi4py_check(probe: lammps_probe.Probe) -> Check:
    name = "mpi4py in LAMMPS"
    python = probe.python_led or probe.python
    if not python:
        return Check("LAMMPS", name, "skip", "Python does not run")
    mpi4py = python["mpi4py"]
    if not mpi4py:
        finding = "not installed: pair_style mliap runs message-passing students on one rank only"
        return Check("LAMMPS", name, "skip", finding, "`pip install mpi4py` in the Python of LAMMPS")
    if python["shares_mpi"]:
        return Check("LAMMPS", name, "pass", f"{mpi4py}, with LAMMPS' own MPI")
    finding = f"{mpi4py} has another MPI than LAMMPS: {python['mpi_library'] or python['error']}"
    advice = "MPICC=<mpicc of LAMMPS' MPI> pip install --force-reinstall --no-binary mpi4py mpi4py"
    return Check("LAMMPS", name, "fail", finding, advice)


# ---- builds known to be wrong ----


def fault_checks(
    program: LammpsProgram, facts: LammpsFacts, folder: Path, time_limit: float
) -> Iterator[Check]:
    """Upstream faults that this LAMMPS has or had the chance to have."""
    if not {"ML-IAP", "PYTHON"} <= set(facts.packages):
        return
    yield torch_load_check(facts)
    yield memory_check(*lammps_probe.memory_fault(program, folder, time_limit))
    if facts.kokkos:
        yield kokkos_exchange_check(facts)


def torch_load_check(facts: LammpsFacts) -> Check:
    name = "loading of .pt files"
    if facts.version >= lammps_probe.LOADS_OBJECTS:
        return Check("LAMMPS", name, "pass", "this LAMMPS lets PyTorch load objects")
    advice = "export students to FILE.pkl instead of FILE.pt, or use LAMMPS of 12 Jun 2025 or newer"
    finding = f"LAMMPS of {facts.release} refuses .pt files with PyTorch 2.6 or newer (weights_only)"
    return Check("LAMMPS", name, "fail", finding, advice)


def memory_check(faulty: bool | None, finding: str) -> Check:
    name = "memory of ML-IAP"
    if not faulty:
        return Check("LAMMPS", name, "skip" if faulty is None else "pass", finding)
    advice = "use pair_style mlffd, or a LAMMPS built by tools/build_lammps.py, which mends it"
    return Check("LAMMPS", name, "fail", finding, advice)


def kokkos_exchange_check(facts: LammpsFacts) -> Check:
    name = "Kokkos exchange of ML-IAP"
    if not lammps_probe.may_exchange_wrongly(facts):
        return Check("LAMMPS", name, "pass", "not a build from October to 15 December 2025")
    advice = "with Kokkos run message-passing students on newer sources than 15 December 2025 only"
    finding = "builds from October to 15 December 2025 exchange wrongly (lammps#4744, mended by #4808)"
    return Check("LAMMPS", name, "fail", f"{facts.release}: {finding}", advice)


# ---- trials ----


def group_of(route: str, subject: str) -> str:
    return f"{route}, {'your' if subject == 'own' else subject} student"


def trial_checks(trials: list[Trial]) -> Iterator[Check]:
    """Rows of all trials; those of one route and student stand together, ranks are in one row."""
    for route, subject in dict.fromkeys((trial.route, trial.subject) for trial in trials):
        ours = [trial for trial in trials if (trial.route, trial.subject) == (route, subject)]
        yield runs_check(ours, trials)
        for quantity in TOLERANCES:
            errors = {trial.ranks: trial.errors[quantity] for trial in ours if quantity in trial.errors}
            if errors:
                yield quantity_check(quantity, errors, ours, trials)


def runs_check(ours: list[Trial], trials: list[Trial]) -> Check:
    """Whether LAMMPS came to its end."""
    group = group_of(ours[0].route, ours[0].subject)
    failed = [trial for trial in ours if trial.failure]
    if not failed:
        where = ranks_in_words(trial.ranks for trial in ours)
        seconds = ", ".join(f"{trial.seconds:.1f}" for trial in ours)
        return Check(group, "runs", "pass", f"{where}: {seconds} s")
    said = {why: [trial.ranks for trial in failed if trial.failure == why] for why in reasons(failed)}
    finding = "; ".join(f"{ranks_in_words(ranks)}: {why}" for why, ranks in said.items())
    advice = remedy(finding) or way_out(ours, trials, {trial.ranks for trial in failed})
    return Check(group, "runs", "fail", finding, advice)


def reasons(failed: list[Trial]) -> list[str]:
    return list(dict.fromkeys(trial.failure for trial in failed))


def quantity_check(quantity: str, errors: dict[int, float], ours: list[Trial], trials: list[Trial]) -> Check:
    """Whether one quantity is right on all ranks that it was measured on."""
    group = group_of(ours[0].route, ours[0].subject)
    tolerance, unit = TOLERANCES[quantity]
    wrong = {ranks: error for ranks, error in errors.items() if not passes(quantity, error)}
    if not wrong:
        finding = f"{ranks_in_words(errors)}: within {max(errors.values()):.1e} {unit}"
        return Check(group, quantity, "pass", finding, errors=errors)
    off = ", ".join(f"{error:.1e} on {ranks_in_words([ranks])}" for ranks, error in wrong.items())
    finding = f"off by {off} (in {unit}; at most {tolerance:.0e} passes)"
    return Check(group, quantity, "fail", finding, way_out(ours, trials, set(wrong)), errors)


def ranks_in_words(ranks) -> str:
    ranks = list(ranks)
    return ", ".join(map(str, ranks)) + (" rank" if ranks == [1] else " ranks")


# what a run says when it fails -> what to do
REMEDIES = {
    "weights_only": "export the student to FILE.pkl instead of FILE.pt, or use a newer LAMMPS",
    "Weights only load failed": "export the student to FILE.pkl instead of FILE.pt, or use a newer LAMMPS",
    "No module named 'mlffd'": "the Python in this lmp is not this environment's: set PYTHONEXECUTABLE",
    "No module named 'lammps'": "install LAMMPS' Python module for the lmp (`make install-python`)",
    "lmp_firstneigh": "use pair_style mlffd, or a LAMMPS built by tools/build_lammps.py",
    "needs interface": "mlffd's compiled kernels are older than its sources: install mlffd again",
    "mpi4py": "install mpi4py, built with LAMMPS' own MPI, in the Python of the lmp",
    "GLIBCXX": "run where the compiler's libstdc++ is as new as the one that LAMMPS was built with",
    "it hung": "do not use it if it hangs with a longer --time-limit as well, on a machine that is not busy",
}


def remedy(finding: str) -> str:
    return next((what for said, what in REMEDIES.items() if said in finding), "")


def way_out(ours: list[Trial], trials: list[Trial], bad_ranks: set[int]) -> str:
    """Another number of ranks or another route on which all was well."""
    route, subject = ours[0].route, ours[0].subject
    warning = f"do not use {route} for such students on {ranks_in_words(sorted(bad_ranks))} here"
    others = {
        trial.route for trial in trials
        if trial.subject == subject and trial.route != route
        and all(is_well(other) for other in trials if (other.route, other.subject) == (trial.route, subject))
    }  # fmt: skip
    if others:
        return f"{warning}; {' and '.join(sorted(others))} passed"
    well = [trial.ranks for trial in ours if is_well(trial)]
    return f"{warning}; {ranks_in_words(well)} passed" if well else warning


def is_well(trial: Trial) -> bool:
    return not trial.failure and all(passes(*item) for item in trial.errors.items())


# ---- the report ----


def count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def verdict(checks: list[Check]) -> str:
    """The last line."""
    failed = [f"{check.group}: {check.name}" for check in checks if check.status == "fail"]
    skipped = sum(check.status == "skip" for check in checks)
    rest = f", {skipped} skipped" if skipped else ""
    if failed:
        which = "; ".join(failed[:3]) + ("; ..." if len(failed) > 3 else "")
        of = count(len(checks) - skipped, "check")
        return f"mlffd doctor: {len(failed)} of {of} failed{rest}: {which}"
    return f"mlffd doctor: all {count(len(checks) - skipped, 'check')} passed{rest}"


def table(checks: list[Check]) -> str:
    """The checks by groups, with a line of advice below each that failed."""
    lines = []
    for group in dict.fromkeys(check.group for check in checks):
        lines += ["", group]
        rows = [check for check in checks if check.group == group]
        width = max(len(row.name) for row in rows)
        for row in rows:
            lines.append(f"  {WORDS[row.status]:4}  {row.name:{width}}  {row.finding}")
            if row.advice:
                lines.append(f"        -> {row.advice}")
    return "\n".join([*lines[1:], "", verdict(checks)])


def report(doctor: Doctor, seconds: float) -> dict:
    """What ``--json`` writes."""
    numbers = {
        name: sum(check.status == status for check in doctor.checks)
        for name, status in (("passed", "pass"), ("failed", "fail"), ("skipped", "skip"))
    }
    facts = asdict(doctor.facts) if doctor.facts else None
    if doctor.program:
        facts |= {"place": str(doctor.program.place), "mpiexec": doctor.program.mpiexec}
    return {
        "mlffd": mlffd_version(),
        "verdict": "fail" if numbers["failed"] else "pass",
        **numbers,
        "seconds": round(seconds, 1),
        "lammps": facts,
        "checks": [asdict(check) for check in doctor.checks],
    }


def run_doctor(plan: Plan, json_file: Path | None = None) -> int:
    """Examine, print the table (or with ``json_file`` "-" the report), and return the exit status."""
    start, progress = time.monotonic(), Progress()
    doctor = Doctor(plan, progress)
    try:
        doctor.examine()
    finally:
        progress.clear()
    written = json.dumps(report(doctor, time.monotonic() - start), indent=1)
    if str(json_file) == "-":
        print(written)
    else:
        print(table(doctor.checks))
        if json_file:
            write_atomically(json_file, written)
    return int(any(check.status == "fail" for check in doctor.checks))


class Progress:
    """One line on standard error that says what is being done; on a terminal it is written over."""

    def __init__(self):
        self.on_terminal = sys.stderr.isatty()

    def __call__(self, line: str) -> None:
        start, end = ("\r\x1b[K", "") if self.on_terminal else ("", "\n")
        print(f"{start}mlffd doctor: {line} ...", end=end, file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self.on_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
