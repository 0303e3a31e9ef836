# SPDX-License-Identifier: MIT
"""Choosing what is new: farthest points, in turns, no frame twice; features that tell environments apart."""

import numpy as np
import pytest
import torch
from ase import Atoms

from mlffd.dataset.select import DUPLICATE, MOST_KNOWN, Environments, choose_new, novelties
from mlffd.errors import ConfigError
from mlffd.explore import environments
from mlffd.graph import from_atoms
from mlffd.students import build_student


def frame(*points, species=1):
    """Atoms of one species at points of a line (or of a plane)."""
    points = np.array(points, float)
    return Environments(points.reshape(len(points), -1), np.full(len(points), species))


def random_frames(n_frames, seed=0, n_atoms=5, n_features=4):
    rng = np.random.default_rng(seed)
    species = np.array([1, 1, 8, 1, 8])[:n_atoms]
    return [Environments(rng.normal(size=(n_atoms, n_features)), species) for _ in range(n_frames)]


KNOWN = [frame(-1.0, 1.0)]  # of which the mean is 0 and the spread 1


def test_how_new_by_hand():
    """Root mean square over atoms of the nearest distance. Seen to fail: the mean; distances not squared."""
    found = novelties([frame(1.0, -1.0), frame(4.0, 5.0), frame(0.0, 1.5)], KNOWN)
    np.testing.assert_allclose(found, [0.0, np.sqrt((9 + 16) / 2), np.sqrt((1 + 0.25) / 2)], atol=1e-6)


def test_species_are_told_apart_and_each_measured_by_its_own_spread():
    """Seen to fail: one spread for all; the nearest atom of any species."""
    known = [Environments(np.array([[-1.0], [1.0], [80.0], [120.0]]), np.array([1, 1, 8, 8]))]
    atoms = Environments(np.array([[4.0], [140.0]]), np.array([1, 8]))
    assert novelties([atoms], known)[0] == pytest.approx(np.sqrt((3.0**2 + 1.0**2) / 2))


def test_novelty_does_not_depend_on_units_and_origin_of_features():
    """Seen to fail: features not centered, where single precision loses small distances."""
    candidates, known = random_frames(6, 1), random_frames(9, 2)
    moved = [
        [Environments(7.0 * e.features + 4e4, e.species) for e in frames] for frames in (candidates, known)
    ]
    np.testing.assert_allclose(novelties(*moved), novelties(candidates, known), rtol=1e-3)


def test_farthest_points():
    """Those chosen count as known at once. Seen to fail: distances not updated (10 and 9 chosen)."""
    candidates = [frame(9.0), frame(10.0), frame(-5.0), frame(5.5), frame(1.05)]
    chosen, how_new = choose_new(candidates, KNOWN, 3)
    assert chosen.tolist() == [1, 3, 2]
    np.testing.assert_allclose(how_new, [9.0, 4.5, 4.0], atol=1e-5)


def test_the_same_as_by_brute_force():
    candidates, known = random_frames(30, 3), random_frames(4, 4)
    chosen, how_new = choose_new(candidates, known, 12)
    have = list(known)
    for k, new in zip(chosen, how_new):
        # units stay those of the known
        expected = [novelty_by_hand(c, have, known) for c in candidates]
        assert k == np.argmax(expected)
        assert new == pytest.approx(max(expected), rel=1e-4)
        have.append(candidates[k])
    assert (np.diff(how_new) <= 1e-6).all()


def novelty_by_hand(candidate, have, known):
    squares = []
    for point, number in zip(candidate.features, candidate.species):
        reference = np.concatenate([e.features[e.species == number] for e in known])
        spread = ((reference - reference.mean(axis=0)) ** 2).sum(axis=1).mean()
        others = np.concatenate([e.features[e.species == number] for e in have])
        squares.append(((others - point) ** 2).sum(axis=1).min() / spread)
    return np.sqrt(np.mean(squares))


def test_no_frame_twice():
    """Copies, and what is known already, are left out. Seen to fail: `count` frames whatever they are."""
    candidates = [frame(3.0, 4.0), frame(3.0, 4.0), frame(4.0, 3.0), frame(1.0, -1.0), frame(3.0, 4.001)]
    chosen, how_new = choose_new(candidates, KNOWN, 5)
    assert chosen.tolist() == [4]
    assert how_new[0] >= DUPLICATE


