# SPDX-License-Identifier: MIT
"""Sampling: packed boxes, seeds, frames cut where a run blew up, nothing run twice."""

from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.lj import LennardJones
from ase.lattice.cubic import FaceCenteredCubic

from mlffd.dataset.pack import density, packed_box
from mlffd.dataset.plan import plan
from mlffd.dataset.sample import sample
from mlffd.drivers.ase_calculator import Calculator
from mlffd.engine import Engine
from mlffd.errors import ConfigError, MlffdError, TeacherError
from mlffd.students import build_student

ARGON = {"name": "lj", "epsilon": 0.0104, "sigma": 3.4, "rc": 6.0}


def config(**changes):
    stage = {
        "name": "liquid",
        "composition": {"Ar": 8},
        "temperatures": [90],
        "densities": [1.2],
        "time_step": 5.0,
        "equilibration": 20,
        "interval": 10,
        "frames": 3,
    }
    return {"seed": 7, "calculator": ARGON, "stages": [{**stage, **changes}]}


def positions(path):
    return np.array([atoms.positions for atoms in ase.io.read(path, ":")])


@pytest.mark.parametrize(
    ("composition", "rho"),
    [
        ({"H2O": 20}, 1.0),
        ({"CH3OH": 6, "Ne": 5}, 0.9),
        ({"benzene.xyz": 8, "H2O": 12}, 0.9),
        ({"C6H6": 16}, 1.3),
    ],
)
def test_packed_box(tmp_path, composition, rho):
    """Atoms of different molecules have room, those of one are where they were to each other.

    Seen to fail: molecules not turned (benzene), moved the wrong way, atoms moved one by one.
    """
    ase.io.write(tmp_path / "benzene.xyz", molecule("C6H6"))
    box = packed_box(composition, rho, np.random.default_rng(3), tmp_path)
    assert density(box) == pytest.approx(rho)
    assert box.pbc.all()
    molecules = [
        molecule("C6H6" if name == "benzene.xyz" else name) if name != "Ne" else Atoms("Ne")
        for name, count in composition.items()
        for _ in range(count)
    ]
    number = np.repeat(np.arange(len(molecules)), [len(m) for m in molecules])
    distances = box.get_all_distances(mic=True)
    assert distances[number[:, None] != number].min() > 1.6
    for k, expected in enumerate(molecules):
        own = box[number == k]
        assert (own.numbers == expected.numbers).all()
        np.testing.assert_allclose(own.get_all_distances(), expected.get_all_distances(), atol=1e-9)


def test_molecule_files_that_cannot_be_used(tmp_path):
    (tmp_path / "empty.xyz").write_text("")
    for name, says in (("empty.xyz", "cannot read a molecule"), ("nowhere.xyz", "cannot read a molecule")):
        with pytest.raises(ConfigError, match=says):
            packed_box({name: 2}, 1.0, np.random.default_rng(0), tmp_path)


def test_density_of_water_by_hand():
    """One molecule of 18.015 amu in 29.915 Å^3 is 1 g/cm3."""
    assert density(Atoms("OHH", cell=[29.915, 1, 1], pbc=True)) == pytest.approx(1.0, abs=2e-4)


@pytest.mark.parametrize(
    ("composition", "rho", "says"),
    [
        ({"H2X": 3}, 1.0, "H2X"),
        ({"H2O": 8}, 9.0, "lower the density"),
        ({"Ar": 2}, -1, "above zero"),
        ({}, 1.0, "empty"),
        ({"H2O": 2.5}, 1.0, "whole number, not 2.5"),
        ({"H2O": -1}, 1.0, "whole number, not -1"),
    ],
)
def test_boxes_that_cannot_be(composition, rho, says):
    with pytest.raises(ConfigError, match=says):
        packed_box(composition, rho, np.random.default_rng(0))


def test_same_seed_same_frames_and_each_trajectory_its_own(tmp_path):
    wanted = config(temperatures=[90, 120], replicas=2)
    report = sample(wanted, tmp_path / "a.xyz")
    sample(wanted, tmp_path / "b.xyz")
    sample({**wanted, "seed": 8}, tmp_path / "c.xyz")
    a, b, c = (positions(tmp_path / name) for name in ("a.xyz", "b.xyz", "c.xyz"))
    np.testing.assert_array_equal(a, b)
    assert report["frames"] == len(a) == 12
    assert abs(a - c).max(axis=(1, 2)).min() > 1e-3
    assert abs(a[0] - a[3]).max() > 1e-3  # another replica
    info = ase.io.read(tmp_path / "a.xyz", 7).info
    assert (info["stage"], info["temperature"], info["density"]) == ("liquid", 120.0, 1.2)


