# SPDX-License-Identifier: MIT
"""The on-policy step: what is run, what is chosen, what is said of it, and that it is the same each time."""

import json
from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.lj import LennardJones
from ase.lattice.cubic import FaceCenteredCubic

import mlffd.explore as explore_module
from mlffd.__main__ import main
from mlffd.bundle import write_bundle
from mlffd.dataset.label_file import LabelledSet
from mlffd.dataset.pack import density
from mlffd.dataset.select import novelties
from mlffd.dataset.store import LabelStore, frames_hash
from mlffd.dynamics import Trajectories
from mlffd.engine import Engine
from mlffd.errors import ConfigError, MlffdError
from mlffd.evaluation import evaluate_atoms, evaluate_with
from mlffd.explore import Exploration, environments, explore, force_spread, most_in_each
from mlffd.replicas import overlap
from mlffd.students import build_student
from mlffd.train.loop import TrainConfig, train

SETTINGS = Exploration(
    temperatures=[40.0, 120.0], densities=[1.4, 1.6], frames=6, steps=100, interval=25, time_step=5.0
)
TINY = dict(family="local", species=[18], cutoff=5.0, n_radial=4, l_max=1, channels=2, hidden=[6])


def argon(seed=0, stretch=1.0):
    atoms = FaceCenteredCubic("Ar", size=(2, 2, 2), latticeconstant=5.4 * stretch)
    atoms.rattle(0.15, seed=seed)
    return atoms


KNOWN = [argon(seed) for seed in range(4)]


@pytest.fixture
def never_lost(monkeypatch):
    """Students that nobody trained soon are."""
    monkeypatch.setattr(explore_module, "LOST", np.inf)


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """Three that nobody trained; their energies are small, and the repulsion keeps atoms apart."""
    folder = tmp_path_factory.mktemp("students")
    for seed in range(3):
        torch.manual_seed(seed)
        write_bundle(folder / f"{seed}.mlffd", build_student(TINY))
    return [folder / f"{seed}.mlffd" for seed in range(3)]


def test_frames_and_report(students, tmp_path, never_lost):
    """Seen to fail: one start for all runs."""
    settings = replace(SETTINGS, replicas=2)
    report = explore(students[:1], settings, KNOWN, tmp_path / "new.xyz")
    assert report == json.loads((tmp_path / "new.xyz.json").read_text())
    runs = report["trajectories"]
    assert [run["title"] for run in runs][:3] == [
        "40 K 1.4 g/cm3 #0",
        "40 K 1.4 g/cm3 #1",
        "40 K 1.6 g/cm3 #0",
    ]
    assert (len(runs), report["n_cut"], report["candidates"], report["chosen"]) == (8, 0, 32, 6)
    assert {run["steps"] for run in runs} == {100}
    frames = ase.io.read(tmp_path / "new.xyz", ":")
    assert len(frames) == 6
    assert len({(a.info["temperature"], a.info["density"]) for a in frames}) == 4  # conditions took turns
    for atoms in frames:
        assert density(atoms) == pytest.approx(atoms.info["density"], abs=1e-5)
        assert min(abs(atoms.info["density"] - rho) for rho in (1.4, 1.6)) < 1e-5
        assert atoms.info["step"] in (25, 50, 75, 100)
        assert overlap(atoms) is None
    assert report["novelty"]["chosen"]["median"] > report["novelty"]["rest"]["median"]


def test_same_seed_same_frames(students, tmp_path, never_lost):
    """Whatever ran beside a trajectory. Seen to fail: random numbers by place in the batch."""

    def chosen(name, **changes):
        explore(students[:1], replace(SETTINGS, **changes), KNOWN, tmp_path / name)
        return {
            (a.info["trajectory"], a.info["step"]): a.positions for a in ase.io.read(tmp_path / name, ":")
        }

    chosen("a.xyz")
    first = chosen("b.xyz", frames=16)
    assert (tmp_path / "a.xyz").read_bytes() == write_again(students, tmp_path).read_bytes()
    fewer = chosen("c.xyz", temperatures=[120.0], frames=8)
    assert len(fewer) == 8
    for run, positions in fewer.items():
        np.testing.assert_array_equal(first[run], positions)
    assert not set(first) & set(chosen("d.xyz", seed=1, frames=16))


def write_again(students, tmp_path):
    explore(students[:1], SETTINGS, KNOWN, tmp_path / "again.xyz")
    return tmp_path / "again.xyz"


