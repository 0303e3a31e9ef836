# SPDX-License-Identifier: MIT
"""Rows of the teacher's Hessian: right, the same for the same frame, stored beside the labels."""

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones

from mlffd.dataset.evaluate import hessian_rows, random_components
from mlffd.dataset.label import label
from mlffd.dataset.store import LabelStore, frames_hash, join_labels, read_labels
from mlffd.errors import LabelError

LJ = {"name": "lj", "epsilon": 0.01, "sigma": 3.4, "rc": 9.0}


def dimer(distance):
    return Atoms("Ar2", positions=[[0, 0, 0], [0, 0, distance]])


def test_rows_are_those_of_the_analytic_hessian():
    """Along the bond the second derivative, across it the first over the distance. Seen to catch the sign."""
    distance, epsilon, sigma = 4.0, 0.01, 3.4
    calculator = LennardJones(epsilon=epsilon, sigma=sigma, rc=9.0)
    components, rows = hessian_rows(calculator, dimer(distance), 6)
    x = (sigma / distance) ** 6
    slope = 4 * epsilon * (6 * x - 12 * x**2) / distance
    curvature = 4 * epsilon * (156 * x**2 - 42 * x) / distance**2
    block = np.diag([slope / distance, slope / distance, curvature])
    np.testing.assert_array_equal(components, np.arange(6))
    expected = np.block([[block, -block], [-block, block]])
    np.testing.assert_allclose(rows, expected, atol=1e-3 * np.abs(expected).max())


def test_which_rows_follows_from_the_frame_alone():
    crystal = bulk("Ar", cubic=True)
    first = random_components(crystal, 5)
    assert len(set(first)) == 5
    np.testing.assert_array_equal(random_components(crystal.copy(), 5), first)
    moved = crystal.copy()
    moved.positions[0, 0] += 1e-6
    assert list(random_components(moved, 5)) != list(first)
    assert len(random_components(dimer(4.0), 100)) == 6


def test_rows_are_stored_beside_the_labels_whoever_labels(tmp_path):
    frames = [dimer(3.6), bulk("Ar", cubic=True), dimer(4.1)]
    ase.io.write(tmp_path / "frames.xyz", frames)
    label(tmp_path / "frames.xyz", LJ, tmp_path / "one.h5", hessian_rows=8)
    label(tmp_path / "frames.xyz", LJ, tmp_path / "two.h5", hessian_rows=8, workers=2)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    labels = read_labels(tmp_path / "one.h5")
    assert [rows.shape for _, rows in labels.hessian_rows] == [(6, 6), (8, 12), (6, 6)]
    calculator = LennardJones(epsilon=0.01, sigma=3.4, rc=9.0)
    for atoms, (components, rows) in zip(labels.structures, labels.hessian_rows):
        calculator.reset()
        expected_components, expected = hessian_rows(calculator, atoms, 8)
        np.testing.assert_array_equal(components, expected_components)
        np.testing.assert_array_equal(rows, expected)
    with pytest.raises(LabelError, match=r"begun with hessian_rows \{.*8.*\}, now None"):
        label(tmp_path / "frames.xyz", LJ, tmp_path / "one.h5")


def plain_file(path, rows=None):
    store = LabelStore(path)
    atoms = Atoms("H2", positions=[[0, 0, 0.5], [0, 0.25, 0]], info={"temperature": 300})
    teacher = {"name": "lj", "version": "1", "licence": "none", "settings": {}}
    store.begin({"teacher": teacher, "frames": frames_hash([atoms]), "n_frames": 1})
    store.add(0, atoms, -1.5, np.arange(6.0).reshape(2, 3), np.full((3, 3), 0.125), rows)
    store.finish()
    return read_labels(path)


def test_a_file_without_rows_has_the_hash_it_had_before_there_were_any(tmp_path):
    """Bundles know their labels by it."""
    labels = plain_file(tmp_path / "labels.h5")
    assert labels.hash == "6254024e23afc9fa521a2b47ddfbfcdc06370df6ea3c216fa856c9e84ab09065"
    assert labels.hessian_rows is None


def test_rows_change_the_hash_and_join_with_labels_that_have_none(tmp_path):
    plain = plain_file(tmp_path / "plain.h5")
    rows = plain_file(tmp_path / "rows.h5", ([4], np.arange(6.0)[None]))
    assert plain.hash != rows.hash
    joined = join_labels([plain, rows])
    assert joined.hessian_rows[0] is None
    np.testing.assert_array_equal(joined.hessian_rows[1][1], [np.arange(6.0)])
    assert join_labels([plain, plain]).hessian_rows is None


@pytest.mark.parametrize(
    ("rows", "reason"), [(np.full((1, 6), np.nan), "not finite"), (np.zeros((1, 5)), "shape")]
)
def test_rows_that_cannot_be_are_refused(tmp_path, rows, reason):
    with pytest.raises(LabelError, match=reason):
        plain_file(tmp_path / "labels.h5", ([4], rows))
