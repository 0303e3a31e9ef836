# SPDX-License-Identifier: MIT
"""Teachers by name: right numbers, honest descriptions, clear refusals."""

import json
import shutil
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import chemical_symbols

from mlffd.__main__ import main
from mlffd.errors import TeacherError
from mlffd.teachers import TEACHERS, facts_of, known_names, load_teacher, settings_of
from mlffd.teachers.listing import one

SEVENN = {"name": "7net-mf-0", "modal": "R2SCAN"}


@pytest.mark.parametrize("distance", [3.2, 3.7, 5.0])
def test_lj_dimer_is_the_formula(distance):
    epsilon, sigma, rc = 0.02, 3.3, 7.0
    teacher = load_teacher({"name": "lj", "epsilon": epsilon, "sigma": sigma, "rc": rc})
    atoms = Atoms("Ar2", positions=[[0, 0, 0], [0, 0, distance]], calculator=teacher.calculator)

    def energy(r):
        return 4 * epsilon * ((sigma / r) ** 12 - (sigma / r) ** 6)

    force = 24 * epsilon * (2 * (sigma / distance) ** 12 - (sigma / distance) ** 6) / distance
    assert atoms.get_potential_energy() == pytest.approx(energy(distance) - energy(rc), abs=1e-12)
    np.testing.assert_allclose(atoms.get_forces()[1], [0, 0, force], atol=1e-12)


def test_a_description_says_what_was_used_and_fits_into_json():
    description = load_teacher({"name": "lj", "epsilon": 0.02}).description()
    assert description["settings"] == {"epsilon": 0.02, "sigma": 3.40, "rc": 8.5}
    assert description["version"].startswith("ase ")
    assert json.loads(json.dumps(description)) == description


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("7net-O", "did you mean 7net-0"),
        ("nothing-like-it", "known: lj"),
        ({"name": "lj", "epsilom": 1.0}, "did you mean epsilon"),
        ({"name": "7net-mf-0"}, "R2SCAN"),
        ({"name": "7net-0", "modal": "PBE"}, "no setting 'modal': it has none"),
        ({"modal": "PBE"}, "a teacher is a name or a table"),
        ("no_such_module_anywhere:Thing", "cannot import"),
        ("ase.calculators.lj:Nothing", "no callable"),
        ("ase.build:molecule", "failed to start"),
        ("builtins:dict", "not an ASE calculator"),
    ],
)
def test_a_wrong_name_or_setting_is_refused_in_one_line(spec, says):
    with pytest.raises(TeacherError, match=says) as caught:
        load_teacher(spec)
    assert "\n" not in str(caught.value)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sevenn", None)
    with pytest.raises(TeacherError, match=r'pip install "mlffd\[sevenn\]"'):
        load_teacher(SEVENN)


def write_module(folder, text):
    (folder / "spring.py").write_text(textwrap.dedent(text))


def test_a_factory_beside_the_config(tmp_path):
    write_module(
        tmp_path,
        """
        from ase.calculators.lj import LennardJones
        LICENCE = "CC0"

        def soft(epsilon):
            return LennardJones(epsilon=epsilon, sigma=3.0)
        """,
    )
    teacher = load_teacher({"name": "spring:soft", "epsilon": 0.5}, directory=tmp_path)
    assert teacher.calculator.parameters["epsilon"] == 0.5
    assert (teacher.licence, teacher.settings) == ("CC0", {"epsilon": 0.5})
    assert teacher.version.startswith("source sha256")


def test_modules_of_one_name_in_two_folders_are_two_teachers(tmp_path):
    versions = []
    for sigma in (2.0, 3.0):
        folder = tmp_path / str(sigma)
        folder.mkdir()
        write_module(
            folder,
            f"from ase.calculators.lj import LennardJones\ndef make(): return LennardJones(sigma={sigma})",
        )
        teacher = load_teacher("spring:make", directory=folder)
        assert teacher.calculator.parameters["sigma"] == sigma
        versions.append(teacher.version)
    assert versions[0] != versions[1]


def test_a_factory_that_does_not_run_is_named(tmp_path):
    write_module(tmp_path, "def make(: pass")
    with pytest.raises(TeacherError, match=r"spring\.py does not run: SyntaxError"):
        load_teacher("spring:make", directory=tmp_path)


@pytest.fixture(scope="module")
def sevenn_teacher():
    pytest.importorskip("sevenn")
    return load_teacher(SEVENN)


