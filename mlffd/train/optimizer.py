# SPDX-License-Identifier: MIT
"""The optimizer of students: Muon for weight matrices, Adam for everything else.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the size of its steps as in
Liu et al., "Muon is scalable for LLM training", arXiv:2502.16982, 2025.
"""

import torch
from torch import Tensor, nn

from mlffd.students.student import TrainedStudent

MOMENTUM = 0.95
ITERATIONS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al.: steep at zero, singular values end within 0.7 and 1.2
SIZE = 0.2  # root mean square of a step's entries at learning rate 1, about Adam's (Liu et al., section 2.2)


class StudentOptimizer:
    """Muon and Adam, each with its own parameters, at the learning rate that each step is given.

    A parameter whose gradient is zero stays where it is, whatever its momentum: that of an element which the
    batch does not have, with as many processes as may be.
    """

    def __init__(self, student: TrainedStudent):
        matrices, others = split_parameters(student)
        self.parts = [torch.optim.Adam(others)]
        self.parts += [Muon(matrices)] if matrices else []

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def step(self, learning_rate: float) -> None:
        for part in self.parts:
            (group,) = part.param_groups
            group["lr"] = learning_rate
            for parameter in group["params"]:
                if parameter.grad is not None and not parameter.grad.any():
                    parameter.grad = None
            part.step()

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict) -> None:
        for part, one in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(one)


def split_parameters(student: TrainedStudent) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices that act on features, or stacks of such, and all other parameters."""
    matrices, others = [], []
    for name, parameter in student.named_parameters():
        is_matrix = parameter.ndim >= 2 and min(parameter.shape[-2:]) > 1 and name not in student.embeddings
        (matrices if is_matrix else others).append(parameter)
    return matrices, others


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonalized: all directions of a matrix (..., m, n) learn alike fast.

    ``torch.optim.Muon`` knows no stacks, and rounds to bfloat16.
    """

    def __init__(self, matrices: list[nn.Parameter], learning_rate: float = 1e-3):
        super().__init__(matrices, {"lr": learning_rate})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum"] = torch.zeros_like(matrix)
                momentum = state["momentum"].lerp_(matrix.grad, 1.0 - MOMENTUM)
                direction = orthogonalized(matrix.grad.lerp(momentum, MOMENTUM))  # as Nesterov's
                matrix.add_(direction, alpha=-group["lr"] * SIZE * max(matrix.shape[-2:]) ** 0.5)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices (..., m, n) with the same singular vectors, and singular values near 1 unless very small.

    Zero stays zero. By Newton's and Schulz' iteration: odd polynomials of a matrix act on singular values.
    """
    a, b, c = QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    # by the largest entry first: squares of tiny ones would be zero
    x = x / x.abs().amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1.0)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