def test_runs_are_as_hot_as_they_should_be(tmp_path):
    temperatures = []

    class Thermometer(LennardJones):
        def calculate(self, atoms, *args):
            temperatures.append(atoms.get_temperature())
            super().calculate(atoms, *args)

    sample(
        config(composition={"Ar": 27}, interval=400, frames=1, equilibration=0, relax=20),
        tmp_path / "a.xyz",
        load_calculator=lambda spec: Thermometer(**{k: v for k, v in spec.items() if k != "name"}),
    )
    assert np.mean(temperatures[150:]) == pytest.approx(90, abs=25)


class Exploding(LennardJones):
    """Lennard-Jones until its n-th evaluation; then the forces go wrong."""

    def __init__(self, after, wrong, **settings):
        super().__init__(**settings)
        self.n_calls, self.after, self.wrong = 0, after, wrong

    def calculate(self, atoms, *args):
        super().calculate(atoms, *args)
        self.n_calls += 1
        if self.n_calls > self.after:
            self.wrong(self)


def thrown(calculator):
    calculator.results["forces"][0] += 1e3


def not_a_number(calculator):
    calculator.results["forces"][0] = np.nan


def raised(calculator):
    raise MlffdError("the student returned NaN")


@pytest.mark.parametrize("wrong", [thrown, not_a_number, raised])
def test_a_blown_up_run_is_cut_at_its_last_sane_frame(tmp_path, wrong):
    calculator = Exploding(45, wrong, epsilon=0.0104, sigma=3.4, rc=6.0)
    report = sample(config(frames=6), tmp_path / "a.xyz", load_calculator=lambda spec: calculator)
    run = report["trajectories"][0]
    assert (run["kept"], run["wanted"]) == (2, 6)  # at steps 30 and 40
    assert run["cut_because"]
    # those kept are the very frames of a run that is not disturbed
    sample(config(frames=6), tmp_path / "b.xyz")
    np.testing.assert_array_equal(positions(tmp_path / "a.xyz"), positions(tmp_path / "b.xyz")[:2])


def test_atoms_on_top_of_each_other_are_no_frame(tmp_path):
    """A force field may be calm where atoms fuse; the sampler is not."""
    ase.io.write(
        tmp_path / "start.xyz", Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.2]], cell=[9] * 3, pbc=True)
    )
    wanted = config(composition=None, densities=None, start="start.xyz", time_step=0.001)
    with pytest.raises(MlffdError, match="not one frame"):
        sample(
            wanted,
            tmp_path / "a.xyz",
            load_calculator=lambda spec: LennardJones(epsilon=0),
            directory=tmp_path,
        )


def test_a_broken_set_up_is_no_blow_up(tmp_path):
    def broken(calculator):
        raise ValueError("box too small")

    with pytest.raises(TeacherError, match="box too small"):
        sample(config(), tmp_path / "a.xyz", load_calculator=lambda spec: Exploding(0, broken))


def test_a_finished_trajectory_is_not_run_again(tmp_path):
    wanted = config(temperatures=[90, 120])
    calculator = Exploding(60, interrupted, epsilon=0.0104, sigma=3.4, rc=6.0)
    with pytest.raises(KeyboardInterrupt):
        sample(wanted, tmp_path / "a.xyz", load_calculator=lambda spec: calculator)
    assert not (tmp_path / "a.xyz").exists()

    counting = Exploding(10**9, interrupted, epsilon=0.0104, sigma=3.4, rc=6.0)
    sample(wanted, tmp_path / "a.xyz", load_calculator=lambda spec: counting)
    assert counting.n_calls < 60  # one of two trajectories of 50 steps
    sample(wanted, tmp_path / "b.xyz")
    assert (tmp_path / "a.xyz").read_bytes() == (tmp_path / "b.xyz").read_bytes()

    before = counting.n_calls
    sample(wanted, tmp_path / "a.xyz", load_calculator=lambda spec: counting)
    assert counting.n_calls == before


def interrupted(calculator):
    raise KeyboardInterrupt


