# SPDX-License-Identifier: MIT
"""The CPU kernels against plain PyTorch in float64, on every instruction set this processor has.

What holds of a student on any backend is in tests/test_contract.py.
"""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pytest
import torch
from contract import ALL, MANY_SPECIES, random_box, random_student, rms, slope
from cpu_graphs import (
    NEIGHBORS,
    PairGraph,
    dimers,
    evaluate,
    kernel,
    random_graph,
    reference,
    single_layer_graph,
    symmetric_graph,
)

from mlffd.bundle import read_bundle
from mlffd.engine import Engine, say_once
from mlffd.errors import ConfigError
from mlffd.kernels import cpu

INSTRUCTIONS = ("baseline", "avx2", "avx512")
# of the energy, and of the force RMS
ENERGY_BAR = {"float32": 1e-6, "float64": 1e-11}
FORCE_BAR = {"float32": 2e-6, "float64": 1e-11}
WATER = {
    "local": {"family": "local", "species": [8, 1], "cutoff": 5.5},
    "painn": {"family": "painn", "species": [8, 1], "cutoff": 5.0, "features": 64, "layers": 2},
    "painn-large": {"family": "painn", "species": [8, 1], "cutoff": 5.0, "features": 128, "layers": 3},
}


@pytest.fixture(params=INSTRUCTIONS)
def instructions(request) -> str:
    return request.param


def assert_exact(student, graph: PairGraph, dtype: str, instructions: str = "auto") -> None:
    """Energies and forces are within the bars, and no edge is far off either.

    Where random weights and hundreds of neighbors make rounding alone larger than a bar, in float32, the
    bar is four times the error of plain PyTorch.
    """
    exact = reference(student, graph)
    energy_error, force_error, edge_error = errors(
        evaluate(kernel(student, dtype, instructions), student, graph), exact, graph
    )
    energy_bar, force_bar, edge_bar = ENERGY_BAR[dtype], FORCE_BAR[dtype], 5 * FORCE_BAR[dtype]
    if energy_error > energy_bar or force_error > force_bar or edge_error > edge_bar:
        assert dtype == "float32"
        eager = errors(reference(deepcopy(student).cast(torch.float32), graph), exact, graph)
        energy_bar, force_bar, edge_bar = np.maximum(np.multiply(4, eager), (energy_bar, force_bar, edge_bar))
    assert energy_error <= energy_bar
    assert force_error <= force_bar
    assert edge_error <= edge_bar


def errors(found, exact, graph: PairGraph) -> tuple[float, float, float]:
    """Of energies, relative to each and to their RMS; of forces (RMS) and of pair gradients (largest),
    relative to the RMS of the forces."""
    energies, gradient = exact
    forces = graph.forces(gradient)
    scale, energy_scale = (max(rms(values), 1e-30) for values in (forces, energies))
    return (
        (np.abs(found[0] - energies) / (np.abs(energies) + energy_scale)).max(),
        rms(graph.forces(found[1]) - forces) / scale,
        np.abs(found[1] - gradient).max(initial=0.0) / scale,
    )


@pytest.mark.parametrize("dtype", FORCE_BAR)
@pytest.mark.parametrize("neighbors", NEIGHBORS)
@pytest.mark.parametrize("name", ALL)
def test_random_graphs(name, neighbors, dtype, instructions):
    student = random_student(name)
    assert_exact(student, single_layer_graph(student, NEIGHBORS[neighbors]), dtype, instructions)


@pytest.mark.parametrize("dtype", FORCE_BAR)
@pytest.mark.parametrize("name", WATER)
def test_students_of_real_size(name, dtype, instructions):
    student = random_student(WATER[name], seed=1)
    assert_exact(student, random_graph(student, [0, 60, 500, 1, 55, 70]), dtype, instructions)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("sizes", "bar"), [
    ({"family": "local", "channels": 8, "hidden": [16]}, 2.8e-7),
    ({"family": "painn", "features": 16, "layers": 1}, 4e-7),
    ({"family": "painn", "features": 16, "layers": 2}, 4e-7),
], ids=["local", "painn-one-layer", "painn"])  # fmt: skip
def test_rounding_of_single_pairs(sizes, bar, seed, instructions):
    """float32 where nothing but distances, directions and radial functions can go wrong.

    Errors are 1.2 to 1.6e-7 (local) and 1.3 to 2.6e-7 (painn) of the RMS. Distances in float32 make them
    3.8e-7 and 7.5e-7 or more, tables of one degree less (painn) 1.5e-6. Plain PyTorch: 1.4e-6 and more.
    With many radial functions, which vary fast.
    """
    student = random_student({"species": [8, 1], "cutoff": 6.0, "n_radial": 24, **sizes}, seed)
    graph = dimers(student, 1000)
    energies, gradient = reference(student, graph)
    found = evaluate(kernel(student, "float32", instructions), student, graph)
    assert rms(found[0] - energies) < 1e-7  # eV; found: 4e-8
    assert rms(found[1] - gradient) < bar * rms(gradient)


