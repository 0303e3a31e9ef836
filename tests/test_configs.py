# SPDX-License-Identifier: MIT
"""The configs that come with mlffd: they can be read, and what they start from is sound."""

from pathlib import Path

import ase.io
import pytest

from mlffd.config import read_toml, settings_from
from mlffd.dataset.audit import audit
from mlffd.dataset.plan import locate
from mlffd.distill.config import read_plan
from mlffd.fidelity.config import FidelityConfig, report_tables
from mlffd.teachers import facts_of
from mlffd.train.config import StudentConfig, TrainConfig
from mlffd.verdict import check_bars

ROOT = Path(__file__).parents[1] / "configs"
DISTILLATIONS = sorted(path for path in ROOT.glob("*/*.toml") if "rounds" in read_toml(path))


def test_there_are_configs_of_two_teachers():
    assert len({read_toml(path)["teacher"]["name"] for path in DISTILLATIONS}) >= 2


@pytest.mark.parametrize("path", DISTILLATIONS, ids=lambda path: path.stem)
def test_a_config_can_be_read_and_its_structures_are_sound(path):
    """Caught: a misspelt key, and a molecule with an atom too many."""
    plan = read_plan(path)
    teacher = plan.config.teacher
    stages = [stage for table in (*plan.config.rounds, plan.config.test) for stage in table["stages"]]
    starts = [start for stage in stages for start in _list(stage.get("start", []))]
    for file in [locate(start, path.parent) for start in starts]:
        if file.is_file():  # not one that the distillation itself writes
            settings = {key: value for key, value in teacher.items() if key != "name"}
            assert audit(ase.io.read(file, ":"), facts_of(teacher["name"]), settings) == []


def test_the_accurate_water_student_is_judged_beside_the_same_run_of_the_teacher():
    fast, accurate = (read_toml(ROOT / "water" / name) for name in ("water.toml", "painn.toml"))
    assert accurate["teacher"] == fast["teacher"]
    settings_from(accurate["student"], StudentConfig, "[student]")
    settings_from(accurate["train"], TrainConfig, "[train]")
    tables = report_tables(accurate, "painn.toml")
    settings_from(tables["fidelity"], FidelityConfig, "[fidelity]")
    check_bars(tables["bars"])
    own = {"runs": f"{fast['directory']}/{fast['name']}.report/runs", "parts": accurate["fidelity"]["parts"]}
    assert accurate["fidelity"] == {key: fast["fidelity"].get(key) for key in accurate["fidelity"]} | own
    bars = {**fast["bars"], "force_mae": 12, "teacher_md_force_mae": 12}
    assert accurate["bars"] == {key: bars[key] for key in accurate["bars"]}


def _list(one_or_more):
    return [one_or_more] if isinstance(one_or_more, str) else one_or_more
