# SPDX-License-Identifier: MIT
"""The real ``lmp`` running students through ``pair_style mliap unified``, on one rank and on two.

Every frame of a test module is evaluated by one ``lmp`` per number of ranks: starting one costs seconds.
"""

import shutil
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from lammps_process import read_result, run_lammps, single_point

from mlffd.bundle import write_bundle
from mlffd.drivers.lammps_log import read_log, summarize
from mlffd.drivers.lammps_mliap import export
from mlffd.drivers.lammps_program import write_data_file
from mlffd.engine import Engine
from mlffd.students import build_student

pytestmark = pytest.mark.slow

INPUTS = Path(__file__).parents[1] / "lammps_inputs"
NOBLE = ("Ar", "Kr")
EPSILON, SIGMA, CUTOFF = (0.0104, 0.0142), (3.40, 3.65), 7.0
LENNARD_JONES = {
    "family": "lennard_jones", "species": [18, 36], "cutoff": CUTOFF, "epsilon": EPSILON, "sigma": SIGMA,
}  # fmt: skip
LOCAL = {"family": "local", "species": [1, 8], "cutoff": 4.5, "n_radial": 6, "channels": 16, "hidden": [16]}
LJ_CUT = f"""
pair_style lj/cut {CUTOFF}
pair_coeff 1 1 {EPSILON[0]} {SIGMA[0]}
pair_coeff 2 2 {EPSILON[1]} {SIGMA[1]}
"""


def noble_frames() -> dict[str, Atoms]:
    """Argon and krypton: what a coupling can meet."""
    random = np.random.default_rng(7)
    solid = bulk("Ar", "fcc", a=5.5, cubic=True).repeat(2)
    solid.symbols[random.permutation(len(solid))[:12]] = "Kr"
    solid.positions += random.normal(0.0, 0.15, (len(solid), 3))
    sheared = solid.copy()
    sheared.set_cell([[11.0, 0, 0], [1.7, 10.6, 0], [-0.9, 2.1, 11.3]], scale_atoms=True)
    slab = solid.copy()
    slab.set_cell([11.0, 11.0, 40.0])
    slab.positions[:, 2] += 10.0
    slab.pbc = (True, True, False)
    droplet = Atoms("Ar7Kr6", solid.positions[:13], cell=[40.0, 40.0, 40.0], pbc=False)
    droplet.positions += 12.0
    droplet.positions[-1] = 38.0  # out of everyone's reach
    corner = droplet[:12]
    corner.positions -= 11.0  # all atoms in one half of the box
    alone = Atoms("Kr", [[5.0, 6.0, 7.0]], cell=[30.0, 30.0, 30.0], pbc=True)
    small = Atoms("ArKr", [[0.3, 0.2, 0.1], [2.9, 3.1, 2.4]], cell=[5.6, 5.7, 5.8], pbc=True)
    return {
        "solid": solid, "sheared": sheared, "slab": slab, "droplet": droplet, "corner": corner,
        "alone": alone, "small": small,
    }  # fmt: skip


