"""The contract that every student passes on every backend, with random weights, in float64.

A case is an ``Engine``; each function below states one promise. ``tests/test_contract.py`` runs them all.
The random students are here too.
"""

import numpy as np
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list

from mlffd.engine import Engine
from mlffd.students import build_student
from mlffd.students.student import Student

MANY_SPECIES = [1, 6, 7, 8, 9, 16]
TRAINED = {
    "local": {"family": "local", "species": [1, 8], "cutoff": 4.5},
    "local-small": {
        "family": "local", "species": [8, 1], "cutoff": 4.0, "l_max": 1, "channels": 5,
        "n_radial": 4, "hidden": [9],
    },
    "local-many-species": {"family": "local", "species": MANY_SPECIES, "cutoff": 4.5, "channels": 8},
    "painn": {"family": "painn", "species": [1, 8], "cutoff": 4.0, "features": 16},
    "local-large-atoms": {"family": "local", "species": [19, 55], "cutoff": 4.0, "channels": 4},
    "painn-one-layer": {"family": "painn", "species": [1, 8], "cutoff": 4.0, "features": 8, "layers": 1},
    "painn-three-layers": {
        "family": "painn", "species": MANY_SPECIES, "cutoff": 3.5, "features": 12, "layers": 3, "n_radial": 6,
    },
}  # fmt: skip
ANALYTIC = {
    "lennard_jones": {
        "family": "lennard_jones", "species": [1, 8], "cutoff": 5.0,
        "epsilon": [0.01, 0.02], "sigma": [1.9, 2.2],
    }
}  # fmt: skip
ALL = {**TRAINED, **ANALYTIC}


def random_student(source: str | dict, seed: int = 0) -> Student:
    """A student with random weights, large enough that every part of it shows in energies or forces.

    ``source`` is a name in ``ALL`` or an architecture. What a new student has at zero or one is random too.
    """
    torch.manual_seed(seed)
    student = build_student(ALL[source] if isinstance(source, str) else source)
    with torch.no_grad():
        for name, tensor in student.state_dict().items():
            if name.endswith("reference_energies"):
                tensor.uniform_(-20.0, -5.0)
            elif name.endswith(("invariant_mean", "bias")):
                tensor.normal_(0.0, 0.3)
            elif name.endswith("invariant_scale"):
                tensor.uniform_(0.5, 1.5)
    return student


def random_box(engine: Engine, seed: int = 0, n_atoms: int = 24, skew: float = 0.15) -> Atoms:
    """Atoms of the student's species on a jittered lattice in a skewed periodic cell, none too close."""
    rng = np.random.default_rng(seed)
    sites = np.stack(np.meshgrid([0, 1, 2], [0, 1], range(4), indexing="ij"), -1).reshape(-1, 3)[:n_atoms]
    cell = np.diag([3.0, 2.0, 4.0]) + skew * np.tril(rng.normal(size=(3, 3)), -1)
    spacing = 2.3
    positions = (sites + rng.uniform(-0.15, 0.15, sites.shape)) * spacing
    numbers = rng.choice(engine.species, len(sites))
    return Atoms(numbers, positions=positions, cell=cell * spacing, pbc=True)


def random_molecule(engine: Engine, seed: int = 1) -> Atoms:
    """Nine atoms without a cell."""
    rng = np.random.default_rng(seed)
    sites = np.stack(np.meshgrid([0, 1, 2], [0, 1, 2], [0], indexing="ij"), -1).reshape(-1, 3)
    numbers = rng.choice(engine.species, len(sites))
    return Atoms(numbers, positions=(sites + rng.uniform(-0.2, 0.2, sites.shape)) * 2.2)


def evaluate(engine: Engine, atoms: Atoms):
    return engine.evaluate([atoms])[0]


def shapes(engine: Engine) -> None:
    for atoms in (random_box(engine), random_molecule(engine)):
        prediction, n = evaluate(engine, atoms), len(atoms)
        assert isinstance(prediction.energy, float)
        assert prediction.atomic_energies.shape == (n,)
        assert prediction.forces.shape == (n, 3)
        assert prediction.virial.shape == prediction.stress.shape == (3, 3)
        assert prediction.atomic_energies.dtype == prediction.forces.dtype == np.float64
        assert np.isclose(prediction.energy, prediction.atomic_energies.sum(), rtol=1e-12)
        assert np.isfinite(prediction.stress).all() == atoms.pbc.all()
        assert np.ptp(prediction.forces) > 1e-6, "a student that feels nothing would pass every other test"


def inputs_not_mutated(engine: Engine) -> None:
    atoms = random_box(engine)
    atoms.positions += 50.0
    before = atoms.copy()
    evaluate(engine, atoms)
    assert atoms == before
    assert np.array_equal(atoms.positions, before.positions)


