# SPDX-License-Identifier: MIT
"""The engine: which structure of a batch is at fault, threads, copies, pickles and forked children."""

import os
import pickle
import subprocess
import sys
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from contract import evaluate, random_box, random_student

from mlffd import engine as engine_module
from mlffd.drivers.ase_calculator import Calculator
from mlffd.engine import BACKENDS, BatchTrial, Engine
from mlffd.errors import ConfigError, NonFiniteResultError
from mlffd.kernels import cpu


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    if request.param == "cpu" and not cpu.is_compiled():
        pytest.skip("the CPU kernels are not compiled")
    return request.param


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_structure_with_coincident_atoms_is_named(backend, place):
    engine = Engine(random_student("local"), backend=backend)
    structures = [random_box(engine, seed) for seed in range(3)]
    engine.evaluate(structures)
    structures[place].positions[3] = structures[place].positions[2]
    named = rf"structure {place} .* at atom [0-3] \([HO]\), are not finite; do two atoms coincide"
    with pytest.raises(NonFiniteResultError, match=named):
        engine.evaluate(structures)


class CountsThreads:
    """A kernel of so many atomic energies and pair gradients, all zero, that notes its threads."""

    def evaluate(
        self, species_idx, first_edge, neighbor, edge_vectors, n_threads, symmetric=False, exchange=None
    ):
        self.n_threads = n_threads
        return np.zeros(len(first_edge) - 1), np.zeros((len(neighbor), 3))


@pytest.mark.skipif(not cpu.is_compiled(), reason="the CPU kernels are not compiled")
def test_kernels_get_the_threads_of_torch(monkeypatch):
    engine = Engine(random_student("local"), backend="cpu")
    engine.kernel = CountsThreads()
    for n_threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda n_threads=n_threads: n_threads)
        engine.evaluate(random_box(engine))
        assert engine.kernel.n_threads == n_threads
        engine.kernel.n_threads = None
        engine.evaluate_pairs([1, 8], np.array([0]), np.array([1]), np.ones((1, 3)), 1)
        assert engine.kernel.n_threads == n_threads


def pickled(kept):
    return pickle.loads(pickle.dumps(kept))  # noqa: S301 (our own)


@pytest.mark.parametrize("again", [deepcopy, pickled])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_copies_give_the_same_numbers(backend, dtype, again):
    engine = Engine(random_student("local"), dtype=dtype, backend=backend, skin=0.3)
    atoms = random_box(engine)
    expected = evaluate(engine, atoms)
    copied = again(engine)
    assert (copied.backend, copied.dtype, copied.cutoff) == (backend, dtype, engine.cutoff)
    assert np.array_equal(evaluate(copied, atoms).forces, expected.forces)
    atoms.calc = Calculator(engine)
    atoms.get_forces()
    other = again(atoms)
    other.positions[0] += 0.1
    atoms.positions[0] += 0.1
    assert other.calc.engine is not engine
    assert np.array_equal(other.get_forces(), atoms.get_forces())


FORK = """
import os, signal, sys
import numpy as np
import torch
from ase import Atoms
from mlffd.engine import Engine

torch.set_num_threads(2)
engine = Engine("water", backend="cpu")
sites = np.stack(np.meshgrid(*[range(4)] * 3), -1).reshape(-1, 3) * 2.5
atoms = Atoms("OH" * 32, positions=sites, cell=np.eye(3) * 10, pbc=True)
expected = engine.evaluate(atoms)[0].forces
child = os.fork()
signal.alarm(20 if child == 0 else 0)
same = np.array_equal(engine.evaluate(atoms)[0].forces, expected)
if child == 0:
    os._exit(0 if same else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or not same)
"""


