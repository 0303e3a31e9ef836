# SPDX-License-Identifier: MIT
"""What ``mlffd-driver`` says of a run: tally, status line, summary, report."""

import json
import os

import numpy as np
import pytest
import torch

from mlffd import Engine
from mlffd.bundle import write_bundle
from mlffd.drivers.ipi import report
from mlffd.drivers.ipi.report import Durations, StatusLine, Tally, summary
from mlffd.errors import ConfigError
from mlffd.students import build_student


class Clock:
    """Time that passes only when told to."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        for name in ("perf_counter", "monotonic"):
            monkeypatch.setattr(report.time, name, lambda: self.now)

    def evaluate(self, tally: Tally, n_evaluated=32, n_asked=32, model=0.1, waiting=0.03, driver=0.0):
        """One wait, one evaluation, one moment of work by the driver, on the clock and in the tally."""
        self.now += driver + waiting + model
        tally.waited(waiting)
        tally.count(n_evaluated, n_asked, model)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_pace_leaves_out_the_start(clock):
    """Seen to catch a rate that counts the wait before the first evaluation, and one of model + waiting."""
    tally = Tally()
    tally.waited(50.0)
    tally.learn({"timestep": "0.25", "beads": "32"}, 32)
    clock.evaluate(tally, n_evaluated=1, model=5.0, waiting=20.0)
    for n_evaluated in (32, 20, 12):
        clock.evaluate(tally, n_evaluated, model=0.1, waiting=0.03, driver=0.02)
    pace = tally.pace()
    assert pace.steps_per_second == pytest.approx(2 / 0.45)
    assert pace.ns_per_day == pytest.approx(0.25e-6 * 86400 * 2 / 0.45)
    assert pace.structures_per_evaluation == pytest.approx(64 / 3)
    assert (pace.ms_model, pace.ms_waiting, pace.ms_driver) == pytest.approx((100.0, 30.0, 20.0))
    assert (tally.evaluations, tally.structures, tally.repeats) == (4, 65, 63)
    assert tally.steps == pytest.approx(65 / 32)
    assert tally.waiting.total == pytest.approx(0.09)


def test_no_pace_from_one_evaluation(clock):
    tally = Tally(n_beads=8)
    assert tally.pace() is None
    assert summary(tally) == "0 steps of 8 beads in 0 evaluations of 0 structures"
    clock.evaluate(tally, 8, 8)
    assert tally.pace() is None
    assert summary(tally) == "1 steps of 8 beads in 1 evaluations of 8 structures"


@pytest.mark.parametrize(
    ("given", "parameters", "batch_size", "beads", "timestep"),
    [
        ({}, {"timestep": "0.25", "beads": "32"}, 8, 32, 0.25),
        ({"n_beads": 16, "timestep": 0.5}, {"timestep": "0.25", "beads": "32"}, 8, 16, 0.5),
        ({}, {}, 8, 8, None),
        ({}, {}, 1, None, None),
        ({}, {"timestep": "short", "beads": "many"}, 4, 4, None),
        ({}, {"timestep": "-1", "beads": "1.5"}, 1, None, None),
        ({}, {"timestep": "nan", "beads": "0"}, 1, None, None),
    ],
)
def test_beads_and_timestep(given, parameters, batch_size, beads, timestep):
    tally = Tally(**given)
    tally.learn(parameters, batch_size)
    tally.learn({"beads": "5", "timestep": "9"} if beads and timestep else {}, batch_size)  # the next server
    assert (tally.n_beads, tally.timestep) == (beads, timestep)
    assert tally.steps == 0
    assert ("unknown" in tally.beads_known_from) == (beads is None)


def test_time_between_two_servers_is_nobody_s(clock):
    """Seen to catch a pace that falls with the hours that --persist waited."""
    tally = Tally(n_beads=32)
    for _ in range(2):
        clock.now += 3600.0
        tally.waited(3600.0)
        tally.learn({}, 32)
        for _ in range(11):
            clock.evaluate(tally)
    assert tally.pace().steps_per_second == pytest.approx(1 / 0.13)
    assert tally.waiting.largest == pytest.approx(0.03)


def test_median_of_many_in_little_memory():
    durations, rng = Durations(), np.random.default_rng(5)
    seconds = rng.lognormal(mean=-3.0, sigma=1.0, size=20_001)
    for one in seconds:
        durations.add(one)
    assert durations.median() == pytest.approx(np.median(seconds), rel=0.006)
    assert durations.total == pytest.approx(seconds.sum())
    assert durations.largest == seconds.max()
    assert len(durations._bins) < 1000
    assert durations.facts("model")["mean_ms_model"] == pytest.approx(1e3 * seconds.mean(), abs=1e-3)


def test_median_at_the_edges():
    durations = Durations()
    assert durations.median() == 0.0
    durations.add(0.0)
    assert durations.median() == 0.0
    for _ in range(3):
        durations.add(2.0)
    assert durations.median() == pytest.approx(2.0, rel=0.006)
    assert durations.median() <= durations.largest


def test_status_lines_in_a_log_file_become_rare(clock, monkeypatch, capsys):
    """Seen to catch one line an evaluation, and averages since the start instead of since the last line."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    tally = Tally(n_beads=32, timestep=0.25, after_each=StatusLine())
    for _ in range(1000):
        clock.evaluate(tally, waiting=0.05)
    for _ in range(1000):
        clock.evaluate(tally, waiting=0.25, model=0.25)
    lines = capsys.readouterr().err.splitlines()
    assert 9 <= len(lines) <= 18  # 1, 3, 7, 15, 31, 63, 123, 183, ... 650 s
    assert all(line.startswith("mlffd-driver: step ") for line in lines)
    assert "6.67 steps/s, 0.144 ns/day, 32 structures a batch, 100.00 ms in the model" in lines[1]
    assert "2 steps/s" in lines[-1]
    assert "250.00 ms in the model, 250.00 ms waiting for i-PI" in lines[-1]