def batch_equals_single(engine: Engine) -> None:
    structures = [random_box(engine), random_molecule(engine), lone_atom(engine), random_box(engine, 5, 11)]
    for prediction, atoms in zip(engine.evaluate(structures), structures):
        close(prediction, evaluate(engine, atoms))


def permutation(engine: Engine) -> None:
    atoms = random_box(engine)
    order = np.random.default_rng(2).permutation(len(atoms))
    one, other = evaluate(engine, atoms), evaluate(engine, atoms[order])
    assert np.isclose(one.energy, other.energy, rtol=1e-12)
    assert_close(one.forces[order], other.forces)
    assert_close(one.atomic_energies[order], other.atomic_energies)
    assert_close(one.stress, other.stress)


def rotation(engine: Engine) -> None:
    atoms = random_box(engine)
    proper, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    one = evaluate(engine, atoms)
    for turn in (proper, -proper):  # one of them is a reflection
        turned = atoms.copy()
        turned.set_cell(atoms.cell.array @ turn.T)
        turned.positions = atoms.positions @ turn.T
        other = evaluate(engine, turned)
        assert np.isclose(one.energy, other.energy, rtol=1e-12)
        assert_close(one.forces @ turn.T, other.forces)
        assert_close(turn @ one.stress @ turn.T, other.stress)


def translation(engine: Engine) -> None:
    atoms = random_box(engine)
    moved = atoms.copy()
    moved.positions += [0.3, -7.1, 2.9]
    close(evaluate(engine, atoms), evaluate(engine, moved))


def lattice_translation_and_wrapping(engine: Engine) -> None:
    atoms = random_box(engine)
    moved = atoms.copy()
    images = np.random.default_rng(4).integers(-5, 6, (len(atoms), 3))
    moved.positions += images @ atoms.cell.array
    close(evaluate(engine, atoms), evaluate(engine, moved))
    moved.wrap()
    close(evaluate(engine, atoms), evaluate(engine, moved))


def supercell(engine: Engine) -> None:
    """A cell repeated is so many times the cell; the one-atom cell is far smaller than the cutoff."""
    skewed = np.array([[2.4, 0, 0], [0.4, 2.5, 0], [0.3, -0.2, 2.6]])
    one_atom = Atoms([engine.species[0]], cell=skewed, pbc=True)
    for atoms in (one_atom, random_box(engine)):
        one, eight = evaluate(engine, atoms), evaluate(engine, atoms.repeat(2))
        assert np.isclose(8 * one.energy, eight.energy, rtol=1e-11)
        assert_close(np.tile(one.forces, (8, 1)), eight.forces)
        assert_close(one.stress, eight.stress)


def slab_and_wire(engine: Engine) -> None:
    """Partly periodic cells feel no images along the other directions, cell vector there or not."""
    atoms = random_box(engine)
    for pbc in ((True, True, False), (False, True, False)):
        far, none = atoms.copy(), atoms.copy()
        far.pbc = none.pbc = pbc
        for axis in np.flatnonzero(~np.array(pbc)):
            far.cell[axis] *= 20.0
            none.cell[axis] = 0.0
        images = far.copy()
        images.pbc = True
        forces = evaluate(engine, images).forces
        for prediction in engine.evaluate([far, none]):
            assert_close(prediction.forces, forces)
            assert np.isnan(prediction.stress).all(), "there is no volume to divide by"


def no_neighbors(engine: Engine) -> None:
    """Isolated atoms keep their energy and feel nothing; far molecules do not see each other."""
    lone = evaluate(engine, lone_atom(engine))
    assert np.isfinite(lone.energy)
    assert not lone.forces.any()
    assert not lone.virial.any()
    molecule_, atom = random_molecule(engine), lone_atom(engine)
    atom.positions += 1000.0
    together, apart = evaluate(engine, molecule_ + atom), evaluate(engine, molecule_)
    assert np.isclose(together.energy, apart.energy + lone.energy, rtol=1e-12, atol=1e-12)
    assert_close(together.forces[:-1], apart.forces)


def forces_are_gradient(engine: Engine) -> None:
    """Differences of the energy, float64, to 1e-6 of the RMS force."""
    for atoms in (random_box(engine), random_molecule(engine)):
        forces = evaluate(engine, atoms).forces
        rng = np.random.default_rng(5)
        for atom, axis in zip(rng.integers(0, len(atoms), 4), rng.integers(0, 3, 4)):

            def energy(step, atoms=atoms, atom=atom, axis=axis):
                moved = atoms.copy()
                moved.positions[atom, axis] += step
                return evaluate(engine, moved).energy

            assert abs(forces[atom, axis] + slope(energy, 2e-4)) < 1e-6 * rms(forces)


