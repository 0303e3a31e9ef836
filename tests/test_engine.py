# SPDX-License-Identifier: MIT
"""The engine: which structure of a batch is at fault, threads, copies, pickles and forked children."""

import os
import pickle
import subprocess
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
from contract import evaluate, random_box, random_student

from mlffd.drivers.ase_calculator import Calculator
from mlffd.engine import BACKENDS, Engine
from mlffd.errors import NonFiniteResultError
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
    structures[place].positions[1] = structures[place].positions[0]
    with pytest.raises(NonFiniteResultError, match=f"structure {place} .* do two atoms coincide"):
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
