# SPDX-License-Identifier: MIT
"""The C interface: ghosts whose owners' values are exchanged, and damaged weight blocks."""

import struct
import zlib

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list
from contract import assert_close, random_box, random_molecule, random_student
from cpu_graphs import PairGraph, random_graph
from cpu_interface import CStudent, Exchange

from mlffd.engine import Engine
from mlffd.kernels import cpu
from mlffd.kernels.block import ENTRY, HEADER, weight_block

PAINN = {"painn-one-layer": 1, "painn": 2, "painn-three-layers": 3}
BAR = {"float32": 2e-5, "float64": 1e-10}  # of the RMS


def with_images(atoms: Atoms, cutoff: float) -> tuple[PairGraph, np.ndarray]:
    """Every image within the cutoff of an atom as a ghost of its own, as LAMMPS has it; and their owners."""
    i, j, shifts, vectors = neighbor_list("ijSD", atoms, cutoff)
    outside = shifts.any(axis=1)
    images, index = np.unique(np.column_stack([j, shifts])[outside], axis=0, return_inverse=True)
    neighbor = j.astype(np.int32)
    neighbor[outside] = len(atoms) + index.ravel()
    first_edge = np.concatenate([[0], np.cumsum(np.bincount(i, minlength=len(atoms)))]).astype(np.int64)
    owner = images[:, 0].astype(int)
    numbers = np.concatenate([atoms.numbers, atoms.numbers[owner]])
    return PairGraph(numbers, first_edge, neighbor, vectors), owner


def structure(name: str, engine: Engine) -> Atoms:
    """``box``; ``cell``: one atom, every neighbor a ghost; ``molecule``: no ghosts; ``none``: no atoms."""
    if name == "cell":
        skewed = [[2.4, 0, 0], [0.4, 2.5, 0], [0.3, -0.2, 2.6]]
        return Atoms(engine.species[:1], cell=skewed, pbc=True)
    if name == "none":
        return Atoms(cell=np.eye(3), pbc=True)
    return random_box(engine) if name == "box" else random_molecule(engine)


@pytest.mark.parametrize("dtype", BAR)
@pytest.mark.parametrize("name", PAINN)
@pytest.mark.parametrize("which", ["box", "cell", "molecule", "none"])
def test_ghosts_get_their_owners_values(which, name, dtype):
    student = random_student(name)
    engine = Engine(student, dtype="float64", backend="reference")
    atoms = structure(which, engine)
    graph, owner = with_images(atoms, engine.cutoff) if len(atoms) else (no_atoms(), np.zeros(0, dtype=int))
    assert bool(len(owner)) == (which in ("box", "cell"))
    exchange = Exchange(owner, len(atoms))
    made = CStudent(weight_block(student), cpu.PRECISIONS[dtype])
    energies, gradient = made.evaluate(graph.species_idx(student), graph, exchange)
    n_bytes = np.dtype(dtype).itemsize
    n_calls = PAINN[name] - 1
    assert exchange.calls == [("forward", n_bytes)] * n_calls + [("reverse", n_bytes)] * n_calls
    if len(atoms):
        expected = engine.evaluate(atoms)[0]
        forces = graph.forces(gradient)
        np.add.at(forces, owner, forces[len(atoms) :])
        assert_close(energies, expected.atomic_energies, BAR[dtype])
        assert_close(expected.forces, forces[: len(atoms)], BAR[dtype])


def no_atoms() -> PairGraph:
    integers = np.zeros(0, dtype=np.int32)
    return PairGraph(np.zeros(0, dtype=int), np.zeros(1, dtype=np.int64), integers, np.zeros((0, 3)))


@pytest.mark.parametrize("name", ["painn", "painn-three-layers"])
def test_ghosts_without_exchange_are_refused(name):
    student = random_student(name)
    graph = random_graph(student, [3, 2], n_ghosts=1)
    with pytest.raises(ValueError, match="with ghost atoms it needs mlffd_exchange") as caught:
        CStudent(weight_block(student)).evaluate(graph.species_idx(student), graph)
    assert "\n" not in str(caught.value)