def test_sevenn_forces_are_the_gradient_of_its_energy(sevenn_teacher):
    atoms = molecule("H2O")
    atoms.rattle(0.08, seed=1)
    atoms.calc = sevenn_teacher.calculator
    forces, step = atoms.get_forces(), 0.01  # Å; its energies are float32
    for atom, axis in ((0, 2), (1, 1)):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            moved.calc = sevenn_teacher.calculator
            energies.append(moved.get_potential_energy())
        slope = -(energies[0] - energies[1]) / (2 * step)
        assert forces[atom, axis] == pytest.approx(slope, abs=0.02, rel=0.01)
    np.testing.assert_allclose(forces.sum(0), 0, atol=1e-4)


def test_sevenn_knows_the_elements_that_are_listed(sevenn_teacher):
    assert sevenn_teacher.elements == facts_of("7net-0").elements == facts_of("chgnet").elements


def test_sevenn_heads_differ_and_stress_has_the_sign_of_ase(sevenn_teacher):
    """A squeezed crystal pushes outwards: a negative trace in ASE's sign."""
    squeezed = bulk("Si", a=5.2)
    squeezed.calc = sevenn_teacher.calculator
    assert np.trace(squeezed.get_stress(voigt=False)) < -0.01
    other = load_teacher({**SEVENN, "modal": "PBE"})
    again = squeezed.copy()
    again.calc = other.calculator
    assert abs(again.get_potential_energy() - squeezed.get_potential_energy()) > 0.01
    assert other.description() != sevenn_teacher.description()


def test_facts_of_every_teacher_are_complete():
    """Caught: a setting that `mlffd teachers NAME` does not explain, or explains but the loader lacks."""
    for name, facts in TEACHERS.items():
        assert facts.periodic in ("required", "optional", "never"), name
        assert facts.code_licence, name
        assert facts.weights_licence, name
        assert (facts.elements or set()) <= set(chemical_symbols), name
        if name != "module:factory":
            assert list(facts.settings) == list(settings_of(facts)), name


@pytest.mark.parametrize("name", known_names())
def test_every_known_name_leads_to_facts_of_its_own(name):
    """Caught: a pattern that takes the names of another one behind it."""
    pattern = next(pattern for pattern, facts in TEACHERS.items() if facts is facts_of(name))
    assert name in TEACHERS[pattern].names or name == pattern


def test_names_that_are_asked_for():
    wanted = """orb-v2 orb-v3-conservative-inf-omat orb-v3-direct-omol mace-mp-medium mace-off-large mace-omol
    7net-0 7net-mf-0 7net-mf-ompa 7net-l3i5 7net-omni uma-s-1p2p1 chgnet mattersim-5m ani-2x ani-1ccx aimnet2
    pet-mad gfn1-xtb gfn2-xtb cp2k:water.inp lj own:Calculator"""
    for name in wanted.split():
        facts_of(name)


