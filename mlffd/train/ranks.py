# SPDX-License-Identifier: MIT
"""Training in several processes that `torchrun` started: each takes its share of every batch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """This process among those of a training; alone by default."""

    rank: int = 0
    size: int = 1

    def share(self, items: Sequence) -> list:
        """What of a batch this process computes; all shares together are the batch."""
        return list(items[self.rank :: self.size])

    def sum_gradients(self, parameters: list, value: float) -> float:
        """Replace gradients by their sums over the processes; returns the sum of ``value``."""
        if self.size == 1:
            return value
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([g.flatten().double() for g in gradients] + [torch.tensor([value]).double()])
        dist.all_reduce(flat)
        parts = flat[:-1].split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)
        return float(flat[-1])

    def from_first(self, value: float) -> float:
        """The first process' ``value``, in all of them."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


def join_ranks() -> Ranks:
    """The processes that torchrun started, or this one alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Ranks()
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return Ranks(dist.get_rank(), dist.get_world_size())