@pytest.mark.parametrize("dtype", FORCE_BAR)
def test_water_student_on_water(dtype):
    """A trained student, where pair forces cancel as they do in a liquid."""
    from ase.io import read

    bundle, atoms = read_bundle("water"), read("ipi_inputs/water64.xyz")
    exact = Engine(bundle, dtype="float64", backend="reference").evaluate(atoms)[0]
    found = Engine(bundle, dtype=dtype, backend="cpu").evaluate(atoms)[0]
    assert abs(found.energy - exact.energy) <= ENERGY_BAR[dtype] * abs(exact.energy)
    assert rms(found.forces - exact.forces) <= FORCE_BAR[dtype] * rms(exact.forces)
    assert rms(found.virial - exact.virial) <= FORCE_BAR[dtype] * rms(exact.virial)


@pytest.mark.parametrize("sizes", [
    {"l_max": 0}, {"l_max": 1, "hidden": []}, {"l_max": 2, "hidden": [7, 5, 3]},
    {"n_radial": 1, "channels": 1}, {"n_radial": 17, "channels": 33},
    {"species": MANY_SPECIES, "channels": 20},
])  # fmt: skip
@pytest.mark.parametrize("dtype", FORCE_BAR)
def test_odd_local_students(sizes, dtype):
    student = random_student({"family": "local", "species": [8, 1], "cutoff": 4.2, **sizes}, seed=2)
    assert_exact(student, random_graph(student, NEIGHBORS["few"], n_ghosts=4), dtype)


@pytest.mark.parametrize("sizes", [
    {"features": 2}, {"features": 33, "layers": 4}, {"n_radial": 1, "layers": 1},
    {"n_radial": 31, "features": 48}, {"species": MANY_SPECIES, "layers": 2},
])  # fmt: skip
@pytest.mark.parametrize("dtype", FORCE_BAR)
def test_odd_painn_students(sizes, dtype):
    architecture = {"family": "painn", "species": [8, 1], "cutoff": 4.2, "features": 16, **sizes}
    student = random_student(architecture, seed=3)
    assert_exact(student, random_graph(student, NEIGHBORS["few"]), dtype)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", FORCE_BAR)
def test_threads_change_nothing(name, dtype):
    student = random_student(name)
    graph = single_layer_graph(student, [35] * 40 + NEIGHBORS["uneven"])
    kernel_ = kernel(student, dtype)
    one = evaluate(kernel_, student, graph)
    for n_threads in (2, 3, 7):
        several = evaluate(kernel_, student, graph, n_threads)
        assert np.array_equal(one[0], several[0])
        assert np.array_equal(one[1], several[1])


@pytest.mark.parametrize("name", ["local", "painn"])
def test_threads_share_a_kernel(name):
    """Long evaluations that would meet in the workspace if they did not take turns."""
    student = random_student(name)
    graphs = [random_graph(student, [30] * 190, seed=seed) for seed in range(4)]
    kernel_ = kernel(student, "float32")
    alone = [evaluate(kernel_, student, graph) for graph in graphs]

    def same_again(k: int) -> bool:
        results = (evaluate(kernel_, student, graphs[k]) for _ in range(10))
        return all(np.array_equal(a, b) for result in results for a, b in zip(result, alone[k], strict=True))

    with ThreadPoolExecutor(len(graphs)) as pool:
        assert all(pool.map(same_again, range(len(graphs))))


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_left_from_the_call_before(name):
    """The kernels keep their workspace: a small graph after a large one is still itself."""
    student = random_student(name)
    small, large = (random_graph(student, n, seed=4) for n in ([5, 0, 9], [80] * 60))
    kernel_ = kernel(student, "float64")
    fresh = evaluate(kernel_, student, small)
    evaluate(kernel_, student, large)
    again = evaluate(kernel_, student, small)
    assert np.array_equal(fresh[0], again[0])
    assert np.array_equal(fresh[1], again[1])


@pytest.mark.parametrize("name", ALL)
def test_symmetric_edges_change_no_force(name):
    """Where every edge has its reverse gradients may be shared out differently; forces and virial stay."""
    engine = Engine(random_student(name), dtype="float64", backend="cpu")
    atoms = random_box(engine)
    graph = symmetric_graph(atoms, engine.cutoff + 0.4)
    species_idx = graph.species_idx(engine.student)
    arrays = species_idx, graph.first_edge, graph.neighbor, graph.edge_vectors
    energies, gradient = engine.kernel.evaluate(*arrays)
    shared_energies, shared_gradient = engine.kernel.evaluate(*arrays, symmetric=True)
    np.testing.assert_allclose(shared_energies, energies, rtol=1e-12)
    forces, virial = graph.forces(gradient), graph.edge_vectors.T @ gradient
    np.testing.assert_allclose(graph.forces(shared_gradient), forces, rtol=0, atol=1e-11 * rms(forces))
    shared_virial = graph.edge_vectors.T @ shared_gradient
    np.testing.assert_allclose(shared_virial, virial, rtol=0, atol=1e-11 * rms(virial))