@pytest.mark.skipif(not (hasattr(os, "fork") and cpu.is_compiled()), reason="needs fork and the kernels")
def test_a_forked_child_answers():
    """OpenMP's threads are not there in a child: without care it would wait for them for ever."""
    child = subprocess.run([sys.executable, "-c", FORK], timeout=100, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr or "the child hung, or its forces are others"


# ---- the size of batches ----


class FakeClock:
    """Time that only batches take: ``cost(n_structures)`` each, in s."""

    def __init__(self, monkeypatch, cost):
        self.now, self.sizes = 0.0, []

        def evaluate(engine, structures):
            self.sizes.append(len(structures))
            self.now += cost(len(structures))

        monkeypatch.setattr(Engine, "evaluate", evaluate)
        monkeypatch.setattr(engine_module, "time", SimpleNamespace(perf_counter=lambda: self.now))


def tuned(monkeypatch, cost) -> tuple[int, FakeClock]:
    """How many of a structure go together, where batches take so long."""
    engine = Engine(random_student("local"))
    atoms = random_box(engine)
    clock = FakeClock(monkeypatch, cost)
    n_atoms = engine.tune_batch([atoms])
    assert engine.max_batch_atoms == n_atoms
    return n_atoms // len(atoms), clock


def out_of_memory_beyond(largest: int):
    def cost(n_structures: int) -> float:
        if n_structures > largest:
            raise torch.cuda.OutOfMemoryError if n_structures % 4 else MemoryError
        return 1e-3

    return cost


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (lambda n: 1e-3 * n, 1),
        (lambda n: 1e-3 * n**1.2, 1),
        (lambda n: 1e-3 * (n + 1), 16),  # 64 would take 0.96 of the time of 16
        (lambda n: 1e-3 * max(n, 8), 8),
        (lambda n: 1e-3 * n * max(0.93 ** np.log2(n), 0.8), 4),
        (out_of_memory_beyond(16), 8),
        (out_of_memory_beyond(3), 1),
        (out_of_memory_beyond(1), 1),
    ],
    ids=["no-gain", "loss", "overhead", "lanes", "little-by-little", "memory", "little-memory", "one"],
)
def test_batches_grow_while_it_pays(monkeypatch, cost, expected):
    """Seen to fail: the largest that fitted taken as it is; a gain beside the size before alone."""
    assert tuned(monkeypatch, cost)[0] == expected


def test_a_busy_machine_does_not_change_the_size(monkeypatch):
    """One trial in two takes up to three times as long. Seen to fail: one trial of each size, their mean."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        noisy = lambda n: 1e-3 * n * rng.choice([1.0, rng.uniform(1, 3)])  # noqa: E731
        assert tuned(monkeypatch, noisy)[0] == 1


def test_trials_end_in_time(monkeypatch):
    """However much there would be to gain, and however long one evaluation takes."""
    _, clock = tuned(monkeypatch, lambda n: 0.1)
    assert clock.now < engine_module.TUNING_SECONDS + 0.5
    best, clock = tuned(monkeypatch, lambda n: 5.0)
    assert best == 1
    assert clock.sizes == [1]


def test_one_structure_too_large_is_said_in_a_line(monkeypatch):
    with pytest.raises(ConfigError, match="not enough memory on cpu for 24 atoms"):
        tuned(monkeypatch, out_of_memory_beyond(0))


def test_what_is_timed_has_lists_of_its_own_and_moves():
    """Seen to fail: copies that share a list, copies that stand still, moves too large for a list."""
    engine = Engine(random_student("local"))
    atoms = random_box(engine)
    trial = BatchTrial(engine, [atoms, atoms[:11]])
    trial.prepare(6)
    before = [copy.positions.copy() for copy in trial.copies]
    trial.seconds(5)
    assert [len(copy) for copy in trial.copies] == 3 * [24, 11]
    assert engine.neighbor_lists.n_builds == 6
    assert [np.ptp(copy.positions - old) > 0 for copy, old in zip(trial.copies, before)] == 5 * [True] + [
        False
    ]


def test_a_tuned_engine_gives_the_same_results(backend, monkeypatch):
    monkeypatch.setattr(engine_module, "TUNING_SECONDS", 0.2)
    engine = Engine(random_student("local"), dtype="float64", backend=backend)
    structures = [random_box(engine, seed, n_atoms) for seed, n_atoms in ((0, 24), (1, 11))]
    before = [atoms.copy() for atoms in structures]
    expected = engine.evaluate(structures)
    n_atoms = engine.tune_batch(structures)
    assert n_atoms == engine.max_batch_atoms
    assert n_atoms == 24 or n_atoms % 35 == 0
    assert structures == before
    for prediction, other in zip(engine.evaluate(structures), expected):
        np.testing.assert_allclose(prediction.forces, other.forces, atol=1e-9)
