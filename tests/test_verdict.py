# SPDX-License-Identifier: MIT
"""The verdict: computed from lines and bars, carried by a bundle, doubted where a word was changed."""

import json
import math
import re

import pytest
import safetensors.torch
import torch
from contract import random_student

from mlffd.bundle import METADATA_KEY, Bundle, complete_metadata, read_bundle, write_bundle
from mlffd.errors import BundleError, ConfigError
from mlffd.repair import repair
from mlffd.report import check_bars, judge
from mlffd.verdict import AFTER, BEFORE, describe


def line(name: str, value, error=None) -> dict:
    return {"name": name, "title": name, "value": value, "error": error, "unit": "", "note": ""}


def verdict_of(value, bar) -> str:
    return judge({"lines": [line("force_mae", value)]}, {"force_mae": bar})["verdict"]


@pytest.mark.parametrize(
    ("value", "bar", "verdict"),
    [
        (17.9, 18, "passed"),
        (18.0, 18, "passed"),
        (18.1, 18, "failed"),
        (-18.1, 18, "failed"),  # too low is as wrong as too high
        (-17.9, 18, "passed"),
        (60, {"at_least": 50}, "passed"),
        (-60, {"at_least": 50}, "failed"),
        (1.1, {"at_least": 0.8, "at_most": 1.2}, "passed"),
        (0.7, {"at_least": 0.8, "at_most": 1.2}, "failed"),
        (1.3, {"at_least": 0.8, "at_most": 1.2}, "failed"),
        (None, 18, "failed"),
        (math.nan, 18, "failed"),
        (math.inf, {"at_least": 50}, "failed"),
        (True, 18, "failed"),
        ("0", 18, "failed"),
    ],
)
def test_a_bar_holds_or_not(value, bar, verdict):
    """Seen to catch: no magnitude in at_most, and values that are not finite let through."""
    assert verdict_of(value, bar) == verdict


def test_every_line_says_what_became_of_it():
    report = {
        "lines": [line("force_mae", 17.9, 0.5), line("energy_mae", 0.3, 0.01), line("force_rmse", 25.0)]
    }
    judged = judge(report, {"force_mae": 18, "energy_mae": 0.2, "stress_mae": 0.02}, BEFORE)
    assert [(entry["name"], entry["passed"]) for entry in judged["lines"]] == [
        ("force_mae", True), ("energy_mae", False), ("force_rmse", None), ("stress_mae", False),
    ]  # fmt: skip
    assert judged["lines"][0]["remark"] == "within its error of the bar"
    assert judged["lines"][1]["remark"] == ""
    assert judged["lines"][3]["remark"] == "not measured"
    assert (judged["verdict"], judged["failed"]) == ("failed", ["energy_mae", "stress_mae"])
    assert (judged["bars_written"], judged["bars"]["force_mae"]) == (BEFORE, {"at_most": 18.0})
    assert "bar" not in report["lines"][0], "the report that was given is as it was"


@pytest.mark.parametrize(
    ("changes", "bar", "verdict"),
    [
        ({"doubt": ""}, 18, "passed"),
        ({"doubt": "too short to judge: 2 blocks"}, 18, "failed"),
        ({"doubt": "too short to judge: 2 blocks"}, {"at_least": 0.0}, "failed"),
        ({"error": 17.0}, 18, "passed"),
        ({"error": 19.0}, 18, "failed"),
        ({"error": 19.0}, {"at_least": 0.0}, "passed"),
        ({"value": 0.0, "error": 0.1}, 0, "passed"),  # a count
    ],
)
def test_what_could_not_be_judged_does_not_pass(changes, bar, verdict):
    """Seen to catch: lines called too short to judge, and errors beyond the bar, that passed in silence."""
    judged = judge({"lines": [{**line("force_mae", 1.0), **changes}]}, {"force_mae": bar})
    assert judged["verdict"] == verdict
    if verdict == "failed":
        assert "too short to judge" in judged["lines"][0]["remark"]


def test_a_doubt_is_carried():
    """Seen to catch: a bundle that called the same report passed, for it carried no doubt."""
    bundle = judged_bundle(doubt="too short to judge: 2 blocks")
    assert "FAILED, 1 of 2 bars" in bundle.verdict
    assert "force_mae 12 (at most 18, not to be judged by)" in bundle.verdict
    assert "edited" not in bundle.verdict


def test_without_bars_nothing_is_judged():
    """Seen to catch: no bar at all passed, as every one of none holds."""
    assert judge({"lines": [line("force_mae", 1.0)]}, {})["verdict"] == "not judged"


