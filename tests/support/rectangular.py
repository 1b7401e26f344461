"""Rectangular tensors to minimise with, and the dense formulas beside them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from backsolve import Pattern
from support.tensors import close, rhs

SHAPES = {"tall": (6, 4), "wide": (4, 6)}


def rectangular_pattern(shape: str) -> Pattern:
    """A nonsymmetric pattern with a full diagonal."""
    m, n = SHAPES[shape]
    stored = np.random.default_rng(80_413_552).random((m, n)) < 0.5
    stored[np.arange(min(m, n)), np.arange(min(m, n))] = True
    rows, columns = np.nonzero(stored)
    return Pattern(np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=m))]), columns, (m, n))


def filled(values: Tensor, pattern: Pattern) -> Tensor:
    """The dense matrix, differentiably."""
    position = torch.tensor(pattern.rows.astype(np.int64) * pattern.n + pattern.indices)
    empty = torch.zeros(*values.shape[:-1], pattern.m * pattern.n, dtype=values.dtype)
    return empty.index_add(-1, position, values).unflatten(-1, pattern.shape)


def minimiser(A: Tensor, b: Tensor, damp: float) -> Tensor:
    """The answer for a matrix of full rank."""
    vectors = b.ndim == A.ndim - 1
    columns = b.unsqueeze(-1) if vectors else b
    m, n = A.shape[-2:]
    if m >= n or damp:
        x = torch.linalg.inv(A.mH @ A + damp**2 * torch.eye(n, dtype=A.dtype)) @ (A.mH @ columns)
    else:
        x = A.mH @ (torch.linalg.inv(A @ A.mH) @ columns)
    return x.squeeze(-1) if vectors else x


def rectangular(kind: str, shape: str, batch: tuple[int, ...] = (), dtype: torch.dtype = torch.float64) -> Tensor:
    """The numbers of a matrix of full rank, `[*batch, m, n]` or `[*batch, nnz]`."""
    m, n = SHAPES[shape]
    if kind == "dense":
        return rhs(66_105_923, (*batch, m, n), dtype) + 4 * torch.eye(m, n, dtype=dtype)
    pattern = rectangular_pattern(shape)
    return rhs(43_971_208, (*batch, pattern.nnz), dtype) + 4 * torch.tensor(pattern.rows == pattern.indices)


def nearly(mine: Any, theirs: Any) -> None:
    """As near as LSMR comes, which stops at its tolerance."""
    close(mine, theirs, rtol=1e-8, atol=1e-9)
