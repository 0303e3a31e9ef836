# SPDX-License-Identifier: MIT
"""The guard around an engine: what it sees of a batch on either backend, when it looks, and its policies.

Limits and words are tests/test_lammps_guard.py's.
"""

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list
from contract import random_box, random_molecule, random_student

from mlffd.bundle import Bundle, complete_metadata
from mlffd.dataset.label import label
from mlffd.dataset.store import read_labels
from mlffd.domain import DISTANCE_MARGIN, KEY
from mlffd.drivers.guard import GuardedEngine, GuardSettings, guarded
from mlffd.drivers.ipi.evaluator import Evaluator, NoAnswer
from mlffd.drivers.ipi.protocol import Request
from mlffd.engine import BACKENDS, Engine
from mlffd.errors import ConfigError, GuardError, NonFiniteResultError
from mlffd.kernels import cpu

WATER = Path(__file__).parents[1] / "ipi_inputs" / "water64.xyz"
CLOSEST = DISTANCE_MARGIN * 2.4
SEEN = {"shortest_distance": {"O-O": 2.4}}


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    if request.param == "cpu" and not cpu.is_compiled():
        pytest.skip("the CPU kernels are not compiled")
    return request.param


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Where frames go."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def engine_that_saw(seen: dict, backend: str = "auto", **others) -> Engine:
    student = random_student("local")
    bundle = Bundle(student, complete_metadata(student, {KEY: seen}))
    return Engine(bundle, dtype="float64", backend=backend, **others)


def boxes(*closest: float) -> list[Atoms]:
    """Boxes of hydrogen with two oxygen atoms, 1 and 4, so far apart (Å); other pairs have no limits."""
    structures = []
    for seed, distance in enumerate(closest):
        atoms = Atoms("HOHHOH", positions=7.0 + 1.5 * np.random.default_rng(seed).normal(size=(6, 3)))
        atoms.cell, atoms.pbc = np.diag([14.0, 15.0, 16.0]), True
        atoms.positions[1] = [0.2, 7.0, 7.0]  # across the boundary
        atoms.positions[4] = atoms.positions[1] - [distance, 0.0, 0.0]
        structures.append(atoms)
    return structures


def watched(policy: str = "warn", every: int = 1, seen: dict = SEEN, backend: str = "auto", **others):
    engine = engine_that_saw(seen, backend, max_batch_atoms=others.pop("max_batch_atoms", 12))
    return GuardedEngine(engine, GuardSettings(policy, every=every, **others))


# ---- what it sees ----


@pytest.mark.parametrize("student", ["local", "painn", "painn-three-layers"])
def test_edges_are_those_of_ase_and_give_the_forces(backend, student):
    """Gradients from edges to atoms are the forces, and no chunk or structure is mixed up with another."""
    engine = Engine(random_student(student), dtype="float64", backend=backend, max_batch_atoms=40)
    structures = [
        random_box(engine),
        random_molecule(engine),
        random_box(engine, 5, 11),
        random_box(engine, 6),
    ]
    seen = []
    predictions = engine.evaluate(structures, watch=seen.append)
    assert [edges.first_structure for edges in seen] == [0, 2]
    for edges in seen:
        for k, first in enumerate(edges.first_atom[:-1]):
            of_structure = (edges.center >= first) & (edges.center < edges.first_atom[k + 1])
            i, j = edges.center[of_structure] - first, edges.neighbor[of_structure] - first
            vectors, gradient = edges.vectors[of_structure], edges.gradient[of_structure]
            atoms = structures[edges.first_structure + k]
            forces = np.zeros((len(atoms), 3))
            np.add.at(forces, i, gradient)
            np.add.at(forces, j, -gradient)
            np.testing.assert_allclose(forces, predictions[edges.first_structure + k].forces, atol=1e-8)
            near = np.linalg.norm(vectors, axis=1) < engine.cutoff
            assert not gradient[~near].any()
            pairs = sorted(zip(i[near], j[near]))
            assert pairs == sorted(zip(*neighbor_list("ij", atoms, engine.cutoff)))
            numbers = edges.atomic_numbers[first : edges.first_atom[k + 1]]
            assert numbers.tolist() == atoms.numbers.tolist()