def test_status_line_on_a_terminal(clock, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    tally = Tally(n_beads=32, after_each=StatusLine())
    for _ in range(20):
        clock.evaluate(tally, model=0.07)
    written = capsys.readouterr().err
    lines = written.split("\r\x1b[K")[1:]
    assert 2 <= len(lines) <= 4  # twice a second at most
    assert "\n" not in written
    assert all(len(line) < 60 for line in lines)
    report.say("done")
    assert capsys.readouterr().err == "\r\x1b[Kmlffd-driver: done\n"


def test_summary(clock, capsys):
    tally = Tally(n_beads=32, timestep=0.25)
    for _ in range(11):
        clock.evaluate(tally, n_evaluated=32, n_asked=40)
    report.say(summary(tally))
    assert capsys.readouterr().err == (
        "mlffd-driver: 11 steps of 32 beads in 11 evaluations of 352 structures (88 repeats not evaluated)\n"
        "mlffd-driver: 7.69 steps/s, 0.166 ns/day, 32 structures a batch, 100.00 ms in the model, "
        "30.00 ms waiting for i-PI\n"
    )


def test_a_step_is_one_of_every_system(clock):
    """Seen to fail where two systems side by side go twice as fast as i-PI says."""
    tally = Tally(n_beads=4, timestep=0.5, n_systems=2)
    for _ in range(11):
        clock.evaluate(tally, n_evaluated=8)
    assert tally.pace().steps_per_second == pytest.approx(1 / 0.13)
    assert tally.pace().ns_per_day == pytest.approx(0.5e-6 * 86400 / 0.13)
    assert summary(tally).startswith("11 steps of 4 beads and 2 systems in 11 evaluations of 88 structures")


def test_report(clock, tmp_path):
    tally = Tally(n_beads=32, timestep=0.25)
    for _ in range(11):
        clock.evaluate(tally)
    report.write_report(tmp_path / "report.json", tally, {"exit_status": 3, "ending": "a reason"})
    found = json.loads((tmp_path / "report.json").read_text())
    assert (found["exit_status"], found["ending"]) == (3, "a reason")
    assert (found["evaluations"], found["structures"], found["repeats"]) == (11, 352, 0)
    assert (found["beads"], found["timestep_fs"], found["steps"]) == (32, 0.25, 11.0)
    assert found["pace"]["ns_per_day"] == pytest.approx(0.25e-6 * 86400 / 0.13)
    for which in ("median", "mean", "largest"):
        assert found[f"{which}_ms_model"] == pytest.approx(100.0, rel=0.006)
        assert found[f"{which}_ms_waiting"] == pytest.approx(30.0, rel=0.006)
    assert os.listdir(tmp_path) == ["report.json"]


def test_report_of_a_run_without_an_evaluation(tmp_path):
    report.write_report(tmp_path / "report.json", Tally(), {"exit_status": 4})
    found = json.loads((tmp_path / "report.json").read_text())
    assert (found["exit_status"], found["evaluations"], found["pace"]) == (4, 0, None)


def test_report_that_cannot_be_written_is_known_before_the_run(tmp_path, monkeypatch):
    report.check_writable(tmp_path / "report.json")
    monkeypatch.chdir(tmp_path)
    report.check_writable("report.json")
    for path, complaint in ((tmp_path, "is a folder"), (tmp_path / "nowhere" / "report.json", "no folder")):
        with pytest.raises(ConfigError, match=complaint):
            report.check_writable(path)
    monkeypatch.setattr(report.os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ConfigError, match="not writable"):
        report.check_writable(tmp_path / "report.json")
    assert os.listdir(tmp_path) == []


def test_report_that_could_not_be_written_is_said(tmp_path, capsys):
    report.write_report(tmp_path / "gone" / "report.json", Tally(), {})
    assert "cannot be written" in capsys.readouterr().err


def test_run_facts(tmp_path):
    torch.manual_seed(1)
    path = tmp_path / "random.mlffd"
    write_bundle(
        path, build_student(dict(family="local", species=[1, 8], cutoff=4.0, channels=8, hidden=[8]))
    )
    facts = report.run_facts([str(path), "water"], Engine(path, dtype="float64"))
    assert [bundle["name"] for bundle in facts["bundles"]] == [str(path), "water"]
    assert facts["bundles"][0]["path"] == str(path)
    assert facts["bundles"][1]["path"].endswith("water.mlffd")
    assert all(len(bundle["sha256"]) == 64 for bundle in facts["bundles"])
    assert (facts["dtype"], facts["device"], facts["device_name"]) == ("float64", "cpu", "cpu")
    assert facts["threads"] == torch.get_num_threads()
    assert facts["versions"]["torch"] == torch.__version__
    json.dumps(facts)
