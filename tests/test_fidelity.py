# SPDX-License-Identifier: MIT
"""Reports measured whole: the Lennard-Jones teacher, and students that are the same function or another."""

import json
import time
from dataclasses import replace

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones

from mlffd.__main__ import main
from mlffd.bundle import read_bundle, write_bundle
from mlffd.dataset.evaluate import Recipe
from mlffd.dataset.pack import packed_box
from mlffd.dataset.store import LabelStore, frames_hash, read_labels
from mlffd.errors import ConfigError, LabelError, MlffdError
from mlffd.evaluation import evaluate_with
from mlffd.fidelity.config import PARTS, FidelityConfig
from mlffd.fidelity.errors import FrameErrors, error_lines, error_tables
from mlffd.fidelity.gradient import gradient_test
from mlffd.fidelity.measure import measure
from mlffd.fidelity.report import report
from mlffd.fidelity.speed import speed_lines, time_slowly
from mlffd.fidelity.teacher import TeacherProcesses, evaluate_afresh
from mlffd.fidelity.trajectories import Remembering, record
from mlffd.files import lock
from mlffd.speed import Timing
from mlffd.students import build_student
from mlffd.teachers import load_teacher
from mlffd.verdict import FAILED, LINES, PASSED

EPSILON, SIGMA, CUTOFF = 0.0104, 3.4, 6.5
TEACHER = {"name": "lj", "epsilon": EPSILON, "sigma": SIGMA, "rc": CUTOFF}
QUICK = FidelityConfig(
    parts=[part for part in PARTS if part != "speed"], replicas=3, temperature=90.0, time_step=5.0,
    equilibration=60, settling=40, teacher_steps=400, student_steps=400, interval=8, hot_steps=40,
    constant_energy_steps=100, rdf_range=5.0,
)  # fmt: skip


def student_at(path, epsilon=EPSILON, sigma=SIGMA, **metadata):
    """A bundle whose student is Lennard-Jones."""
    architecture = dict(family="lennard_jones", species=[18], cutoff=CUTOFF, epsilon=[epsilon], sigma=[sigma])
    write_bundle(path, build_student(architecture), metadata)
    return path


def label(frames, teacher, path, directory="."):
    """A label file, in this process."""
    loaded = load_teacher(teacher, directory=directory)
    store = LabelStore(path)
    facts = {"teacher": loaded.description(), "frames": frames_hash(frames), "n_frames": len(frames)}
    store.begin(facts)
    for number, (atoms, said) in enumerate(zip(frames, evaluate_with(loaded.calculator)(frames))):
        store.add(number, atoms, said.energy, said.forces, said.stress)
    store.finish()
    return read_labels(path)


@pytest.fixture(scope="module")
def liquid(tmp_path_factory):
    """Folder with labels of boxes of argon, shaken."""
    folder = tmp_path_factory.mktemp("liquid")
    random = np.random.default_rng(0)
    frames = []
    for k in range(6):
        atoms = packed_box({"Ar": 20}, 1.2, random)
        atoms.info = {"trajectory": f"box {k // 2}", "temperature": 90.0}
        frames.append(atoms)
    label(frames, TEACHER, folder / "held_out.h5")
    return folder


@pytest.fixture(scope="module")
def held_out(liquid):
    return read_labels(liquid / "held_out.h5")


def by_name(found):
    return {line["name"]: line for line in found["lines"]}


@pytest.fixture(scope="module")
def measured(liquid, held_out):
    """The report of a student that is the teacher, and its folder."""
    bundle = student_at(liquid / "same.mlffd")
    return measure(bundle, held_out, TEACHER, QUICK, liquid / "same"), liquid / "same"


