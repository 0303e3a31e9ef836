# SPDX-License-Identifier: MIT
"""Labels that tests train on, and the smallest student that learns from them."""

from pathlib import Path

import numpy as np
from ase import Atoms

from mlffd.bundle import read_bundle
from mlffd.dataset.store import LabelledSet
from mlffd.engine import Engine
from mlffd.students import build_student
from mlffd.train.config import TrainConfig

TEACHER = {
    "family": "lennard_jones", "species": [10, 18], "cutoff": 5.0,
    "epsilon": [0.05, 0.1], "sigma": [2.2, 2.5],
}  # fmt: skip
STUDENT = {"family": "local", "cutoff": 5.0, "channels": 6, "n_radial": 6, "l_max": 2, "hidden": [16]}
CONFIG = TrainConfig(epochs=25, batch_size=2, learning_rate=0.01, validation_fraction=0.2)


def neon_argon(n_frames: int = 24, first_seed: int = 0, title: str = "0") -> LabelledSet:
    """Neon-argon boxes of two sizes, labelled by Lennard-Jones plus an energy for each element."""
    rng = np.random.default_rng(first_seed)
    structures = []
    for k in range(n_frames):
        repeat = (2, 2, 2 + k % 2)
        atoms = Atoms(
            ["Ar", "Ne"], positions=[[0, 0, 0], [2.9, 0, 0]], cell=[5.8, 2.9, 2.9], pbc=True
        ).repeat(repeat)
        atoms.numbers = rng.permutation(rng.choice([10, 18], len(atoms)))
        atoms.rattle(0.15, seed=first_seed + k)
        structures.append(atoms)
    predictions = Engine(build_student(TEACHER), dtype="float64").evaluate(structures)
    offsets = [
        (atoms.numbers == 10).sum() * -3.0 + (atoms.numbers == 18).sum() * -7.0 for atoms in structures
    ]
    return LabelledSet(
        structures,
        np.array([p.energy for p in predictions]) + offsets,
        [p.forces for p in predictions],
        np.array([p.stress for p in predictions]),
        {"teacher": {"name": "lj"}, "failed": {}},
        title * 64,
    )


def weights(path: Path) -> dict:
    return read_bundle(path).student.state_dict()


def same(one: dict, other: dict) -> bool:
    return all((one[name] == other[name]).all() for name in one)
