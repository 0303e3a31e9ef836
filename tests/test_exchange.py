# SPDX-License-Identifier: MIT
"""Messages between the atoms of ranks, which are threads here: the parts of a periodic box against the whole.

Seen to fail when gradients stay with the ghosts, or replace those of their owners; when ghosts get the row of
another owner; when a layer sends nothing, or the first one too much; when nobody is called where there are no
edges; when the error of an exchange is followed by another call; when all energies of a halo count.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list
from contract import assert_close, random_box, random_student

from mlffd.engine import BACKENDS, Engine
from mlffd.kernels import cpu

N_LAYERS = {"painn-one-layer": 1, "painn": 2, "painn-three-layers": 3}
BAR = {"float32": 2e-5, "float64": 1e-10}  # of the RMS


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    if request.param == "cpu" and not cpu.is_compiled():
        pytest.skip("the CPU kernels are not compiled")
    return request.param


@dataclass(frozen=True)
class Part:
    """What a rank has: its own atoms, then every image within the cutoff of these as a ghost of its own."""

    atoms: np.ndarray  # (n_centers,) index into the whole
    atomic_numbers: np.ndarray  # (n_rows,)
    pair_i: np.ndarray  # (n_pairs,)
    pair_j: np.ndarray
    rij: np.ndarray  # (n_pairs, 3)
    owner: np.ndarray  # (n_ghosts, 2) rank, and row there

    @property
    def pairs(self) -> tuple:
        return self.atomic_numbers, self.pair_i, self.pair_j, self.rij, len(self.atoms)

    def whole(self, rows: np.ndarray, parts: list["Part"]) -> np.ndarray:
        """Indices into the whole of rows of this rank."""
        ghosts = [parts[rank].atoms[row] for rank, row in self.owner]
        return np.concatenate([self.atoms, np.array(ghosts, dtype=int)])[rows]


def split(whole: Atoms, cutoff: float, rank_of_atom: np.ndarray, n_ranks: int) -> list[Part]:
    """The parts of the ranks; pairs come in random order."""
    i, j, shifts, vectors = neighbor_list("ijSD", whole, cutoff)
    order = np.random.default_rng(3).permutation(len(i))
    i, j, shifts, vectors = i[order], j[order], shifts[order], vectors[order]
    row = np.zeros(len(whole), dtype=int)
    for rank in range(n_ranks):
        row[rank_of_atom == rank] = np.arange((rank_of_atom == rank).sum())
    parts = []
    for rank in range(n_ranks):
        here = rank_of_atom[i] == rank
        own = np.flatnonzero(rank_of_atom == rank)
        ghost = (shifts.any(axis=1) | (rank_of_atom[j] != rank))[here]
        images, index = np.unique(np.column_stack([j, shifts])[here][ghost], axis=0, return_inverse=True)
        pair_j = row[j[here]]
        pair_j[ghost] = len(own) + index.ravel()
        owner = np.column_stack([rank_of_atom[images[:, 0]], row[images[:, 0]]])
        numbers = whole.numbers[np.concatenate([own, images[:, 0]])]
        parts.append(Part(own, numbers, row[i[here]], pair_j, vectors[here], owner))
    return parts


class Ranks:
    """A meeting place: what each rank brings, all may see. A rank that does not come fails the others."""

    def __init__(self, parts: list[Part]):
        self.parts, self.brought = parts, [None] * len(parts)
        self.barrier = threading.Barrier(len(parts), timeout=30)

    def bring(self, rank: int, what: np.ndarray) -> list[np.ndarray]:
        self.brought[rank] = what
        self.barrier.wait()
        brought = list(self.brought)
        self.barrier.wait()
        return brought


class Exchange:
    """That of one rank; notes each call."""

    def __init__(self, ranks: Ranks, rank: int):
        self.ranks, self.rank, self.calls = ranks, rank, []
        self.n_centers, self.owner = len(ranks.parts[rank].atoms), ranks.parts[rank].owner

    def forward(self, rows) -> None:
        self._note("forward", rows)
        own = self.ranks.bring(self.rank, rows[: self.n_centers].copy())
        for ghost, (rank, row) in enumerate(self.owner):
            rows[self.n_centers + ghost] = own[rank][row]

    def reverse(self, rows) -> None:
        self._note("reverse", rows)
        ghosts = self.ranks.bring(self.rank, rows[self.n_centers :].copy())
        for part, values in zip(self.ranks.parts, ghosts, strict=True):
            mine = part.owner[:, 0] == self.rank
            np.add.at(rows, part.owner[mine, 1], values[mine])

    def _note(self, name: str, rows: np.ndarray) -> None:
        assert rows.flags.c_contiguous
        assert rows.shape[0] == self.n_centers + len(self.owner)
        self.calls.append((name, rows.dtype))


class OnDevice(Exchange):
    """Asks for PyTorch tensors, which plain PyTorch has."""

    on_device = True

    def forward(self, rows) -> None:
        rows.copy_(on_host(super().forward, rows))

    def reverse(self, rows) -> None:
        rows.copy_(on_host(super().reverse, rows))


def on_host(call, rows: torch.Tensor) -> torch.Tensor:
    copied = rows.cpu()
    call(copied.numpy())
    return copied


def evaluate_parts(engines: list[Engine], parts: list[Part], kind=Exchange) -> tuple:
    """Atomic energies, forces and virial of the whole from its parts, one thread each; and the exchanges."""
    ranks = Ranks(parts)
    exchanges = [kind(ranks, rank) for rank in range(len(parts))]

    def evaluate(rank: int):
        try:
            return engines[rank].evaluate_pairs(*parts[rank].pairs, exchange=exchanges[rank])
        except BaseException:
            ranks.barrier.abort()
            raise

    with ThreadPoolExecutor(len(parts)) as pool:
        results = list(pool.map(evaluate, range(len(parts))))
    n_atoms = sum(len(part.atoms) for part in parts)
    energies, forces, virial = np.zeros(n_atoms), np.zeros((n_atoms, 3)), np.zeros((3, 3))
    for part, (atomic_energies, gradient) in zip(parts, results, strict=True):
        energies[part.atoms] = atomic_energies
        np.add.at(forces, part.whole(part.pair_i, parts), gradient)
        np.add.at(forces, part.whole(part.pair_j, parts), -gradient)
        virial -= part.rij.T @ gradient
    return energies, forces, virial, exchanges


def check(name, backend, dtype, rank_of_atom, n_ranks: int, kind=Exchange, device: str = "cpu") -> None:
    """The parts' sum is the whole in float64, and every rank has called as often as all others."""
    student = random_student(name)
    exact = Engine(student, dtype="float64", backend="reference")
    whole = random_box(exact)
    expected = exact.evaluate(whole)[0]
    parts = split(whole, exact.cutoff, np.asarray(rank_of_atom), n_ranks)
    engines = [Engine(student, device, dtype, backend) for _ in parts]
    energies, forces, virial, exchanges = evaluate_parts(engines, parts, kind)
    assert_close(expected.atomic_energies, energies, BAR[dtype])
    assert_close(expected.forces, forces, BAR[dtype])
    assert_close(expected.virial, virial, BAR[dtype])
    n_calls = N_LAYERS[name] - 1
    for exchange in exchanges:
        assert exchange.calls == [(call, dtype) for call in ("forward", "reverse") for _ in range(n_calls)]