def test_bars_of_pairs():
    """A bar on all pairs is for the worst of them where the report has it, else for each."""
    pairs = [line("rdf_peak_position_O-O", 0.01), line("rdf_peak_position_H-O", -0.03)]
    assert judge({"lines": pairs}, {"rdf_peak_position": 0.02})["failed"] == ["rdf_peak_position_H-O"]
    worst = [line("rdf_peak_position", -0.03), *pairs]
    assert judge({"lines": worst}, {"rdf_peak_position": 0.02})["failed"] == ["rdf_peak_position"]
    own = {"rdf_peak_position": 0.02, "rdf_peak_position_H-O": 0.05}
    assert judge({"lines": pairs}, own)["verdict"] == "passed"
    assert judge({"lines": pairs}, {"rdf_peak_position_H-H": 1})["failed"] == ["rdf_peak_position_H-H"]
    assert judge({"lines": []}, {"rdf_peak_height": 1})["failed"] == ["rdf_peak_height"]


def test_a_pair_may_be_named_either_way():
    """Seen to fail when the bar of O-H waited for a line that reports call H-O."""
    judged = judge({"lines": [line("rdf_peak_position_H-O", 0.03)]}, {"rdf_peak_position_O-H": 0.02})
    assert [(one["name"], one["passed"]) for one in judged["lines"]] == [("rdf_peak_position_H-O", False)]
    assert judged["bars"] == {"rdf_peak_position_H-O": {"at_most": 0.02}}


@pytest.mark.parametrize(
    ("bars", "complaint"),
    [
        ({"force_mea": 18}, "did you mean 'force_mae'"),
        ({"rdf_peak_position_O-": 18}, "unknown key 'rdf_peak_position_O-'"),
        ({"force_mae": "18"}, "bar force_mae must be a number"),
        ({"force_mae": True}, "bar force_mae must be a number"),
        ({"force_mae": math.nan}, "bar force_mae must be a number"),
        ({"force_mae": {}}, "bar force_mae must be a number"),
        ({"force_mae": {"atmost": 18}}, "did you mean 'at_most'"),
        ([], "bars must be a table"),
    ],
)
def test_bars_that_are_none(bars, complaint):
    with pytest.raises(ConfigError, match=complaint):
        check_bars(bars)


BARS = {"force_mae": 18.0, "speedup": {"at_least": 10.0}}


def judged_bundle(value: float = 12.0, written: str = BEFORE, doubt: str = "") -> Bundle:
    """A student named water that carries a report of itself."""
    student = random_student("local")
    bundle = Bundle(student, complete_metadata(student, {"name": "water", "bars": BARS}))
    lines = [{**line("force_mae", value, 0.5), "doubt": doubt}, line("speedup", 100.0)]
    report = {"student": {"weights_sha256": bundle.weights_sha256}, "date": "2026-01-02", "lines": lines}
    return bundle.with_report(judge(report, BARS, written))


@pytest.fixture
def path(tmp_path):
    """Of a bundle that carries a report."""
    bundle = judged_bundle()
    write_bundle(tmp_path / "water.mlffd", bundle.student, bundle.metadata)
    return tmp_path / "water.mlffd"


