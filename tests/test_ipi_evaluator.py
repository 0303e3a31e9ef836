# SPDX-License-Identifier: MIT
"""From structures that i-PI sends to answers: what is evaluated, what is refused, and how exact it is.

Exactness is that of the shipped water student behind the protocol, i-PI's own half of it at the other end.
"""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read
from ase.units import Bohr
from ipi_evaluators import Recorder, argon, from_calculator, harmonic, lennard_jones
from ipi_server import Talk, ask, ask_batch

from mlffd.domain import EXPLOSION
from mlffd.drivers.ipi import evaluator as evaluator_module
from mlffd.drivers.ipi.checks import FARTHEST, LARGEST_STRETCH, SMALLEST_VOLUME
from mlffd.drivers.ipi.evaluator import DUMP, Evaluator, NoAnswer
from mlffd.drivers.ipi.protocol import ProtocolError, Request
from mlffd.engine import Engine
from mlffd.errors import GuardError, StructureError
from mlffd.neighbors import LARGEST_EXTENT

WATER = Path(__file__).parents[1] / "ipi_inputs" / "water64.xyz"


def request(*structures: Atoms) -> Request:
    return Request(
        cells=np.array([atoms.cell.array for atoms in structures]),
        positions=np.array([atoms.positions for atoms in structures]),
    )


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where dumps go."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- what is evaluated ----


def test_templates_are_told_apart_by_their_number_of_atoms():
    """Requests of several connections are one evaluation. Seen to fail: the first template for all."""
    pair = Atoms("NeKr", [[0, 0, 0], [0, 0, 3.0]])
    recorder = Recorder(harmonic(0.1))
    evaluator = Evaluator([argon(), pair], recorder)
    assert evaluator.atom_counts == {4, 2}
    requests = [request(pair), request(argon(1), argon(2)), request(pair)]
    requests[2].positions[:] += 1.0
    answers = evaluator(requests)
    (seen,) = recorder.calls
    assert [atoms.get_chemical_formula() for atoms in seen] == ["KrNe", "Ar4", "Ar4", "KrNe"]
    assert [atoms.pbc.all() for atoms in seen] == [False, True, True, False]
    assert [answer.forces.shape for answer in answers] == [(1, 2, 3), (2, 4, 3), (1, 2, 3)]
    for answer, of_answer in zip(answers, ([0], [1, 2], [3])):
        expected = harmonic(0.1)([seen[k] for k in of_answer])
        np.testing.assert_array_equal(answer.energies, [one.energy for one in expected])
        np.testing.assert_array_equal(answer.forces, [one.forces for one in expected])


def test_what_is_there_twice_is_evaluated_once():
    """Also in another request; a bit of difference is another structure."""
    a, b, c = argon(1), argon(2), argon(3)
    almost = a.copy()
    almost.positions[3, 2] = np.nextafter(almost.positions[3, 2], 9.0)
    elsewhere = a.copy()
    elsewhere.cell[2, 2] += 1e-9
    recorder = Recorder(from_calculator(lennard_jones()))
    evaluator = Evaluator(argon(), recorder)
    first, second, third = evaluator([request(a, b, a), request(b, almost), request(a, c, elsewhere, c)])
    assert [len(call) for call in recorder.calls] == [5]
    assert (evaluator.tally.structures, evaluator.tally.repeats) == (5, 4)
    fresh = Evaluator(argon(), from_calculator(lennard_jones()))
    for answer, structures in ((first, (a, b, a)), (second, (b, almost)), (third, (a, c, elsewhere, c))):
        for k, atoms in enumerate(structures):
            (expected,) = fresh([request(atoms)])
            np.testing.assert_array_equal(answer.forces[k], expected.forces[0])
            np.testing.assert_array_equal(answer.virials[k], expected.virials[0])
            assert answer.energies[k] == expected.energies[0]


def test_structures_of_one_call_do_not_show_in_the_next():
    """Objects are used again. Seen to fail: the cell of the call before."""
    evaluator = Evaluator(argon(), from_calculator(lennard_jones()))
    wide = argon(1)
    wide.set_cell(1.1 * wide.cell.array, scale_atoms=True)
    (alone,) = evaluator([request(argon(1))])
    evaluator([request(wide, argon(2))])
    (again,) = evaluator([request(argon(1))])
    np.testing.assert_array_equal(alone.forces, again.forces)
    np.testing.assert_array_equal(alone.virials, again.virials)