@pytest.mark.parametrize(("student", "tolerance"), [("local", 1e-6), ("painn-three-layers", 0.2)])
def test_the_largest_pair_force_is_that_of_training(student, tolerance):
    """Training measures on plain PyTorch. The kernels of a student that passes messages give an edge and its
    reverse some of each other's share, which is little beside PAIR_FORCE_MARGIN."""
    largest = []
    for backend in BACKENDS if cpu.is_compiled() else ():
        engine = Engine(random_student(student), dtype="float64", backend=backend)
        seen = []
        engine.evaluate(random_box(engine), watch=seen.append)
        largest.append(np.linalg.norm(seen[0].gradient, axis=1).max())
    assert largest == pytest.approx(largest[:1] * len(largest), rel=tolerance)


@pytest.mark.parametrize("place", [0, 1, 2, 4])
def test_the_structure_and_atoms_are_named(backend, place):
    """Of five in three chunks. Seen to fail: atoms numbered as in the chunk, structures too."""
    distances = 5 * [CLOSEST + 1e-6]
    watched("stop", backend=backend)(boxes(*distances))
    distances[place] = CLOSEST - 1e-3
    with pytest.raises(
        GuardError, match=rf"^evaluation 1, structure {place}: O \d and O \d are 2.279 Å apart"
    ) as caught:
        watched("stop", backend=backend)(boxes(*distances))
    assert {"O 1", "O 4"} == set(str(caught.value).split(": ")[1].split(" are")[0].split(" and "))


def test_the_worst_of_all_chunks_is_named():
    guard = watched("warn")
    guard(boxes(2.2, 3.0, 3.0, 1.9, 2.1))
    assert "worst at evaluation 1, structure 3: O" in str(guard)


def test_neighbors_in_the_skin_are_not_counted(backend):
    """The list has them on the backend ``cpu``. Seen to fail: 7 neighbors."""
    ring = [[4.0 * np.cos(t), 4.0 * np.sin(t), 0.0] for t in np.arange(5)]
    atoms = Atoms("OHHHHHHH", positions=[[0, 0, 0], *ring, [4.6, 0.1, 1.0], [-4.9, 0.0, 1.2]])
    with pytest.raises(GuardError, match=r"O 0 has 5 neighbors H, fewer than 8\.0"):
        watched("stop", seen={"neighbors": {"O-H": [10, 20]}}, backend=backend)([atoms])
    watched("stop", seen={"neighbors": {"O-H": [1, 4]}}, backend=backend)([atoms])  # at most 6


def test_liquid_water_is_no_news_for_its_student(backend):
    atoms = ase.io.read(WATER)
    engine = Engine("water", backend=backend)
    guard = GuardedEngine(engine, GuardSettings("stop", every=1))
    for prediction, expected in zip(guard([atoms, atoms]), engine.evaluate([atoms, atoms])):
        np.testing.assert_array_equal(prediction.forces, expected.forces)
    slab = atoms.copy()
    slab.cell[2, 2] *= 3.0
    with pytest.raises(GuardError, match="fewer"):
        GuardedEngine(engine, GuardSettings("stop", every=1))([atoms, slab])


def test_results_that_are_not_finite_are_the_engines_to_refuse(backend):
    guard = watched("warn", backend=backend)
    bad = boxes(3.0)
    bad[0].positions[2] = bad[0].positions[1]
    with pytest.raises(NonFiniteResultError):
        guard(bad)
    assert guard.n_checked == 0


# ---- when it looks ----


def test_first_two_then_every_nth_in_the_mean():
    guard = watched(every=10)
    fine, checked = boxes(3.0), []
    for _ in range(1000):
        before = guard.n_checked
        guard(fine)
        checked.append(guard.n_checked > before)
    looks = np.flatnonzero(checked)
    assert looks[:2].tolist() == [0, 1]
    assert 80 <= len(looks) <= 120
    assert np.diff(looks).max() < 20


