# SPDX-License-Identifier: MIT
"""The PES file: within i-PI's process, behind i-PI's own client, and called as they call it."""

import atexit

import numpy as np
import pytest
from ase.units import Bohr, Hartree
from conftest import command
from ipi_evaluators import argon
from ipi_forcefields import beads, ffdirect, ffsocket, start_argon, write_student
from ipi_process import HERE

from mlffd.drivers.ase_calculator import Calculator
from mlffd.drivers.ipi import PES_FILE
from mlffd.drivers.ipi.evaluator import DUMP

pytest.importorskip("ipi")
from ipi.pes import load_pes, scan_pes_file
from ipi.utils.inputvalue import InputValue
from ipi.utils.softexit import softexit


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a student and the structures that it is for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(atexit, "register", lambda function: function)  # summaries after pytest's last line
    monkeypatch.setattr(softexit, "flist", [])
    write_student(tmp_path / "argon.mlffd")
    argon().write("start.xyz", format="extxyz")
    argon()[:3].write("three.xyz", format="extxyz")
    return tmp_path


def student_driver(**parameters):
    """What i-PI makes of these parameters."""
    parameters = {"student": "argon.mlffd", "template": "start.xyz", "max_batch_atoms": 8} | parameters
    parameters = {"dtype": "float64"} | parameters
    return load_pes("custom", PES_FILE)(**parameters, verbosity=False)


def as_ipi_has_it(atoms) -> tuple[np.ndarray, np.ndarray]:
    """Cell with columns for lattice vectors, and positions, in Bohr."""
    return atoms.cell.array.T / Bohr, atoms.positions / Bohr


def as_ase_says(atoms, bundle="argon.mlffd") -> tuple[float, np.ndarray, np.ndarray]:
    """Potential, forces and virial in atomic units."""
    atoms = atoms.copy()
    atoms.calc = Calculator(bundle, dtype="float64")
    virial = -atoms.get_stress(voigt=False) * atoms.get_volume()
    return atoms.get_potential_energy() / Hartree, atoms.get_forces() * Bohr / Hartree, virial / Hartree


def test_names_are_literals():
    """i-PI looks for them without running the file."""
    assert scan_pes_file(PES_FILE) == ("StudentDriver", "mlffd")


def test_single_structures_and_lists_of_any_length(folder):
    """Caught rows taken for columns (the crystal is triclinic), and lists answered in another order."""
    driver = student_driver(template="start.xyz; three.xyz")
    structures = [argon(seed) for seed in range(4)]
    structures.insert(2, argon(7)[:3])
    structures.append(structures[-1].copy())  # as i-PI fills up a batch
    structures[0].positions += 3 * structures[0].cell[1]  # adrift
    answers = driver(*map(list, zip(*map(as_ipi_has_it, structures))))
    assert len(answers) == len(structures)
    for atoms, answer in zip(structures, answers):
        potential, forces, virial, extras = driver(*as_ipi_has_it(atoms))
        assert extras == answer[3] == ""
        for expected, in_list, single in zip(as_ase_says(atoms), answer, (potential, forces, virial)):
            np.testing.assert_allclose(single, expected, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(in_list, single, rtol=1e-12, atol=1e-15)


def test_parameters_as_ipi_reads_them(folder):
    """Through i-PI's own parser: texts, numbers, truth values, and a list that has no comma."""
    text = (
        "{student: argon.mlffd; argon.mlffd, template: start.xyz, max_batch_atoms: 8, extras: true, pbc: xy}"
    )
    value = InputValue(dtype=dict)
    value.parse(text=text)
    driver = student_driver(**value.fetch())
    potential, _, _, extras = driver(*as_ipi_has_it(argon()))
    assert extras.count(f"{potential:.12g}"[:10]) == 2
    assert driver.evaluator.templates[4].pbc.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"studnet": "water"}, "unknown key 'studnet'; did you mean 'student'?"),
        ({"dtype": 32}, "dtype must be a text, not 32"),
        ({"extras": "yes"}, "extras must be true or false, not 'yes'"),
        ({"student": "missing.mlffd"}, "no student bundle at missing.mlffd"),
        ({"student": " "}, "student is empty"),
        ({"template": ";"}, "template is empty"),
        ({"pbc": "all"}, "'all' is not some of x, y, z, or none"),
        ({"template": "missing.xyz"}, "missing.xyz does not exist"),
        ({"student": "water"}, "atom 0 is Ar, but this student knows only: H O"),
    ],
)
def test_wrong_parameters_end_in_one_line(folder, capsys, parameters, complaint):
    with pytest.raises(SystemExit) as exit:
        student_driver(**parameters)
    assert exit.value.code == 1
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_parameters_need_names(folder, capsys):
    with pytest.raises(SystemExit):
        load_pes("custom", PES_FILE)("argon.mlffd", "start.xyz")
    assert "student=water,template=init.xyz" in capsys.readouterr().err