def test_student_that_is_the_teacher(measured):
    """All lines are there, and differences are within what their errors allow."""
    found, _ = measured
    lines = by_name(found)
    elsewhere = {"outside_training", "student_us_per_atom", "teacher_us_per_atom", "speedup"}
    elsewhere |= {"teachers_apart", "second_teacher_force_mae"}
    expected = set(LINES) - elsewhere - {"diffusion_ratio"}
    assert expected <= {name for name, line in lines.items() if line["value"] is not None}
    assert lines["force_mae"]["value"] < 1e-3
    assert lines["teacher_md_force_mae"]["value"] < 1e-3
    for name in ("rdf_peak_position", "rdf_peak_height", "pressure_difference", "energy_drift"):
        assert abs(lines[name]["value"]) < 8.0 * lines[name]["error"], name
    assert lines["cut_trajectories"]["value"] == lines["cut_trajectories_hot"]["value"] == 0
    assert lines["teacher_gradient_error"]["value"] < 0.01
    assert "to judge" in lines["diffusion_ratio"]["note"]
    assert found["teacher"]["conservative"] is True


def test_report_says_how_it_was_made(measured, held_out):
    found, folder = measured
    json.dumps(found, allow_nan=False)
    assert found["conditions"]["held_out"] == {"sha256": held_out.hash, "n_frames": 6, "n_failed": 0}
    assert found["conditions"]["slow_every"] == QUICK.slow_every
    assert found["teacher"]["settings"]["rc"] == CUTOFF
    assert found["student"]["weights_sha256"] == read_bundle(folder / ".." / "same.mlffd").weights_sha256
    assert {"commit", "cpu", "threads", "load_average", "date"} <= set(found["environment"])
    names = {curve["name"] for curve in found["curves"]}
    assert "rdf Ar-Ar" in names
    for curve in found["curves"]:
        sizes = {len(curve[key]) for key in ("x", "teacher", "teacher_error", "student", "student_error")}
        assert len(sizes) == 1


def test_teachers_own_dynamics_are_labels(measured):
    """Every frame's label is the teacher's answer for that very frame; seen to catch labels that are one
    cycle late, and the student's in their place."""
    found, folder = measured
    labels = read_labels(folder / found["files"]["teacher_md"])
    assert len(labels) == 3 * 50
    said = evaluate_with(load_teacher(TEACHER).calculator)(labels.structures[:5] + labels.structures[-5:])
    for answer, k in zip(said, [*range(5), *range(145, 150)]):
        np.testing.assert_allclose(labels.forces[k], answer.forces, atol=1e-10)
        np.testing.assert_allclose(labels.stresses[k], answer.stress, atol=1e-10)
        assert labels.energies[k] == pytest.approx(answer.energy)
    assert labels.structures[0].info["trajectory"] == "teacher 0"


def test_what_is_done_is_not_done_again(measured, held_out, liquid):
    """A second call reads all of it; seen to catch parts measured twice."""
    found, folder = measured
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = measure(liquid / "same.mlffd", held_out, TEACHER, QUICK, folder)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert again["lines"] == found["lines"]


def test_worse_student_by_the_same_teachers_trajectory(measured, held_out, liquid):
    """Another student's report takes the teacher's run that is there, says what is wrong, and fails."""
    _, first = measured
    folder, settings = liquid / "other", replace(QUICK, runs=str(first / "runs"))
    teachers_run = sorted((first / "runs").glob("teacher_*"))
    other = student_at(liquid / "other.mlffd", sigma=1.03 * SIGMA)
    bars = {"force_mae": 1.0, "rdf_peak_position": 0.03, "cut_trajectories": 0}
    judged = report(other, held_out, None, settings, bars, folder, into=liquid / "judged.mlffd")
    assert sorted((first / "runs").glob("teacher_*")) == teachers_run
    assert any("another student" in found["title"] for found in judged["tables"])
    assert judged["verdict"] == FAILED
    assert set(judged["failed"]) == {"force_mae", "rdf_peak_position"}
    assert by_name(judged)["pressure_difference"]["value"] > 0.0
    worst = ase.io.read(folder / "worst.xyz", ":")
    errors = [np.abs(a.arrays["student_forces"] - a.arrays["teacher_forces"]).mean() for a in worst]
    assert errors == sorted(errors, reverse=True)
    assert np.mean(errors) == pytest.approx(1e-3 * by_name(judged)["force_mae"]["value"], rel=1e-4)
    assert (folder / "report.md").exists()
    assert "FAILED" in read_bundle(liquid / "judged.mlffd").verdict


