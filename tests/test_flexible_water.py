# SPDX-License-Identifier: MIT
"""The classical water that the water recipe starts from."""

from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.optimize import FIRE

from mlffd.dataset.pack import packed_box
from mlffd.teachers import load_teacher

CONFIGS = Path(__file__).parents[1] / "configs" / "water"


def flexible_water(**settings):
    return load_teacher({"name": "flexible_water:FlexibleWater", **settings}, directory=CONFIGS).calculator


def test_forces_are_the_gradient():
    box = packed_box({"H2O": 60}, 1.0, np.random.default_rng(2))
    box.rattle(0.05, seed=3)
    box.calc = flexible_water()
    forces, step = box.get_forces(), 1e-4
    np.testing.assert_allclose(forces.sum(0), 0, atol=1e-10)
    for atom, axis in [(0, 0), (1, 1), (2, 2), (90, 0), (91, 1), (179, 2)]:
        energies = []
        for sign in (1, -1):
            moved = box.copy()
            moved.positions[atom, axis] += sign * step
            moved.calc = box.calc
            energies.append(moved.get_potential_energy())
        assert forces[atom, axis] == pytest.approx((energies[1] - energies[0]) / (2 * step), abs=1e-6)


@pytest.mark.parametrize(("bond_length", "angle"), [(1.012, 113.24), (0.975, 105.5)])
def test_a_lone_molecule_relaxes_to_the_stated_geometry(bond_length, angle):
    water = molecule("H2O", cell=[15] * 3, pbc=True)
    water.calc = flexible_water(bond_length=bond_length, angle=angle)
    FIRE(water, logfile=None).run(fmax=1e-5, steps=500)
    assert water.get_distance(0, 1) == pytest.approx(bond_length, abs=1e-4)
    assert water.get_angle(1, 0, 2) == pytest.approx(angle, abs=0.01)


def test_two_molecules_attract_by_the_coulomb_and_lennard_jones_of_the_paper():
    """With the cutoff far away and no damping, the pair energy is the textbook sum."""
    water = molecule("H2O", cell=[4000] * 3, pbc=True)
    pair = water + water
    pair.positions[3:] += [0.3, 0.2, 3.1]
    calculator = flexible_water(cutoff=1999.0, damping=0.0)
    alone = []
    for atoms in (pair, pair[:3], pair[3:]):
        atoms.calc = calculator
        alone.append(atoms.get_potential_energy())
    found = alone[0] - alone[1] - alone[2]
    charges = np.array([-0.82, 0.41, 0.41])
    r = np.linalg.norm(pair.positions[:3, None] - pair.positions[None, 3:], axis=2)
    coulomb = (14.3996 * charges[:, None] * charges / r).sum()
    sixth = (3.165492 / r[0, 0]) ** 6
    lennard_jones = 4 * 0.1554253 * 0.0433641 * (sixth**2 - sixth)
    assert found == pytest.approx(coulomb + lennard_jones, abs=2e-6)


def test_boxes_it_cannot_do_are_refused():
    box = packed_box({"H2O": 8}, 1.0, np.random.default_rng(0))  # 6.2 Å: too small for the cutoff
    box.calc = flexible_water()
    with pytest.raises(ValueError, match="at least 12 Å"):
        box.get_potential_energy()