def stress_is_strain_derivative(engine: Engine) -> None:
    """Differences of the energy under each of nine strains, float64, to 1e-6 of the RMS stress."""
    atoms = random_box(engine)
    prediction = evaluate(engine, atoms)
    assert_close(prediction.stress, -prediction.virial / atoms.get_volume())
    for a, b in np.ndindex(3, 3):

        def energy(step, a=a, b=b):
            strain = np.eye(3)
            strain[a, b] += step
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            return evaluate(engine, strained).energy

        error = prediction.stress[a, b] - slope(energy, 3e-5) / atoms.get_volume()
        assert abs(error) < 1e-6 * rms(prediction.stress)


def slope(function, step: float) -> float:
    """Derivative at zero by central differences of fourth order."""
    near, far = (function(k * step) - function(-k * step) for k in (1, 2))
    return (8 * near - far) / (12 * step)


def smooth_at_cutoff(engine: Engine) -> None:
    """Energy, force and curvature of a pair go to zero at the cutoff; beyond it there is nothing."""
    a, b = engine.species[0], engine.species[-1]
    steps = (-2e-3, -1e-3, 0.0, 1e-5)
    pairs = [Atoms([a, b], positions=[[0, 0, 0], [0, 0, engine.cutoff + d]]) for d in steps]
    far, near, at, beyond = engine.evaluate(pairs)
    assert not beyond.forces.any()
    assert abs(near.energy - beyond.energy) < 1e-7
    assert np.abs(near.forces).max() < 1e-4
    force_constant = (near.forces - far.forces)[1, 2] / 1e-3
    assert abs(force_constant) < 0.05
    assert abs(at.forces).max() < 1e-10


def squeezed_pairs(engine: Engine) -> None:
    """Forces are the gradient also where only the short-range repulsion speaks, for every pair of species."""
    for a in engine.species:
        for b in engine.species:

            def energy(step, pair=(a, b)):
                positions = [[0, 0, 0], [0.1, 0.2, 0.3 + step]]
                return evaluate(engine, Atoms(pair, positions=positions)).energy

            atoms = Atoms([a, b], positions=[[0, 0, 0], [0.1, 0.2, 0.3]])
            force = evaluate(engine, atoms).forces[1, 2]
            assert abs(force + slope(energy, 2e-5)) < 1e-6 * abs(force)


def pairs_in_any_order(engine: Engine) -> None:
    """A caller's own neighbor list (LAMMPS) may come in any order and hold ghosts."""
    atoms = random_box(engine)
    i, j, vectors = neighbor_list("ijD", atoms, engine.cutoff)
    expected = evaluate(engine, atoms)
    for order in (np.arange(len(i)), np.random.default_rng(6).permutation(len(i))):
        pairs = i[order], j[order], vectors[order]
        energies, gradient = engine.evaluate_pairs(atoms.numbers, *pairs, len(atoms))
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, pairs[0], gradient)
        np.add.at(forces, pairs[1], -gradient)
        assert_close(energies, expected.atomic_energies)
        assert_close(forces, expected.forces)


def atoms_repel_at_short_range(engine: Engine) -> None:
    """Atoms cannot fall into each other, whatever the weights."""
    for a in engine.species:
        for b in engine.species:
            close_, closer = engine.evaluate(
                [Atoms([a, b], positions=[[0, 0, 0], [0, 0, d]]) for d in (0.12, 0.10)]
            )
            assert closer.energy > close_.energy


def any_split_of_a_batch(engine: Engine) -> None:
    """Results do not depend on how a list is split into batches."""
    structures = [random_molecule(engine, seed) for seed in range(7)]
    whole = engine.evaluate(structures)
    chunked = Engine(engine.student, dtype=engine.dtype, backend=engine.backend, max_batch_atoms=20)
    for one, other in zip(whole, chunked.evaluate(structures)):
        close(one, other)


def lone_atom(engine: Engine) -> Atoms:
    return Atoms([engine.species[-1]], positions=[[0.0, 0.0, 0.0]])


def close(one, other) -> None:
    """Two predictions agree to rounding."""
    assert np.isclose(one.energy, other.energy, rtol=1e-11, atol=1e-11)
    assert_close(one.atomic_energies, other.atomic_energies)
    assert_close(one.forces, other.forces)
    assert_close(one.virial, other.virial)


def assert_close(one: np.ndarray, other: np.ndarray, tolerance: float = 1e-9) -> None:
    """Agreement relative to the RMS of the values."""
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(rms(one), 1e-3))


def rms(values: np.ndarray) -> float:
    return float(np.sqrt((np.asarray(values) ** 2).mean()))


EVERY_STUDENT = (
    shapes,
    inputs_not_mutated,
    batch_equals_single,
    permutation,
    rotation,
    translation,
    lattice_translation_and_wrapping,
    supercell,
    slab_and_wire,
    no_neighbors,
    forces_are_gradient,
    stress_is_strain_derivative,
    atoms_repel_at_short_range,
    squeezed_pairs,
    pairs_in_any_order,
    any_split_of_a_batch,
)
TRAINED_STUDENTS = (smooth_at_cutoff,)  # lj/cut is truncated on purpose