def test_sabotaged_student_that_blows_up(liquid, held_out):
    """Counted as cut, comparisons are left out and said, and a bar on them fails; nothing crashes."""
    wild = student_at(liquid / "wild.mlffd", epsilon=40.0)
    judged = report(
        wild, held_out, TEACHER, QUICK, {"rdf_peak_position": 5.0, "cut_trajectories": 0}, liquid / "wild"
    )
    lines = by_name(judged)
    assert lines["cut_trajectories"]["value"] == 3
    assert lines["cut_trajectories_hot"]["value"] == 3
    assert lines["rdf_peak_position"]["value"] is None
    assert set(judged["failed"]) == {"rdf_peak_position", "cut_trajectories"}
    # a better student does not start from where that one left the atoms
    settings = replace(QUICK, parts=["student"], student_steps=80)
    better = measure(student_at(liquid / "better.mlffd"), held_out, TEACHER, settings, liquid / "wild")
    line = by_name(better)["cut_trajectories"]
    assert line["value"] == 0
    assert line["note"].startswith("of 3 replicas")


def interrupting(evaluate, after):
    """Stops everything at its n-th call, once."""
    calls = iter(range(10**9))

    def interrupted(structures):
        if next(calls) == after:
            raise KeyboardInterrupt
        return evaluate(structures)

    return interrupted


def test_killed_trajectory_goes_on_to_the_same_numbers(tmp_path, liquid, held_out):
    """Bit for bit, wherever it was stopped; seen to catch a chunk that begins with other random numbers."""
    from mlffd.dynamics import Trajectories
    from mlffd.engine import Engine

    bundle = read_bundle(student_at(tmp_path / "s.mlffd", sigma=1.01 * SIGMA))
    teacher = evaluate_with(load_teacher(TEACHER).calculator)

    def run(folder, slow):
        def begin(structures, seeds, first_step):
            fast = Engine(bundle).evaluate
            return Trajectories(
                structures, fast, 5.0, 90.0, seed=seeds, slow=slow, slow_every=4, first_step=first_step
            )

        return record(folder, held_out.structures[:2], begin, 64, 4, 16, 0, "test")

    whole = run(tmp_path / "whole", Remembering(teacher))
    for after in (0, 7, 13):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", interrupting(teacher, after))
    again = run(tmp_path / "killed", teacher)
    for one, other in zip(whole, again):
        assert len(one) == 16
        for name in ("steps", "positions", "forces", "energies", "stresses", "conserved", "temperatures"):
            assert (getattr(one, name) == getattr(other, name)).all(), name
    assert np.ptp(whole[0].conserved) < 0.1 * np.ptp(whole[0].energies)  # no jump where chunks meet
    chunk = next((tmp_path / "killed").glob("*.npz"))
    chunk.write_bytes(chunk.read_bytes()[:1000])
    with pytest.raises(MlffdError, match="damaged"):
        run(tmp_path / "killed", teacher)


def test_teacher_in_two_processes(held_out):
    """The same answers in the same order; a structure it cannot do, and a teacher that cannot be loaded, are
    said. Seen to catch answers in the order in which they came."""
    structures = held_out.structures[:3] + [held_out.structures[0].repeat(2)]
    here = evaluate_afresh(load_teacher(TEACHER).calculator)(structures)
    processes = TeacherProcesses(Recipe(TEACHER), 2)
    try:
        for _ in range(2):
            for one, other in zip(here, processes(structures)):
                assert one.energy == other.energy
                assert (one.forces == other.forces).all()
                assert (one.stress == other.stress).all()
        with pytest.raises(MlffdError, match="no atoms"):
            processes([structures[0], Atoms()])
    finally:
        processes.end()
    broken = TeacherProcesses(Recipe("nowhere:factory"), 1)
    try:
        with pytest.raises(ChildProcessError, match="nowhere"):
            broken(structures)
    finally:
        broken.end()