def sealed(block: bytes | bytearray, **header) -> bytes:
    """The block with the right size and checksum for what it holds, and other header fields as given."""
    magic, version, n_entries, family, _, _, unused = HEADER.unpack_from(block)
    content = bytes(block[HEADER.size :])
    size, n_entries = HEADER.size + len(content), header.get("n_entries", n_entries)
    return HEADER.pack(magic, version, n_entries, family, size, zlib.crc32(content), unused) + content


def entries(block: bytes) -> dict[str, tuple[int, int, int]]:
    """Where the entry of each array stands, and its offset and number of values."""
    found = {}
    for k in range(HEADER.unpack_from(block)[2]):
        place = HEADER.size + k * ENTRY.size
        name, offset, count = ENTRY.unpack_from(block, place)
        found[name.rstrip(b"\0").decode()] = place, offset, count
    return found


def with_entry(block: bytes, name: str, offset: int, count: int) -> bytes:
    changed = bytearray(block)
    ENTRY.pack_into(changed, entries(block)[name][0], name.encode(), offset, count)
    return sealed(changed)


def with_values(block: bytes, name: str, *values: float) -> bytes:
    changed = bytearray(block)
    struct.pack_into(f"<{len(values)}d", changed, entries(block)[name][1], *values)
    return sealed(changed)


@pytest.fixture(scope="module")
def block() -> bytes:
    return weight_block(random_student("local-small"))


def refused(block: bytes) -> str:
    with pytest.raises(ValueError) as caught:
        CStudent(block)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sealed_block_is_read(block):
    """What the tests below change is what is refused."""
    assert sealed(block) == block
    CStudent(with_values(block, "species_numbers", 118.0, 1.0))


def test_any_flipped_byte_is_noticed(block):
    for place in (HEADER.size, len(block) // 2, len(block) - 9):
        flipped = bytearray(block)
        flipped[place] ^= 1
        assert refused(bytes(flipped)) == "the weight block is damaged: its checksum is wrong"


def test_arrays_lie_within_the_block(block):
    name, size = "networks.0.mixing", len(block)
    offset, count = entries(block)[name][1:]
    for wrong in [(size + 8, 1), (size, 1), (size - 8, 2), (2**64 - 8, 2), (offset, 2**61), (offset, size)]:
        assert (
            refused(with_entry(block, name, *wrong)) == f"the weight block is damaged: {name} lies outside it"
        )
    assert refused(sealed(block, n_entries=2**32 - 1)) == "the weight block is damaged"
    assert refused(sealed(block, n_entries=size // ENTRY.size + 1)) == "the weight block is damaged"
    too_few = f"{name} has {count - 1} values where {count} are expected"
    assert refused(with_entry(block, name, offset, count - 1)) == too_few


def test_values_are_numbers(block):
    for value in (np.nan, np.inf, -np.inf):
        assert refused(with_values(block, "networks.0.mixing", value)).endswith("that are not finite")


@pytest.mark.parametrize("species", [(0, 1), (119, 1), (-1, 1), (1.5, 1), (8, 8), (1e300, 1)])
def test_species_are_different_atomic_numbers(block, species):
    assert "species" in refused(with_values(block, "species_numbers", *species))


def test_environment_chooses_the_instructions(block, monkeypatch):
    monkeypatch.setenv("MLFFD_INSTRUCTIONS", "")  # as good as unset
    CStudent(block)
    monkeypatch.setenv("MLFFD_INSTRUCTIONS", "fast")
    assert refused(block).startswith("MLFFD_INSTRUCTIONS may be auto, ")
    CStudent(block, instructions="baseline")
    monkeypatch.delenv("MLFFD_INSTRUCTIONS")
    with pytest.raises(ValueError, match=r"^instructions may be auto, .*baseline, not fast$"):
        CStudent(block, instructions="fast")
