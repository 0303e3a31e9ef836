# SPDX-License-Identifier: MIT
"""Stretches of bonds under a teacher that is asked seldom, against springs of which all is known."""

from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms

from mlffd.dynamics import Trajectories
from mlffd.fidelity.beside import Pair
from mlffd.fidelity.compare import compare
from mlffd.fidelity.stretch import stretch_temperatures
from mlffd.fidelity.trajectories import Recording
from mlffd.verdict import judge

BOND, TEMPERATURE = 0.97, 300.0  # Å, K
N_MOLECULES, N_FRAMES, SPACING = 250, 50, 40


class Springs:
    """Molecules OH that do not feel each other; 46 eV/Å^2 make them swing in 9.4 fs."""

    def __init__(self, stiffness):
        self.stiffness = stiffness

    def __call__(self, structures):
        return [self.of(atoms.positions) for atoms in structures]

    def of(self, positions):
        vectors = positions[1::2] - positions[::2]
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        forces = np.empty_like(positions)
        forces[::2] = self.stiffness * (1.0 - BOND / lengths) * vectors
        forces[1::2] = -forces[::2]
        energy = 0.5 * self.stiffness * ((lengths - BOND) ** 2).sum()
        return SimpleNamespace(energy=energy, forces=forces, stress=np.full((3, 3), np.nan))


TEACHER, STUDENT = Springs(46.0), Springs(46.0 / 1.05)  # the student's bonds are 5 % too soft


def recorded(evaluate, slow=None, slow_every=1):
    places = 40.0 * np.arange(N_MOLECULES)[:, None] * [1.0, 0.0, 0.0]
    positions = np.stack([places, places + [BOND, 0.0, 0.0]], axis=1).reshape(-1, 3)
    md = Trajectories(
        [Atoms("OH" * N_MOLECULES, positions=positions)], evaluate, 0.5, TEMPERATURE, 100.0, seed=3,
        slow=slow, slow_every=slow_every, max_force=1e3,
    )  # fmt: skip
    start, frames = md.structures[0].copy(), []
    md.run(1200)
    for _ in range(N_FRAMES):
        md.run(SPACING)
        said = md.predictions[0] if slow is None else md.slow_predictions[0]
        frames.append((md.structures[0].positions.copy(), said.forces))
    positions, forces = map(np.array, zip(*frames))
    zeros = np.zeros(N_FRAMES)
    series = zeros, np.full((N_FRAMES, 3, 3), np.nan), zeros, np.full(N_FRAMES, TEMPERATURE)
    return Recording(start, start, np.arange(1, N_FRAMES + 1), positions, forces, *series, None)


@pytest.fixture(scope="module")
def student():
    return recorded(STUDENT)


@pytest.mark.slow
def test_stretches_of_a_run_have_its_temperature(student):
    """Seen to catch: the divergence without its part from the sphere, and pulls of the wrong sign."""
    ((kelvin, error),) = stretch_temperatures([student], 10).values()
    assert error < 0.06 * TEMPERATURE
    assert abs(kelvin / TEMPERATURE - 1.0) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("slow_every", "in_doubt"), [(2, False), (8, True)])
def test_a_teacher_that_is_asked_too_seldom_is_noticed(student, slow_every, in_doubt):
    """Impulses every 4 fs, near half a period, heat the stretches by a quarter, so that a student whose bonds
    are too soft looks too stiff; those every fs do not. Seen to catch: such a line passing its bar."""
    teacher = recorded(STUDENT, TEACHER, slow_every)
    found = compare(Pair([teacher], [student], 0.5, TEMPERATURE), rdf_range=2.0)
    line = next(line for line in found.lines if line["name"] == "rdf_peak_height_H-O")
    assert ("stretch as at" in line["doubt"]) == in_doubt
    ((kelvin, _),) = stretch_temperatures([teacher], 10).values()
    assert abs(kelvin / TEMPERATURE - (1.25 if in_doubt else 1.0)) < 0.1
    if in_doubt:
        assert judge({"lines": [line]}, {line["name"]: 1.0})["verdict"] == "failed"