def edit(path, change) -> None:
    """Change the metadata in a bundle's file behind mlffd's back."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = json.loads(header["__metadata__"][METADATA_KEY])
    change(metadata)
    tensors = safetensors.torch.load(content)
    path.write_bytes(safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(metadata)}))


def test_a_bundle_says_what_its_report_says(path):
    assert read_bundle(path).verdict == "fidelity of water: passed, 2 of 2 bars of its report of 2026-01-02"
    failed = judged_bundle(27.12345).verdict
    assert "FAILED, 1 of 2 bars of its report of 2026-01-02: force_mae 27.12 (at most 18)" in failed
    assert judged_bundle(written=AFTER).verdict.endswith("; its bars were written after training")
    student = random_student("local")
    assert Bundle(student, complete_metadata(student, {})).verdict == (
        "fidelity of student: no report, never judged against its teacher"
    )


def lower_the_error(metadata):
    metadata["fidelity"]["lines"][0]["value"] = 1.0


def call_it_passed(metadata):
    metadata["fidelity"]["verdict"] = "passed"
    metadata["fidelity"]["lines"][0]["passed"] = True


def loosen_the_bar(metadata):
    metadata["fidelity"]["bars"]["force_mae"] = {"at_most": 99.0}


@pytest.mark.parametrize(
    ("value", "change", "said"),
    [
        (27.0, call_it_passed, "FAILED, 1 of 2 .*it was edited: the verdict in the file is 'passed'"),
        (27.0, lower_the_error, "NOT JUDGED: .* it was edited: the verdict in the file is 'failed'"),
        (12.0, lower_the_error, "NOT JUDGED: .* would pass; it was edited"),
        (27.0, loosen_the_bar, "NOT JUDGED: .* it was edited"),
        (12.0, lambda m: m["fidelity"].update(weights_sha256="0" * 64), "NOT JUDGED: .*other weights"),
        (12.0, lambda m: m["bars"].update(force_mae=1.0), "its bars are not those that were written before"),
        (12.0, lambda m: m.pop("bars"), "its bars are not those that were written before"),
        (12.0, lambda m: m.update(bars=5), "NOT JUDGED: its report is damaged"),
        (12.0, lambda m: m["fidelity"]["lines"][0].update(value=10**400), "its report is damaged"),
        (12.0, lambda m: m.update(name="water: \x1b[31m\n"), "passed"),
        (12.0, lambda m: m["fidelity"].pop("lines"), "NOT JUDGED: its report is damaged"),
        (12.0, lambda m: m["fidelity"].update(lines=5), "NOT JUDGED: its report is damaged"),
        (12.0, lambda m: m["fidelity"].update(lines=[5]), "NOT JUDGED: its report is damaged"),
        (12.0, lambda m: m["fidelity"]["lines"].append({}), "NOT JUDGED: its report is damaged"),
        (12.0, lambda m: m["fidelity"]["lines"][0].update(name=[]), "NOT JUDGED: its report is damaged"),
        (12.0, lambda m: m["fidelity"].update(bars={"nonsense": 5}), "NOT JUDGED: its report is damaged"),
        (12.0, lambda m: m["fidelity"].update(bars={}), "NOT JUDGED: its report of 2026-01-02 has no bars"),
        (12.0, lambda m: m.update(fidelity=[]), "NOT JUDGED: its report is damaged"),
        (12.0, lambda m: m.update(fidelity=None), "NOT JUDGED: its report is damaged"),
        (12.0, lambda m: m["fidelity"].update(date="x\ny" * 99), "it was edited"),
    ],
)  # fmt: skip
def test_what_was_changed_in_the_file_is_said_in_one_line(tmp_path, value, change, said):
    """Seen to catch: the verdict in the file taken for granted, an edited report that passed, errors that got
    out, a second line."""
    bundle, path = judged_bundle(value), tmp_path / "water.mlffd"
    write_bundle(path, bundle.student, bundle.metadata)
    edit(path, change)
    verdict = read_bundle(path).verdict
    assert verdict.startswith("fidelity of water: ")
    assert "\n" not in verdict
    assert len(verdict) < 300
    assert re.search(said, verdict), verdict


def test_other_weights_are_noticed(path):
    """Seen to catch: a hash of names and shapes alone."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    tensors = safetensors.torch.load(content)
    name = next(name for name in tensors if name.startswith("networks"))
    tensors[name] = torch.nextafter(tensors[name], torch.full_like(tensors[name], 9.0))
    path.write_bytes(safetensors.torch.save(tensors, header["__metadata__"]))
    assert read_bundle(path).verdict.endswith("NOT JUDGED: its report belongs to other weights")
    assert "fidelity" not in repair(path).metadata, "repair carries no verdict over to other weights"


def test_the_hash_is_of_values_not_of_precision():
    student = random_student("local").cast(torch.float32)
    single = Bundle(student, {}).weights_sha256
    assert Bundle(student.cast(torch.float64), {}).weights_sha256 == single
    assert Bundle(random_student("painn"), {}).weights_sha256 != single


def test_a_report_goes_with_its_weights_only(path, tmp_path):
    """Seen to catch: write_bundle keeping the report of the student that training has started from."""
    judged = judge({"student": {"weights_sha256": "0" * 64}, "lines": []}, {})
    with pytest.raises(BundleError, match="the report is of weights 0000"):
        read_bundle(path).with_report(judged)
    kept = read_bundle(path)
    assert "fidelity" in repair(path).metadata
    assert "fidelity" in write_bundle(tmp_path / "same", kept.student, kept.metadata).metadata
    other = random_student("painn")
    assert "fidelity" not in write_bundle(tmp_path / "other", other, kept.metadata).metadata
    assert "fidelity" not in write_bundle(tmp_path / "odd", other, {"fidelity": 5}).metadata


def test_a_value_too_low_is_said_to_fail_by_its_magnitude():
    """-2.4 (at most 1) reads as if it passed."""
    drift = {"name": "energy_drift", "value": -2.4, "error": 0.1, "unit": "meV/atom/ns"}
    (failed,) = judge({"lines": [drift]}, {"energy_drift": 1})["lines"]
    assert describe(failed) == "energy_drift -2.4 (at most 1 meV/atom/ns in magnitude)"