def test_what_is_finished_is_not_done_again(students, tmp_path, monkeypatch):
    """Unless students, settings, starts or what is known are others."""
    ase.io.write(tmp_path / "start.xyz", argon(7))
    settings = replace(SETTINGS, start=["start.xyz"])
    report = explore(students[:1], settings, KNOWN, tmp_path / "new.xyz", tmp_path)

    class Begun(Exception):
        pass

    def begin(*arguments, **settings):
        raise Begun

    monkeypatch.setattr(explore_module, "Trajectories", begin)
    assert explore(students[:1], settings, KNOWN, tmp_path / "new.xyz", tmp_path) == report
    for others in (
        (students[1:2], settings, KNOWN),
        (students[:1], replace(settings, seed=1), KNOWN),
        (students[:1], settings, KNOWN[1:]),
    ):
        with pytest.raises(Begun):
            explore(*others, tmp_path / "new.xyz", tmp_path)
    ase.io.write(tmp_path / "start.xyz", argon(8))
    with pytest.raises(Begun):
        explore(students[:1], settings, KNOWN, tmp_path / "new.xyz", tmp_path)


def test_killed_and_begun_again(students, tmp_path, monkeypatch):
    """Nothing half is left, and the frames are those of an undisturbed step."""
    with monkeypatch.context() as patch:
        patch.setattr(explore_module.json, "dumps", interrupted)  # after the frames, before the report
        with pytest.raises(KeyboardInterrupt):
            explore(students[:1], SETTINGS, KNOWN, tmp_path / "new.xyz")
    explore(students[:1], SETTINGS, KNOWN, tmp_path / "new.xyz")
    assert (tmp_path / "new.xyz").read_bytes() == write_again(students, tmp_path).read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{name}.xyz{end}" for name in ("new", "again") for end in ("", ".json")
    }


def interrupted(*arguments, **settings):
    raise KeyboardInterrupt


def test_frames_from_before_a_cut(students, tmp_path, never_lost):
    """They are sane, and candidates; runs at 5 K go on. Seen to fail: only frames at intervals."""
    settings = replace(
        SETTINGS, max_force=0.9, temperatures=[5.0, 2000.0], frames=100, steps=200, interval=40
    )
    report = explore(students[:1], settings, KNOWN, tmp_path / "new.xyz")
    cold, hot = report["trajectories"][:2], report["trajectories"][2:]
    assert [run["cut_because"] for run in cold] == [None, None]
    assert report["n_cut"] == 2
    frames = ase.io.read(tmp_path / "new.xyz", ":")
    for run in hot:
        assert "largest force is" in run["cut_because"]
        assert 0 < run["steps"] < 200
    last = [max(a.info["step"] for a in frames if a.info["trajectory"] == name) for name in hot_names(frames)]
    assert last == [run["steps"] for run in hot]
    assert any(a.info["step"] % 40 for a in frames)
    engine = Engine(students[0])
    for prediction in engine.evaluate(frames):
        assert np.linalg.norm(prediction.forces, axis=1).max() < 0.9 + 1e-4


def hot_names(frames):
    """Of trajectories at 2000 K, in order of appearance by density."""
    hot = sorted((a.info["density"], a.info["trajectory"]) for a in frames if a.info["temperature"] == 2000.0)
    return list(dict.fromkeys(name for _, name in hot))


def test_every_run_cut_at_its_start(students, tmp_path):
    with pytest.raises(MlffdError, match="every run blew up at its start"):
        explore(students[:1], replace(SETTINGS, max_force=1e-6), KNOWN, tmp_path / "new.xyz")
    assert not list(tmp_path.iterdir())


# ---- committees ----


def test_force_spread_by_hand(students):
    """Seen to fail: the spread of all components at once; the worst atom."""
    engines = [Engine(path, dtype="float64") for path in students]
    forces = np.array([engine.evaluate(KNOWN[0])[0].forces for engine in engines])
    per_atom = ((forces - forces.mean(axis=0)) ** 2).mean(axis=0).sum(axis=1)
    spread = force_spread(engines, [KNOWN[0], argon().repeat((1, 1, 2))])
    assert spread[0] == pytest.approx(np.sqrt(per_atom.mean()))
    assert force_spread(engines[:1] * 2, KNOWN) == pytest.approx(0.0, abs=1e-12)
    coinciding = argon()
    coinciding.positions[1] = coinciding.positions[0]
    assert np.isinf(force_spread(engines, [coinciding])[0])


def test_a_committee_chooses_what_it_disputes(students, tmp_path, never_lost):
    report = explore(students, replace(SETTINGS, selection="committee"), KNOWN, tmp_path / "new.xyz")
    assert report["chosen"] == 6
    assert report["novelty"]["of"].endswith("eV/Å")
    assert report["novelty"]["chosen"]["median"] > report["novelty"]["rest"]["median"]


def test_most_disputed_of_each_condition():
    values = np.array([1.0, 2.0, np.inf, 4.0, 0.1, 0.3, 0.2, 0.0])
    conditions = ["a"] * 4 + ["b"] * 4
    assert most_in_each(values, conditions, 1).tolist() == [0, 1, 3, 4, 5, 6]


def test_random_frames_to_compare_with(students, tmp_path):
    report = explore(students[:1], replace(SETTINGS, selection="random"), KNOWN, tmp_path / "new.xyz")
    assert report["chosen"] == 6


# ---- what it is for ----