def test_no_frame_twice_far_from_all_that_is_known():
    """A student's features of a strange frame can be huge. Seen to fail: rounding taken for distance."""
    candidates = [Environments(1e3 * e.features, e.species) for e in random_frames(8, 1)]
    chosen, _ = choose_new(candidates, random_frames(9, 2), 20)
    assert sorted(chosen) == list(range(8))


def test_conditions_take_turns():
    """Seen to fail: the hottest takes all; a condition with nothing new ends the choice."""
    candidates = (
        [frame(50.0 + 9 * k) for k in range(5)] + [frame(1.2), frame(1.5), frame(1.0)] + [frame(-1.0)]
    )
    conditions = ["hot"] * 5 + ["cold"] * 3 + ["frozen"]
    chosen, _ = choose_new(candidates, KNOWN, 6, conditions)
    assert [conditions[k] for k in chosen] == ["hot", "cold", "hot", "cold", "hot", "hot"]
    assert chosen[0] == 4
    assert chosen[1] == 6


def test_where_nothing_is_known():
    chosen, how_new = choose_new(random_frames(5), [], 3)
    assert len(set(chosen)) == 3
    assert chosen[0] == 0
    assert np.isinf(how_new[0])
    assert np.isfinite(how_new[1:]).all()
    assert choose_new([], KNOWN, 3)[0].tolist() == []
    assert choose_new([frame(9.0)], KNOWN, 0)[0].tolist() == []


def test_many_known_ones_are_thinned_out_evenly():
    """Seen to fail: only the first ones kept."""
    known = [frame(*np.linspace(k, k + 1, 1000)) for k in range(3 * MOST_KNOWN // 1000)]
    assert novelties([frame(30.2), frame(59.9), frame(0.1)], known).max() < 1e-3


# ---- features of students ----


def water_like(seed=0):
    rng = np.random.default_rng(seed)
    return Atoms("OHHOHH", rng.uniform(0, 6, (6, 3)), cell=[9.0] * 3, pbc=True)


@pytest.mark.parametrize(
    "sizes",
    [
        dict(family="local", channels=4, hidden=[8, 5]),
        dict(family="local", channels=4, hidden=[]),
        dict(family="painn", features=8, layers=2),
    ],
)
def test_energies_are_linear_in_features(sizes):
    """So they say all that the energy knows of an environment. Seen to fail: a layer too early."""
    torch.manual_seed(0)
    student = build_student(dict(species=[1, 8], cutoff=4.0, **sizes))
    structures = [water_like(seed) for seed in range(12)]
    for number in (1, 8):
        features, energies = [], []
        for atoms in structures:
            graph = from_atoms(atoms, student.cutoff)
            own = atoms.numbers == number
            distance = torch.linalg.vector_norm(graph.edge_vectors, dim=1)
            with torch.no_grad():
                features.append(student.last_features(graph)[own].numpy())
                interaction = student.interaction(graph, student.species_idx(graph), distance)
                energies.append(interaction[own].numpy())
        features, energies = np.concatenate(features), np.concatenate(energies)
        if features.shape[1] < len(features) - 1:
            design = np.column_stack([features, np.ones(len(features))])
            fit = np.linalg.lstsq(design, energies, rcond=None)[0]
            np.testing.assert_allclose(design @ fit, energies, atol=1e-9)
            assert np.ptp(energies) > 1e-6
        assert np.ptp(features, axis=0).max() > 1e-6


@pytest.mark.parametrize("family", ["local", "painn"])
def test_features_do_not_depend_on_orientation_and_order(family):
    student = build_student(dict(family=family, species=[1, 8], cutoff=4.0))
    atoms = water_like()
    atoms.pbc = False
    turned = atoms.copy()
    turned.rotate(40, (1, 2, 3))
    order = [3, 1, 5, 0, 2, 4]
    plain, other = environments(student.cast(torch.float32), [atoms, turned[order]])
    np.testing.assert_allclose(
        other.features, plain.features[order], atol=1e-4 * np.abs(plain.features).max()
    )
    np.testing.assert_array_equal(other.species, plain.species[order])


def test_a_student_without_features_says_so():
    student = build_student(
        dict(family="lennard_jones", species=[18], cutoff=6.0, epsilon=[0.01], sigma=[3.4])
    )
    with pytest.raises(ConfigError, match="lennard_jones student has no features"):
        environments(student, [Atoms("Ar")])
