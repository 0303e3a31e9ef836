# SPDX-License-Identifier: MIT
"""What a bundle says its training saw: found by other means, recorded by ``train``, read back as limits.

Seen to fail: the largest distance in place of the shortest, only the last frame, nothing recorded, no margin.
"""

import json

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms

from mlffd.__main__ import main
from mlffd.bundle import parse, read_bundle, write_bundle
from mlffd.dataset.label import label
from mlffd.dataset.store import read_labels
from mlffd.distill import with_domain
from mlffd.domain import DISTANCE_MARGIN, EXPLOSION, KEY, PAIR_FORCE_MARGIN, limits
from mlffd.engine import Engine
from mlffd.errors import BundleError, ConfigError
from mlffd.students import build_student
from mlffd.train.domain import training_domain
from mlffd.train.loop import TrainConfig, labelled_graphs, train

STUDENT = {
    "family": "local",
    "species": [10, 18, 36],
    "cutoff": 4.0,
    "channels": 4,
    "l_max": 1,
    "hidden": [4],
}
CONFIG = TrainConfig(epochs=1, validation_fraction=0.2)
LJ = {"name": "lj", "epsilon": 0.01, "sigma": 2.5}


def gas(seed: int) -> Atoms:
    """Neon and argon, no krypton, in a box smaller than the cutoff; no atom right beside another."""
    rng = np.random.default_rng(seed)
    grid = np.indices((2, 2, 1)).reshape(3, -1).T * [2.6, 2.4, 3.3]
    return Atoms("NeArNeNe", grid + rng.uniform(-0.2, 0.2, grid.shape), cell=[5.2, 4.8, 3.3], pbc=True)


@pytest.fixture(scope="module")
def labels_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    ase.io.write(folder / "frames.xyz", [gas(seed) for seed in range(6)], format="extxyz")
    label(folder / "frames.xyz", LJ, folder / "labels.h5")
    return folder / "labels.h5"


def by_brute_force(labels, student) -> dict:
    """The same entries from all images of all pairs, one by one, and forces of the engine's own path."""
    shortest, neighbors, pair_force = {}, {}, 0.0
    engine = Engine(student, dtype="float64", backend="reference")
    for atoms in labels.structures:
        images = np.indices((5, 5, 5)).reshape(3, -1).T - 2
        pairs = []
        for i in range(len(atoms)):
            for j in range(len(atoms)):
                vectors = atoms.positions[j] - atoms.positions[i] + images @ atoms.cell.array
                for vector in vectors:
                    if 0 < np.linalg.norm(vector) < student.cutoff:
                        pairs.append((i, j, vector))
                        name = "-".join(sorted([atoms.symbols[i], atoms.symbols[j]], key=["Ne", "Ar"].index))
                        shortest[name] = min(np.linalg.norm(vector), shortest.get(name, 9.0))
        i, j, vectors = map(np.array, zip(*pairs))
        for atom in range(len(atoms)):
            around = [atoms.symbols[neighbor] for center, neighbor, _ in pairs if center == atom]
            for element in ("Ne", "Ar", "Kr"):
                name = f"{atoms.symbols[atom]}-{element}"
                neighbors.setdefault(name, []).append(around.count(element))
        gradient = engine.evaluate_pairs(atoms.numbers, i, j, vectors, len(atoms))[1]
        pair_force = max(pair_force, np.linalg.norm(gradient, axis=1).max())
    force = max(np.linalg.norm(forces, axis=1).max() for forces in labels.forces)
    return {
        "shortest_distance": shortest,
        "neighbors": {name: [min(counts), max(counts)] for name, counts in neighbors.items()},
        "largest_pair_force": pair_force,
        "largest_force": force,
    }


