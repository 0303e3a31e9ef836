# SPDX-License-Identifier: MIT
"""The shipped student of isolated alcohols: sound, judged, and what its report beside the recipe says."""

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest

from mlffd.bundle import locate_bundle, read_bundle
from mlffd.check import check
from mlffd.dynamics import Trajectories
from mlffd.engine import Engine
from mlffd.errors import TeacherError
from mlffd.teachers import load_teacher

RECIPE = Path(__file__).parents[1] / "configs" / "alcohols"


@pytest.fixture
def molecules():
    return ase.io.read(RECIPE / "molecules.xyz", ":")


def test_bundle_is_small_sound_and_judged():
    assert locate_bundle("alcohols").stat().st_size < 1_000_000
    bundle = read_bundle("alcohols")
    assert [what for what, passed, _ in check(bundle) if not passed] == []
    assert bundle.metadata["teacher"]["name"] == "gfn2-xtb"
    assert "fidelity of alcohols: passed, 5 of 5 bars" in bundle.verdict


def test_report_beside_the_recipe_is_that_of_the_bundle():
    report, bundle = json.loads((RECIPE / "report" / "report.json").read_text()), read_bundle("alcohols")
    assert report["student"]["weights_sha256"] == bundle.weights_sha256
    carried = {line["name"]: line["value"] for line in bundle.metadata["fidelity"]["lines"]}
    assert carried == {line["name"]: line["value"] for line in report["lines"]}
    assert report["command"] == "mlffd distill configs/alcohols/alcohols.toml"
    assert report["environment"]["threads"] == 1


def test_molecules_stay_whole(molecules):
    """0.1 ps at 300 K of all four in one batch: no bond of the start gets longer than 1.3 times."""
    dynamics = Trajectories(molecules, Engine("alcohols").evaluate, 0.5, 300.0, seed=0)
    bonds = [np.argwhere(np.triu(atoms.get_all_distances() < 1.65, 1)) for atoms in molecules]
    lengths = [atoms.get_all_distances()[tuple(pairs.T)] for atoms, pairs in zip(molecules, bonds)]
    dynamics.run(200)
    assert dynamics.cut == [None] * len(molecules)
    for atoms, pairs, before in zip(dynamics.structures, bonds, lengths):
        assert (atoms.get_all_distances()[tuple(pairs.T)] / before).max() < 1.3


def test_the_real_teacher_agrees(molecules):
    """On frames displaced here and now; where tblite is installed."""
    try:
        calculator = load_teacher({"name": "gfn2-xtb", "accuracy": 0.1}).calculator
    except TeacherError as error:
        pytest.skip(str(error))
    errors = []
    for seed, atoms in enumerate(molecules):
        atoms.rattle(0.03, seed=seed)
        (student,) = Engine("alcohols").evaluate([atoms])
        atoms.calc = calculator
        errors.append(np.abs(student.forces - atoms.get_forces()).mean())
    assert 1e3 * np.mean(errors) < 25.0
