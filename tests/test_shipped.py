# SPDX-License-Identifier: MIT
"""The shipped students: small, sound, with the verdict of the report that lies beside their recipe."""

import json
from pathlib import Path

import pytest

from mlffd.bundle import locate_bundle, read_bundle
from mlffd.check import check
from mlffd.distill.config import read_plan

RECIPES = Path(__file__).parents[1] / "configs"
ZOO = Path(locate_bundle("water")).parent
NAMES = sorted(path.stem for path in ZOO.glob("*.mlffd"))


def test_there_are_two():
    assert {"alcohols", "water"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_sound_and_judged_by_the_bars_of_its_recipe(name):
    assert locate_bundle(name).stat().st_size < 1_000_000
    bundle, plan = read_bundle(name), read_plan(RECIPES / name / f"{name}.toml")
    assert [what for what, passed, _ in check(bundle) if not passed] == []
    assert bundle.metadata["teacher"]["name"] == plan.config.teacher["name"]
    assert f"fidelity of {name}: passed, {len(plan.bars)} of {len(plan.bars)} bars" in bundle.verdict
    judged = {line["name"]: line["bar"] for line in bundle.metadata["fidelity"]["lines"] if line.get("bar")}
    assert judged == plan.bars


@pytest.mark.parametrize("name", NAMES)
def test_report_beside_the_recipe_is_that_of_the_bundle(name):
    report = json.loads((RECIPES / name / "report" / "report.json").read_text())
    bundle = read_bundle(name)
    assert report["student"]["weights_sha256"] == bundle.weights_sha256
    carried = {line["name"]: line["value"] for line in bundle.metadata["fidelity"]["lines"]}
    assert carried == {line["name"]: line["value"] for line in report["lines"]}
    assert report["command"] == f"mlffd distill configs/{name}/{name}.toml"
    assert report["environment"]["threads"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_its_card_says_its_errors(name):
    card = (ZOO / f"{name}.md").read_text()
    values = {line["name"]: line["value"] for line in read_bundle(name).metadata["fidelity"]["lines"]}
    assert f"{values['force_mae']:.1f}" in card
    assert f"{values['energy_mae']:.2f}" in card