def test_a_step_in_two_batches_has_both_looked_at():
    """Seen to fail: a fixed gap of ten, which sees the first of two batches for ever."""
    guard = watched(every=10)
    flagged = []
    for _ in range(50):
        for structures in (boxes(3.0), boxes(2.0, 3.0)):
            before = guard.n_checked, guard.n_flagged
            guard(structures)
            if guard.n_checked > before[0]:
                flagged.append(guard.n_flagged > before[1])
    assert 2 < sum(flagged) < len(flagged) - 2


# ---- policies ----


def test_warn_says_so_now_and_then_and_writes_nothing(folder, capsys):
    guard = watched("warn")
    for _ in range(12):
        guard(boxes(2.0))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[2] for line in lines] == ["evaluation 1", "evaluation 10"]
    guard.summarize()
    guard.summarize()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("mlffd: guard: 12 of 12 evaluations flagged; first at evaluation 1; worst at ")
    assert not list(folder.iterdir())


def test_collect_writes_frames_that_can_be_labelled(folder):
    """The worst structure of an evaluation, up to a number."""
    said = []
    engine = engine_that_saw(SEEN, max_batch_atoms=12)
    guard = GuardedEngine(engine, GuardSettings("collect", Path("odd.xyz"), n_frames=2, every=1), said.append)
    for k in range(4):
        guard(boxes(3.0, 3.0, 2.1 - 0.1 * k, 2.25))
    frames = ase.io.read("odd.xyz", ":")
    assert [frame.info["evaluation"] for frame in frames] == [1, 2]
    assert [frame.info["structure"] for frame in frames] == [2, 2]
    for k, frame in enumerate(frames):
        assert frame.get_distance(1, 4, mic=True) == pytest.approx(2.1 - 0.1 * k)
        assert frame.info["guard"] in said[0] or k == 1
        assert frame.pbc.all()
    assert said[0].endswith("; frame in odd.xyz (flagged: 1)")
    assert str(guard).endswith("2 frames in odd.xyz")
    label("odd.xyz", {"name": "lj", "epsilon": 0.01, "sigma": 1.0}, folder / "odd.h5")
    assert len(read_labels(folder / "odd.h5")) == 2


def test_stop_ends_a_driver_before_anything_is_sent(folder):
    """Through the evaluator of ``mlffd-driver``: exit status 3, one line, the frame, no other dump."""
    sound, wrong = boxes(3.0, 2.0)
    evaluator = Evaluator(sound, watched("stop"))
    cells = np.array([sound.cell.array, wrong.cell.array])
    with pytest.raises(NoAnswer) as caught:
        evaluator([Request(cells, np.array([sound.positions, wrong.positions]))])
    message = str(caught.value)
    assert caught.value.exit_status == 3
    assert message.startswith("evaluation 1, structure 1: O ")
    assert message.endswith("outside of what the student was trained on; frame in guard.extxyz")
    assert [path.name for path in folder.iterdir()] == ["guard.extxyz"]
    assert ase.io.read("guard.extxyz").get_distance(1, 4, mic=True) == pytest.approx(2.0)


def test_off_never_looks(monkeypatch):
    guard = watched("off")
    monkeypatch.setattr(guard, "_look", None)
    for _ in range(3):
        guard(boxes(1.0))
    assert guard.n_checked == 0


def test_a_policy_goes_before_the_variable(monkeypatch):
    engine = engine_that_saw(SEEN)
    monkeypatch.setenv("MLFFD_GUARD", "collect")
    monkeypatch.setenv("MLFFD_GUARD_EVERY", "3")
    assert guarded(engine).settings == GuardSettings("collect", every=3)
    assert guarded(engine, "stop").settings == GuardSettings("stop", every=3)
    with pytest.raises(ConfigError, match="the guard's policy is 'maybe'; choose warn"):
        guarded(engine, "maybe")
    monkeypatch.setenv("MLFFD_GUARD", "yes")
    assert guarded(engine, "off").settings.policy == "off"
    with pytest.raises(ConfigError, match="MLFFD_GUARD is 'yes'"):
        guarded(engine)