class Remembers(LennardJones):
    """Its energy depends on what it was asked before, unless it is reset."""

    n_asked = 0

    def reset(self):
        super().reset()
        self.n_asked = 0

    def calculate(self, *arguments):
        super().calculate(*arguments)
        self.results["energy"] += self.n_asked
        self.n_asked += 1


def test_teacher_remembers_nothing(held_out):
    """Seen to catch an evaluation without a reset."""
    evaluate = evaluate_afresh(Remembers(epsilon=EPSILON, sigma=SIGMA))
    one, other, again = evaluate([held_out.structures[k] for k in (0, 1, 0)])
    assert one.energy == again.energy != other.energy


NON_CONSERVATIVE = """
import numpy as np
from ase.calculators.lj import LennardJones

class Whirl(LennardJones):
    '''Forces with a part that no energy has: atoms are turned about the z axis.'''
    def calculate(self, *arguments):
        super().calculate(*arguments)
        x, y, z = (self.atoms.positions - self.atoms.positions.mean(axis=0)).T
        self.results["forces"] = self.results["forces"] + {strength} * np.stack([-y, x, 0 * z], axis=1)

def factory():
    return Whirl(epsilon=0.0104, sigma=3.4, rc=6.5)
"""


def test_teacher_whose_forces_are_no_gradient(held_out, tmp_path):
    """Is found out, and the report says that its student is conservative all the same."""
    (tmp_path / "whirl.py").write_text(NON_CONSERVATIVE.replace("{strength}", "0.03"))
    labels = label(held_out.structures, "whirl:factory", tmp_path / "labels.h5", tmp_path)
    settings = replace(QUICK, parts=["gradient"], gradient_directions=8)
    same = student_at(tmp_path / "s.mlffd")
    found = measure(same, labels, "whirl:factory", settings, tmp_path / "r", tmp_path)
    (line,) = found["lines"]
    assert 0.05 < line["value"] < 5.0
    assert "a conservative student of a non-conservative teacher" in line["note"]
    assert found["teacher"]["conservative"] is False


def test_size_of_what_is_no_gradient():
    """|G| / |F|, from random directions; seen to catch the energy taken with the wrong sign."""
    atoms = Atoms("Ar8", positions=np.random.default_rng(0).random((8, 3)) * 20.0)
    wrong = np.random.default_rng(1).normal(0.0, 0.3, (8, 3))

    def evaluate(structures):
        from types import SimpleNamespace

        springs = [0.5 * (s.positions**2).sum() for s in structures]
        return [SimpleNamespace(energy=e, forces=-s.positions + wrong) for e, s in zip(springs, structures)]

    found = gradient_test(evaluate, [atoms], 400, seed=0)
    expected = np.linalg.norm(wrong) / np.linalg.norm(wrong - atoms.positions)
    assert found.relative == pytest.approx(expected, rel=0.15)
    assert abs(found.relative - expected) < 5.0 * found.error


def test_float32_teacher_is_not_blamed_for_rounding(held_out):
    """Energies of -1000 eV in float32 are exact to 6e-5 eV: the finite differences must not take that for a
    force; what they leave open is said."""
    evaluate = evaluate_with(load_teacher(TEACHER).calculator)

    def rounded(structures):
        return [replace(one, energy=float(np.float32(one.energy - 1000.0))) for one in evaluate(structures)]

    found = gradient_test(rounded, held_out.structures, 4, seed=0)
    assert found.conservative is not False
    assert gradient_test(evaluate, held_out.structures, 4, seed=0).conservative is True