HALVES, LAYERS = np.repeat([0, 1], 12), np.arange(24) % 3
SPLITS = {
    "one": (np.zeros(24, int), 1),
    "two": (HALVES, 2),
    "three": (LAYERS, 3),
    "an empty one": (HALVES, 3),
}


@pytest.mark.parametrize("dtype", BAR)
@pytest.mark.parametrize("name", N_LAYERS)
@pytest.mark.parametrize("ranks", SPLITS)
def test_the_parts_of_a_box_are_the_box(ranks, name, backend, dtype):
    check(name, backend, dtype, *SPLITS[ranks])


@pytest.mark.parametrize("name", N_LAYERS)
@pytest.mark.parametrize(
    "numbers", [[], [8], [8, 1], [1, 8, 8]], ids=["none", "one", "apart", "a pair apart"]
)
def test_ranks_with_nothing_to_say_call_all_the_same(numbers, name, backend):
    """No atom, or no neighbor: nothing to send and nothing to differentiate, but other ranks would wait."""
    positions = [[0.0, 0.0, 0.0], [0.0, 0.0, 20.0], [0.0, 1.0, 20.0]][: len(numbers)]
    whole = Atoms(numbers, positions=positions, cell=np.eye(3) * 40, pbc=True)
    student = random_student(name)
    parts = split(whole, student.cutoff, np.array([0, 1, 2][: len(numbers)], dtype=int), 3)
    engines = [Engine(student, dtype="float64", backend=backend) for _ in parts]
    energies, forces, _, exchanges = evaluate_parts(engines, parts)
    n_calls = N_LAYERS[name] - 1
    for exchange in exchanges:
        assert [call for call, _ in exchange.calls] == ["forward"] * n_calls + ["reverse"] * n_calls
    if numbers:
        expected = Engine(student, dtype="float64", backend="reference").evaluate(whole)[0]
        assert_close(expected.atomic_energies, energies)
        assert_close(expected.forces, forces)


