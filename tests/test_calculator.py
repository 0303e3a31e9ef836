# SPDX-License-Identifier: MIT
"""The ASE calculator: what ASE expects of it, its cache, batches, and one clear error for each mistake."""

import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError

import mlffd
from mlffd import errors
from mlffd.bundle import write_bundle
from mlffd.students import build_student

SPECIES = [1, 6, 8]
ARCHITECTURES = {
    "local": dict(family="local", species=SPECIES, cutoff=4.0, n_radial=4, channels=8, hidden=[8]),
    "painn": dict(family="painn", species=SPECIES, cutoff=4.0, n_radial=6, features=8, layers=2),
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def student(request):
    """A student with random weights and, as trained ones have, an energy for an atom alone."""
    torch.manual_seed(5)
    student = build_student(ARCHITECTURES[request.param])
    student.baseline.reference_energies += torch.tensor([-3.0, -150.0, -430.0], dtype=torch.float64)
    return student


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory):
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("calculator") / "random.mlffd"
    write_bundle(path, build_student(ARCHITECTURES["local"]))
    return path


@pytest.fixture
def calculator(student):
    return mlffd.Calculator(student, dtype="float64")


def triclinic_box() -> Atoms:
    """Three molecules, sheared, some atoms outside the cell."""
    cell = [[5.1, 0.0, 0.0], [1.3, 5.6, 0.0], [-0.8, 1.1, 4.9]]
    box = molecule("H2O") + molecule("CH4") + molecule("H2O")
    box.positions[3:8] += [2.5, 2.2, 0.4]
    box.positions[8:] += [1.0, 6.9, 2.7]
    box.set_cell(cell)
    box.pbc = True
    box.rattle(0.05, seed=2)
    return box


def numerical_stress(atoms: Atoms, step: float = 1e-5) -> np.ndarray:
    """dE/d(strain) / volume, (3, 3), by central differences of a symmetric strain."""
    stress = np.zeros((3, 3))
    for a, b in np.ndindex(3, 3):
        energies = []
        for sign in (1.0, -1.0):
            strain = np.eye(3)
            strain[a, b] += sign * step / 2
            strain[b, a] += sign * step / 2
            strained = atoms.copy()
            strained.calc = atoms.calc
            strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            energies.append(strained.get_potential_energy())
        stress[a, b] = (energies[0] - energies[1]) / (2 * step * atoms.get_volume())
    return stress


def test_gives_all_it_promises(calculator):
    box = triclinic_box()
    box.calc = calculator
    assert box.get_potential_energy() == box.get_potential_energy(force_consistent=True)
    assert calculator.results["free_energy"] == calculator.results["energy"]
    assert isinstance(calculator.results["energy"], float)
    assert box.get_forces().shape == (len(box), 3)
    assert box.get_stress().shape == (6,)
    np.testing.assert_allclose(box.get_potential_energies().sum(), box.get_potential_energy(), rtol=1e-13)
    assert set(calculator.results) == set(calculator.implemented_properties)
    assert all(value.dtype == np.float64 for value in calculator.results.values() if np.ndim(value))


def test_stress_is_ases_in_order_and_sign(calculator):
    box = triclinic_box()
    box.calc = calculator
    expected = numerical_stress(box)
    assert np.ptp(expected[np.triu_indices(3)]) > 1e-3  # six different numbers: a wrong order would show
    np.testing.assert_allclose(box.get_stress(voigt=False), expected, atol=1e-8)
    xx, yy, zz, yz, xz, xy = box.get_stress()
    np.testing.assert_allclose([xx, yy, zz], np.diag(expected), atol=1e-8)
    np.testing.assert_allclose([yz, xz, xy], [expected[1, 2], expected[0, 2], expected[0, 1]], atol=1e-8)


def test_no_stress_without_three_periodic_directions(calculator):
    for pbc in (False, (True, True, False)):
        box = triclinic_box()
        box.pbc = pbc
        box.calc = calculator
        box.get_forces()
        with pytest.raises(PropertyNotImplementedError):
            box.get_stress()


@pytest.fixture
def counted(calculator, monkeypatch):
    """A calculator and the list of how many structures each evaluation of its engine had."""
    evaluate, calls = calculator.engine.evaluate, []

    def counting(structures):
        calls.append(len(structures))
        return evaluate(structures)

    monkeypatch.setattr(calculator.engine, "evaluate", counting)
    return calculator, calls


