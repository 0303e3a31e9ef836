# SPDX-License-Identifier: MIT
"""What LAMMPS lets a user do, on every route, with every family of students, on one rank and on several.

A case is a piece of an input and a check. All cases of a route and a number of ranks share one ``lmp``, since
starting one costs seconds. Whatever a case is about, LAMMPS' energy, forces, pressure and per-atom energies
and virials in every frame that it dumped are compared with the reference path in float64.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from lammps_process import BAR, Finished, Frame, read_dump, read_thermo
from lammps_routes import ROUTES
from plugin_process import add_bond, random_student
from test_lammps_run import water_frames

from mlffd import graph as graphs
from mlffd.drivers.lammps_program import write_data_file
from mlffd.predict import array, pair_gradient
from mlffd.students.student import Student

pytestmark = pytest.mark.slow

VOIGT = [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]  # LAMMPS' order
STUDENTS = {name: random_student(name) for name in ("local", "painn")}
PRECISIONS = {  # by route and number of ranks
    ("mliap", 1): "float64", ("mliap", 2): "float32", ("mliap", 4): "float64",
    ("plugin", 1): "float64", ("plugin", 2): "float32", ("plugin", 4): "float64",
    ("external", 2): "float64",
}  # fmt: skip
TOLERANCES = {"float64": (1e-9, 1e-8), "float32": (2e-4, 1e-4)}  # of forces of 1 eV/Å, and of pressures
UNITS = {"metal": (1.0, BAR), "real": (23.060549, 68568.415 * 23.060549)}  # LAMMPS' of eV and eV/Å^3
BOLTZMANN = 8.617343e-5  # LAMMPS' of eV/K
ACCELERATION = 1.0 / 1.0364269e-4  # LAMMPS' of Å/ps^2 per (eV/Å)/(g/mol)
TIMESTEP, DAMPING, PRESSURE = 0.0001, 0.002, 20000.0  # ps, ps, bar

HEADER = """
clear
units {units}
atom_style atomic
boundary {boundary}
newton on
{settings}
read_data {data}
{potential}
{computes}
{output}
timestep {timestep}
"""
COMPUTES = """
compute energy all pe/atom
compute stress all stress/atom NULL virial
compute pressure all pressure NULL virial
"""
OUTPUT = """
log {name}.log
thermo_style custom step atoms temp pe ke econserve vol press c_pressure[*]
thermo_modify format float %.17g
thermo {every}
dump frames all custom {every} {name}.dump id type x y z fx fy fz vx vy vz c_energy c_stress[*]
dump_modify frames sort id format float %.17g
"""
NOISE_DUMP = """
dump frames all custom {every} {name}.dump id type x y z fx fy fz vx vy vz f_ours[*]
dump_modify frames sort id format float %.17g
"""


@dataclass(frozen=True)
class Result:
    """Energies, forces and virials of a frame, in eV and Å."""

    forces: np.ndarray  # (n_atoms, 3)
    virial: np.ndarray  # (6,) -sum r ⊗ dE/dr: xx yy zz xy xz yz
    atomic_energies: np.ndarray  # (n_atoms,)
    atomic_virials: np.ndarray  # (n_atoms, 6), half of an edge's to either end
    energy: float

    def __add__(self, other: "Result") -> "Result":
        return Result(*(mine + others for mine, others in zip(vars(self).values(), vars(other).values())))


@dataclass(frozen=True)
class Seen:
    """What LAMMPS left of a case, or of what it said ``again`` of the same frames."""

    case: "Case"
    name: str
    folder: Path
    student: str
    precision: str

    @cached_property
    def frames(self) -> list[Frame]:
        return read_dump(self.folder / f"{self.name}.dump")

    @cached_property
    def thermo(self) -> dict[str, np.ndarray]:
        return read_thermo(self.folder / f"{self.name}.log")

    @property
    def again(self) -> "Seen":
        return Seen(self.case, f"{self.name}.again", self.folder, self.student, self.precision)

    def found(self, frame: Frame) -> Result:
        """What LAMMPS says of a frame."""
        of_energy, of_pressure = UNITS[self.case.units]
        (row, *_) = np.flatnonzero(self.thermo["Step"] == frame.step)
        pressure = np.array([self.thermo[f"c_pressure[{k}]"][row] for k in range(1, 7)])
        return Result(
            frame.vectors("fx", "fy", "fz") / of_energy,
            pressure * abs(np.linalg.det(frame.cell)) / of_pressure,
            frame.columns["c_energy"] / of_energy,
            -frame.vectors(*(f"c_stress[{k}]" for k in range(1, 7))) / of_pressure,
            self.thermo["PotEng"][row] / of_energy,
        )

    def expected(self, frame: Frame) -> Result:
        """The reference path's word; zero for argon, which is left to other styles."""
        atoms, ids = frame.atoms(self.case.elements.split()), frame.columns["id"]
        ours = atoms.numbers != 18
        energies, forces, virials = np.zeros(len(atoms)), np.zeros((len(atoms), 3)), np.zeros((len(atoms), 6))
        energies[ours], forces[ours], virials[ours] = reference(
            STUDENTS[self.student], atoms[ours], lambda i, j: self.case.sees(ids[ours][i], ids[ours][j])
        )
        return Result(forces, virials.sum(0), energies, virials, energies.sum())