@pytest.mark.parametrize("dtype", FORCE_BAR)
@pytest.mark.parametrize("name", ALL)
def test_forces_are_curl_free(name, dtype):
    """The Hessian from differences of the forces is symmetric: forces are a gradient, of whatever energy."""
    engine = Engine(random_student(name), dtype=dtype, backend="cpu")
    atoms = random_box(engine, n_atoms=4)
    step = 2e-4 if dtype == "float64" else 2e-3
    rows = []
    for k in range(3 * len(atoms)):

        def forces(distance, k=k):
            moved = atoms.copy()
            moved.positions.ravel()[k] += distance
            return engine.evaluate(moved)[0].forces.ravel()

        rows.append(slope(forces, step))
    hessian = np.array(rows)
    bar = 1e-6 if dtype == "float64" else 2e-3
    assert np.abs(hessian - hessian.T).max() <= bar * np.abs(hessian).max()


@pytest.mark.parametrize("name", ALL)
def test_coincident_atoms_end_in_an_error_not_in_a_crash(name):
    engine = Engine(random_student(name), backend="cpu")
    atoms = random_box(engine)
    atoms.positions[1] = atoms.positions[0]
    from mlffd.errors import NonFiniteResultError

    with pytest.raises(NonFiniteResultError):
        engine.evaluate(atoms)


@pytest.mark.parametrize("name", ALL)
def test_not_a_number_stays_one(name):
    """A kernel must not turn NaN coordinates into sane energies."""
    student = random_student(name)
    graph = random_graph(student, [20] * 8)
    graph.edge_vectors[3] = np.nan
    energies, gradient = evaluate(kernel(student, "float32"), student, graph)
    assert not (np.isfinite(energies).all() and np.isfinite(gradient).all())


def test_wrong_indices_are_refused():
    student = random_student("local")
    kernel_ = kernel(student, "float32")
    graph = random_graph(student, [3, 2])
    species_idx = graph.species_idx(student)
    good = [species_idx, graph.first_edge, graph.neighbor, graph.edge_vectors]
    kernel_.evaluate(*good)
    for k, wrong, says in [
        (0, species_idx + 2, "species index"),
        (0, with_first(species_idx, len(student.species)), "species index"),
        (0, with_first(species_idx, -1), "species index"),
        (0, species_idx[:1], "do not fit together"),
        (1, np.array([0, 4, 5, 5]), "do not fit together"),
        (1, np.array([0, 7, 5]), "falls at center"),
        (1, np.array([0, 2, 4]), "does not span"),
        (2, graph.neighbor + 2, "which there is not"),
        (2, -graph.neighbor - 1, "which there is not"),
        (2, with_first(graph.neighbor, len(species_idx)), "which there is not"),
        (3, graph.edge_vectors[:-1], "wrong shape"),
    ]:
        arrays = good.copy()
        arrays[k] = wrong.astype(arrays[k].dtype)
        with pytest.raises(ValueError, match=says):
            kernel_.evaluate(*arrays)


def with_first(values: np.ndarray, first: int) -> np.ndarray:
    changed = values.copy()
    changed[0] = first
    return changed


def test_unknown_instructions_and_families_are_refused():
    with pytest.raises(ConfigError, match="instructions may be auto"):
        cpu.CpuKernel(random_student("local"), instructions="sse9")
    student = random_student("local")
    student.family = "of-tomorrow"
    with pytest.raises(ConfigError, match="not of-tomorrow"):
        Engine(student, backend="cpu")
    assert Engine(student).backend == "reference"


def test_environment_chooses_the_instructions(monkeypatch):
    monkeypatch.setenv("MLFFD_INSTRUCTIONS", "baseline")
    assert cpu.CpuKernel(random_student("local")).instructions == "baseline"
    monkeypatch.setenv("MLFFD_INSTRUCTIONS", "fast")
    with pytest.raises(ConfigError, match="MLFFD_INSTRUCTIONS is 'fast'"):
        cpu.CpuKernel(random_student("local"))
    monkeypatch.setenv("MLFFD_INSTRUCTIONS", "")  # as good as unset
    usual = cpu.CpuKernel(random_student("local")).instructions
    monkeypatch.delenv("MLFFD_INSTRUCTIONS")
    assert cpu.CpuKernel(random_student("local")).instructions == usual


def test_without_compiled_kernels_students_run_and_it_is_said_once(monkeypatch, capsys):
    monkeypatch.setattr(cpu, "LIBRARY", cpu.LIBRARY.with_name("nowhere.so"))
    say_once.cache_clear()
    student = random_student("local")
    engines = [Engine(student) for _ in range(3)]
    assert [engine.backend for engine in engines] == ["reference"] * 3
    assert capsys.readouterr().err.count("the CPU kernels are not compiled") == 1
    with pytest.raises(ConfigError, match="not compiled"):
        Engine(student, backend="cpu")
