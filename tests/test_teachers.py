# SPDX-License-Identifier: MIT
"""Teachers by name: right numbers, honest descriptions, clear refusals."""

import json
import sys
import textwrap

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from mlffd.errors import TeacherError
from mlffd.teachers import load_teacher

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