def test_unmoved_atoms_are_not_evaluated_again(counted):
    calculator, calls = counted
    box = triclinic_box()
    box.calc = calculator
    box.get_potential_energy(), box.get_forces(), box.get_stress(), box.get_potential_energies()
    box.get_forces()
    assert calls == [1]
    again = box.copy()
    again.calc = calculator
    again.get_forces()
    assert calls == [1]


@pytest.mark.parametrize("change", ["positions", "cell", "pbc", "numbers"])
def test_changed_atoms_are_evaluated_again(counted, change):
    calculator, calls = counted
    box = triclinic_box()
    box.calc = calculator
    before = box.get_forces()
    if change == "positions":
        box.positions[0, 0] += 0.1
    elif change == "cell":
        box.set_cell(1.01 * box.cell.array)
    elif change == "pbc":
        box.pbc = False
    else:
        box.numbers[0] = 6
    assert np.abs(box.get_forces() - before).max() > 1e-9
    assert calls == [1, 1]


def test_results_belong_to_the_user(calculator):
    """Writing into the forces one got must not change what the calculator says next."""
    box = triclinic_box()
    box.calc = calculator
    forces = box.get_forces()
    kept = forces.copy()
    forces[:] = 0.0
    np.testing.assert_array_equal(box.get_forces(), kept)


def test_an_error_leaves_no_stale_results(calculator):
    box = triclinic_box()
    box.calc = calculator
    box.get_forces()
    box.positions[2, 0] = np.nan
    for _ in range(2):
        with pytest.raises(errors.NonFinitePositionsError):
            box.get_forces()
    assert calculator.results == {}


def mixed_sizes() -> list[Atoms]:
    methane = molecule("CH4")
    slab = triclinic_box()
    slab.pbc = (True, False, True)
    shifted = triclinic_box()
    shifted.rattle(0.1, seed=9)
    return [triclinic_box(), methane, Atoms("O", [[1.0, 2.0, 3.0]]), slab, shifted.repeat((2, 1, 1))]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-11), ("float32", 2e-5)])
def test_calculate_many_equals_one_by_one(student, dtype, tolerance):
    calculator = mlffd.Calculator(student, dtype=dtype)
    structures = mixed_sizes()
    together = calculator.calculate_many(structures)
    assert len(together) == len(structures)
    for atoms, results in zip(structures, together):
        atoms.calc = calculator
        atoms.get_forces()
        assert set(results) == set(calculator.results)
        assert ("stress" in results) == atoms.pbc.all()
        for name, value in calculator.results.items():
            np.testing.assert_allclose(results[name], value, rtol=1e-7, atol=tolerance)


def test_calculate_many_batches(counted):
    calculator, calls = counted
    calculator.calculate_many(mixed_sizes())
    assert calls == [5]
    assert calculator.calculate_many([]) == []


def test_float32_is_close_to_float64(student):
    box = triclinic_box()
    exact, single = (mlffd.Calculator(student, dtype=dtype) for dtype in ("float64", "float32"))
    assert exact.get_potential_energy(box) == pytest.approx(single.get_potential_energy(box), abs=1e-4)
    difference = np.abs(exact.get_forces(box) - single.get_forces(box)).max()
    assert 0.0 < difference < 2e-4


def test_from_a_file(bundle_path):
    calculator = mlffd.Calculator(bundle_path)
    box = triclinic_box()
    box.calc = calculator
    same = mlffd.Calculator(mlffd.load(str(bundle_path)))
    assert same.get_potential_energy(box) == box.get_potential_energy()


# mistakes: each has a class of its own and one line that says what is wrong