def labelled(structures) -> LabelledSet:
    calculator = LennardJones(epsilon=0.0104, sigma=3.4, rc=5.0, smooth=True)
    said = [evaluate_atoms(calculator, atoms) for atoms in structures]
    energies, forces, stresses = zip(*((one.energy, one.forces, one.stress) for one in said))
    teacher = {"teacher": {"name": "lj"}, "n_frames": len(structures), "failed": {}}
    return LabelledSet(
        list(structures),
        np.array(energies),
        list(forces),
        np.array(stresses),
        teacher,
        frames_hash(structures),
    )


@pytest.mark.slow
def test_what_is_new_is_where_errors_are(tmp_path):
    """A small student of cold argon, run at several temperatures: its errors rise with novelty.

    Seen to fail: runs that are never lost.
    """
    teacher = evaluate_with(LennardJones(epsilon=0.0104, sigma=3.4, rc=5.0, smooth=True))
    md = Trajectories([argon()], teacher, 5.0, 40.0, seed=1)
    known = []
    for _ in range(16):
        md.run(20)
        known.append(md.structures[0].copy())
    sizes = {"family": "local", "cutoff": 5.0, "n_radial": 6, "l_max": 1, "channels": 6, "hidden": [16, 16]}
    train(labelled(known), sizes, TrainConfig(epochs=25), tmp_path / "argon.mlffd")
    settings = replace(
        SETTINGS, temperatures=[30.0, 60.0, 120.0, 300.0], densities=None, frames=1000, steps=200
    )
    report = explore([tmp_path / "argon.mlffd"], settings, known, tmp_path / "new.xyz")
    candidates = ase.io.read(tmp_path / "new.xyz", ":")
    engine = Engine(tmp_path / "argon.mlffd")
    errors = [
        np.sqrt(((found.forces - expected) ** 2).mean())
        for found, expected in zip(engine.evaluate(candidates), labelled(candidates).forces)
    ]
    new = novelties(environments(engine.student, candidates), environments(engine.student, known))
    ranks = np.argsort(np.argsort([new, errors], axis=1), axis=1)
    assert np.corrcoef(ranks)[0, 1] > 0.6
    # at 300 K it invents a solid of its own; of that the first frame is worth a label
    lost = [run["cut_because"] for run in report["trajectories"]]
    assert lost[:2] == [None, None]
    assert "left all that is known" in lost[3]
    strange = [
        atoms.info["trajectory"] for atoms, novelty in zip(candidates, new) if novelty > explore_module.LOST
    ]
    assert len(strange) == len(set(strange)) == report["n_cut"]


# ---- command and settings ----


def test_command(students, tmp_path, capsys):
    labels = labelled(KNOWN)
    store = LabelStore(tmp_path / "known.h5")
    store.begin({"teacher": {"name": "lj"}, "frames": "", "n_frames": len(KNOWN)})
    for number, atoms in enumerate(KNOWN):
        store.add(number, atoms, labels.energies[number], labels.forces[number], labels.stresses[number])
    store.finish()
    config = tmp_path / "explore.toml"
    config.write_text("temperatures = [60]\nframes = 2\nsteps = 40\ninterval = 20\ntime_step = 5\n")
    arguments = ["explore", config, "--student", students[0], "--known", tmp_path / "known.h5"]
    assert main([str(word) for word in (*arguments, "-o", tmp_path / "new.xyz")]) == 0
    assert json.loads(capsys.readouterr().out)["chosen"] == 2
    config.write_text("temperatures = [60]\nframes = 2\nreplica = 3\n")
    assert main([str(word) for word in (*arguments, "-o", tmp_path / "new.xyz")]) == 1
    assert "did you mean 'replicas'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"temperatures": []}, "temperatures must be above zero"),
        ({"temperatures": ["hot"]}, "temperatures must be above zero"),
        ({"time_step": -0.5}, "time_step"),
        ({"densities": [0.0]}, "densities must be above zero"),
        ({"frames": 0}, "at least 1"),
        ({"interval": 101}, "does not fit into 100 steps"),
        ({"selection": "features-of"}, "no selection"),
        ({"selection": "committee"}, "at least two students"),
        ({"start": ["nowhere.xyz"]}, "cannot read start structures"),
    ],
)
def test_settings_that_cannot_be_meant(students, tmp_path, changes, says):
    with pytest.raises(ConfigError, match=says):
        explore(students[:1], replace(SETTINGS, **changes), KNOWN, tmp_path / "new.xyz")


def test_nothing_to_start_from(students, tmp_path):
    with pytest.raises(ConfigError, match="nothing to start from"):
        explore(students[:1], SETTINGS, [], tmp_path / "new.xyz")
    with pytest.raises(ConfigError, match="no student"):
        explore([], SETTINGS, KNOWN, tmp_path / "new.xyz")
    molecule = argon()
    molecule.set_cell(None)
    molecule.pbc = False
    with pytest.raises(ConfigError, match="no cell"):
        explore(students[:1], SETTINGS, [molecule], tmp_path / "new.xyz")