def test_the_list_says_what_each_teacher_is(capsys):
    assert main(["teachers"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert set(TEACHERS) <= set(rows)
    assert rows["chgnet"].split()[2:5] == ["89", "required", "yes"]
    assert rows["mace-omol"].split()[-3:] == ["ASL", "MIT", "yes"]
    assert rows["orb-v3-direct-omol"].split()[-4:] == ["no", "Apache-2.0", "Apache-2.0", "yes"]


def test_all_about_one_teacher(capsys):
    assert main(["teachers", "mace-mp-small-omat-0"]) == 0
    told = capsys.readouterr().out
    for word in ("pip install mace-torch", "no commercial use", "PBE(+U)", "GitHub", "dispersion"):
        assert word in told
    assert "not the gradient" in one("orb-v2")
    assert "Po" in one("7net-0")
    assert "--set task=..." in one("uma-*")
    assert main(["teachers", "orb-v4"]) == 1
    assert "did you mean orb-v2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "command"),
    [("orb-v2", "pip install orb-models"), ("chgnet", "pip install chgnet"), ("aimnet2", "aimnet\\[ase\\]")],
)
def test_a_missing_package_says_how_it_is_installed(monkeypatch, name, command):
    for package in ("orb_models", "chgnet", "aimnet"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TeacherError, match=f"{command}.*environment of its own.*label file"):
        load_teacher(name)


CP2K = f"{sys.executable} {Path(__file__).with_name('fake_cp2k.py')} -s"


@pytest.fixture
def cp2k(tmp_path):
    """A teacher on a stand-in of CP2K, and the folder of its input."""
    (tmp_path / "own.inp").write_text("&FORCE_EVAL\n METHOD FIST\n&END FORCE_EVAL\n")
    teacher = load_teacher({"name": "cp2k:own.inp", "command": CP2K}, directory=tmp_path)
    yield teacher, tmp_path
    teacher.calculator.close()


def test_cp2k_by_its_shell(cp2k):
    """Caught: units, sign of the stress, the input's folder, and a frame that starts from the one before."""
    teacher, folder = cp2k
    assert teacher.version == "CP2K version 2099.1"
    assert teacher.settings["input"] == "own.inp"
    for shift in (0.0, 0.1):
        atoms = Atoms("OH", [[1.0 + shift, 0, 0], [0, 2.0, 0]], cell=[9] * 3, pbc=True)
        atoms.calc = teacher.calculator
        assert atoms.get_potential_energy() == pytest.approx(0.25 * (4 + (1 + shift) ** 2))
        np.testing.assert_allclose(atoms.get_forces()[1], [0, -1, 0])
        np.testing.assert_allclose(atoms.get_stress(), [-1, -2, -3, -4, -5, -6])
    assert len((folder / "loaded.txt").read_text().splitlines()) == 2


def test_cp2k_that_dies_costs_one_frame(cp2k):
    """Caught: a dead shell, and with it every frame after the one it died on."""
    teacher, folder = cp2k
    bad = Atoms("H", [[60.0, 0, 0]])
    bad.calc = teacher.calculator
    with pytest.raises(TeacherError, match="CP2K stopped"):
        bad.get_potential_energy()
    assert (folder / "died.txt").exists()
    good = Atoms("H", [[2.0, 0, 0]])
    good.calc = teacher.calculator
    assert good.get_potential_energy() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("&FORCE_EVAL\n&SUBSYS\n&CELL\nABC 9 9 9\n&END\n&END\n&END", "take &CELL out"),
        ("&GLOBAL\nPROJECT water\n&END", "take PROJECT out"),
    ],
)
def test_cp2k_input_with_what_the_frames_say(tmp_path, text, says):
    (tmp_path / "own.inp").write_text(text)
    with pytest.raises(TeacherError, match=says):
        load_teacher({"name": "cp2k:own.inp", "command": CP2K}, directory=tmp_path)


def test_cp2k_that_is_not_there(tmp_path):
    (tmp_path / "own.inp").write_text("")
    with pytest.raises(TeacherError, match="cannot start no-cp2k"):
        load_teacher({"name": "cp2k:own.inp", "command": "no-cp2k -s"}, directory=tmp_path)
    with pytest.raises(TeacherError, match=r"no input file none\.inp"):
        load_teacher("cp2k:none.inp", directory=tmp_path)


@pytest.mark.skipif(not shutil.which("cp2k.psmp"), reason="CP2K is not installed")
def test_the_real_cp2k(tmp_path):
    (tmp_path / "lj.inp").write_text(
        """
        &FORCE_EVAL
          METHOD FIST
          &MM
            &FORCEFIELD
              &NONBONDED
                &LENNARD-JONES
                  ATOMS Ar Ar
                  EPSILON [eV] 0.0104
                  SIGMA [angstrom] 3.4
                  RCUT [angstrom] 8.0
                &END LENNARD-JONES
              &END NONBONDED
              &CHARGE
                ATOM Ar
                CHARGE 0.0
              &END CHARGE
            &END FORCEFIELD
            &POISSON
              &EWALD
                EWALD_TYPE NONE
              &END EWALD
            &END POISSON
          &END MM
        &END FORCE_EVAL
        """
    )
    teacher = load_teacher("cp2k:lj.inp", directory=tmp_path)
    assert teacher.version.startswith("CP2K version")
    atoms = Atoms("Ar2", [[5, 5, 5], [5, 5, 8.6]], cell=[20] * 3, pbc=True)
    atoms.calc = teacher.calculator
    force = 24 * 0.0104 * (2 * (3.4 / 3.6) ** 12 - (3.4 / 3.6) ** 6) / 3.6
    np.testing.assert_allclose(atoms.get_forces()[1], [0, 0, force], atol=1e-4)
    teacher.calculator.close()