def check_message(raised, *words: str) -> None:
    text = str(raised.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


def broken_files(bundle: bytes) -> dict[str, bytes]:
    return {
        "text": b"This is not a student.\n" * 20,
        "empty": b"",
        "json": json.dumps({"format": 1, "architecture": ARCHITECTURES["local"]}).encode(),
        "truncated": bundle[: len(bundle) // 2],
        "header only": bundle[:60],
        "longer": bundle + b"\0" * 10,
    }


@pytest.mark.parametrize("kind", broken_files(b""))
def test_wrong_file(kind, bundle_path, tmp_path):
    path = tmp_path / "broken.mlffd"
    path.write_bytes(broken_files(bundle_path.read_bytes())[kind])
    with pytest.raises(errors.BundleError) as raised:
        mlffd.Calculator(path)
    check_message(raised, str(path), "damaged or not a student bundle")


@pytest.mark.parametrize("name", ["missing.mlffd", "no_such_student", "."])
def test_missing_file(name):
    with pytest.raises(errors.BundleError) as raised:
        mlffd.Calculator(name)
    check_message(raised, "no student bundle at", name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "gpu"}, ("device 'gpu'", "cuda")),
        ({"device": "cuda:99"}, ("device 'cuda:99'",)),
        ({"device": None}, ("device None",)),
        ({"dtype": "float16"}, ("float16", "float32, float64")),
        ({"dtype": "double"}, ("double", "float32, float64")),
        ({"backend": "magic"}, ("magic", "reference")),
    ],
)
def test_unknown_device_dtype_backend(bundle_path, options, words):
    with pytest.raises(errors.ConfigError) as raised:
        mlffd.Calculator(bundle_path, **options)
    check_message(raised, *words)


def water(**changes) -> Atoms:
    """A molecule with some of its arrays changed: ``{name: (index, value)}``, ``cell`` and ``pbc`` whole."""
    atoms = molecule("H2O")
    for name, value in changes.items():
        if name in ("cell", "pbc"):
            setattr(atoms, name, value)
        else:
            atoms.arrays[name][value[0]] = value[1]
    return atoms


FLAT = [[5.0, 0, 0], [2.0, 6.0, 0], [7.0, 6.0, 0]]
NAN_CELL = [[5.0, 0, 0], [0, np.nan, 0], [0, 0, 5.0]]
MISTAKES = {
    "empty": (Atoms(), errors.EmptyStructureError, ("no atoms",)),
    "unknown element": (water(numbers=(0, 79)), errors.UnknownElementError, ("atom 0", "Au", "H C O")),
    "ghost atom": (water(numbers=(1, 0)), errors.UnknownElementError, ("atom 1", "invalid", " 0")),
    "beyond the table": (water(numbers=(2, 200)), errors.UnknownElementError, ("atom 2", "invalid", "200")),
    "negative number": (water(numbers=(0, -8)), errors.UnknownElementError, ("atom 0", "invalid", "-8")),
    "nan position": (water(positions=((1, 2), np.nan)), errors.NonFinitePositionsError, ("atom 1", "nan")),
    "inf position": (water(positions=((2, 0), np.inf)), errors.NonFinitePositionsError, ("atom 2", "inf")),
    "nan cell": (water(cell=NAN_CELL, pbc=True), errors.NonFinitePositionsError, ("cell", "nan")),
    "no cell": (water(pbc=True), errors.SingularCellError, ("cell", "pbc=False")),
    "flat cell": (water(cell=FLAT, pbc=True), errors.SingularCellError, ("cell", "abc")),
    "no third vector": (water(cell=[5.0, 5.0, 0.0], pbc=[0, 1, 1]), errors.SingularCellError, ("cell", "bc")),
    "coincident": (
        water(positions=(2, molecule("H2O").positions[1])), errors.NonFiniteResultError, ("atoms coincide",),
    ),
    "coincident image": (
        water(positions=(2, molecule("H2O").positions[1] + [0, 6.0, 0]), cell=[6.0] * 3, pbc=True),
        errors.NonFiniteResultError, ("atoms coincide",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_a_structure(calculator, mistake):
    atoms, error, words = MISTAKES[mistake]
    atoms = atoms.copy()
    atoms.calc = calculator
    with pytest.raises(error) as raised:
        atoms.get_potential_energy()
    assert type(raised.value) is error
    check_message(raised, *words)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_among_many_is_located(calculator, mistake):
    atoms, error, words = MISTAKES[mistake]
    with pytest.raises(error) as raised:
        calculator.calculate_many([molecule("H2O"), molecule("CH4"), atoms, molecule("H2O")])
    check_message(raised, "structure 2", *words)


def test_every_mistake_is_one_of_mlffds():
    assert all(issubclass(error, mlffd.MlffdError) for _, error, _ in MISTAKES.values())
