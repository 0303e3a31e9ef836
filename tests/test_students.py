# SPDX-License-Identifier: MIT
"""Parts of students against formulas written down a second time, by other means than the code's."""

import numpy as np
import pytest
import torch
from ase import Atoms
from contract import random_box
from scipy.special import sph_harm_y

from mlffd.engine import Engine
from mlffd.errors import BundleError
from mlffd.graph import from_atoms
from mlffd.students import build_student
from mlffd.students.local import four_body
from mlffd.students.radial import bessel_basis, polynomial_cutoff, spherical_harmonics


def test_spherical_harmonics_are_scipys():
    """Up to the normalization, and the sign and order of real combinations of +m and -m."""
    vectors = np.random.default_rng(0).normal(size=(20, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ours = spherical_harmonics(torch.tensor(vectors), 3).numpy()
    polar, azimuth = np.arccos(vectors[:, 2]), np.arctan2(vectors[:, 1], vectors[:, 0])
    row = 0
    for l in range(4):  # noqa: E741
        norm = np.sqrt(4 * np.pi / (2 * l + 1))
        for m in range(-l, l + 1):
            complex_one = norm * sph_harm_y(l, abs(m), polar, azimuth) * (-1) ** m
            real = (
                complex_one.real if m == 0 else np.sqrt(2) * (complex_one.imag if m < 0 else complex_one.real)
            )
            np.testing.assert_allclose(ours[row], real, atol=1e-12)
            row += 1
        np.testing.assert_allclose((ours[l * l : row] ** 2).sum(0), 1.0)


def test_radial_functions():
    distance = torch.linspace(0.5, 5.2, 40, dtype=torch.float64)
    x = distance / 5.0
    envelope = torch.where(x < 1, 1 - 28 * x**6 + 48 * x**7 - 21 * x**8, torch.zeros_like(x))
    torch.testing.assert_close(polynomial_cutoff(distance, 5.0), envelope, rtol=0, atol=1e-12)
    basis = bessel_basis(distance, 5.0, 3)
    expected = np.sqrt(2 / 5.0) * torch.sin(3 * np.pi * x) / distance * envelope
    torch.testing.assert_close(basis[2], expected, rtol=0, atol=1e-12)


def test_four_body_terms_are_contractions_of_matrices():
    vectors = torch.randn(6, 3, dtype=torch.float64)
    v = (vectors / vectors.norm(dim=1, keepdim=True)).sum(0)
    harmonics = spherical_harmonics(vectors / vectors.norm(dim=1, keepdim=True), 2).sum(1)
    units = vectors / vectors.norm(dim=1, keepdim=True)
    q = np.sqrt(3) * (torch.einsum("na,nb->ab", units, units) - 6 * torch.eye(3) / 3)
    contraction, determinant = four_body(harmonics[None, 1:4, None], harmonics[None, 4:9, None])
    torch.testing.assert_close(contraction.squeeze(), v @ q @ v)
    torch.testing.assert_close(determinant.squeeze(), torch.linalg.det(q))


def test_repulsion_is_the_universal_potential():
    """Half its reach apart, where the switch is known, against the published formula, once per pair."""
    student = build_student({"family": "local", "species": [6, 8], "cutoff": 4.0, "channels": 2})
    for parameter in student.networks.parameters():
        torch.nn.init.zeros_(parameter)
    reach = float(student.baseline.repulsion_reach[0, 1])
    distance = 0.5 * reach
    x = distance / (0.46850 / (6**0.23 + 8**0.23))
    terms = ((0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162))
    screening = sum(c * np.exp(-k * x) for c, k in terms)
    switch = 1 - 28 * 0.5**6 + 48 * 0.5**7 - 21 * 0.5**8
    pair = Atoms("CO", positions=[[0, 0, 0], [0, 0, distance]])
    energy = Engine(student, dtype="float64").evaluate(pair)[0].energy
    assert energy == pytest.approx(6 * 8 * 14.399645 / distance * screening * switch, rel=1e-6)


def test_painn_is_the_paper_written_as_loops():
    """One structure, two layers, atom by atom and neighbor by neighbor (Schütt et al. 2021, eqs. 7 to 10)."""
    torch.manual_seed(1)
    architecture = {"family": "painn", "species": [1, 8], "cutoff": 3.5, "features": 4, "n_radial": 5}
    student = build_student(architecture)
    engine = Engine(student, dtype="float64")
    graph = from_atoms(random_box(engine, n_atoms=6), 3.5)
    species = student.species_idx(graph)
    distance = graph.edge_vectors.norm(dim=1)
    expected = student.interaction(graph, species, distance)
    radial = bessel_basis(distance, 3.5, 5).T
    s = student.embedding(species)
    v = torch.zeros(6, 4, 3, dtype=torch.float64)
    for message, update in zip(student.messages, student.updates):
        ds, dv = torch.zeros_like(s), torch.zeros_like(v)
        for e, (i, j) in enumerate(graph.edge_index.T.tolist()):
            phi = message.network(s[j]) * (message.filters.weight @ radial[e])
            ds[i] += phi[:4]
            unit = graph.edge_vectors[e] / distance[e]
            dv[i] += torch.einsum("f,fa->fa", phi[4:8], v[j]) + torch.einsum("f,a->fa", phi[8:], unit)
        s, v = s + ds, v + dv
        left_matrix, right_matrix = update.mix.weight.chunk(2)
        for i in range(6):
            left, right = left_matrix @ v[i], right_matrix @ v[i]
            norm = torch.sqrt((right**2).sum(1) + 1e-8)
            a = update.network(torch.cat([s[i], norm]))
            ds[i] = a[4:8] * (left * right).sum(1) + a[8:]
            dv[i] = a[:4, None] * left
        s, v = s + ds, v + dv
    torch.testing.assert_close(student.readout(s)[:, 0], expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cutoff": 0}, {"cutoff": float("nan")}, {"cutoff": [5]}, {"l_max": 4}, {"l_max": True},
        {"channels": 0}, {"channels": 1.5}, {"n_radial": "8"}, {"hidden": 5}, {"hidden": [-1]},
        {"species": 18}, {"species": []}, {"species": [1, 1]}, {"species": [0]}, {"species": ["H"]},
        {"family": ["local"]}, {"self": 1}, {"layers": 3}, {"hidden": [16000, 16000]}, {"l_max": 10**9},
    ],
    ids=str,
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused(wrong):
    with pytest.raises(BundleError) as caught:
        build_student({"family": "local", "species": [1, 8], "cutoff": 4.0, **wrong})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["local", "painn"])
def test_sizes_have_defaults(family):
    student = build_student({"family": family, "species": [18]})
    assert build_student(student.architecture).architecture == student.architecture
