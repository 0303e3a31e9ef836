# SPDX-License-Identifier: MIT
"""The shipped student of isolated alcohols: a short run of it, and what its real teacher says."""

from pathlib import Path

import ase.io
import numpy as np
import pytest

from mlffd.dynamics import Trajectories
from mlffd.engine import Engine
from mlffd.errors import TeacherError
from mlffd.teachers import load_teacher

RECIPE = Path(__file__).parents[1] / "configs" / "alcohols"


@pytest.fixture
def molecules():
    return ase.io.read(RECIPE / "molecules.xyz", ":")


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
