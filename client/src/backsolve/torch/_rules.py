"""Derivatives of `op(A) x = b` with respect to A's stored entries, in PyTorch's own operations.

Written with differentiable operations only, so that a backward that is itself differentiated
gets the right answer. PyTorch's convention for complex data: gradients are with respect to the
conjugate. With G = ∂L/∂A on the entry (r, c) and `op(A)ᴴ λ = ∂L/∂x`:

    op   G(r, c)             op(dA) x, entry by entry
    N    -λ[r] conj(x[c])    row r gets  dA x[c]
    T    -conj(x[r]) λ[c]    row c gets  dA x[r]
    H    -x[r] conj(λ[c])    row c gets  conj(dA) x[r]
    C    -conj(λ[r]) x[c]    row r gets  conj(dA) x[c]

summed over the columns of a block of right-hand sides. Nothing dense is formed for a sparse A; for a
structured one G goes on to its parameters, as its kind has it.

Source: Giles, "An extended collection of matrix derivative results for forward and reverse mode
AD", 2008, section 2.3.1; the complex and transposed forms follow from ⟨λ, op(dA) x⟩.
"""

from collections.abc import Sequence
from math import prod
from typing import Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..kinds.base import Ops, join, pull, push
from ..pattern import AnyPattern, Pattern, StructuredPattern
from ._request import Operator

_BLOCK: Final = 1 << 20
"""Products formed at a time: bounds the scratch memory of a wide block of right-hand sides."""


def _concatenate(tensors: Sequence[Tensor], dim: int) -> Tensor:
    return torch.cat(list(tensors), dim)


OPS: Final = Ops(torch.fft, _concatenate, torch.is_complex)

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
    """Gradient on A's stored entries.

    Args:
        pattern: of A.
        operator: what was solved with.
        lam: the adjoint solution, shaped like x.
        x: the solution, `[..., n]` or `[..., n, k]`.
        vectors: which of the two.
        values: of A; needed on a structured pattern alone.

    Returns:
        `[..., nnz]`, or `[..., n, n]` for a dense A; of an update that of S in a row, then those of U and V.
    """
    if isinstance(pattern, StructuredPattern) and pattern.base is not None and values is not None:
        # A is the sum of S and U Vᴴ: its gradient is that of each.
        size = prod(pattern.base.entries)
        own = _structured_gradient(pattern, operator, _columns(lam, vectors), _columns(x, vectors), values[..., size:])
        of_base = values_gradient(pattern.base, operator, lam, x, vectors)
        return torch.cat([of_base.reshape(*own.shape[:-1], size), own], -1)
    lam, x = _columns(lam, vectors), _columns(x, vectors)
    if isinstance(pattern, StructuredPattern):
        return _structured_gradient(pattern, operator, lam, x, values)
    left, right = (lam, x) if operator in ("N", "C") else (x, lam)
    # Reduced precision must not enter through an enclosing autocast region.
    with torch.autocast(lam.device.type, enabled=False):
        found = outer(pattern, left, right)
    return -(found.conj() if operator in ("T", "C") else found).resolve_conj()


def _structured_gradient(
    pattern: StructuredPattern, operator: Operator, lam: Tensor, x: Tensor, values: Tensor | None
) -> Tensor:
    """Gradient of the parameters, from blocks of columns."""
    with torch.autocast(lam.device.type, enabled=False):
        parts = pull(pattern.kind, OPS, pattern.split(values), lam, x, operator)
        gradient: Tensor = join(OPS, pattern.parts, parts)
    resolved: Tensor = gradient.resolve_conj()
    return resolved


def _columns(tensor: Tensor, vectors: bool) -> Tensor:
    return tensor.unsqueeze(-1) if vectors else tensor


def tangent_rhs(
    pattern: AnyPattern,
    operator: Operator,
    dvalues: Tensor | None,
    x: Tensor,
    db: Tensor | None,
    vectors: bool,
    values: Tensor | None = None,
) -> Tensor:
    """`db - op(dA) x`, the right-hand side of the tangent solve; None stands for zero.

    Args:
        dvalues: tangent of A's stored entries.
        db: tangent of b, shaped like x.
        pattern, operator, x, vectors, values: as for `values_gradient`.
    """
    if dvalues is None:
        return torch.zeros_like(x) if db is None else db
    if isinstance(pattern, StructuredPattern) and pattern.base is not None and values is not None:
        entries = pattern.base.entries
        size = prod(entries)
        of_base = dvalues[..., :size].reshape(*dvalues.shape[:-1], *entries)
        db = tangent_rhs(pattern.base, operator, of_base, x, db, vectors)
        dvalues, values = dvalues[..., size:], values[..., size:]
    moved = dvalues.conj() if operator in ("H", "C") else dvalues
    columns = _columns(x, vectors)
    with torch.autocast(x.device.type, enabled=False):
        if isinstance(pattern, StructuredPattern):
            parts, direction = pattern.split(values), pattern.split(dvalues)
            change: Tensor = push(pattern.kind, OPS, parts, direction, columns, operator).resolve_conj()
        else:
            change = product(pattern, moved, columns, transposed=operator in ("T", "H"))
    change = change.squeeze(-1) if vectors else change
    return -change if db is None else db - change


def outer(pattern: AnyPattern, left: Tensor, right: Tensor) -> Tensor:
    """`sum_k left[r, k] conj(right[c, k])` on the stored entries."""
    if not isinstance(pattern, Pattern):
        return left @ right.mH
    rows, columns = coordinates(pattern, left.device)
    parts = [
        (left.index_select(-2, r) * right.index_select(-2, c).conj()).sum(-1)
        for r, c in zip(*_blocks(rows, columns, left), strict=True)
    ]
    return torch.cat(parts, -1) if len(parts) != 1 else parts[0]


def product(pattern: AnyPattern, values: Tensor, x: Tensor, *, transposed: bool) -> Tensor:
    """`A x`, or `Aᵀ x`, for the matrix with these values, `[m, n]`."""
    if not isinstance(pattern, Pattern):
        return (values.mT if transposed else values) @ x
    rows, columns = coordinates(pattern, x.device)
    into, out_of = (columns, rows) if transposed else (rows, columns)
    size = pattern.n if transposed else pattern.m
    result = torch.zeros_like(x) if size == x.shape[-2] else x.new_zeros((*x.shape[:-2], size, x.shape[-1]))
    start = 0
    for i, o in zip(*_blocks(into, out_of, x), strict=True):
        stop = start + i.shape[0]
        result = result.index_add(-2, i, values[..., start:stop].unsqueeze(-1) * x.index_select(-2, o))
        start = stop
    return result


def _blocks(first: Tensor, second: Tensor, rhs: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Both index arrays in pieces that keep a piece's products below `_BLOCK`."""
    width = max(1, rhs.numel() // max(1, rhs.shape[-2]))
    size = max(1, _BLOCK // width)
    return torch.split(first, size), torch.split(second, size)
