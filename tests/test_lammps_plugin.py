# SPDX-License-Identifier: MIT
"""``pair_style mlffd`` in the stock ``lmp``: the engine's numbers on any number of ranks.

The oracle is the reference path in float64. One ``lmp`` evaluates all frames for a number of ranks.
"""

import shutil
from functools import cache
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from lammps_process import BAR, read_result, run_lammps, single_point
from plugin_process import add_bond, mlffd, needs, random_student, run_plugin, write_students
from test_lammps_run import INPUTS, NVE, processors, water_frames

from mlffd import graph as graphs
from mlffd.bundle import write_bundle
from mlffd.drivers.lammps_log import read_log, summarize
from mlffd.drivers.lammps_plugin import build_plugin
from mlffd.drivers.lammps_program import write_data_file
from mlffd.engine import Engine
from mlffd.errors import ConfigError
from mlffd.predict import array, pair_gradient

pytestmark = pytest.mark.slow

FAMILIES = ("local", "painn")
VOIGT = [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]  # LAMMPS' order
CENTROID_ORDER = [0, 1, 2, 0, 0, 1, 1, 2, 2], [0, 1, 2, 1, 2, 2, 0, 0, 1]
CENTROID = """
compute centroid all centroid/stress/atom NULL virial
dump centroid all custom 1 {name}.centroid id c_centroid[*]
dump_modify centroid sort id format float %.17g
"""


def frames() -> dict[str, Atoms]:
    small = Atoms("OH2", [[0.1, 0.2, 0.3], [0.8, 0.8, 0.4], [-0.7, 0.7, 0.1]], cell=[4.1, 4.3, 3.9], pbc=True)
    return {**water_frames(), "small": small}  # an atom of `small` meets its own images


@cache
def reference(family: str) -> Engine:
    return Engine(random_student(family), dtype="float64", backend="reference")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    needs(request.param)
    return request.param


def evaluate_frames(folder: Path, ranks: int, family: str, kinds: dict[str, tuple[str, str]]) -> None:
    """Let LAMMPS evaluate every frame; a kind has its elements and the input lines of its potential."""
    write_students(folder, family)
    script = ""
    for name, atoms in frames().items():
        for kind, (elements, potential) in kinds.items():
            write_data_file(folder / f"{name}.{elements}", atoms, tuple(elements.split()))
            potential = potential.format(name=name)
            script += single_point(
                f"{name}.{kind}", f"'{name}.{elements}'", atoms, potential, processors(name, ranks)
            )
    finished = run_plugin(script, folder, ranks, time_limit=400.0)
    assert finished.status == 0, finished.output
    assert f"{ranks} by 1 by 1 MPI processor grid" in finished.output


@pytest.fixture(scope="module", params=[1, 2], ids=["1rank", "2ranks"])
def results(request, family, tmp_path_factory):
    """The folder where LAMMPS wrote what it says of all frames."""
    folder = tmp_path_factory.mktemp(f"{family}{request.param}")
    centroid = CENTROID if family == "local" else ""
    kinds = {
        "float64": ("O H", mlffd(family) + centroid),
        "float32": ("O H", mlffd(family, precision="float32")),
        "reversed": ("H O", mlffd(family, "H O")),
        "pairwise": ("O H", mlffd(family) + "\npair_modify nofdotr"),
    }
    evaluate_frames(folder, request.param, family, kinds)
    return folder


@pytest.mark.parametrize("kind", ["float64", "float32", "reversed", "pairwise"])
@pytest.mark.parametrize("frame", frames())
def test_plugin_equals_the_engine(results, frame, family, kind):
    agree(results, frame, family, kind)


def test_three_ranks(family, tmp_path):
    evaluate_frames(tmp_path, 3, family, {"float64": ("O H", mlffd(family))})
    for frame in frames():
        agree(tmp_path, frame, family, "float64")