@pytest.mark.parametrize("slow_every", [8, 1])
def test_molecules_without_a_cell(slow_every, tmp_path):
    """Of several kinds: no pressure, no diffusion, distances in place of RDFs, bonds and angles; the teacher
    between students' steps, and by itself."""
    small = {"name": "lj", "epsilon": 1.0, "sigma": 2.0, "rc": 8.0}
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * 2.25 / 8**0.5
    random = np.random.default_rng(0)
    frames = [Atoms(["Ar"] * n, positions=corners[:n]) for n in (4, 3, 4)]
    for atoms in frames:
        atoms.rattle(0.02, rng=random)
    labels = label(frames, small, tmp_path / "labels.h5")
    student = student_at(tmp_path / "s.mlffd", 1.0, 2.0)
    settings = replace(QUICK, time_step=2.0, slow_every=slow_every)
    found = measure(student, labels, small, settings, tmp_path / "report")
    lines = by_name(found)
    for name in ("stress_mae", "pressure_difference", "diffusion_ratio"):
        assert lines[name]["value"] is None, name
    assert "not periodic" in lines["pressure_difference"]["note"]
    assert "not normalised by volume" in lines["rdf_peak_position"]["note"]
    assert abs(lines["rdf_peak_position"]["value"]) < 8.0 * lines["rdf_peak_position"]["error"]
    assert {"distances Ar-Ar", "bonds Ar-Ar", "angles Ar-Ar-Ar"} == {c["name"] for c in found["curves"]}
    distances = np.array(next(c["teacher"] for c in found["curves"] if c["name"] == "distances Ar-Ar"))
    assert distances.sum() * 0.02 == pytest.approx(1.0)
    (angles,) = [row for t in found["tables"] for row in t["rows"] if row[0] == "angles Ar-Ar-Ar"]
    assert angles[1] == pytest.approx(60.0, abs=1.0)
    assert len(read_labels(tmp_path / "report" / "teacher_md.h5")) == 3 * 50


def test_a_second_teacher_beside(tmp_path, held_out):
    """Its wells are twice as deep, and so are its forces twice as large; the student is the second one."""
    other = {**TEACHER, "epsilon": 2.0 * EPSILON}
    settings = replace(QUICK, parts=["second_teacher"], second_teacher=other)
    found = measure(
        student_at(tmp_path / "s.mlffd", 2.0 * EPSILON), held_out, TEACHER, settings, tmp_path / "r"
    )
    lines = by_name(found)
    size = 1e3 * np.abs(np.concatenate(held_out.forces)).mean()
    assert lines["teachers_apart"]["value"] == pytest.approx(size, rel=1e-5)
    assert lines["teachers_apart"]["note"].startswith("lj, ")
    assert lines["second_teacher_force_mae"]["value"] < 1e-4 * size


def test_a_second_teacher_that_is_not_here_is_said(tmp_path, held_out, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "cnnp.inp").write_text("&FORCE_EVAL\n  METHOD NNP\n&END FORCE_EVAL\n")
    settings = replace(QUICK, parts=["second_teacher"], second_teacher="cp2k:cnnp.inp")
    found = measure(student_at(tmp_path / "s.mlffd"), held_out, TEACHER, settings, tmp_path / "r", tmp_path)
    assert [line["value"] for line in found["lines"]] == [None, None]
    assert "cannot start cp2k.psmp" in found["lines"][0]["note"]


def test_without_a_teacher(tmp_path, liquid, held_out):
    """What needs one is left out and said."""
    settings = replace(QUICK, parts=["errors", "gradient", "teacher", "speed"])
    judged = report(student_at(tmp_path / "s.mlffd"), held_out, "none", settings, {}, tmp_path / "report")
    lines = by_name(judged)
    assert lines["force_mae"]["value"] is not None
    assert lines["student_us_per_atom"]["value"] > 0.0
    assert lines["speedup"]["value"] is None
    assert "no teacher" in lines["speedup"]["note"]
    assert lines["rdf_peak_position"]["value"] is None
    assert "no teacher" in lines["teacher_gradient_error"]["note"]


@pytest.mark.parametrize(
    ("shortest", "fraction", "says"),
    [(5.0, 1.0, "apart, less than"), (2.0, 0.0, "0 of"), (None, None, "repair")],
)
def test_extrapolation_is_counted(shortest, fraction, says, tmp_path, held_out):
    """Frames of the student's own run that the guard would flag."""
    domain = {} if shortest is None else {"training_domain": {"shortest_distance": {"Ar-Ar": shortest}}}
    student = student_at(tmp_path / "s.mlffd", **domain)
    settings = replace(QUICK, parts=["student"], student_steps=160)
    line = by_name(measure(student, held_out, TEACHER, settings, tmp_path / "report"))["outside_training"]
    assert line["value"] == fraction
    assert says in line["note"]