def test_a_trajectory_does_not_depend_on_the_one_before(tmp_path):
    """Which a run that goes on after a kill has not done. Seen to fail: a calculator that remembers it."""

    class Remembering(LennardJones):
        """Answers with what it has in mind, such as a wave function."""

        def reset(self):
            super().reset()
            self.in_mind = 0.0

        def calculate(self, atoms, *args):
            super().calculate(atoms, *args)
            self.in_mind = 0.5 * (getattr(self, "in_mind", 0.0) + self.results["forces"][0, 0])
            self.results["forces"][0, 0] = self.in_mind

    def run(temperatures, name):
        load = lambda spec: Remembering(epsilon=0.0104, sigma=3.4, rc=6.0)  # noqa: E731
        sample(config(temperatures=temperatures), tmp_path / name, load)
        return positions(tmp_path / name)

    np.testing.assert_array_equal(run([60, 90], "a.xyz")[3:], run([90], "b.xyz"))


def test_start_frames_of_the_nearest_density_are_scaled_to_it(tmp_path):
    rng = np.random.default_rng(0)
    ase.io.write(tmp_path / "start.xyz", [packed_box({"Ar": 8}, rho, rng) for rho in (0.8, 1.2, 1.4)])
    wanted = config(composition=None, start="start.xyz", densities=[1.25], replicas=3)
    sample(wanted, tmp_path / "a.xyz", directory=tmp_path)
    assert [density(a) for a in ase.io.read(tmp_path / "a.xyz", ":")] == pytest.approx([1.25] * 9, rel=1e-6)
    keys = [t.key for t in plan(wanted, tmp_path)]
    ase.io.write(tmp_path / "start.xyz", packed_box({"Ar": 8}, 1.2, rng))
    assert not set(keys) & {t.key for t in plan(wanted, tmp_path)}  # other starts, other trajectories


def test_charge_and_spin_of_a_start_stay_with_its_frames(tmp_path):
    """Seen to fail: frames of an ion were labelled as neutral."""
    start = packed_box({"Ar": 8}, 1.2, np.random.default_rng(0))
    start.info = {"charge": 2, "spin": 3, "note": "mine"}
    ase.io.write(tmp_path / "start.xyz", start)
    sample(config(composition=None, start="start.xyz"), tmp_path / "a.xyz", directory=tmp_path)
    frames = ase.io.read(tmp_path / "a.xyz", ":")
    assert [(atoms.info["charge"], atoms.info["spin"]) for atoms in frames] == [(2, 3)] * len(frames)
    assert "note" not in frames[0].info


def test_rattled_frames_are_the_stated_fraction(tmp_path):
    sample(config(frames=10, rattle_fraction=0.3, rattle_stdev=[0.1, 0.2]), tmp_path / "a.xyz")
    rattles = [a.info.get("rattle") for a in ase.io.read(tmp_path / "a.xyz", ":")]
    found = [r for r in rattles if r is not None]
    assert len(found) == 3
    assert all(0.1 <= r <= 0.2 for r in found)


def test_strained_frames_are_the_stated_fraction(tmp_path):
    """Cell and atoms together, others than the rattled ones. Seen to fail: the cell alone strained."""
    crystal = FaceCenteredCubic("Ar", size=(2, 2, 2), latticeconstant=5.4)
    ase.io.write(tmp_path / "start.xyz", crystal)
    still = dict(composition=None, densities=None, start="start.xyz", temperatures=[1e-6], time_step=1e-3)
    wanted = config(frames=10, strain_fraction=0.4, rattle_fraction=0.3, **still)
    sample(wanted, tmp_path / "a.xyz", directory=tmp_path)
    frames = ase.io.read(tmp_path / "a.xyz", ":")
    strained = [atoms for atoms in frames if "strain" in atoms.info]
    assert len(strained) == 4
    assert [("rattle" in atoms.info) + ("strain" in atoms.info) for atoms in frames].count(1) == 7
    for atoms in strained:
        assert 0.01 <= atoms.info["strain"] <= 0.03
        strain = np.linalg.solve(crystal.cell.array, atoms.cell.array) - np.eye(3)
        np.testing.assert_allclose(strain, strain.T, atol=1e-7)
        assert 0.001 < np.abs(strain).max() < 0.12
        moved = atoms.get_scaled_positions(wrap=False) - crystal.get_scaled_positions(wrap=False)
        np.testing.assert_allclose(moved, 0.0, atol=1e-5)


