"""A training job of one or several ranks, each a process of its own, on one server."""

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from backsolve.torch import LinearSolve
from support.tensors import rhs, sparse_pattern, values_on

PATTERN = sparse_pattern(618_237_045, 12)
SAMPLES, STEPS = 8, 3


class Model(torch.nn.Module):
    """A network with a solve inside: every rank has the same matrix, and other right-hand sides."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(values_on(PATTERN, seed))
        self.mixing = torch.nn.Linear(12, 12).double()
        with torch.no_grad():
            self.mixing.weight.copy_(rhs(seed + 1, (12, 12)))
            self.mixing.bias.zero_()
        self.solve = LinearSolve(PATTERN)

    def forward(self, samples: Tensor) -> Tensor:
        """Samples `[k, n]` as the columns of one block."""
        x: Tensor = self.solve(self.values, self.mixing(samples).mT)
        return x


def data(seed: int) -> Tensor:
    """All samples, `[SAMPLES, n]`."""
    return rhs(seed + 2, (SAMPLES, 12))


def train(model: torch.nn.Module, samples: Tensor) -> list[dict[str, Tensor]]:
    """Gradients of every step, by name."""
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-2)
    steps = []
    for _ in range(STEPS):
        optimiser.zero_grad()
        (model(samples) ** 2).mean().backward()
        steps.append(
            {
                name.removeprefix("module."): parameter.grad.clone()
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }
        )
        optimiser.step()
    return steps


def run_rank(rank: int, ranks: int, folder: str, url: str, seed: int) -> None:
    """One rank of the job; what it found goes into `folder`."""
    os.environ["BACKSOLVE_URL"] = url
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    try:
        model: Any = DistributedDataParallel(Model(seed))
        share = data(seed).chunk(ranks)[rank]
        steps = train(model, share)
        torch.save({"steps": steps, "pid": os.getpid()}, Path(folder) / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()