def test_a_summary_at_the_end_of_i_pi(folder, capsys):
    """By its soft exit: it ends the process before Python would. Steps count by the beads that are given."""
    driver = student_driver(timestep=0.5, beads=2)
    driver(*map(list, zip(*map(as_ipi_has_it, [argon(seed) for seed in range(4)]))))
    (at_soft_exit, _, _), *_ = softexit.flist
    at_soft_exit()
    said = capsys.readouterr().err
    assert "2 steps of 2 beads in 1 evaluations of 4 structures" in said
    assert "guard: 0 of 2 evaluations flagged" in said
    driver.summarize()
    assert not capsys.readouterr().err


def test_structures_without_an_answer_end_the_process(folder, capsys):
    """In a process without a simulation, which has no soft exit to go through."""
    driver = student_driver()
    atoms = argon()
    atoms.positions[1] = np.nan
    for structure, exit_status, complaint in ((atoms, 3, "nan"), (argon()[:3], 5, "3 atoms")):
        with pytest.raises(SystemExit) as exit:
            driver(*as_ipi_has_it(structure))
        assert exit.value.code == exit_status
        assert complaint in capsys.readouterr().err
    assert (folder / DUMP).exists()


def start_stock_client(runs, address: str, pes, parameters: str):
    """i-PI's own client with a PES file, once the socket is there."""
    runs.wait_for(address)
    where = ["-u", "-a", address, "-S", f"{runs.folder}/"]
    return runs.start(command("i-pi-driver-py"), *where, "-m", "custom", "-P", pes, "-o", parameters)


COMPONENTS = """
    <properties filename="energies">[
      pot_component_raw(0), pot_component_raw(1), pot_component_raw(2), pot_component_raw(3) ]</properties>
    <properties filename="virials">[
      vir_component_raw(0), vir_component_raw(1), vir_component_raw(2), vir_component_raw(3) ]</properties>
    <trajectory filename="forces_0" stride="1">forces_component_raw(0)</trajectory>
    <trajectory filename="forces_1" stride="1">forces_component_raw(1)</trajectory>
    <trajectory filename="forces_2" stride="1">forces_component_raw(2)</trajectory>
    <trajectory filename="forces_3" stride="1">forces_component_raw(3)</trajectory>
"""


@pytest.mark.slow
def test_all_ways_to_a_student_give_the_same_forces(runs):
    """One simulation asks all four on each step: in i-PI's thread, in a thread of its own with a batch that
    is never full, mlffd-driver, and i-PI's own client. Its dynamics is that of one."""
    steps, n_beads = 10, 8
    write_student(runs.folder / "argon.mlffd")
    forcefields = [
        ffdirect("direct", "argon.mlffd", n_beads, threaded=False),
        ffdirect("threaded", "argon.mlffd", n_beads + 1, threaded=True),
        ffsocket("socket", "ours", n_beads),
        ffsocket("stock", "stock", n_beads),
    ]
    weights = {"direct": 1, "threaded": 1, "socket": 1, "stock": -2}
    forces = [f'<force forcefield="{name}" weight="{weight}"/>' for name, weight in weights.items()]
    ipi = start_argon(runs, "".join(forcefields), "".join(forces), COMPONENTS, steps, n_beads)
    where = ["-u", "ours", "--socket-prefix", f"{runs.folder}/"]
    student = ["argon.mlffd", "-t", "start.xyz", "--dtype", "float64", "--max-batch-atoms", 64]
    ours = runs.start(command("mlffd-driver"), *student, *where)
    parameters = "student=argon.mlffd,template=start.xyz,dtype=float64,max_batch_atoms=64"
    stock = start_stock_client(runs, "stock", PES_FILE, parameters)
    assert [runs.end(process) for process in (ipi, ours, stock)] == [0, 0, 0], runs.output()
    energies, virials = (np.loadtxt(runs.folder / f"out.{name}") for name in ("energies", "virials"))
    assert len(energies) == steps + 1
    for of_step, *frames in zip(np.hstack([energies, virials]), *beads(runs, n_beads)):
        potentials, _, of_beads = zip(*(as_ase_says(atoms, runs.folder / "argon.mlffd") for atoms in frames))
        volume = frames[0].get_volume() / Bohr**3
        expected = np.mean(of_beads, axis=0)[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]] / volume
        # the printed positions have 8 decimals
        np.testing.assert_allclose(of_step[:4], np.mean(potentials), atol=1e-8)
        np.testing.assert_allclose(of_step[4:].reshape(4, 6), [expected] * 4, atol=1e-10)
    np.testing.assert_allclose(energies, energies[:, [0] * 4], rtol=1e-12)
    np.testing.assert_allclose(virials, np.tile(virials[:, :6], 4), rtol=1e-10, atol=1e-16)
    assert len({(runs.folder / f"out.forces_{k}.xyz").read_text() for k in range(4)}) == 1