def test_molecules_in_vacuum_cannot_be_strained(tmp_path):
    ase.io.write(tmp_path / "start.xyz", Atoms("Ar2", positions=[[0, 0, 0], [3.8, 0, 0]]))
    wanted = config(composition=None, densities=None, start="start.xyz", strain_fraction=0.5)
    with pytest.raises(ConfigError, match="without a cell cannot be strained"):
        sample(wanted, tmp_path / "a.xyz", directory=tmp_path)
    sample(
        config(composition=None, densities=None, start="start.xyz"), tmp_path / "a.xyz", directory=tmp_path
    )
    assert "density" not in ase.io.read(tmp_path / "a.xyz").info


def test_several_start_files(tmp_path):
    """Each at the density it is nearest to. Seen to fail: the first file only."""
    rng = np.random.default_rng(0)
    for name, rho in (("thin.xyz", 0.8), ("dense.xyz", 1.4)):
        ase.io.write(tmp_path / name, packed_box({"Ar": 8 if rho < 1 else 7}, rho, rng))
    wanted = config(composition=None, start=["thin.xyz", "dense.xyz"], densities=[0.8, 1.4])
    sample(wanted, tmp_path / "a.xyz", directory=tmp_path)
    assert [len(atoms) for atoms in ase.io.read(tmp_path / "a.xyz", ":")] == [8, 8, 8, 7, 7, 7]
    keys = [t.key for t in plan(wanted, tmp_path)]
    ase.io.write(tmp_path / "dense.xyz", packed_box({"Ar": 7}, 1.4, rng))
    assert not set(keys) & {t.key for t in plan(wanted, tmp_path)}


def test_a_box_of_molecules_from_a_file(tmp_path):
    """Another content of the file, another trajectory."""
    ase.io.write(tmp_path / "dimer.xyz", Atoms("Ar2", positions=[[0, 0, 0], [3.8, 0, 0]]))
    wanted = config(composition={"dimer.xyz": 3, "Ar": 2})
    sample(wanted, tmp_path / "a.xyz", directory=tmp_path)
    assert len(ase.io.read(tmp_path / "a.xyz")) == 8
    keys = [t.key for t in plan(wanted, tmp_path)]
    ase.io.write(tmp_path / "dimer.xyz", Atoms("Ar2", positions=[[0, 0, 0], [3.7, 0, 0]]))
    assert not set(keys) & {t.key for t in plan(wanted, tmp_path)}


def test_a_student_runs_a_stage_in_one_batch(tmp_path):
    """With the frames that it would give one by one. Seen to fail: one seed for the batch."""
    sizes = {"family": "lennard_jones", "species": [18], "cutoff": 5.0, "epsilon": [0.0104], "sigma": [3.4]}
    engine, batches = Engine(build_student(sizes), dtype="float64"), []

    def evaluate(structures):
        batches.append(len(structures))
        return engine.evaluate(structures)

    wanted = config(temperatures=[60, 90], replicas=2)
    sample(wanted, tmp_path / "a.xyz", lambda spec: SimpleNamespace(evaluate=evaluate))
    assert set(batches) == {4}
    sample(wanted, tmp_path / "b.xyz", lambda spec: Calculator(engine))
    assert (tmp_path / "a.xyz").read_bytes() == (tmp_path / "b.xyz").read_bytes()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"temperatuers": [300]}, "did you mean 'temperatures'"),
        ({"composition": None}, "either start or composition"),
        ({"start": "x.xyz"}, "either start or composition"),
        ({"densities": None}, "needs densities"),
        ({"thermostat": "bussi"}, "unknown key 'thermostat'"),
        ({"start": [], "composition": None}, "empty list"),
        ({"rattle_fraction": 1.5}, "between 0 and 1"),
        ({"strain_stdev": [0.02]}, "two numbers"),
        ({"frames": 0}, "at least 1"),
        ({"frames": "ten"}, "frames must be"),
        ({"temperatures": []}, "above zero"),
        ({"temperatures": ["hot"]}, "above zero"),
        ({"densities": [-1.0]}, "densities must be above zero"),
        ({"time_step": 0.0}, "time_step"),
        ({"relax": -1}, "0 or more"),
        ({"calculator": None}, "calculator is missing"),
        ({"start": "nowhere.xyz", "composition": None}, "cannot read start structures"),
    ],
)
def test_configs_that_cannot_be_meant(tmp_path, changes, says):
    with pytest.raises(ConfigError, match=says):
        sample(config(**changes), tmp_path / "a.xyz")


def test_no_stages(tmp_path):
    with pytest.raises(ConfigError, match="no \\[\\[stages\\]\\]"):
        sample({"calculator": ARGON}, tmp_path / "a.xyz")