@pytest.mark.parametrize("name", N_LAYERS)
def test_an_exchange_on_the_device_gets_tensors(name):
    check(name, "reference", "float32", *SPLITS["two"], kind=OnDevice)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [Exchange, OnDevice])
@pytest.mark.parametrize("name", N_LAYERS)
def test_the_parts_of_a_box_are_the_box_on_a_gpu(name, kind):
    for ranks in ("one", "two"):
        check(name, "reference", "float32", *SPLITS[ranks], kind, device="cuda")


class Broken(Exchange):
    """Raises in its second call."""

    def _note(self, name: str, rows: np.ndarray) -> None:
        super()._note(name, rows)
        if len(self.calls) == 2:
            raise ConnectionError(f"lost in {name}")


@pytest.mark.parametrize(("name", "direction"), [("painn", "reverse"), ("painn-three-layers", "forward")])
def test_what_an_exchange_raises_comes_out(name, direction, backend):
    """Through C++ or autograd, without another call; the engine is as good as new."""
    engine = Engine(random_student(name), dtype="float64", backend=backend)
    parts = split(random_box(engine), engine.cutoff, np.zeros(24, int), 1)
    exchange = Broken(Ranks(parts), 0)
    before = evaluate_parts([engine], parts)
    with pytest.raises(ConnectionError, match=f"lost in {direction}"):
        engine.evaluate_pairs(*parts[0].pairs, exchange=exchange)
    assert len(exchange.calls) == 2
    after = evaluate_parts([engine], parts)
    assert np.array_equal(before[1], after[1])


def test_ghosts_need_an_exchange(backend):
    for name, n_layers in N_LAYERS.items():
        engine = Engine(random_student(name), backend=backend)
        (part,) = split(random_box(engine), engine.cutoff, np.zeros(24, int), 1)
        if n_layers == 1:
            engine.evaluate_pairs(*part.pairs)
            continue
        with pytest.raises(ValueError, match=f"{n_layers} edges far: with ghost atoms"):
            engine.evaluate_pairs(*part.pairs)
        with pytest.raises(ValueError, match="need no exchange"):
            engine.evaluate_pairs(*part.pairs, exchange=Exchange(Ranks([part]), 0), n_owned=24)


def with_halo(whole: Atoms, reach: float) -> tuple[Atoms, np.ndarray]:
    """The atoms and all images within ``reach`` of them, not periodic; and which atom each is."""
    j, shifts = neighbor_list("jS", whole, reach)
    images = np.unique(np.column_stack([j, shifts])[shifts.any(axis=1)], axis=0)
    owner = np.concatenate([np.arange(len(whole)), images[:, 0]])
    far = images[:, 1:] @ whole.cell.array
    positions = np.concatenate([whole.positions, whole.positions[images[:, 0]] + far])
    return Atoms(whole.numbers[owner], positions=positions), owner


@pytest.mark.parametrize("dtype", BAR)
@pytest.mark.parametrize("name", ["local", *N_LAYERS])
def test_a_halo_needs_no_exchange(name, backend, dtype):
    student = random_student(name)
    whole = random_box(Engine(student), n_atoms=7)
    expected = Engine(student, dtype="float64", backend="reference").evaluate(whole)[0]
    halo, owner = with_halo(whole, student.n_layers * student.cutoff)
    i, j, rij = neighbor_list("ijD", halo, student.cutoff)
    engine = Engine(student, dtype=dtype, backend=backend)
    energies, gradient = engine.evaluate_pairs(halo.numbers, i, j, rij, len(halo), n_owned=len(whole))
    forces = np.zeros((len(whole), 3))
    np.add.at(forces, owner[i], gradient)
    np.add.at(forces, owner[j], -gradient)
    assert_close(expected.atomic_energies, energies, BAR[dtype])
    assert_close(expected.forces, forces, BAR[dtype])
    assert_close(expected.virial, -rij.T @ gradient, BAR[dtype])
