# SPDX-License-Identifier: MIT
"""The real ``lmp`` running students that pass messages through ``pair_style mliap unified``, on 1 to 4 ranks.

The oracle is the engine in plain PyTorch on whole structures; a halo of ghost atoms, for which no rank asks
another, is a second one. Every frame is evaluated by one ``lmp`` per number of ranks.
"""

import numpy as np
import pytest
import torch
from ase import Atoms
from lammps_process import (
    SCRIPTS,
    read_dump,
    read_result,
    read_thermo,
    run_lammps,
    run_limited,
    single_point,
)
from test_lammps_run import processors, water_frames

from mlffd.bundle import write_bundle
from mlffd.drivers.lammps_mliap import export
from mlffd.drivers.lammps_program import write_data_file
from mlffd.engine import Engine
from mlffd.students import build_student

pytestmark = pytest.mark.slow

CUTOFF, SKIN = 4.0, 2.0  # Å; the skin is LAMMPS' own in units metal
RUNS = {  # name: layers, dtype, flag of the pair style
    "two": (2, "float64", 0),
    "three": (3, "float64", 0),
    "single": (3, "float32", 0),
    "halo_two": (2, "float64", 1),
    "halo_three": (3, "float64", 1),
}


def frames() -> dict[str, Atoms]:
    small = Atoms("OHH", [[0.3, 0.2, 0.1], [1.6, 0.6, 1.2], [0.4, 2.9, 2.0]], cell=[3.1, 3.4, 3.3], pbc=True)
    slab = water_frames()["liquid"]
    slab.set_cell([9.3, 9.3, 30.0])
    slab.positions[:, 2] += 10.0
    slab.pbc = (True, True, False)
    return {**water_frames(), "small": small, "slab": slab}


def random_painn(n_layers: int):
    """Without messages to ghosts its forces are off by up to 0.1 eV/Å."""
    torch.manual_seed(20 + n_layers)
    student = build_student(
        {"family": "painn", "species": [1, 8], "cutoff": CUTOFF, "n_radial": 5, "features": 8,
         "layers": n_layers}
    )  # fmt: skip
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return student


def potential(name: str, skin: float = SKIN) -> str:
    layers, _, flag = RUNS[name]
    wide = f"comm_modify cutoff {layers * CUTOFF + skin}\n" if flag else ""
    return f"{wide}pair_style mliap unified {name}.pt {flag}\npair_coeff * * O H"


HYBRID = """pair_style hybrid/overlay mliap unified two.pt 0 zero 5.0
pair_coeff * * mliap O H NULL
pair_coeff * * zero"""


def with_argon(atoms: Atoms) -> Atoms:
    """The frame with argon between its atoms, whose type is mapped to NULL."""
    mixed = atoms.copy()
    mixed.symbols[::5] = "Ar"
    return mixed


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """What the runs load."""
    folder = tmp_path_factory.mktemp("students")
    for layers in (2, 3):
        write_bundle(folder / f"{layers}.mlffd", random_painn(layers))
    for name, (layers, dtype, _) in RUNS.items():
        export(folder / f"{layers}.mlffd", folder / f"{name}.pt", dtype=dtype)
    return folder


@pytest.fixture(scope="module")
def engines(students):
    return {
        layers: Engine(students / f"{layers}.mlffd", dtype="float64", backend="reference")
        for layers in (2, 3)
    }


def link(students, folder):
    for file in students.iterdir():
        (folder / file.name).symlink_to(file)


@pytest.fixture(scope="module", params=[1, 2, 3, 4], ids="{}ranks".format)
def results(request, students, tmp_path_factory):
    """The folder where LAMMPS wrote, and the number of ranks."""
    ranks = request.param
    folder = tmp_path_factory.mktemp(f"ranks{ranks}")
    link(students, folder)
    script = ""
    for frame, atoms in frames().items():
        write_data_file(folder / f"{frame}.data", atoms, ("O", "H"))
        for name in RUNS:
            cut = processors(frame, ranks)
            script += single_point(f"{frame}.{name}", f"{frame}.data", atoms, potential(name), cut)
    mixed = with_argon(frames()["sheared"])
    write_data_file(folder / "mixed.data", mixed, ("O", "H", "Ar"))
    script += single_point("mixed", "mixed.data", mixed, HYBRID)
    finished = run_lammps(script, folder, ranks, time_limit=400.0)
    assert finished.status == 0, finished.output
    assert "mlffd: student: elements H O, cutoff 4 Å, 2 message layers, cpu, float64" in finished.output
    return folder, ranks