def test_extras_travel_with_their_structure():
    evaluator = Evaluator(argon(), harmonic(0.1), extras=lambda prediction: f"{prediction.energy:.12g}")
    one, other = evaluator([request(argon(1), argon(2), argon(1)), request(argon(2))])
    assert one.extras == [f"{energy:.12g}" for energy in one.energies]
    assert other.extras == [one.extras[1]]
    assert one.extras[0] == one.extras[2] != one.extras[1]


def test_warm_up_shows_all_templates_and_counts_nothing():
    recorder = Recorder(harmonic(0.1))
    evaluator = Evaluator([argon(), Atoms("Ar")], recorder)
    evaluator.warm_up()
    assert [[len(atoms) for atoms in call] for call in recorder.calls] == [[4, 1]]
    assert evaluator.tally.evaluations == 0


def test_structures_are_wrapped_along_periodic_directions_only():
    slab = argon(1)
    slab.pbc = (True, True, False)
    moved = slab.copy()
    moved.positions += np.array([[3, -2, 4], [0, 1, 0], [-7, 0, 0], [0, 0, -5]]) @ slab.cell.array
    recorder = Recorder(harmonic(0.1))
    Evaluator(slab, recorder)([request(moved)])
    before, after = (one.get_scaled_positions(wrap=False) for one in (moved, recorder.calls[0][0]))
    np.testing.assert_allclose(after[:, :2], before[:, :2] % 1.0, atol=1e-12)
    np.testing.assert_allclose(after[:, 2], before[:, 2], atol=1e-12)


# ---- a template that is not what i-PI starts from ----


def tilted_water(pbc=True) -> Atoms:
    positions = molecule("H2O").positions + [0.0, 1.0, 0.5]
    return Atoms("OH2", positions, cell=[[7, 0, 0], [2, 6, 0], [-1, 3, 8]], pbc=pbc)


def start(template: Atoms, order=(0, 1, 2), of_positions=1.0, of_cell=1.0, move=0.0) -> Request:
    """What i-PI begins with: atoms in that order, scaled, moved, and some by lattice vectors."""
    atoms = template[list(order)]
    atoms.positions = atoms.positions * of_positions + move
    atoms.cell *= of_cell
    if template.pbc.all() and of_cell == of_positions == 1.0:
        atoms.positions += np.array([[0, 0, 0], [1, -2, 0], [0, 0, 3]]) @ atoms.cell.array
    return request(atoms)


@pytest.mark.parametrize("pbc", [True, False, [True, False, True]])
@pytest.mark.parametrize(("mistake", "said"), [
    ({"order": (1, 0, 2)}, "another order: its atom 0 is where the template has H"),
    ({"order": (2, 1, 0)}, "another order"),
    ({"of_positions": Bohr}, "positions are the template's times 0.5292"),
    ({"of_positions": 1 / Bohr}, "positions are the template's times 1.8897"),
])  # fmt: skip
def test_another_template_is_refused_at_the_start(folder, pbc, mistake, said):
    """By a run that nothing else would stop. Seen to fail with positions compared without wrapping."""
    template = tilted_water(pbc)
    evaluator = Evaluator(template, harmonic(0.1))
    with pytest.raises(ProtocolError, match=said):
        evaluator([start(template, **mistake)])
    assert not (folder / DUMP).exists()


def test_another_cell_is_refused_at_the_start():
    with pytest.raises(ProtocolError, match=r"cell is the template's times 1\.8897"):
        Evaluator(tilted_water(), harmonic(0.1))([start(tilted_water(), of_cell=1 / Bohr)])


@pytest.mark.parametrize("pbc", [True, False, [True, False, True]])
@pytest.mark.parametrize("fine", [{}, {"order": (0, 2, 1)}, {"move": 0.1}, {"order": (1, 0, 2), "move": 0.1}])
def test_what_may_be_the_template_s_structure_is_not_refused(pbc, fine):
    """Seen to fail with atoms, not elements, compared: those of an element may change places."""
    template = tilted_water(pbc)
    assert Evaluator(template, harmonic(0.1))([start(template, **fine)])


