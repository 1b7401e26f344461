"""The formulas of `backsolve._adapter.rules` in PyTorch's own operations."""

from collections.abc import Sequence
from typing import Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .._adapter import rules
from .._adapter.rules import Algebra
from ..kinds.base import Operator, Ops
from ..pattern import AnyPattern, Pattern
from ..types import Array
from ._products import matmul

_BLOCK: Final = 1 << 20
"""Products formed at a time: bounds the scratch memory of a wide block of right-hand sides."""

_CACHED: Final = 1 << 15
"""The same on the CPU where pieces need no more than to be put together, 256 kB in double precision.

Longer ones are given back to the system by the allocator and asked for again: touching them anew took most of the time.
"""

_SINGLY: Final = 64
"""Up to so many columns, those of all systems together, are multiplied singly on the CPU.

There `index_add` takes 1.3 ms for 500,000 numbers, and 28 if each stands in a row of its own.
"""


def _concatenate(tensors: Sequence[Tensor], dim: int) -> Tensor:
    return torch.cat(list(tensors), dim)


OPS: Final = Ops(torch.fft, _concatenate, torch.is_complex)
"""For products with A that users write; autocast may reduce them, as it does others."""

_EXACT: Final = Ops(torch.fft, _concatenate, torch.is_complex, matmul)
"""For derivatives."""

_coordinates: "WeakKeyDictionary[Pattern, dict[torch.device, tuple[Tensor, Tensor]]]" = WeakKeyDictionary()


def coordinates(pattern: Pattern, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of each stored entry, kept with the pattern for each device."""
    known = _coordinates.setdefault(pattern, {})
    if device not in known:
        # Copies: PyTorch warns about the read-only arrays that a pattern holds.
        rows, columns = torch.tensor(pattern.rows), torch.tensor(pattern.indices)
        known[device] = (rows.to(device), columns.to(device))
    return known[device]


def values_gradient(
    pattern: AnyPattern, operator: Operator, lam: Tensor, x: Tensor, vectors: bool, values: Tensor | None = None
) -> Tensor:
    """As `rules.values_gradient`; reduced precision does not enter through an enclosing autocast region."""
    with torch.autocast(lam.device.type, enabled=False):
        gradient: Tensor = rules.values_gradient(ALGEBRA, pattern, operator, lam, x, vectors, values)
    return gradient.resolve_conj()


def tangent_rhs(
    pattern: AnyPattern,
    operator: Operator,
    dvalues: Tensor | None,
    x: Tensor,
    db: Tensor | None,
    vectors: bool,
    values: Tensor | None = None,
) -> Tensor:
    """As `rules.tangent_rhs`, likewise."""
    with torch.autocast(x.device.type, enabled=False):
        rhs: Tensor = rules.tangent_rhs(ALGEBRA, pattern, operator, dvalues, x, db, vectors, values)
    return rhs.resolve_conj()


def outer(pattern: AnyPattern, left: Tensor, right: Tensor) -> Tensor:
    """`sum_k left[r, k] conj(right[c, k])` on the stored entries."""
    if not isinstance(pattern, Pattern):
        return matmul(left, right.mH)
    rows, columns = coordinates(pattern, left.device)
    right = right.conj()
    blocks = _blocks(rows, columns, left, _CACHED if left.device.type == "cpu" else _BLOCK)
    if left.shape[-1] == 1:
        left, right = left.squeeze(-1), right.squeeze(-1)
        parts = [left.index_select(-1, r) * right.index_select(-1, c) for r, c in zip(*blocks, strict=True)]
    else:
        parts = [(left.index_select(-2, r) * right.index_select(-2, c)).sum(-1) for r, c in zip(*blocks, strict=True)]
    return torch.cat(parts, -1) if len(parts) != 1 else parts[0]


def product(pattern: AnyPattern, values: Tensor, x: Tensor, *, transposed: bool) -> Tensor:
    """`A x`, or `Aᵀ x`, for the matrix with these values, `[m, n]`."""
    if not isinstance(pattern, Pattern):
        return matmul(values.mT if transposed else values, x)
    rows, columns = coordinates(pattern, x.device)
    into, out_of = (columns, rows) if transposed else (rows, columns)
    size = pattern.n if transposed else pattern.m
    if x.device.type == "cpu" and 0 < x.numel() <= _SINGLY * x.shape[-2] and not torch.compiler.is_compiling():
        return _column_by_column(values, x, into, out_of, size)
    result = torch.zeros_like(x) if size == x.shape[-2] else x.new_zeros((*x.shape[:-2], size, x.shape[-1]))
    start = 0
    for i, o in zip(*_blocks(into, out_of, x, _BLOCK), strict=True):
        stop = start + i.shape[0]
        result = result.index_add(-2, i, values[..., start:stop].unsqueeze(-1) * x.index_select(-2, o))
        start = stop
    return result


def _column_by_column(values: Tensor, x: Tensor, into: Tensor, out_of: Tensor, size: int) -> Tensor:
    lead, k = x.shape[:-2], x.shape[-1]
    systems = values.expand(*lead, -1).reshape(-1, values.shape[-1]).unbind(0)
    vectors = x.mT.reshape(-1, x.shape[-2]).unbind(0)
    found = [
        vector.new_zeros(size).index_add(0, into, systems[number // k] * vector.index_select(0, out_of))
        for number, vector in enumerate(vectors)
    ]
    return torch.stack(found).reshape(*lead, k, size).mT


def _blocks(first: Tensor, second: Tensor, rhs: Tensor, products: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Both index arrays in pieces that keep a piece's products below so many."""
    width = max(1, rhs.numel() // max(1, rhs.shape[-2]))
    size = max(1, products // width)
    return torch.split(first, size), torch.split(second, size)


def _constant(constant: Array, like: Tensor) -> Tensor:
    return torch.as_tensor(constant, dtype=like.real.dtype, device=like.device)


ALGEBRA: Final = Algebra(_EXACT, product, torch.conj, torch.zeros_like, outer, _constant)