def frame_errors_of(errors, forces, energies=(0.0, 0.0)):
    """Of two frames with as many atoms, one trajectory each: oxygen first, then hydrogens."""
    n = len(errors) // 2
    return FrameErrors(
        np.tile([8] + [1] * (n - 1), 2), np.array(errors, float), np.array(forces, float),
        np.repeat([0, 1], n), np.array(energies), np.full((2, 3, 3), np.nan), ["a", "b"],
    )  # fmt: skip


def test_speed_of_both():
    """Their ratio, and how noisy it is; seen to catch the ratio turned round."""
    student, teacher = Timing(4.0, 3.0, 9.0, 7, 100, 20), Timing(1000.0, 900.0, 2000.0, 5, 1, 20)
    *_, speedup = lines = speed_lines(student, teacher, "note")
    assert [line["name"] for line in lines] == ["student_us_per_atom", "teacher_us_per_atom", "speedup"]
    assert [line["value"] for line in lines] == [4.0, 1000.0, 250.0]
    assert speedup["error"] == pytest.approx(250.0 * np.hypot(0.25, 0.1))


def test_slow_teacher_is_not_asked_often():
    """Each time at other positions."""
    seen = []

    def evaluate(structures):
        seen.append(structures[0].positions.copy())
        time.sleep(0.03)

    atoms = Atoms("Ar8", positions=np.random.default_rng(0).random((8, 3)) * 20.0)
    found = time_slowly(evaluate, atoms, seconds=0.2)
    assert 4 <= len(seen) == found.n_runs + 1 <= 7
    assert all((one != other).any() for one, other in zip(seen, seen[1:]))
    assert found.highest >= found.median >= found.lowest >= 0.03e6 / 8


def test_errors_by_element_and_force():
    errors = [[0.03, 0.0, 0.0], [0.0, 0.006, 0.0]] * 2
    forces = [[3.0, 4.0, 0.0], [0.0, 0.0, 0.1]] * 2
    found = frame_errors_of(errors, forces, energies=[0.002, 0.004])
    lines = {line["name"]: line for line in error_lines(found)}
    assert lines["force_mae"]["value"] == pytest.approx(6.0)
    assert lines["force_rmse"]["value"] == pytest.approx(np.sqrt((0.03**2 + 0.006**2) / 6) * 1e3)
    assert lines["force_mae"]["error"] == pytest.approx(0.0)  # both trajectories say the same
    assert lines["energy_mae"]["value"] == pytest.approx(3.0)
    assert "shift +3" in lines["energy_mae"]["note"]
    assert lines["stress_mae"]["value"] is None
    elements, sizes = error_tables(found, [Atoms(), Atoms()])
    assert [row[0] for row in elements["rows"]] == ["H", "O"]
    assert [row[3] for row in elements["rows"]] == pytest.approx([2.0, 10.0])
    assert sum(row[1] for row in sizes["rows"]) == 4
    assert sizes["rows"][-1][2] == pytest.approx(5000.0 / np.sqrt(3.0))


def test_worst_frames_are_kept_with_forces_of_both(measured, liquid, held_out):
    """Those of this student, whosever report was made here last."""
    _, folder = measured
    measure(liquid / "same.mlffd", held_out, TEACHER, QUICK, folder)
    frames = ase.io.read(folder / "worst.xyz", ":")
    assert len(frames) == 6
    for atoms in frames:
        number = atoms.info["frame"]
        np.testing.assert_allclose(atoms.arrays["teacher_forces"], held_out.forces[number], atol=1e-6)
        np.testing.assert_allclose(atoms.arrays["student_forces"], held_out.forces[number], atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"parts": ["eror"]}, "did you mean 'errors'"),
        ({"parts": "errors"}, "parts must be a list"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"temperature": -5.0}, "temperature must be greater than 0"),
        ({"slow_every": 0}, "slow_every must be greater than 0"),
        ({"settling": 800}, "leaves nothing"),
        ({"seed": -1}, "must not be less than 0"),
        ({"second_teacher": "7nte-0"}, "did you mean 7net-0"),
        ({"second_teacher": {"modal": "PBE"}}, "a teacher is a name or a table with one"),
    ],
)
def test_settings_that_cannot_be_meant(changes, says):
    with pytest.raises(MlffdError, match=says):
        replace(QUICK, **changes)