def test_only_the_start_is_compared_of_every_server():
    """Later on atoms may be anywhere."""
    template = tilted_water()
    evaluator = Evaluator(template, harmonic(0.1))
    other = start(template, (1, 0, 2))
    evaluator([start(template)])
    evaluator([other])
    evaluator.expect_another_server()
    with pytest.raises(ProtocolError):
        evaluator([other])


# ---- what is refused ----


def spoiled_positions(atom: int, value: float):
    def spoil(atoms: Atoms) -> None:
        atoms.positions[atom, 1] = value

    return spoil


def spoiled_cell(change):
    def spoil(atoms: Atoms) -> None:
        atoms.cell[:] = change(atoms.cell.array)

    return spoil


LEFT = np.diag([1.0, 1.0, -1.0])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoiled_positions(2, np.nan), "atom 2 (Ar) is at [2.611721764632472, nan, 2.8478558644085648] Å;"),
        (spoiled_positions(1, -np.inf), ", -inf, "),
        (spoiled_positions(3, 1.01 * FARTHEST), "farther than 1e+08 Å from the origin"),
        (spoiled_cell(lambda cell: np.nan * cell), "the cell is not finite"),
        (spoiled_cell(lambda cell: cell * [1, 1, 0]), "the cell has no volume"),
        (spoiled_cell(lambda cell: cell @ LEFT), "the cell is left-handed"),
        (spoiled_cell(lambda cell: cell * (0.99 * SMALLEST_VOLUME / 39.3) ** (1 / 3)), "0.099 Å^3 an atom"),
        (spoiled_cell(lambda cell: cell * 1.01 * LARGEST_STRETCH), "1.03e+09 times as large"),
        (spoiled_cell(lambda cell: cell * [[1e-3], [1], [1e3]]), "the cell is only 0.00507 Å thin"),
    ],
    ids=["nan", "infinite", "far", "cell-nan", "flat", "left", "dense", "wide", "thin"],
)
def test_structures_beyond_all_bounds_are_not_even_evaluated(folder, spoil, words):
    recorder = Recorder(harmonic(0.0))
    structures = [argon(seed) for seed in range(3)]
    spoil(structures[1])
    with pytest.raises(NoAnswer) as caught:
        Evaluator(argon(), recorder)([request(structures[0]), request(*structures[1:])])
    message = str(caught.value)
    assert message.startswith("structure 1 of the batch: ")
    assert words in message
    assert "\n" not in message
    assert recorder.calls == []
    (dumped,) = read(DUMP, index=":")
    assert dumped.info["problem"] in message
    np.testing.assert_allclose(dumped.positions, structures[1].positions, rtol=1e-6, atol=1e-6)


def gas(scale: float) -> Atoms:
    atoms = argon(1)
    atoms.set_cell(scale * atoms.cell.array, scale_atoms=True)
    return atoms


@pytest.mark.parametrize(
    "sound",
    [gas(0.5), gas(100.0), argon(2)[[3, 2, 1, 0]]],
    ids=["eight-times-as-dense", "vapor-at-a-millibar", "other-order"],
)
def test_what_happens_in_nature_is_evaluated(sound):
    """Seen to fail: the volume's bound ten times the template's."""
    drifted = sound.copy()
    drifted.positions += [3e6, -4e6, 0.0]
    for atoms in (sound, drifted):
        (answer,) = Evaluator(argon(), harmonic(0.0))([request(atoms)])
        assert answer.energies == 0.0


def test_a_left_handed_template_has_no_say_in_handedness():
    """i-PI's inputs are right-handed whatever the structure file."""
    template = argon()
    template.cell[:] = template.cell.array @ LEFT
    assert len(Evaluator(template, harmonic(0.0))([request(argon(1), template)])) == 1


def test_atoms_that_fly_away_from_a_molecule(folder):
    pair = Atoms("Ar2", [[0, 0, 0], [0, 0, 3.7]])
    evaluator = Evaluator(pair, harmonic(0.0))
    gone = pair.copy()
    gone.positions += 1e6  # all of it is no matter
    evaluator([request(gone)])
    gone.positions[1, 0] += 2.1 * LARGEST_EXTENT
    with pytest.raises(
        NoAnswer, match=r"structure 0 of the batch: atom \d \(Ar\) is 1.05e\+04 Å from the others"
    ):
        evaluator([request(gone)])
    assert not read(DUMP).pbc.any()