def reference(student: Student, atoms: Atoms, sees: Callable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energies (n_atoms,), forces (n_atoms, 3) and virials (n_atoms, 6); ``sees`` says which edges count."""
    graph = graphs.from_atoms(atoms, student.cutoff)
    kept = torch.as_tensor(sees(*array(graph.edge_index)))
    graph = replace(graph, edge_index=graph.edge_index[:, kept], edge_vectors=graph.edge_vectors[kept])
    energies, gradient = (array(tensor) for tensor in pair_gradient(student, graph))
    virials = -array(graph.edge_vectors)[:, VOIGT[0]] * gradient[:, VOIGT[1]]
    forces, halves = np.zeros((len(atoms), 3)), np.zeros((len(atoms), 6))
    for end, sign in zip(array(graph.edge_index), (1.0, -1.0)):
        np.add.at(forces, end, sign * gradient)
        np.add.at(halves, end, 0.5 * virials)
    return energies, forces, halves


# ---- checks ----


def agree(found: Result, expected: Result, precision: str) -> None:
    """To rounding errors, which grow with the size of forces and, for sums, of the system."""
    tolerance, of_pressure = TOLERANCES[precision]
    near = {"rtol": 1e-12, "atol": tolerance * max(1.0, np.sqrt(np.mean(expected.forces**2)))}
    sums = {"rtol": 1e-12, "atol": 3.0 * near["atol"] * len(expected.forces)}
    np.testing.assert_allclose(found.forces, expected.forces, **near)
    np.testing.assert_allclose(found.atomic_energies, expected.atomic_energies, **near)
    np.testing.assert_allclose(found.energy, expected.energy, **sums)
    np.testing.assert_allclose(found.atomic_virials, expected.atomic_virials, **sums)
    largest = max(1.0, abs(expected.virial).max())
    np.testing.assert_allclose(found.virial, expected.virial, rtol=0, atol=of_pressure * largest)


def equals_reference(seen: Seen) -> None:
    """In every frame."""
    for frame in seen.frames:
        expected = seen.expected(frame)
        assert abs(expected.atomic_energies).max() > 1.0  # there is something to compare
        agree(seen.found(frame), expected, seen.precision)


def same_again(seen: Seen) -> None:
    """Of frames that are read from a file."""
    assert len(seen.again.frames) == len(seen.frames) == seen.case.n_frames
    equals_reference(seen.again)


def plus_another_style(seen: Seen) -> None:
    """The sum of the student and of what LAMMPS says of the same frames with the other style alone."""
    for frame, again in zip(seen.frames, seen.again.frames, strict=True):
        other = seen.again.found(again)
        assert abs(other.forces).max() > 0.01
        agree(seen.found(frame), seen.expected(frame) + other, seen.precision)


def comes_to_rest(seen: Seen) -> None:
    equals_reference(seen)
    energy, last = seen.thermo["PotEng"], seen.frames[-1]
    assert energy[-1] < energy[0] - 0.1
    assert abs(last.vectors("fx", "fy", "fz")).max() < 1e-3


def comes_under_pressure(seen: Seen) -> None:
    equals_reference(seen)
    assert abs(seen.thermo["Press"][0] - PRESSURE) > 0.1 * PRESSURE
    assert seen.thermo["Press"][-1] == pytest.approx(PRESSURE, rel=1e-3)


def conserves_energy(seen: Seen) -> None:
    """Also where a thermostat and a barostat exchange it."""
    equals_reference(seen)
    assert np.ptp(seen.thermo["PotEng"]) > 0.5
    assert np.ptp(seen.thermo["Econserve"]) < 0.03 * np.ptp(seen.thermo["PotEng"])


def box_moves(seen: Seen) -> None:
    conserves_energy(seen)
    assert np.ptp(seen.thermo["Volume"]) > 1.0


def thermostat_acts_once(seen: Seen) -> None:
    """What fix langevin adds to the student's forces is its friction, and uniform noise of its strength."""
    noise = []
    for frame in seen.frames[1:]:
        mass = np.array([15.999, 1.008])[frame.columns["type"].astype(int) - 1][:, None]
        forces, ours = frame.vectors("fx", "fy", "fz"), frame.vectors(*(f"f_ours[{k}]" for k in (1, 2, 3)))
        expected = seen.expected(frame).forces
        near = TOLERANCES[seen.precision][0] * max(1.0, np.sqrt(np.mean(expected**2)))
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=near)
        half_a_step_ago = frame.vectors("vx", "vy", "vz") - 0.5 * TIMESTEP * ACCELERATION * forces / mass
        friction = -mass * half_a_step_ago / (DAMPING * ACCELERATION)
        strength = np.sqrt(24.0 * BOLTZMANN * 600.0 * mass / (DAMPING * TIMESTEP * ACCELERATION))
        noise.append((forces - ours - friction) / strength)
    assert abs(np.concatenate(noise)).max() < 0.5 + 1e-6
    assert np.mean(np.concatenate(noise) ** 2) == pytest.approx(1.0 / 12.0, rel=0.05)
    assert np.mean(seen.thermo["Temp"][len(noise) // 2 :]) == pytest.approx(600.0, rel=0.25)


def goes_on_as_if_uninterrupted(seen: Seen) -> None:
    equals_reference(seen)
    equals_reference(seen.again)
    once, again = seen.frames[-1], seen.again.frames[-1]
    assert once.step == again.step == 20
    for name in ("x", "y", "z", "vx", "vy", "vz"):
        np.testing.assert_allclose(again.columns[name], once.columns[name], rtol=0, atol=1e-10)


def says_the_same_twice(seen: Seen) -> None:
    """To the last bit."""
    equals_reference(seen)
    for name, column in seen.thermo.items():
        assert column.tolist() == [column[0]] * 3, name


def number_of_atoms_changes(seen: Seen) -> None:
    equals_reference(seen)
    assert len(set(seen.thermo["Atoms"].tolist())) > 1


def stays_a_gas(seen: Seen) -> None:
    """Of about the ten atoms that its chemical potential is for."""
    assert 4 <= seen.thermo["Atoms"][-1] <= 20
    equals_reference(seen)


def types_change(seen: Seen) -> None:
    equals_reference(seen)
    assert (seen.frames[0].columns["type"] != seen.frames[-1].columns["type"]).any()


# ---- cases ----


def all_pairs(i: np.ndarray, j: np.ndarray) -> np.ndarray:
    return np.ones(len(i), dtype=bool)


@dataclass(frozen=True)
class Case:
    """Commands after the potential is set, and what to look at.

    Words in braces are replaced: {potential} sets it once more, {again} writes to other files from here on,
    {name} is the case's, {ranks} the number of ranks.
    """

    commands: str
    check: Callable[[Seen], None] = equals_reference
    n_frames: int = 1  # at least
    frame: str = "liquid"
    elements: str = "O H"  # of the types; argon is NULL to the student
    settings: str = ""  # before there is a box
    others: str = ""  # pair styles that overlay the student's, then a line for each of their coefficients
    every: int = 5  # steps between frames
    units: str = "metal"
    sees: Callable[[np.ndarray, np.ndarray], np.ndarray] = all_pairs  # which pairs of ids
    routes: tuple[str, ...] = tuple(ROUTES)

    def input(self, name: str, route: str, student: str, precision: str, ranks: int) -> str:
        atoms, elements = FRAMES[self.frame], self.elements.replace("Ar", "NULL")
        styles, _, coefficients = self.others.partition("\n")
        words = {
            "name": name, "units": self.units, "data": self.data, "ranks": ranks, "every": self.every,
            "timestep": TIMESTEP if self.units == "metal" else 1e3 * TIMESTEP,
            "boundary": " ".join("p" if periodic else "f" for periodic in atoms.pbc),
            "potential": ROUTES[route].potential(student, precision, elements, styles) + coefficients,
        }  # fmt: skip
        again = {**words, "name": f"{name}.again"}
        words |= {"output": OUTPUT.format(**words), "settings": self.settings.format(**words)}
        words |= {"again": OUTPUT.format(**again), "computes": COMPUTES}
        return f'{HEADER}{self.commands}\nprint "" file {{name}}.done\n'.format(**words)

    @property
    def data(self) -> str:
        return f"{self.frame}.{self.elements.replace(' ', '-')}.data"


def frames() -> dict[str, Atoms]:
    """Water-like atoms, in as many ways as there are."""
    frames = water_frames()
    slab = frames["liquid"].copy()
    slab.set_cell([9.3, 9.3, 30.0])
    slab.positions[:, 2] += 10.0
    slab.pbc = True, True, False
    small = Atoms("OH2", [[0.1, 0.2, 0.3], [0.8, 0.8, 0.4], [-0.7, 0.7, 0.1]], cell=[4.1, 4.3, 3.9], pbc=True)
    crystal = bulk("OH", "cesiumchloride", a=2.5).repeat(2)
    gas = Atoms("H10", [[13.0 * k, 13.0 * m, 20.0] for k in range(3) for m in range(3)] + [[20.0, 20.0, 3.0]])
    gas.set_cell([40.0, 40.0, 40.0])
    gas.pbc = True
    argon = Atoms("Ar3", [[2.0, 2.1, 8.9], [5.1, 8.4, 2.0], [8.3, 2.2, 5.0]])
    mixed = argon[:1] + frames["liquid"][:40] + argon[1:2] + frames["liquid"][40:] + argon[2:]
    mixed.set_cell(frames["liquid"].cell)
    mixed.pbc = True
    return {
        **frames,
        "slab": slab,
        "small": small,
        "crystal": crystal,
        "mixed": mixed,
        "gas": gas,
        "bonded": frames["liquid"],
    }


FRAMES = frames()
ZBL = "pair_coeff 1 1 {0} 8 8\npair_coeff 1 2 {0} 8 1\npair_coeff 2 2 {0} 1 1\n"
LJ_CUT = "pair_coeff 1*3 2 {0} 0.01 3.0\npair_coeff 2 3 {0} 0.01 3.0\n"
HEAT = "velocity all create 600 4711 mom yes rot no dist gaussian\n"
NVE = HEAT + "fix motion all nve\n"
SHORT = NVE + "run 10\n"
RERUN = "rerun {name}.dump dump x y z box yes\n"
CASES = {  # above each case: a faulty driver with which it was seen to fail
    # without the gradients of other ranks' atoms (painn), with edge vectors kept between two builds of lists
    "nve": Case(NVE + "thermo 1\nrun 20", conserves_energy, 5),
    # with wrong yy forces in tilted boxes
    "sheared": Case(SHORT, conserves_energy, 3, frame="sheared"),
    # with wrong z forces in boxes that are not periodic
    "slab": Case(SHORT, conserves_energy, 3, frame="slab"),
    # without the energies of atoms that have no neighbors
    "vapor": Case("change_box all boundary s m s\n" + SHORT, n_frames=3, frame="vapor"),
    # with an error where a rank has no atoms
    "empty ranks": Case(SHORT, n_frames=3, frame="corner", settings="processors {ranks} 1 1"),
    # without the energies of atoms that have no neighbors
    "alone": Case(
        "velocity all set 1 2 3\nfix motion all nve\nrun 10", n_frames=3, frame="alone",
    ),
    # when an atom did not see its own images
    "own images": Case(SHORT, n_frames=3, frame="small"),
    # with the third type taken for the student's second species
    "types in another order": Case("set atom 5*6 type 3\n" + SHORT, n_frames=3, elements="H O H"),
    # with forces written instead of added
    "hybrid/overlay zbl": Case(
        SHORT + "undump frames\n{again}pair_style zbl 1.5 2.0\n" + ZBL.format("") + RERUN,
        plus_another_style, 3, others="zbl 1.5 2.0\n" + ZBL.format("zbl"),
    ),
    # with energies of all local atoms summed, or counted as if all were listed
    "types that are NULL": Case(
        SHORT + "undump frames\n{again}pair_style lj/cut 4.0\npair_coeff * * 0.0 1.0\n" + LJ_CUT.format("")
        + RERUN,
        plus_another_style, 3, frame="mixed", elements="O Ar H",
        others="lj/cut 4.0\n" + LJ_CUT.format("lj/cut"),
    ),
    # without the virial of edges in this mode
    "pair_modify nofdotr": Case("pair_modify nofdotr\n" + SHORT, n_frames=3, frame="sheared"),
    # when results were kept until the number of the step changed
    "minimize": Case(
        "run 0\nmin_modify line quadratic\nminimize 0 1e-4 300 600", comes_to_rest, 2, frame="small",
        every=1000,
    ),  # run 0: before the first run fix external may give energies of atoms on no rank, or on some
    # with edge vectors kept between two builds of lists
    "run after minimize": Case("run 0\nminimize 0 1e-2 10 20\n" + SHORT, n_frames=4),
    # when results were kept until the number of the step changed
    "box/relax": Case(
        f"run 0\nfix relax all box/relax iso {PRESSURE} vmax 0.005\nminimize 0 1e-6 50 100",
        comes_under_pressure, 2, frame="crystal",
    ),
    # with a virial that is one percent off
    "npt": Case(
        HEAT + "fix motion all npt temp 600 600 0.01 tri 10000 10000 0.05\nrun 40", box_moves, 5,
        frame="sheared", every=10,
    ),
    # with two of these fixes, so that noise was doubled
    "langevin": Case(
        f"undump frames\nfix ours all store/force\n{NOISE_DUMP}"
        f"fix bath all langevin 600 600 {DAMPING} 4711\n{NVE}run 60",
        thermostat_acts_once, 21, every=3,
    ),
    # with rows of atoms kept until LAMMPS rebuilds lists, or the plan of messages while no count changes
    "rerun": Case(SHORT + "undump frames\n{again}" + RERUN, same_again, 3),
    # with velocities scaled to 600 K after reading, with species looked up once
    "restart": Case(
        NVE + "restart 10 {name}.*.restart\nrun 20\nclear\nread_restart {name}.10.restart\n"
        "{potential}{computes}{again}fix motion all nve\nrun 10",
        goes_on_as_if_uninterrupted, 5,
    ),
    # with edge vectors kept between two builds of lists
    "runs one after another": Case(
        SHORT + "run 5\nvelocity all scale 300\ntimestep 0.00005\nrun 5 pre no\n{potential}run 5", n_frames=6
    ),
    # with energies that drift by one bit from call to call
    "run 0": Case("run 0\nrun 0\nrun 0 post no", says_the_same_twice),
    # with all pairs within the cutoff instead of those of LAMMPS' list
    "exclude between groups": Case(
        "group left id 1:40\ngroup right subtract all left\nneigh_modify exclude group left right\n" + SHORT,
        n_frames=3, sees=lambda i, j: (i <= 40) == (j <= 40),
    ),
    # as the case before
    "exclude within a group": Case(
        "group wall id 1:40\ngroup free subtract all wall\nneigh_modify exclude group wall wall\n"
        + HEAT + "fix motion free nve\nrun 10",
        n_frames=3, sees=lambda i, j: (i > 40) | (j > 40),
    ),
    # with species looked up once
    "atoms change ranks": Case(
        "velocity all set 800 400 -200\nneigh_modify every 1 delay 0 check no\nfix motion all nve\nrun 20",
        n_frames=5,
    ),
    # with rows of atoms kept until LAMMPS rebuilds lists
    "delete and create": Case(
        SHORT + "group gone id 7 8 30\ndelete_atoms group gone compress no\nrun 5\n"
        "create_atoms 2 single 0.1 0.1 8.0\ncreate_atoms 1 single 5.1 6.2 3.3\nrun 5\n"
        "reset_atoms id sort yes\nrun 5",
        number_of_atoms_changes, 6,
    ),
    # with species looked up once
    "deposit and evaporate": Case(
        "region box block 0 9.3 0 9.3 0 9.3\nfix lose all evaporate 4 3 box 4711\n"
        "fix add all deposit 4 2 3 4711 region box near 1.0 units box\n" + NVE + "run 20",
        number_of_atoms_changes, 5,
    ),
    # with species looked up once
    "gcmc": Case(
        "fix exchange all gcmc 5 8 8 2 4711 30000 0.0 0.1 full_energy\n" + SHORT,
        number_of_atoms_changes, 3, settings="atom_modify map yes",
    ),
    # with energies of atoms that fix gcmc tries to remove, which then keep it from inserting any
    "gcmc of a gas": Case(
        "run 0\nfix exchange all gcmc 1 20 0 2 4711 3000 $(pe/atoms-3.154) 0.1 full_energy\nrun 4",
        stays_a_gas, 2, frame="gas", settings="atom_modify map yes", every=2,
    ),
    # with species looked up again only when the number of atoms changes
    "swap": Case(
        "fix swap all atom/swap 2 5 4711 1e6 types 1 2\n" + SHORT, types_change, 3,
        settings="atom_modify map yes",
    ),
    # with the plan of messages kept while no count changes
    "sort": Case(
        "neigh_modify every 1 delay 0 check no\n" + SHORT, n_frames=3, settings="atom_modify sort 1 1.0"
    ),
    # with the student's cutoff given to LAMMPS 1 Å too short
    "no skin": Case("neighbor 0.0 bin\nneigh_modify every 1 delay 0 check no\n" + SHORT, n_frames=3),
    # with edge vectors kept between two builds of lists
    "lists built once": Case("neighbor 2.0 bin\nneigh_modify once yes\n" + SHORT, n_frames=3),
    # with edge vectors kept between two builds of lists
    "lists built late": Case("neighbor 1.5 bin\nneigh_modify every 4 delay 4 check no\n" + SHORT, n_frames=3),
    # with the student's cutoff given to LAMMPS 1 Å too short
    "lists of all pairs": Case("neighbor 0.5 nsq\n" + SHORT, n_frames=3, settings="newton on off"),
    # with ghosts beyond the 700th left out
    "ghosts from afar": Case("comm_modify cutoff 9.0\n" + SHORT, n_frames=3),
    # with wrong yy forces in tilted boxes
    "grid along x": Case(SHORT, n_frames=3, frame="sheared", settings="processors {ranks} 1 1"),
    # as the case before
    "grid along z": Case(SHORT, n_frames=3, frame="sheared", settings="processors 1 1 {ranks}"),
    # with room for messages of one number (painn), with wrong z forces in slabs
    "tiled": Case("comm_style tiled\nfix even all balance 4 1.0 rcb\n" + SHORT, n_frames=3, frame="slab"),
    # with ghosts beyond the 700th left out
    "replicate": Case("replicate 2 1 2\n" + SHORT, n_frames=3),
    # without special_bonds; a route that asks for them without bonds fails in the second run
    "bonds": Case(
        "bond_coeff *\n" + SHORT + "delete_bonds all bond 1 remove special\n"
        "special_bonds lj/coul 0 0 0\nrun 5",
        n_frames=4, frame="bonded", settings="atom_style bond\nbond_style zero\nspecial_bonds lj/coul 1 1 1",
    ),
    # with rows of atoms kept until LAMMPS rebuilds lists
    "change_box": Case(
        "run 0\nchange_box all xy delta 0.7 y scale 1.05 remap units box\n" + SHORT,
        n_frames=3, frame="sheared",
    ),
    # with wrong yy forces in tilted boxes
    "deform": Case(  # at the end of every third step: between frames, whose box it would change
        "fix shear all deform 3 xy erate 20 remap x\n" + SHORT, n_frames=3, frame="sheared"
    ),
    # with energies converted and forces not
    "units real": Case(SHORT, conserves_energy, 3, units="real", routes=("plugin", "external")),
}  # fmt: skip


# ---- what runs them ----


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Callable[..., Seen]:
    """What is left of a case; the first one asked for of a route and a number of ranks runs all of them."""

    @cache
    def run_all(route: str, ranks: int) -> tuple[Path, Finished]:
        folder, script = tmp_path_factory.mktemp(f"{route}{ranks}"), ""
        for student in STUDENTS:
            ROUTES[route].write(folder, student, STUDENTS[student], PRECISIONS[route, ranks])
            script += "".join(
                case.input(file_name(student, name), route, student, PRECISIONS[route, ranks], ranks)
                for name, case in CASES.items() if route in case.routes
            )  # fmt: skip
        for case in CASES.values():
            write_data_file(folder / case.data, FRAMES[case.frame], tuple(case.elements.split()))
            if case.frame == "bonded":
                add_bond(folder / case.data, folder / case.data)
        return folder, ROUTES[route].run(script, folder, ranks, time_limit=400)

    def left(route: str, ranks: int, student: str, name: str) -> Seen:
        folder, finished = run_all(route, ranks)
        file = file_name(student, name)
        assert (folder / f"{file}.done").exists(), finished.output[-3000:]
        return Seen(CASES[name], file, folder, student, PRECISIONS[route, ranks])

    return left


def file_name(student: str, case: str) -> str:
    return re.sub(r"\W+", "-", f"{student} {case}")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize(("route", "ranks"), PRECISIONS)
def test_case(runs, route, ranks, student, name):
    if route not in CASES[name].routes:
        pytest.skip(f"not through {route}")
    seen = runs(route, ranks, student, name)
    assert len(seen.frames) >= seen.case.n_frames
    seen.case.check(seen)


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("route", ["mliap", "plugin"])
def test_ranks_go_the_same_way(runs, route, student):
    """Energies of 20 steps on one rank and on four, to 1e-8 eV an atom."""
    one, four = (runs(route, ranks, student, "nve") for ranks in (1, 4))
    for name in ("PotEng", "KinEng", "Econserve"):
        assert len(one.thermo[name]) == 21
        np.testing.assert_allclose(one.thermo[name], four.thermo[name], rtol=0, atol=1e-8 * 81)