def test_entries_are_those_of_all_pairs_of_all_frames(labels_path):
    labels = read_labels(labels_path)
    student = build_student(STUDENT)
    found = training_domain(student, labelled_graphs(labels, student.cutoff, torch.float64))
    expected = by_brute_force(labels, student)
    assert set(expected["shortest_distance"]) == {"Ne-Ne", "Ne-Ar", "Ar-Ar"}
    assert found["shortest_distance"] == pytest.approx(expected.pop("shortest_distance"), rel=1e-4)
    assert found["neighbors"] == expected.pop("neighbors")
    assert found["neighbors"]["Ne-Kr"] == [0, 0]
    assert found["neighbors"]["Ne-Ar"] != found["neighbors"]["Ar-Ne"]
    del found["shortest_distance"], found["neighbors"]
    assert found == pytest.approx(expected, rel=1e-4)
    assert json.loads(json.dumps(found)) == found


def test_training_records_them(labels_path, tmp_path):
    bundle = train(read_labels(labels_path), STUDENT, CONFIG, tmp_path / "s.mlffd")
    again = training_domain(
        bundle.student.cast(torch.float32), labelled_graphs(read_labels(labels_path), bundle.student.cutoff)
    )
    assert bundle.metadata[KEY] == again
    assert read_bundle(tmp_path / "s.mlffd").metadata[KEY] == again


def test_a_bundle_of_before_gets_them_by_repair(labels_path, tmp_path):
    """Weights stay what they were, bit by bit; labels of another training are refused."""
    old, new = tmp_path / "old.mlffd", tmp_path / "new.mlffd"
    bundle = write_bundle(old, build_student(STUDENT), {"labels": {"sha256": read_labels(labels_path).hash}})
    assert KEY not in bundle.metadata
    assert main(["repair", str(old), "-o", str(new), "--labels", str(labels_path)]) == 0
    tensors, metadata = parse(new.read_bytes(), "new")
    before, _ = parse(old.read_bytes(), "old")
    assert metadata[KEY] == with_domain(bundle, read_labels(labels_path)).metadata[KEY]
    assert set(tensors) == set(before)
    assert all(torch.equal(tensors[name], before[name]) for name in before)
    other = write_bundle(old, build_student(STUDENT), {"labels": {"sha256": "0" * 64}})
    with pytest.raises(ConfigError, match="trained on other labels"):
        with_domain(other, read_labels(labels_path))


def test_limits_have_margins_and_leave_alone_what_was_never_seen():
    domain = {"shortest_distance": {"H-O": 0.8, "O-O": 2.4}, "largest_pair_force": 7.0}
    found = limits({KEY: domain}, (8, 1))
    np.testing.assert_allclose(found.shortest, DISTANCE_MARGIN * np.array([[2.4, 0.8], [0.8, 0.0]]))
    assert found.largest_pair_force == 7.0 * PAIR_FORCE_MARGIN
    counts = limits({KEY: {"neighbors": {"O-H": [30, 60], "H-O": [1, 4]}}}, (8, 1))
    np.testing.assert_allclose(counts.fewest, [[0.0, 24.0], [0.0, 0.0]])
    np.testing.assert_allclose(counts.most, [[1e9, 72.0], [6.0, 1e9]])
    unknown = limits({}, (8, 1))
    assert (unknown.shortest == 0.0).all()
    assert unknown.largest_pair_force == EXPLOSION


@pytest.mark.parametrize(
    "domain",
    [
        [], {"shortest_distance": [1]}, {"shortest_distance": {"H-O": "near"}},
        {"shortest_distance": {"H-O": -1.0}}, {"largest_pair_force": None},
        {"largest_pair_force": float("nan")}, {"neighbors": {"O-H": 3}}, {"neighbors": {"O-H": [3, 2]}},
    ],
)  # fmt: skip
def test_entries_that_make_no_sense(domain):
    with pytest.raises(BundleError, match="training_domain"):
        limits({KEY: domain}, (1, 8))


def test_shipped_student_says_what_it_saw():
    found = limits(read_bundle("water").metadata, (1, 8))
    assert (found.shortest > [[0.8, 0.4], [0.4, 1.5]]).all()
    assert (found.shortest < [[1.3, 0.85], [0.85, 2.3]]).all()
    assert 10.0 < found.largest_pair_force < EXPLOSION
    assert (found.fewest > [[20, 10], [20, 8]]).all()
    assert (found.most < [[90, 45], [85, 45]]).all()