class Answers:
    """Zeros for every structure but the last, whose results are given."""

    def __init__(self, energy=0.0, force=0.0, virial=0.0):
        self.last = energy, force, virial

    def __call__(self, structures):
        results = harmonic(0.0)(structures)
        energy, force, virial = self.last
        results[-1].energy = energy
        results[-1].forces[2] = [0.0, 0.6 * force, -0.8 * force]
        results[-1].virial[1, 2] = virial
        return results


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        (Answers(force=1.001 * EXPLOSION), "the force on atom 2 (Ar) is 1001 eV/Å, more than 1000 eV/Å"),
        (Answers(np.nan, np.nan, np.nan), "the force on atom 2 (Ar) is nan eV/Å;"),
        (Answers(energy=np.inf), "the energy is inf eV"),
        (Answers(virial=np.nan), "the virial is [0.0, 0.0, 0.0, 0.0, 0.0, nan, "),
    ],
    ids=["explosion", "nan", "energy", "virial"],
)
def test_results_that_must_not_be_sent(folder, spoiled, words):
    """Of the third structure, whose second copy is in the first request. Seen to fail: checks of the first
    structure alone, dumps of the wrong one."""
    a, b, c = argon(1), argon(2), argon(3)
    with pytest.raises(NoAnswer) as caught:
        Evaluator(argon(), spoiled)([request(a, b, a), request(b, c, c)])
    assert str(caught.value).startswith("structure 2 of the batch: ")
    assert words in str(caught.value)
    (dumped,) = read(DUMP, index=":")
    assert dumped.info["problem"] in str(caught.value)
    distance = dumped.get_distance(0, 1, mic=True)
    assert distance == pytest.approx(c.get_distance(0, 1, mic=True), abs=1e-6)


def test_forces_up_to_the_bound_are_sent():
    (answer,) = Evaluator(argon(), Answers(force=0.999 * EXPLOSION))([request(argon(1))])
    assert np.linalg.norm(answer.forces[0, 2]) == pytest.approx(0.999 * EXPLOSION)


def test_older_dumps_are_kept(folder):
    evaluator = Evaluator(argon(), Answers(energy=np.nan))
    for number in range(3):
        with pytest.raises(NoAnswer, match=rf"mlffd-driver-failed{f'-{number + 1}' if number else ''}\.xyz$"):
            evaluator([request(argon(number))])
    assert len(list(folder.iterdir())) == 3


def test_a_dump_that_cannot_be_written_hides_nothing(folder, monkeypatch):
    monkeypatch.setattr(evaluator_module, "DUMP", "nowhere/failed.xyz")
    with pytest.raises(NoAnswer, match="the energy is nan eV; the structures cannot be written to nowhere"):
        Evaluator(argon(), Answers(energy=np.nan))([request(argon(1))])


def test_refusals_of_the_student_and_stops_of_the_guard(folder):
    def refuse(structures):
        raise StructureError("structure 1: it is too warm")

    def stop(structures):
        raise GuardError("evaluation 7: too close; frame in guard.extxyz")

    with pytest.raises(NoAnswer, match="structure 1: it is too warm; see "):
        Evaluator(argon(), refuse)([request(argon(1), argon(2))])
    assert [frame.info["problem"] for frame in read(DUMP, index=":")] == 2 * ["structure 1: it is too warm"]
    with pytest.raises(NoAnswer, match=r"^evaluation 7: too close; frame in guard.extxyz$"):
        Evaluator(argon(), stop)([request(argon(1))])
    assert len(list(folder.iterdir())) == 1


# ---- how exact it is ----


def tilted() -> Atoms:
    """Liquid water in a triclinic cell, in i-PI's orientation; molecules keep their shape, nearly."""
    atoms = read(WATER)
    cell = atoms.cell.array.copy()
    cell[1, 0], cell[2, 0], cell[2, 1] = 0.6, -0.4, 0.5
    atoms.set_cell(cell, scale_atoms=True)
    return atoms


@pytest.fixture(scope="module")
def water() -> Engine:
    return Engine("water", dtype="float64")


@pytest.fixture
def asked(folder):
    """A function that asks the student behind a connection for a structure."""
    talks = []

    def start(atoms: Atoms, engine: Engine):
        talks.append(Talk(atoms, engine.evaluate))
        return lambda changed: ask(talks[-1].servers[0], changed)

    yield start
    for talk in talks:
        talk.close()