def test_labels_that_are_not_held_out_or_of_another_teacher(tmp_path, held_out):
    trained = student_at(tmp_path / "s.mlffd", labels={"sha256": held_out.hash})
    with pytest.raises(ConfigError, match="trained on these labels"):
        measure(trained, held_out, TEACHER, QUICK, tmp_path / "report")
    for seen in (held_out.hash, "of a part"):
        trained = student_at(tmp_path / "s.mlffd", labels={"sha256": "of all", "seen": [seen]})
        joined = replace(held_out, metadata={**held_out.metadata, "joined": ["of a part", "of another"]})
        with pytest.raises(ConfigError, match="trained on these labels"):
            measure(trained, joined, TEACHER, QUICK, tmp_path / "report")
    other = {**TEACHER, "epsilon": 0.02}
    with pytest.raises(ConfigError, match="the teacher here is lj"):
        measure(student_at(tmp_path / "o.mlffd"), held_out, other, QUICK, tmp_path / "report")
    elsewhere = student_at(tmp_path / "e.mlffd", teacher={"name": "7net-0", "settings": {}})
    with pytest.raises(ConfigError, match="the student's is 7net-0"):
        measure(elsewhere, held_out, TEACHER, QUICK, tmp_path / "report")


@pytest.mark.parametrize(
    "teacher",
    [
        {"name": "subprocess:getoutput", "settings": {"cmd": "touch executed"}},
        {"name": "cp2k:any.inp", "settings": {"command": "touch executed"}},
        {"name": "7net-omni", "settings": {"weights": "executed"}},
        {"name": "lj", "settings": {"unheard_of": 1}},
    ],
)
def test_nothing_that_a_label_file_names_is_run(held_out, tmp_path, monkeypatch, teacher):
    """Seen to fail: a teacher `module:factory` was imported and called with the settings in the file."""
    monkeypatch.chdir(tmp_path)
    strange = replace(held_out, metadata={**held_out.metadata, "teacher": teacher})
    with pytest.raises(ConfigError, match="name it by --teacher"):
        report(student_at(tmp_path / "s.mlffd"), strange, None, QUICK, {}, tmp_path / "report")
    assert not (tmp_path / "executed").exists()


def test_figures_belong_to_what_they_were_measured_on(tmp_path, held_out):
    """Other start structures under the same name, or another training domain: measured anew."""
    starts, student = tmp_path / "starts.xyz", student_at(tmp_path / "s.mlffd")
    settings = replace(QUICK, parts=["hot"], start="starts.xyz")

    def parts():
        measure(student, held_out, TEACHER, settings, tmp_path / "r", tmp_path)
        return len(list((tmp_path / "r" / "parts").glob("*hot.json")))

    ase.io.write(starts, held_out.structures[:3])
    assert [parts(), parts()] == [1, 1]
    ase.io.write(starts, held_out.structures[3:])
    assert parts() == 2
    student_at(tmp_path / "s.mlffd", training_domain={"pairs": {}})
    assert parts() == 3


def test_another_students_starts_do_not_hide_a_bad_equilibration(measured, held_out, liquid):
    """Seen to fail: by boxes that a better student had brought to rest it passed."""
    _, first = measured
    settings = replace(QUICK, parts=["hot"], hot_steps=8, runs=str(first / "runs"))
    wild = student_at(liquid / "wilder.mlffd", epsilon=40.0)
    found = by_name(measure(wild, held_out, TEACHER, settings, liquid / "wilder"))
    assert found["cut_trajectories_hot"]["value"] >= 3
    assert "3 while they equilibrated" in found["cut_trajectories_hot"]["note"]


