# SPDX-License-Identifier: MIT
"""Every example runs as a user would run it, with a student of random weights and a few steps."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.io import read, write

from mlffd.bundle import write_bundle
from mlffd.students import build_student

EXAMPLES = Path(__file__).parents[1] / "examples"
LOCAL = dict(family="local", species=[1, 8], cutoff=4.0, n_radial=4, channels=8, hidden=[8])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("examples") / "random.mlffd"
    write_bundle(path, build_student(LOCAL))
    return path


@pytest.fixture
def run(bundle, monkeypatch, capsys, tmp_path):
    """A function that runs an example with options in an empty folder and returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def run_example(name: str, *options) -> str:
        monkeypatch.setattr(sys, "argv", [name, str(bundle), *map(str, options)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run_example


def number(pattern: str, text: str) -> float:
    """The number that stands where ``pattern`` has #."""
    found = re.search(pattern.replace("#", r"([-+]?[\d.]+(?:e[-+]?\d+)?)"), text)
    assert found, f"no {pattern!r} in:\n{text}"
    return float(found[1])


def test_every_example_is_tested():
    here = Path(__file__).read_text()
    names = [path.stem for path in EXAMPLES.glob("*.py")]
    assert names
    assert [name for name in names if f'run("{name}"' not in here] == []


def test_single_point(run):
    text = run("single_point", "--steps", 5)
    assert "H128O64: 192 atoms" in text
    median = number("one evaluation # ms", text)
    low, high = (number(pattern, text) for pattern in ("within # to", "to # ms"))
    assert 0 < low <= median <= high
    assert number("per atom +# us", text) == pytest.approx(1e3 * median / 192, rel=0.02)
    assert f"{torch.get_num_threads()} thread(s)" in text


def test_single_point_times_evaluations_and_not_the_cache(run, monkeypatch):
    """Each timed evaluation reaches the engine, with positions that differ from the last ones."""
    from mlffd.engine import Engine

    evaluate, calls = Engine.evaluate, []
    monkeypatch.setattr(
        Engine,
        "evaluate",
        lambda engine, atoms: calls.append(atoms[0].positions.copy()) or evaluate(engine, atoms),
    )
    run("single_point", "--steps", 4)
    assert len(calls) == 1 + 3 + 4  # the results shown, warm-up, timed
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(calls, calls[1:]))


def test_optimize(run, tmp_path):
    text = run("optimize", "--steps", 3, "--output", "relaxed.xyz")
    assert number("steps: # meV per molecule lower", text) > 0
    assert number("start .*energy # eV", text) > number("end .*energy # eV", text)
    assert "not converged yet after 3 steps" in text
    assert len(read(tmp_path / "relaxed.xyz")) == 192


def test_optimize_stops_when_converged(run):
    assert "converged after 0 steps" in run("optimize", "--fmax", 1e3)


def test_nve(run):
    text = run("nve", "--steps", 32, "--time-step", 0.25, "--dtype", "float64")
    spread = number("total energy within # meV/atom", text)
    assert 0 < spread < 5  # total energy is kept while kinetic energy moves
    drift, error = number("drift # ", text), number(r"\+- # meV/atom/ns", text)
    assert np.isfinite(drift)
    assert error > 0
    assert number("from a run of # ps", text) == pytest.approx(0.008)
    assert number("can tell a drift of # meV", text) == pytest.approx(2 * error, rel=0.1)


def test_nve_refuses_a_run_too_short_to_judge(run, capsys):
    with pytest.raises(SystemExit):
        run("nve", "--steps", 4)
    assert "--steps must be at least" in capsys.readouterr().err


def test_slope_of_the_nve_example():
    """A known drift is found within its error, noise alone is not taken for one."""
    slope = runpy.run_path(str(EXAMPLES / "nve.py"))["slope"]
    times = np.arange(800) * 0.5
    noise = np.random.default_rng(1).normal(0.0, 1.0, 800)
    found, error = slope(0.02 * times + noise, 0.5)
    assert 0 < error < 0.002
    assert found == pytest.approx(0.02, abs=4 * error)
    found, error = slope(noise, 0.5)
    assert abs(found) < 4 * error


def test_batch(run):
    text = run("batch", "--repeat", 1, "--dtype", "float64")
    rows = re.findall(r"^(.+?) +([\d.]+) ms +([\d.]+) ms +(\S+) eV/Å$", text, re.MULTILINE)
    assert [name for name, *_ in rows] == [
        "32 molecules",
        "8 boxes of 24 atoms",
        "4 boxes of 81 atoms",
        "mixed",
    ]
    assert all(float(alone) > 0 and float(batched) > 0 for _, alone, batched, _ in rows)
    assert all(float(difference) < 1e-11 for *_, difference in rows)


def test_teacher_missing(run, monkeypatch):
    """Without the extra: one line that says what to install."""
    monkeypatch.setitem(sys.modules, "sevenn", None)
    with pytest.raises(SystemExit) as stopped:
        run("teacher_beside_student")
    assert 'pip install "mlffd[sevenn]"' in stopped.value.code
    assert "\n" not in stopped.value.code


@pytest.mark.slow
def test_teacher_beside_student(run, tmp_path):
    pytest.importorskip("sevenn", reason="needs the extra `sevenn`")
    box = molecule("H2O", cell=[3.107] * 3, pbc=True).repeat((2, 2, 1))
    box.rattle(0.05, seed=1)
    write(tmp_path / "box.xyz", box)
    text = run("teacher_beside_student", "--structure", "box.xyz", "--frames", 1, "--steps", 2)
    assert "2 frames of H8O4" in text
    assert number("teacher's forces +# meV", text) > 0
    assert number("student's error +# meV", text) > 0  # it has learned nothing
    times = [number(f"{who} +# ms an evaluation", text) for who in ("teacher", "student")]
    assert number("student is # times faster", text) == pytest.approx(times[0] / times[1], rel=0.1, abs=1.0)