def strained(atoms: Atoms, a: int, b: int, strain: float) -> Atoms:
    """With the deformation 1 + strain, in i-PI's columns."""
    deformation = np.eye(3)
    deformation[a, b] += strain
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell.array @ deformation.T, scale_atoms=True)
    return atoms


@pytest.mark.parametrize("structure", [lambda: read(WATER), tilted], ids=["orthorhombic", "triclinic"])
def test_virial_and_forces_are_derivatives_of_the_energy(asked, water, structure):
    """Every component of the virial to 1e-6, forces to 1e-5 of the largest; extrapolated from two steps.

    Seen to fail: a transposed cell (triclinic), a virial of half a percent more."""
    atoms = structure()
    answer = asked(atoms, water)
    _, forces, virial = answer(atoms)

    def derivative(changed, step: float) -> float:
        coarse, fine = ((answer(changed(h))[0] - answer(changed(-h))[0]) / (2 * h) for h in (2 * step, step))
        return (4 * fine - coarse) / 3

    numerical = [
        [-derivative(lambda h, a=a, b=b: strained(atoms, a, b, h), 2e-4) for b in range(3)] for a in range(3)
    ]
    np.testing.assert_allclose(virial, numerical, rtol=1e-6)
    off_diagonal = np.abs(virial[np.triu_indices(3, 1)])
    assert off_diagonal.max() > 1e-3 * np.abs(virial).max()

    def moved(h: float, atom: int, axis: int) -> Atoms:
        changed = atoms.copy()
        changed.positions[atom, axis] += h
        return changed

    for atom, axis in ((0, 0), (1, 1), (100, 2), (191, 0)):
        numerical = -derivative(lambda h, at=(atom, axis): moved(h, *at), 2e-3)
        assert forces[atom, axis] == pytest.approx(numerical, abs=1e-5 * np.abs(forces).max())


def test_atoms_far_away_and_moved_together_feel_the_same(asked):
    """In float32, a hundred thousand cells off: seen to fail with positions cast before they are wrapped."""
    engine = Engine("water", dtype="float32")
    atoms = tilted()
    answer = asked(atoms, engine)
    energy, forces, virial = answer(atoms)
    rng = np.random.default_rng(0)
    far = atoms.copy()
    far.positions += rng.integers(-80_000, 80_000, (len(atoms), 3)) @ atoms.cell.array
    assert np.abs(far.positions).max() > 1e6
    shifted = atoms.copy()
    shifted.positions += [0.3, -20.7, 4.4]
    for changed in (far, shifted):
        again = answer(changed)
        assert again[0] == pytest.approx(energy, abs=1e-4)
        np.testing.assert_allclose(again[1], forces, atol=1e-4)
        np.testing.assert_allclose(again[2], virial, atol=2e-3)


@pytest.mark.parametrize("pbc", [(0, 0, 0), (1, 1, 0)], ids=["molecules", "slab"])
def test_directions_without_images(asked, water, pbc):
    """Whatever box i-PI puts around them: here one that cuts through. Seen to fail: periodic in all three."""
    atoms = tilted() if any(pbc) else molecule("H2O")
    atoms.pbc = pbc
    atoms.cell[2] = [0.0, 0.0, 5.0] if not any(pbc) else atoms.cell[2]
    (expected,) = water.evaluate([atoms])
    sent = atoms.copy()
    sent.cell = sent.cell.array if any(pbc) else np.diag([2.0, 2.0, 2.0])
    sent.positions += [7.0, 0.0, 3.0]
    energy, forces, _ = asked(atoms, water)(sent)
    assert energy == pytest.approx(expected.energy, abs=1e-8)
    np.testing.assert_allclose(forces, expected.forces, atol=1e-8)


def test_beads_in_any_order_keep_their_neighbor_lists(folder):
    """32 beads, in batches that split differently from step to step, with atoms that cross the boundary.

    Seen to fail: 29 lists a step, where lists were looked for by their place in the batch.
    """
    engine = Engine("water")
    atoms = read(WATER)
    rng = np.random.default_rng(1)
    beads = atoms.positions + rng.normal(scale=0.12, size=(32, 192, 3))
    velocities = rng.normal(scale=0.003, size=(192, 3))
    talk = Talk(atoms, engine.evaluate, batch_size=32)
    n_built = []
    for step in range(6):
        order = rng.permutation(32)
        first = int(rng.integers(1, 32))
        for part in (order[:first], order[first:]):
            structures = [Atoms(atoms.numbers, beads[k] + step * velocities, cell=atoms.cell) for k in part]
            ask_batch(talk.servers[0], structures)
        n_built.append(engine.neighbor_lists.n_builds)
    talk.close()
    assert n_built[0] == 32
    assert n_built[-1] == 32
    assert talk.evaluator.tally.structures == 6 * 32