@pytest.mark.parametrize("frame", frames())
@pytest.mark.parametrize("name", RUNS)
def test_forces_energies_and_virial_are_the_engines(results, engines, frame, name):
    """Seen to catch: ghosts without their owners' features, gradients not sent back, rows of wrong owners."""
    folder, _ = results
    atoms = frames()[frame]
    layers, dtype, _ = RUNS[name]
    (expected,) = engines[layers].evaluate(atoms)
    found = read_result(folder, f"{frame}.{name}")
    tolerance = 2e-4 if dtype == "float32" else 1e-9
    np.testing.assert_allclose(found.forces, expected.forces, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.atomic_energies, expected.atomic_energies, rtol=0, atol=tolerance)
    assert found.energy == pytest.approx(expected.energy, abs=tolerance * len(atoms))
    virial = expected.virial[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
    largest = abs(virial).max()
    of_virial = (1e-4 if dtype == "float32" else 1e-8) * largest + 1e-12
    np.testing.assert_allclose(found.atomic_virials.sum(0), virial, rtol=0, atol=of_virial)
    np.testing.assert_allclose(found.pressure * atoms.cell.volume, virial, rtol=0, atol=of_virial)
    if frame != "alone":
        assert abs(expected.forces).max() > 0.05  # there was something to compare


@pytest.mark.parametrize("frame", frames())
def test_atomic_virials_are_those_of_the_halo(results, frame):
    """In a halo no rank asks another for features: an oracle for where virials go, too."""
    folder, _ = results
    for layers in ("two", "three"):
        through_exchange = read_result(folder, f"{frame}.{layers}")
        in_halo = read_result(folder, f"{frame}.halo_{layers}")
        np.testing.assert_allclose(through_exchange.atomic_virials, in_halo.atomic_virials, rtol=0, atol=1e-8)


def test_types_mapped_to_null(results, engines):
    """Atoms of another pair style among the student's, on all ranks and as ghosts."""
    folder, _ = results
    mixed = with_argon(frames()["sheared"])
    known = np.array(mixed.symbols) != "Ar"
    (expected,) = engines[2].evaluate(mixed[known])
    found = read_result(folder, "mixed")
    np.testing.assert_allclose(found.forces[known], expected.forces, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.atomic_energies[known], expected.atomic_energies, rtol=0, atol=1e-9)
    assert not found.forces[~known].any()
    assert found.energy == pytest.approx(expected.energy, abs=1e-7)


NVE = """
units metal
atom_style atomic
newton on
read_data liquid.data
replicate 2 1 1
{potential}
velocity all create 1000.0 4711 mom yes dist gaussian loop all
neighbor 0.5 bin
neigh_modify every 1 delay 0 check yes
fix motion all nve
timestep 0.00005
dump where all custom 400 where.dump id proc
dump_modify where sort id
thermo_style custom step pe ke etotal
thermo_modify format float %.15g
thermo 1
run 400
"""


@pytest.fixture(scope="module")
def traces(students, tmp_path_factory):
    """Thermodynamic output on 1 and on 4 ranks, and the rank of every atom at start and end of the latter."""
    thermo = {}
    for ranks in (1, 4):
        folder = tmp_path_factory.mktemp(f"nve{ranks}")
        link(students, folder)
        write_data_file(folder / "liquid.data", frames()["liquid"], ("O", "H"))
        finished = run_lammps(NVE.format(potential=potential("two")), folder, ranks, time_limit=300.0)
        assert finished.status == 0, finished.output
        thermo[ranks] = read_thermo(folder / "log.lammps")
    start, *_, end = read_dump(folder / "where.dump")
    return thermo, start.columns["proc"], end.columns["proc"]


def test_dynamics_do_not_depend_on_the_number_of_ranks(traces):
    thermo, _, _ = traces
    for name in ("PotEng", "KinEng", "TotEng"):
        np.testing.assert_allclose(thermo[1][name][:21] / 162, thermo[4][name][:21] / 162, rtol=0, atol=1e-8)


def test_energy_is_conserved_while_atoms_change_ranks(traces):
    """Seen to catch: an exchange that is planned once and for all."""
    thermo, start, end = traces
    assert (start != end).sum() > 10
    exchanged = np.ptp(thermo[4]["PotEng"])
    assert exchanged / 162 > 0.005  # it moves
    for ranks in (1, 4):
        assert np.ptp(thermo[ranks]["TotEng"]) < 5e-3 * exchanged


# ---- what cannot be ----

ONCE = """
units metal
atom_style atomic
newton on
processors {ranks} 1 1
{before}
read_data liquid.data
{potential}
{after}
run 0
print "energy $(pe:%.17g)"
"""


@pytest.fixture
def folder(students, tmp_path):
    link(students, tmp_path)
    write_data_file(tmp_path / "liquid.data", frames()["liquid"], ("O", "H"))
    return tmp_path


@pytest.fixture
def no_mpi4py(monkeypatch, tmp_path_factory):
    hidden = tmp_path_factory.mktemp("hidden")
    (hidden / "mpi4py.py").write_text("raise ImportError('not installed')\n")
    monkeypatch.setenv("PYTHONPATH", str(hidden))


def once(folder, ranks, name="two", lines=None, before="", after=""):
    script = ONCE.format(ranks=ranks, potential=lines or potential(name), before=before, after=after)
    return run_lammps(script, folder, ranks, time_limit=60.0)


def energy(finished) -> float:
    assert finished.status == 0, finished.output
    (line,) = finished.lines("energy ")
    return float(line.split()[1])


def reason(finished) -> str:
    """The one line that says why, before any number."""
    assert finished.status != 0, finished.output
    assert "Traceback" not in finished.output
    assert not finished.lines("energy")
    (line,) = finished.lines("mlffd: cannot")
    return line


def test_without_mpi4py(folder, engines, no_mpi4py):
    """One rank needs none; several have the halo, and are told of it."""
    expected = engines[2].evaluate(frames()["liquid"])[0].energy
    assert energy(once(folder, 1)) == pytest.approx(expected, abs=1e-9)
    line = reason(once(folder, 2))
    assert "mpi4py built for the MPI of LAMMPS" in line
    assert "flag 1 of the pair style and `comm_modify cutoff 10`" in line
    in_halo = once(folder, 2, "halo_two")
    assert energy(in_halo) == pytest.approx(expected, abs=1e-9)
    assert len(in_halo.lines("mlffd: cannot check without mpi4py")) == 1


@pytest.mark.parametrize(("ranks", "before"), [(1, ""), (2, "comm_modify cutoff 10")])
def test_a_halo_that_is_too_thin(folder, ranks, before):
    """LAMMPS would give forces that are slightly wrong."""
    thin = "pair_style mliap unified halo_three.pt 1\npair_coeff * * O H"
    assert "set `comm_modify cutoff 14` or more" in reason(once(folder, ranks, lines=thin, before=before))


def test_one_rank_fails_alone(folder):
    """The others wait for its messages."""
    line = reason(once(folder, 3, after="set atom 80 x 0.5 y 0.5 z 0.5\nset atom 81 x 0.5 y 0.5 z 0.5"))
    assert "are not finite" in line


def test_lammps_handed_over_by_the_input(folder, engines):
    """Where the object of the pair style leads nowhere."""
    hand_over = """python hand_over input 1 SELF format p here &
"from mlffd.drivers import lammps_instance; lammps_instance._address_in = lambda _: None; &
from mlffd.drivers.lammps_instance import hand_over"
python hand_over invoke"""
    expected = engines[2].evaluate(frames()["liquid"])[0].energy
    assert energy(once(folder, 2, before=hand_over)) == pytest.approx(expected, abs=1e-9)
    line = reason(once(folder, 2, before=hand_over.rpartition("\n")[0] + "\n"))
    assert "`python hand_over invoke`" in line


def test_partitions_have_ranks_of_their_own(folder, engines):
    """Two copies of LAMMPS on two ranks each, whose frames differ."""
    script = ONCE.format(ranks=2, potential=potential("two"), before="variable copy world 1 2", after="")
    atoms = frames()["liquid"]
    (folder / "liquid.data").rename(folder / "1.data")
    atoms.positions[0] += 0.1
    write_data_file(folder / "2.data", atoms, ("O", "H"))
    (folder / "in.copies").write_text(script.replace("liquid.data", "${copy}.data"))
    command = [SCRIPTS / "mpiexec", "-n", "4", SCRIPTS / "lmp", "-partition", "2x2", "-in", "in.copies"]
    finished = run_limited(command, folder, time_limit=60.0)
    assert finished.status == 0, finished.output
    for copy, frame in enumerate((frames()["liquid"], atoms)):
        log = (folder / f"log.lammps.{copy}").read_text()
        (line,) = [line for line in log.splitlines() if line.startswith("energy -")]
        expected = engines[2].evaluate(frame)[0].energy
        assert float(line.split()[1]) == pytest.approx(expected, abs=1e-9)
