"""Data sets whose items are solved where they are made: in the workers of a loader."""

import os

import torch
from torch import Tensor
from torch.utils.data import Dataset

from backsolve.torch import LinearSolve
from support.tensors import dense, rhs, sparse_pattern, values_on

PATTERN = sparse_pattern(478_120_936)
ITEMS = 6


class SolvedItems(Dataset[Tensor]):
    """Each item: the process that made it, an answer, and its gradient.

    Args:
        seed: of the matrices.
        layer: solves; with a client of its own, or without one.
        sparse: whether the layer has `PATTERN`.
    """

    def __init__(self, seed: int, layer: LinearSolve, *, sparse: bool) -> None:
        self.seed, self.layer, self.sparse = seed, layer, sparse

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, index: int) -> Tensor:
        made = values_on(PATTERN, self.seed) if self.sparse else dense(self.seed)
        values = made.requires_grad_()
        x: Tensor = self.layer(values, rhs(self.seed + index, (6,)))
        (gradient,) = torch.autograd.grad(x.sum(), values)
        return torch.cat([torch.tensor([float(os.getpid())]), x.detach(), gradient.flatten()])