def box_of_water(n_molecules: int, pbc, rng) -> Atoms:
    """Molecules on a grid, each turned at random, in a triclinic cell that is left-handed now and then."""
    at = np.array(list(np.ndindex(2, 2, 2)))[:n_molecules] * 3.1
    turns = np.linalg.qr(rng.normal(size=(n_molecules, 3, 3)))[0]
    positions = molecule("H2O").positions @ turns + at[:, None]
    tilts = np.tril(rng.uniform(-0.45, 0.45, (3, 3)), -1)
    cell = 6.2 * (np.diag([1, 1, rng.choice([1, -1])]) + tilts)
    return Atoms(n_molecules * "OH2", positions.reshape(-1, 3), cell=cell, pbc=pbc)


def next_beads(beads: list[Atoms], rng) -> list[Atoms]:
    """A step, now and then with a strain, jumps by lattice vectors, a flight, or cells that change beads."""
    beads, what = [atoms.copy() for atoms in beads], rng.choice(["step", "strain", "jumps", "flight", "swap"])
    for atoms in beads:
        atoms.positions += rng.normal(scale=0.02, size=atoms.positions.shape)
        if what == "strain":
            atoms.set_cell(
                atoms.cell.array @ (np.eye(3) + rng.normal(scale=0.02, size=(3, 3))), scale_atoms=True
            )
        elif what == "jumps":
            atoms.positions += rng.integers(-3, 4, (len(atoms), 3)) * atoms.pbc @ atoms.cell.array
        elif what == "flight":
            atoms.positions += rng.normal(scale=5.0, size=3)
    if what == "swap":
        cells = [atoms.cell.array.copy() for atoms in beads]
        for atoms, k in zip(beads, rng.permutation(len(beads))):
            atoms.cell[:] = cells[k]
    return beads


@pytest.mark.parametrize("seed", range(6))
def test_whatever_came_before_the_answer_is_that_of_a_fresh_student(folder, seed):
    """Several systems, beads in any order, some twice or in another cell, chunks of any size; against plain
    PyTorch without kept neighbor lists, on the structures as they were sent. Seen to fail: the list of the
    place taken without a look, repeats found by their positions alone, cells transposed in wrapping."""
    rng = np.random.default_rng(seed)
    dtype, tolerance = ("float32", 1e-4) if seed % 2 else ("float64", 1e-9)
    fresh = Engine("water", dtype="float64", backend="reference", skin=0.0)
    directions = rng.permutation([[1, 1, 1], [0, 0, 0], [1, 0, 1]])
    systems = [box_of_water(n, pbc, rng) for n, pbc in zip((8, 5, 3), directions)]
    engine = Engine("water", dtype=dtype, max_batch_atoms=int(rng.choice([1, 40, 5000])))
    evaluator = Evaluator(systems, engine.evaluate)
    runs = [[atoms.copy() for _ in range(4)] for atoms in systems]
    for _ in range(5):
        runs = [next_beads(beads, rng) for beads in runs]
        asked = [
            [runs[k][bead] for bead in rng.integers(4, size=rng.integers(1, 6))]
            for k in rng.permutation(3)[:2]
        ]
        asked[0].append(Atoms(asked[0][0], cell=strained(asked[0][0], 0, 1, 1e-3).cell))
        for structures, answer in zip(asked, evaluator([request(*structures) for structures in asked])):
            for k, expected in enumerate(fresh.evaluate(structures)):
                scale = max(1.0, np.abs(expected.forces).max())
                assert answer.energies[k] == pytest.approx(expected.energy, rel=tolerance)
                np.testing.assert_allclose(answer.forces[k], expected.forces, atol=tolerance * scale)
                np.testing.assert_allclose(answer.virials[k], expected.virial, atol=10 * tolerance * scale)
