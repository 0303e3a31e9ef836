# SPDX-License-Identifier: MIT
"""Muon: what its steps are, which parameters it moves, and what a batch says nothing of stays."""

import pytest
import torch
from torch import nn

from mlffd.students import build_student
from mlffd.train.optimizer import SIZE, Muon, StudentOptimizer, orthogonalized, split_parameters

MANY = list(range(1, 11))  # elements; so many share learned embeddings
LOCAL = dict(family="local", cutoff=5.0, n_radial=4, channels=3, hidden=[8, 5])
PAINN = dict(family="painn", cutoff=4.0, features=8, layers=2)


def matrices_of(shape, seed: int = 1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(7, 7), (5, 40), (40, 5), (3, 6, 9), (3, 9, 6)])
def test_singular_vectors_stay_and_singular_values_come_near_one(shape):
    left, values, right = torch.linalg.svd(matrices_of(shape), full_matrices=False)
    values = values.clamp(min=0.05 * values.max())  # smaller ones take more iterations than there are
    found = left.mT @ orthogonalized(left @ torch.diag_embed(values) @ right) @ right.mT
    diagonal = torch.diagonal(found, dim1=-2, dim2=-1)
    torch.testing.assert_close(found, torch.diag_embed(diagonal), rtol=0, atol=1e-9)
    assert 0.6 < diagonal.min() <= diagonal.max() < 1.25


def test_the_size_of_a_gradient_does_not_matter_and_zero_stays_zero():
    matrix = matrices_of((4, 6)).float()
    for size in (1e-35, 1e-6, 1e35):
        torch.testing.assert_close(
            orthogonalized(size * matrix), orthogonalized(matrix), rtol=1e-3, atol=1e-4
        )
    assert not orthogonalized(torch.zeros(2, 4, 6)).any()


def test_a_stack_is_so_many_matrices():
    stack = matrices_of((3, 4, 6))
    stack[1] *= 100
    alone = torch.stack([orthogonalized(matrix) for matrix in stack])
    torch.testing.assert_close(orthogonalized(stack), alone)


def names_of_matrices(architecture: dict, species: list) -> set[str]:
    """Those that are Muon's; every parameter is somebody's."""
    student = build_student({**architecture, "species": species})
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    matrices, others = ([names[id(p)] for p in part] for part in split_parameters(student))
    assert sorted(matrices + others) == sorted(names.values())
    return set(matrices)


@pytest.mark.parametrize("species", [[1, 8], MANY])
def test_matrices_of_a_local_student(species):
    """Neither biases, nor the last layer of one output, nor what is learned of each element (``MANY``)."""
    matrices = ("mixing", "layers.0.weight", "layers.1.weight")
    expected = {f"networks.{k}.{name}" for k in range(len(species)) for name in matrices}
    assert names_of_matrices(LOCAL, species) == expected


def test_matrices_of_a_painn_student():
    hidden = ("network.0.weight", "network.2.weight")
    expected = {f"messages.{k}.{name}" for k in (0, 1) for name in (*hidden, "filters.weight")}
    expected |= {f"updates.{k}.{name}" for k in (0, 1) for name in (*hidden, "mix.weight")}
    assert names_of_matrices(PAINN, MANY) == expected | {"readout.0.weight"}


def test_a_step_is_of_the_size_of_adams():
    weight = nn.Parameter(torch.zeros(30, 40))
    optimizer = Muon([weight], 0.1)
    weight.grad = matrices_of((30, 40)).float()
    optimizer.step()
    size = float((weight.detach() ** 2).mean().sqrt()) / 0.1
    assert 0.5 * SIZE < size < 1.2 * SIZE
    assert (weight * weight.grad).sum() < 0, "downhill"


def test_all_parameters_take_the_rate_of_the_step():
    student = build_student({**LOCAL, "species": [1, 8]})
    optimizer = StudentOptimizer(student)
    before = [parameter.detach().clone() for parameter in student.parameters()]
    for parameter in student.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step(1e-9)
    for parameter, old in zip(student.parameters(), before):
        assert 0 < (parameter - old).abs().max() < 1e-8


@pytest.mark.parametrize("gradient", [None, 0.0])
def test_what_a_batch_says_nothing_of_stays(gradient):
    """Saw: the network of an element that a batch lacks went on at full speed in its last direction."""
    student = build_student({**LOCAL, "species": [1, 8]})
    optimizer = StudentOptimizer(student)
    for parameter in student.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(1e-3)
    before = [parameter.detach().clone() for parameter in student.networks[1].parameters()]
    for parameter in student.networks[1].parameters():
        parameter.grad = gradient if gradient is None else torch.full_like(parameter, gradient)
    optimizer.step(1e-3)
    assert all((new == old).all() for new, old in zip(student.networks[1].parameters(), before))