def agree(folder: Path, frame: str, family: str, kind: str) -> None:
    """Energies, forces and virials to rounding errors; those of sums grow with the number of atoms."""
    atoms = frames()[frame]
    expected = reference(family).evaluate(atoms)[0]
    found = read_result(folder, f"{frame}.{kind}")
    scale = max(1.0, np.sqrt(np.mean(expected.forces**2)))
    tolerance = scale * (2e-5 if kind == "float32" else 1e-9)
    of_sums = tolerance * len(atoms)
    np.testing.assert_allclose(found.forces, expected.forces, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.atomic_energies, expected.atomic_energies, rtol=1e-12, atol=tolerance)
    assert found.energy == pytest.approx(expected.energy, rel=1e-12, abs=of_sums)
    virial = expected.virial[VOIGT]
    np.testing.assert_allclose(found.atomic_virials.sum(0), virial, rtol=0, atol=10 * of_sums)
    np.testing.assert_allclose(found.pressure * atoms.cell.volume, virial, rtol=0, atol=10 * of_sums)
    if len(atoms) > 1:
        assert abs(expected.forces).max() > 0.1  # there was something to compare


def edges_of(atoms: Atoms, family: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centers and neighbors (n_edges,), and -r ⊗ dE/dr (n_edges, 3, 3) in eV."""
    engine = reference(family)
    graph = graphs.from_atoms(atoms, engine.cutoff)
    gradient = array(pair_gradient(engine.student, graph)[1])
    return *array(graph.edge_index), -array(graph.edge_vectors)[:, :, None] * gradient[:, None, :]


@pytest.mark.parametrize("frame", ["sheared", "vapor"])
def test_atomic_virials(results, family, frame):
    """stress/atom: half to either end; centroid/stress/atom, of local students: all to the neighbor."""
    atoms = frames()[frame]
    i, j, virials = edges_of(atoms, family)
    halves, centroid = np.zeros((2, len(atoms), 3, 3))
    np.add.at(halves, i, 0.5 * virials)
    np.add.at(halves, j, 0.5 * virials)
    np.add.at(centroid, j, virials)
    found = read_result(results, f"{frame}.float64").atomic_virials
    np.testing.assert_allclose(found, halves[(slice(None), *VOIGT)], rtol=0, atol=1e-7)
    if family != "local":
        return
    found = -np.loadtxt(results / f"{frame}.centroid", skiprows=9)[:, 1:] / BAR
    np.testing.assert_allclose(found, centroid[(slice(None), *CENTROID_ORDER)], rtol=0, atol=1e-7)
    assert abs(centroid - halves).max() > 1e-3


# ---- what LAMMPS lets a user do ----


@pytest.fixture
def folder(tmp_path, family) -> Path:
    """Weights of both elements' student, and a box of water-like atoms in ``liquid.data``."""
    write_students(tmp_path, family)
    write_data_file(tmp_path / "liquid.data", frames()["liquid"], ("O", "H"))
    return tmp_path


START = """
units metal
newton on
read_data liquid.data
"""
ENERGY = 'run 0 post no\nprint "ENERGY $(pe:%.17g) $(press:%.17g)"\n'


def energies(finished) -> list[float]:
    """Potential energies (eV) that ENERGY printed."""
    assert finished.status == 0, finished.output
    return [float(line.split()[1]) for line in finished.lines("ENERGY")]


def test_other_atoms_belong_to_other_styles(folder, family):
    """NULL in pair_style hybrid: argon among the water, with lj/cut to all."""
    atoms = frames()["liquid"]
    argon = Atoms("Ar3", [[2.0, 2.1, 8.9], [5.1, 8.4, 2.0], [8.3, 2.2, 5.0]])
    mixed = argon[:1] + atoms[:40] + argon[1:2] + atoms[40:] + argon[2:]
    mixed.set_cell(atoms.cell)
    mixed.pbc = True
    write_data_file(folder / "liquid.data", mixed, ("O", "Ar", "H"))
    lj_cut = "pair_coeff 1*3 2 {0} 0.01 3.0\npair_coeff 2 3 {0} 0.01 3.0\n"
    script = (
        START
        + f"""
pair_style hybrid/overlay mlffd precision float64 lj/cut 4.0
pair_coeff * * mlffd {family}.weights O NULL H
{lj_cut.format("lj/cut")}
{ENERGY}
pair_style lj/cut 4.0
pair_coeff * * 0.0 1.0
{lj_cut.format("")}
{ENERGY}
"""
    )
    for ranks in (1, 2):
        both, lj = energies(run_plugin(script, folder, ranks))
        assert both - lj == pytest.approx(reference(family).evaluate(atoms)[0].energy, abs=1e-7)
        assert abs(lj) > 0.1


def test_overlay_with_zbl(folder, family):
    script = (
        START
        + f"""
pair_style zbl 1.5 2.0
pair_coeff 1 1 8 8
pair_coeff 2 2 1 1
{ENERGY}
pair_style hybrid/overlay mlffd precision float64 zbl 1.5 2.0
pair_coeff * * mlffd {family}.weights O H
pair_coeff 1 1 zbl 8 8
pair_coeff 1 2 zbl 8 1
pair_coeff 2 2 zbl 1 1
compute student all pair mlffd
thermo_style custom step pe press c_student
{ENERGY}
print "ENERGY $(c_student:%.17g)"
"""
    )
    zbl, both, student = energies(run_plugin(script, folder, 2))
    assert student == pytest.approx(reference(family).evaluate(frames()["liquid"])[0].energy, abs=1e-7)
    assert both == pytest.approx(zbl + student, abs=1e-7)
    assert abs(zbl) > 1.0


def test_units_real(folder, family):
    kcal_per_mol = 23.060549  # LAMMPS' per eV
    expected = reference(family).evaluate(frames()["liquid"])[0]
    script = START.replace("metal", "real") + mlffd(family) + "\ndump f all custom 1 f.dump id fx fy fz"
    script += "\ndump_modify f sort id format float %.17g\n" + ENERGY
    (energy,) = energies(run_plugin(script, folder))
    assert energy == pytest.approx(kcal_per_mol * expected.energy, rel=1e-7)
    forces = np.loadtxt(folder / "f.dump", skiprows=9)[:, 1:]
    np.testing.assert_allclose(forces, kcal_per_mol * expected.forces, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_bonds_are_no_matter_to_a_student(folder, family, factor):
    """LAMMPS marks bonded neighbors in its list where special_bonds scales pair potentials."""
    add_bond(folder / "liquid.data", folder / "bonded.data")
    start = START.replace("newton on", "newton on\natom_style bond\nbond_style zero")
    start = start.replace("liquid", "bonded") + f"special_bonds lj/coul {factor} {factor} {factor}\n"
    (energy,) = energies(run_plugin(f"{start}bond_coeff *\n{mlffd(family)}\n{ENERGY}", folder))
    assert energy == pytest.approx(reference(family).evaluate(frames()["liquid"])[0].energy, abs=1e-7)


def test_excluded_pairs_do_not_count(folder, family):
    """neigh_modify exclude: to the student these atoms don't see each other."""
    engine, atoms = reference(family), frames()["liquid"]
    graph = graphs.from_atoms(atoms, engine.cutoff)
    i, j = array(graph.edge_index)
    kept = (atoms.numbers[i] != 8) | (atoms.numbers[j] != 8)
    vectors = array(graph.edge_vectors)[kept]
    expected, _ = engine.evaluate_pairs(atoms.numbers, i[kept], j[kept], vectors, len(atoms))
    script = START + mlffd(family) + "\nneigh_modify exclude type 1 1\n" + ENERGY
    (found,) = energies(run_plugin(script, folder, 2))
    assert found == pytest.approx(expected.sum(), abs=1e-7)
    assert abs(found - engine.evaluate(atoms)[0].energy) > 1e-3


def test_atoms_come_and_go(folder, family):
    """Runs one after another, with fewer atoms and with others, and a pair style given anew."""
    atoms = frames()["liquid"]
    fewer = atoms[[k for k in range(len(atoms)) if k + 1 not in (7, 8, 30)]]
    swapped = fewer.copy()
    swapped.symbols[0], swapped.symbols[1] = "H", "O"
    script = (
        START
        + f"""
{mlffd(family)}
{ENERGY}
group gone id 7 8 30
delete_atoms group gone compress no
{ENERGY}
set atom 1 type 2
set atom 2 type 1
{ENERGY}
pair_style mlffd precision float64 threads 2
pair_coeff * * {family}.weights O H
{ENERGY}
"""
    )
    expected = [reference(family).evaluate(each)[0].energy for each in (atoms, fewer, swapped, swapped)]
    assert energies(run_plugin(script, folder, 2)) == pytest.approx(expected, abs=1e-7)


def test_restart_goes_on(folder, family):
    write = (
        START
        + mlffd(family)
        + f"""
fix motion all nve
timestep 0.00001
run 5
{ENERGY}
write_restart half.restart
"""
    )
    read = f"read_restart half.restart\n{mlffd(family)}\n{ENERGY}"
    (before,) = energies(run_plugin(write, folder, 2))
    (after,) = energies(run_plugin(read, folder))
    assert after == pytest.approx(before, abs=1e-8)


def test_weights_are_looked_for_where_potentials_are(folder, family, monkeypatch):
    (folder / "potentials").mkdir()
    shutil.move(folder / f"{family}.weights", folder / "potentials")
    monkeypatch.setenv("LAMMPS_POTENTIALS", str(folder / "potentials"))
    (energy,) = energies(run_plugin(START + mlffd(family) + "\n" + ENERGY, folder))
    assert energy == pytest.approx(reference(family).evaluate(frames()["liquid"])[0].energy, abs=1e-7)


def test_threads_do_not_change_results(folder, family):
    script = START + "".join(
        f"pair_style mlffd {words}\npair_coeff * * {family}.weights O H\n{ENERGY}"
        for words in ("", "threads 1", "threads 3", "precision float32")
    )
    assert len(set(energies(run_plugin(script, folder)))) == 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_dynamics_conserve_energy(folder, family, ranks):
    """Steps in which atoms change ranks and neighbor lists are built anew."""
    settings = {"data": "liquid.data", "temperature": 300.0, "timestep": 0.000025, "steps": 80}
    script = NVE.format(name="nve", potential=mlffd(family), **settings)
    finished = run_plugin(script, folder, ranks)
    assert finished.status == 0, finished.output
    run = read_log(folder / "log.lammps")
    assert (run.student, run.ranks, run.atoms, run.steps) == (family, ranks, 162, 80)
    exchanged = np.ptp(run.thermo["PotEng"])
    assert exchanged / run.atoms > 1e-3  # it moves
    assert np.ptp(run.thermo["TotEng"]) < 2e-3 * exchanged


HEAT_FLUX = """
units metal
newton on
boundary f f f
read_data vapor.data
{potential}
velocity all create 3000 4711 dist gaussian
fix motion all nve
timestep 0.00001
compute pe all pe/atom
compute ke all ke/atom
compute virial all centroid/stress/atom NULL virial
compute flux all heat/flux ke pe virial
variable moment atom (c_pe+c_ke)*x
compute moment all reduce sum v_moment
thermo_style custom step c_moment c_flux[1] c_flux[4]
thermo_modify format float %.17g
thermo 1
run 2
"""


def test_heat_flux_moves_the_energy(tmp_path):
    """Of a cluster, sum x_i E_i changes by the flux that LAMMPS makes of atomic energies and virials."""
    needs("local")
    write_students(tmp_path, "local")
    write_data_file(tmp_path / "vapor.data", frames()["vapor"], ("O", "H"))
    finished = run_plugin(HEAT_FLUX.format(potential=mlffd("local")), tmp_path, 2)
    assert finished.status == 0, finished.output
    thermo = read_log(tmp_path / "log.lammps").thermo
    change = (thermo["c_moment"][2] - thermo["c_moment"][0]) / 0.00002
    flux, convective = thermo["c_flux[1]"][1], thermo["c_flux[4]"][1]
    assert change - convective == pytest.approx(flux - convective, rel=1e-3)
    assert abs(flux - convective) > 1.0


# ---- with the shipped student, which holds water together ----


@pytest.fixture
def inputs(tmp_path) -> Path:
    """A copy of the shipped inputs to run in."""
    needs("local")
    for file in INPUTS.iterdir():
        if file.name.startswith("in.") or file.suffix == ".data":  # not what runs have left there
            shutil.copy(file, tmp_path)
    return tmp_path


def test_in_water_plugin_runs_as_it_stands(inputs):
    """The shipped input on two ranks, with a student of this test in place of the shipped one."""
    write_bundle(inputs / "random.mlffd", random_student("local"))
    finished = run_plugin(inputs / "in.water-plugin", inputs, 2, student="random.mlffd", steps=2)
    assert finished.status == 0, finished.output
    assert finished.lines("Performance: ")
    assert len(finished.lines("mlffd: water.weights: elements H O")) == 1
    for fact in ("mlffd: water: 2 steps", "1536 atoms", "2 ranks", "ns/day"):
        assert fact in summarize(inputs / "log.lammps")
    frame = ase.io.read(inputs / "water.lammpstrj")
    assert frame.symbols.get_chemical_formula() == "H1024O512"


def test_in_water_plugin_runs_in_the_lammps_that_make_setup_builds(inputs, lmp):
    """Which brings its headers along; one that somebody else built may not."""
    try:
        build_plugin(lmp)
    except ConfigError as error:
        if "came without C++ headers" not in str(error):
            raise
        pytest.skip(str(error))
    finished = run_lammps(inputs / "in.water-plugin", inputs, steps=2, data="water64.data")
    assert finished.status == 0, finished.output
    assert "mlffd: water: 2 steps, 192 atoms" in summarize(inputs / "log.lammps")


SHIPPED = """
shell mlffd lammps export water -o water.weights
units metal
newton on
read_data water64.data
pair_style mlffd precision float64
pair_coeff * * water.weights O H
neighbor 1.0 bin
thermo_style custom step temp pe econserve press vol lx ly lz
thermo_modify format float %.12g
thermo 1
"""


def test_box_relaxes_to_a_pressure(inputs):
    """minimize with fix box/relax: energy and pressure of a moving box fit together."""
    script = (
        SHIPPED
        + """
min_modify line quadratic
minimize 0 1e-3 60 200
fix relax all box/relax iso 20000.0 vmax 0.002
minimize 0 1e-4 120 400
"""
    )
    finished = run_plugin(script, inputs)
    assert finished.status == 0, finished.output
    thermo = read_log(inputs / "log.lammps").thermo
    assert thermo["Press"][-1] == pytest.approx(20000.0, rel=0.05)
    assert thermo["Volume"][-1] < thermo["Volume"][0]


def test_barostat_conserves_energy(inputs):
    """fix nph on a box that tilts: econserve holds only if virial and forces are of one energy."""
    script = (
        SHIPPED
        + """
change_box all triclinic
velocity all create 300 4711 mom yes rot no dist gaussian loop all
timestep 0.0002
fix motion all nph tri 1.0 1.0 0.05
run 300
"""
    )
    finished = run_plugin(script, inputs, 2)
    assert finished.status == 0, finished.output
    thermo = read_log(inputs / "log.lammps").thermo
    assert np.ptp(thermo["Volume"]) > 10.0
    assert np.ptp(thermo["Econserve"]) < 0.01 * np.ptp(thermo["PotEng"])