def test_two_processes_do_not_write_one_trajectory(tmp_path):
    with lock(tmp_path / ".lock"), pytest.raises(MlffdError, match="another process runs the trajectory"):
        record(tmp_path, [], None, 10, 5, 5, 0, "run")


def test_command(tmp_path, liquid, capsys):
    """Exit status 0 where the bars hold, 1 where they do not; the bundle carries it."""
    student = student_at(tmp_path / "s.mlffd", sigma=1.001 * SIGMA, bars={"force_mae": 1e3})
    config = tmp_path / "report.toml"
    config.write_text('[fidelity]\nparts = ["errors"]\n')
    words = [
        "report",
        str(student),
        str(liquid / "held_out.h5"),
        "--config",
        str(config),
        "-o",
        str(tmp_path / "r"),
    ]
    assert main([*words, "--into", str(student)]) == 0
    assert "passed (1 bars)" in capsys.readouterr().out
    assert json.loads((tmp_path / "r" / "report.json").read_text())["verdict"] == PASSED
    assert "passed" in read_bundle(student).verdict
    config.write_text('[fidelity]\nparts = ["errors"]\n[bars]\nforce_mae = 1e-3\n')
    assert main(words) == 1
    assert "FAILED 1 of 1 bars" in capsys.readouterr().out
    config.write_text('[fidelity]\nparts = ["speed"]\n[bars]\nspeedup = {at_least = 100}\n')
    assert main([*words, "--teacher", "none"]) == 1
    assert "(at least 100): there is no teacher here" in capsys.readouterr().out
    config.write_text("[fidelty]\n")
    assert main(words) == 1
    assert "did you mean 'fidelity'" in capsys.readouterr().err
    with pytest.raises(LabelError):
        read_labels(tmp_path / "none.h5")


SOMETIMES = """
from ase.calculators.lj import LennardJones

class Sometimes(LennardJones):
    calls = 0

    def calculate(self, *arguments, **others):
        super().calculate(*arguments, **others)
        type(self).calls += 1
        if type(self).calls > 6:
            raise RuntimeError("SCF did not converge\\nafter 50 steps")

def factory():
    return Sometimes(epsilon=0.0104, sigma=3.4, rc=6.5)
"""


def test_a_teacher_that_fails_is_said_in_the_report_and_asked_again(liquid, held_out, tmp_path):
    """Seen to fail when what a calculator raises went through, and when the failure was kept as a finding."""
    (tmp_path / "sometimes.py").write_text(SOMETIMES)
    teacher = {"name": "sometimes:factory"}
    labels = label(held_out.structures[:1], teacher, tmp_path / "held_out.h5", directory=tmp_path)
    settings = replace(QUICK, parts=["errors", "gradient", "teacher"], replicas=1, equilibration=20)
    bundle = student_at(tmp_path / "same.mlffd")
    found = measure(bundle, labels, teacher, settings, tmp_path / "report", tmp_path)
    note = by_name(found)["teacher_gradient_error"]["note"]
    assert note == "the calculator failed: RuntimeError: SCF did not converge after 50 steps"
    assert by_name(found)["rdf_peak_position"]["value"] is None
    assert by_name(found)["force_mae"]["value"] < 1e-3
    assert [path.name.partition("_")[2] for path in (tmp_path / "report/parts").glob("*.json")] == [
        "errors.json"
    ]


def test_labels_made_elsewhere_have_no_teacher_here(liquid, held_out, tmp_path):
    """Seen to fail when all teachers there are were listed and the way out was not."""
    strangers = replace(held_out, metadata={**held_out.metadata, "teacher": {"name": "their DFT"}})
    with pytest.raises(ConfigError, match="'their DFT', which cannot be run here: with --teacher none"):
        report(student_at(tmp_path / "s.mlffd"), strangers, None, QUICK, {}, tmp_path / "report")
