"""Tensors to solve with, and the dense truth beside them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from backsolve import Pattern


def generator(seed: int) -> torch.Generator:
    """A source of the same numbers in every run."""
    return torch.Generator().manual_seed(seed)


def dense(seed: int, batch: tuple[int, ...] = (), n: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    """`[*batch, n, n]`, nonsymmetric and well-conditioned."""
    noise = torch.randn(*batch, n, n, generator=generator(seed), dtype=dtype)
    return noise + 2 * n**0.5 * torch.eye(n, dtype=dtype)


def rhs(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def sparse_pattern(seed: int, n: int = 6, density: float = 0.4) -> Pattern:
    """A nonsymmetric pattern with a full diagonal."""
    stored = np.random.default_rng(seed).random((n, n)) < density
    np.fill_diagonal(stored, True)
    rows, columns = np.nonzero(stored)
    return Pattern(np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))]), columns, (n, n))


def values_on(pattern: Pattern, seed: int, batch: tuple[int, ...] = (), dtype: torch.dtype = torch.float64) -> Tensor:
    """`[*batch, nnz]` of a diagonally dominant matrix."""
    values = torch.randn(*batch, pattern.nnz, generator=generator(seed), dtype=dtype)
    diagonal = torch.tensor(pattern.rows == pattern.indices)
    return values + 2 * pattern.n**0.5 * diagonal


def scattered(values: Tensor, pattern: Pattern) -> Tensor:
    """The dense matrix, differentiably."""
    n = pattern.n
    position = torch.tensor(pattern.rows.astype(np.int64) * n + pattern.indices)
    empty = torch.zeros(*values.shape[:-1], n * n, dtype=values.dtype)
    return empty.index_add(-1, position, values).unflatten(-1, (n, n))


def operator(A: Tensor, trans: str) -> Tensor:
    """`op(A)`."""
    return {"N": A, "T": A.mT, "H": A.mH}[trans]


def reference(A: Tensor, b: Tensor, trans: str = "N") -> Tensor:
    """The answer by PyTorch's dense inverse.

    Not by `torch.linalg.solve`: reverse over forward through it drops terms (PyTorch 2.13).
    """
    vectors = b.ndim == A.ndim - 1
    x = torch.linalg.inv(operator(A, trans)) @ (b.unsqueeze(-1) if vectors else b)
    return x.squeeze(-1) if vectors else x


def close(actual: Any, expected: Any, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    """Equal to rounding, shapes and element types included."""
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)