SPOILED = f"""
import sys

sys.path.append({str(HERE)!r})
from ipi_evaluators import Spoiled
from mlffd.drivers.ipi.pes import StudentDriver

__DRIVER_NAME__ = "spoiled"
__DRIVER_CLASS__ = "SpoiledDriver"


class SpoiledDriver(StudentDriver):
    def __init__(self, good_calls, how="nan", **parameters):
        super().__init__(**parameters)
        self.evaluator.evaluate = Spoiled(self.evaluator.evaluate, good_calls, how)
"""


def lay_out_spoiled_student(runs) -> None:
    """A PES file whose student answers NaN after so many good calls."""
    (runs.folder / "spoiled.py").write_text(SPOILED)
    write_student(runs.folder / "argon.mlffd")


def assert_stopped_before_nan(runs, process, n_rows: int) -> None:
    """One line said why, and the results up to there are in order."""
    lines = [line for line in process.log.read_text().splitlines() if line.startswith("mlffd-driver: ")]
    assert [DUMP in line for line in lines].count(True) == 1, runs.output()
    assert "fidelity of" in lines[0]  # said at the start
    assert DUMP in lines[1]  # after it come summaries
    assert "Traceback" not in process.log.read_text()
    assert (runs.folder / DUMP).exists()
    energies = np.loadtxt(runs.folder / "out.energies", ndmin=2) if n_rows else []
    assert len(energies) == n_rows
    assert np.isfinite(energies).all()


ENERGIES = '<properties filename="energies" stride="1">[ step, potential ]</properties>'


@pytest.mark.slow
@pytest.mark.parametrize(("threaded", "good_calls"), [(True, 5), (False, 0)])
def test_no_answer_ends_i_pi(runs, threaded, good_calls):
    """Caught: a hang where an error ended the polling thread alone; exit status 0 after a soft exit. At the
    first outputs i-PI puts off all clearing up until they are written."""
    lay_out_spoiled_student(runs)
    direct = ffdirect("direct", "argon.mlffd", 4, threaded, "spoiled.py", f", good_calls: {good_calls}")
    ipi = start_argon(runs, direct, '<force forcefield="direct"/>', ENERGIES, 1000, n_beads=4)
    assert runs.end(ipi) == 3, runs.output()
    assert_stopped_before_nan(runs, ipi, good_calls)
    assert (runs.folder / "RESTART").exists()


@pytest.mark.slow
def test_errors_that_nobody_expects_end_i_pi(runs):
    """Caught: a hang where they ended the polling thread alone."""
    lay_out_spoiled_student(runs)
    spoiled = ffdirect("direct", "argon.mlffd", 4, True, "spoiled.py", ", good_calls: 5, how: memory")
    ipi = start_argon(runs, spoiled, '<force forcefield="direct"/>', ENERGIES, 1000, n_beads=4)
    assert runs.end(ipi) == 1, runs.output()
    assert "mlffd-driver: MemoryError: none left\n" in ipi.log.read_text()
    assert len(np.loadtxt(runs.folder / "out.energies")) == 5


@pytest.mark.slow
def test_no_answer_ends_the_client_of_i_pi_and_i_pi(runs):
    """Caught: i-PI hung when its client ended with a message unread."""
    lay_out_spoiled_student(runs)
    ipi = start_argon(runs, ffsocket("socket", "stock", 4), '<force forcefield="socket"/>', ENERGIES, 1000, 4)
    parameters = "student=argon.mlffd,template=start.xyz,max_batch_atoms=64,good_calls=5"
    client = start_stock_client(runs, "stock", "spoiled.py", parameters)
    assert runs.end(client) == 3, runs.output()
    runs.end(ipi)
    assert_stopped_before_nan(runs, client, 5)