def water_frames() -> dict[str, Atoms]:
    """Water-like frames: not the point of this test to be wet."""
    random = np.random.default_rng(8)
    molecule = np.array([[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]])
    lattice = np.stack(np.meshgrid(*[np.arange(3) * 3.1 + 0.5] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    liquid = Atoms("OH2" * 27, (lattice + molecule).reshape(-1, 3), cell=[9.3] * 3, pbc=True)
    liquid.positions += random.normal(0.0, 0.08, liquid.positions.shape)
    sheared = liquid.copy()
    sheared.set_cell([[9.3, 0, 0], [-1.1, 9.5, 0], [0.8, 1.9, 9.1]], scale_atoms=True)
    vapor = liquid[:9]
    vapor.set_cell([40.0, 40.0, 40.0])
    vapor.pbc = False
    vapor.positions += 2.0
    vapor.positions[6:] += 25.0  # a molecule far away
    vapor.positions[7] += 6.0  # and of that one a lonely hydrogen
    alone = Atoms("O", [[5.0, 6.0, 7.0]], cell=[30.0, 30.0, 30.0], pbc=True)
    corner = vapor[:6]  # all atoms in one half of the box
    return {"liquid": liquid, "sheared": sheared, "vapor": vapor, "corner": corner, "alone": alone}


def processors(frame: str, ranks: int) -> str:
    return f"{ranks} 1 1" if frame == "corner" else "* * *"  # cut where one rank is left without atoms


def mliap(file: str, elements: tuple[str, ...]) -> str:
    return f"pair_style mliap unified {file} 0\npair_coeff * * {' '.join(elements)}"


def random_local_student():
    torch.manual_seed(11)
    student = build_student(LOCAL)
    state = student.state_dict()
    # like trained ones, an atom alone has an energy
    energies = next(name for name in state if name.endswith("reference_energies"))
    state[energies] = torch.tensor([-3.4, -431.7], dtype=torch.float64)
    student.load_state_dict(state)
    return student


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    write_bundle(folder / "lj.mlffd", build_student(LENNARD_JONES))
    write_bundle(folder / "local.mlffd", random_local_student())
    return folder


NVE = """
clear
units metal
atom_style atomic
newton on
read_data {data}
replicate 2 1 1
{potential}
velocity all create {temperature} 4711 mom yes dist gaussian loop all
neighbor 0.5 bin
neigh_modify every 1 delay 0 check yes
fix motion all nve
timestep {timestep}
thermo_style custom step temp pe etotal econserve press
thermo_modify format float %.15g
thermo 10
run {steps}
print "$(pe:%.17g) $(ke:%.17g) $(press:%.17g) $(etotal:%.17g)" file {name}.thermo
"""


@pytest.fixture(scope="module", params=[1, 2], ids=["1rank", "2ranks"])
def results(request, bundles, tmp_path_factory):
    """Everything the tests below look at: the folder where LAMMPS wrote, and the number of ranks."""
    ranks = request.param
    folder = tmp_path_factory.mktemp(f"ranks{ranks}")
    export(bundles / "lj.mlffd", folder / "lj.pt", dtype="float64")
    export(bundles / "local.mlffd", folder / "float64.pt", dtype="float64")
    export(bundles / "local.mlffd", folder / "float32.pkl", dtype="float32")
    script = ""
    for name, atoms in noble_frames().items():
        write_data_file(folder / f"{name}.noble", atoms, NOBLE)
        cut = processors(name, ranks)
        script += single_point(f"{name}.lj", f"{name}.noble", atoms, mliap("lj.pt", NOBLE), cut)
        script += single_point(f"{name}.lj_cut", f"{name}.noble", atoms, LJ_CUT, cut)
    for name, atoms in water_frames().items():
        for elements in [("O", "H"), ("H", "O")]:
            write_data_file(folder / f"{name}.{''.join(elements)}", atoms, elements)
        cut = processors(name, ranks)
        for result, file, elements in [
            ("float64", "float64.pt", ("O", "H")),
            ("float32", "float32.pkl", ("O", "H")),
            ("reversed", "float64.pt", ("H", "O")),
            ("flagged", "float64.pt", ("O", "H")),
        ]:
            source, potential = f"{name}.{''.join(elements)}", mliap(file, elements)
            if result == "flagged":  # neighbors of ghosts, too, from which nothing comes
                potential = potential.replace(".pt 0", ".pt 1")
            script += single_point(f"{name}.{result}", source, atoms, potential, cut)
    argon = {"data": "solid.noble", "temperature": 60.0, "timestep": 0.01, "steps": 100}
    script += NVE.format(name="nve.lj_cut", potential=LJ_CUT, **argon)
    script += NVE.format(name="nve.lj", potential=mliap("lj.pt", NOBLE), **argon)
    water = {"data": "liquid.OH", "temperature": 300.0, "timestep": 0.000025, "steps": 80}
    script += NVE.format(name="nve.local", potential=mliap("float64.pt", ("O", "H")), **water)
    finished = run_lammps(script, folder, ranks, time_limit=400.0)  # 5 s; minutes where others use the cores
    assert finished.status == 0, finished.output
    assert f"{ranks} by 1 by 1 MPI processor grid" in finished.output
    return folder, ranks


@pytest.mark.parametrize("frame", noble_frames())
def test_lennard_jones_equals_lj_cut(results, frame):
    """The coupling, judged by LAMMPS' own numbers."""
    folder, _ = results
    ours, theirs = read_result(folder, f"{frame}.lj"), read_result(folder, f"{frame}.lj_cut")
    assert ours.energy == pytest.approx(theirs.energy, abs=1e-9)
    np.testing.assert_allclose(ours.forces, theirs.forces, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.atomic_energies, theirs.atomic_energies, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.atomic_virials, theirs.atomic_virials, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.pressure, theirs.pressure, rtol=1e-9, atol=1e-14)
    if frame != "alone":
        assert abs(theirs.forces).max() > 1e-3  # there was something to compare
        assert abs(theirs.pressure).max() > 1e-7


@pytest.mark.parametrize("kind", ["float64", "reversed", "flagged", "float32"])
@pytest.mark.parametrize("frame", water_frames())
def test_local_student_equals_the_engine(results, bundles, frame, kind):
    folder, _ = results
    atoms = water_frames()[frame]
    expected = Engine(str(bundles / "local.mlffd"), dtype="float64").evaluate([atoms])[0]
    found = read_result(folder, f"{frame}.{kind}")
    tolerance = 2e-4 if kind == "float32" else 1e-8
    of_sums = tolerance * len(atoms)
    assert found.energy == pytest.approx(expected.energy, abs=of_sums)
    np.testing.assert_allclose(found.atomic_energies, expected.atomic_energies, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.forces, expected.forces, rtol=0, atol=tolerance)
    virial = expected.virial[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
    np.testing.assert_allclose(found.atomic_virials.sum(0), virial, rtol=0, atol=of_sums)
    np.testing.assert_allclose(
        found.pressure * atoms.cell.volume, virial, rtol=0, atol=tolerance * len(atoms)
    )


def test_dynamics_equal_those_of_lj_cut(results):
    """Steps in which atoms change ranks and neighbor lists are built anew."""
    folder, _ = results
    ours, theirs = np.loadtxt(folder / "nve.lj.thermo"), np.loadtxt(folder / "nve.lj_cut.thermo")
    np.testing.assert_allclose(ours, theirs, rtol=1e-8)


def test_dynamics_conserve_energy(results):
    folder, ranks = results
    run = read_log(folder / "log.lammps")
    assert (run.student, run.ranks, run.atoms, run.steps) == ("float64", ranks, 162, 80)
    exchanged = np.ptp(run.thermo["PotEng"])
    assert exchanged / run.atoms > 1e-3  # it moves
    assert np.ptp(run.thermo["TotEng"]) < 2e-3 * exchanged


@pytest.fixture
def inputs(tmp_path):
    """A copy of the shipped inputs to run in."""
    for file in INPUTS.iterdir():
        if file.name.startswith("in.") or file.suffix == ".data":  # not what runs have left there
            shutil.copy(file, tmp_path)
    return tmp_path


def test_in_water_equilibrate_writes_the_box(bundles, inputs):
    """On a box of 64 molecules and two steps."""
    (inputs / "water512.data").unlink()
    variables = {"student": bundles / "local.mlffd", "copies": 1, "steps": 2}
    finished = run_lammps(inputs / "in.water_equilibrate", inputs, **variables)
    assert finished.status == 0, finished.output
    box = ase.io.read(inputs / "water512.data", format="lammps-data")
    assert box.symbols.get_chemical_formula() == "H128O64"


def test_in_water_runs_as_it_stands(bundles, inputs):
    """The shipped input on two ranks, with a student of this test in place of the shipped one."""
    finished = run_lammps(inputs / "in.water", inputs, 2, student=bundles / "local.mlffd", steps=2)
    assert finished.status == 0, finished.output
    assert finished.lines("Performance: ")
    assert len(finished.lines("mlffd: student: ")) == 1  # the student introduces itself once, not once a rank
    for fact in ("mlffd: water: 2 steps", "1536 atoms", "2 ranks", "ns/day"):
        assert fact in summarize(inputs / "log.lammps")
    frame = ase.io.read(inputs / "water.lammpstrj")
    assert frame.symbols.get_chemical_formula() == "H1024O512"
    assert frame.pbc.all()
    assert frame.cell.volume == pytest.approx(24.859137**3, rel=1e-4)
