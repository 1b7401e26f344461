"""Derivatives of `op(A) x = b` with respect to A's stored entries, in the operations of any framework.

Written with differentiable operations only, so that a backward that is itself differentiated
gets the right answer. For complex data a gradient here is with respect to the conjugate, as PyTorch
and TensorFlow mean it; JAX's is the conjugate of that. With G = ∂L/∂A on the entry (r, c) and
`op(A)ᴴ λ = ∂L/∂x`:

    op   G(r, c)             op(dA) x, entry by entry
    N    -λ[r] conj(x[c])    row r gets  dA x[c]
    T    -conj(x[r]) λ[c]    row c gets  dA x[r]
    H    -x[r] conj(λ[c])    row c gets  conj(dA) x[r]
    C    -conj(λ[r]) x[c]    row r gets  conj(dA) x[c]

summed over the columns of a block of right-hand sides. Nothing dense is formed for a sparse A; for a
structured one G goes on to its parameters, as its kind has it; of a Hermitian A that is stored as such it is
folded onto what is stored (`backsolve.storage`).

Source: Giles, "An extended collection of matrix derivative results for forward and reverse mode
AD", 2008, section 2.3.1; the complex and transposed forms follow from ⟨λ, op(dA) x⟩.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Protocol, final

import numpy as np

from ..errors import NotSupportedError
from ..kinds.base import Numbers, Operator, Ops, join, pull, push
from ..pattern import AnyPattern, DensePattern, Pattern, StructuredPattern
from ..storage import entries_of, weights
from ..types import Array


def as_element_type(constant: Array, like: Numbers) -> Numbers:
    """A constant in the element type of an array of NumPy, JAX or TensorFlow."""
    return constant.astype(getattr(like.dtype, "as_numpy_dtype", like.dtype))


def gradients_are_transposed(pattern: AnyPattern, left: Numbers, right: Numbers) -> Numbers:
    """`outer` of a framework that makes its gradients of tangents, and never asks for it.

    Raises:
        NotSupportedError: a rule for cotangents was called for such a framework after all.
    """
    raise NotSupportedError("this framework's gradients are transposed tangents: take them by its own reverse mode")


class Product(Protocol):
    """`A x`, or `Aᵀ x`, for the matrix with these values, `[..., m, n]`; `x` is `[..., n, k]`."""

    def __call__(self, pattern: AnyPattern, values: Numbers, x: Numbers, *, transposed: bool) -> Numbers: ...


@final
@dataclass(frozen=True, slots=True)
class Algebra:
    """What the formulas need of a framework, every operation differentiable there.

    Attributes:
        ops: for structured matrices.
        product: see `Product`.
        conj: the complex conjugate; of real numbers, these themselves.
        zeros_like: of an array.
        outer: `sum_k left[r, k] conj(right[c, k])` on the stored entries of a pattern, for gradients.
        constant: a NumPy array of real numbers, made fit to be multiplied with another array.
    """

    ops: Ops
    product: Product
    conj: Callable[[Numbers], Numbers]
    zeros_like: Callable[[Numbers], Numbers]
    outer: Callable[[AnyPattern, Numbers, Numbers], Numbers] = gradients_are_transposed
    constant: Callable[[Array, Numbers], Numbers] = as_element_type


def values_gradient(
    algebra: Algebra,
    pattern: AnyPattern,
    operator: Operator,
    lam: Numbers,
    x: Numbers,
    vectors: bool,
    values: Numbers | None = None,
) -> Numbers:
    """Gradient on A's stored entries.

    Args:
        algebra: of the framework.
        pattern: of A.
        operator: what was solved with.
        lam: the adjoint solution, shaped like x.
        x: the solution, `[..., n]` or `[..., n, k]`.
        vectors: which of the two.
        values: of A; needed on a structured pattern alone.

    Returns:
        `[..., nnz]`, or `[..., n, n]` for a dense A, as the pattern's storage has it; of an update that of S in a
        row, then those of U and V.
    """
    if isinstance(pattern, StructuredPattern) and pattern.base is not None and values is not None:
        # A is the sum of S and U Vᴴ: its gradient is that of each.
        size = prod(pattern.base.entries)
        own = _structured_gradient(
            algebra, pattern, operator, columns(lam, vectors), columns(x, vectors), values[..., size:]
        )
        of_base = values_gradient(algebra, pattern.base, operator, lam, x, vectors)
        return algebra.ops.concatenate([of_base.reshape((*own.shape[:-1], size)), own], -1)
    lam, x = columns(lam, vectors), columns(x, vectors)
    if isinstance(pattern, StructuredPattern):
        return _structured_gradient(algebra, pattern, operator, lam, x, values)
    left, right = (lam, x) if operator in ("N", "C") else (x, lam)
    # The sign goes to the smaller side: there are more entries than numbers in λ.
    left, on = -left, entries_of(pattern)
    found = algebra.outer(on, left, right)
    if pattern.storage != "general":
        # The conjugate transpose of left rightᴴ is right leftᴴ.
        found = _weighted(algebra, pattern, found + algebra.outer(on, right, left))
    return algebra.conj(found) if operator in ("T", "C") else found


def tangent_rhs(
    algebra: Algebra,
    pattern: AnyPattern,
    operator: Operator,
    dvalues: Numbers | None,
    x: Numbers,
    db: Numbers | None,
    vectors: bool,
    values: Numbers | None = None,
) -> Numbers:
    """`db - op(dA) x`, the right-hand side of the tangent solve; None stands for zero.

    Args:
        dvalues: tangent of A's stored entries.
        db: tangent of b, shaped like x.
        algebra, pattern, operator, x, vectors, values: as for `values_gradient`.
    """
    if dvalues is None:
        return algebra.zeros_like(x) if db is None else db
    if isinstance(pattern, StructuredPattern) and pattern.base is not None and values is not None:
        entries = pattern.base.entries
        size = prod(entries)
        of_base = dvalues[..., :size].reshape((*dvalues.shape[:-1], *entries))
        db = tangent_rhs(algebra, pattern.base, operator, of_base, x, db, vectors)
        dvalues, values = dvalues[..., size:], values[..., size:]
    block = columns(x, vectors)
    if isinstance(pattern, StructuredPattern):
        parts, direction = pattern.split(values), pattern.split(dvalues)
        change = push(pattern.kind, algebra.ops, parts, direction, block, operator)
    else:
        change = operated(algebra, pattern, operator, dvalues, block)
    change = change[..., 0] if vectors else change
    return -change if db is None else db - change


def operated(algebra: Algebra, pattern: AnyPattern, operator: Operator, values: Numbers, x: Numbers) -> Numbers:
    """`op(A) x` for a sparse or dense A with these values; `x` is `[..., n, k]`."""
    if pattern.storage != "general" and not isinstance(pattern, StructuredPattern):
        # A = W + Wᴴ, which its transpose is the conjugate of.
        on, given = entries_of(pattern), _weighted(algebra, pattern, values)
        conjugated = operator in ("T", "C")
        x = algebra.conj(x) if conjugated else x
        found = algebra.product(on, given, x, transposed=False)
        found = found + algebra.product(on, algebra.conj(given), x, transposed=True)
        return algebra.conj(found) if conjugated else found
    given = algebra.conj(values) if operator in ("H", "C") else values
    return algebra.product(pattern, given, x, transposed=operator in ("T", "H"))


def _weighted(algebra: Algebra, pattern: Pattern | DensePattern, values: Numbers) -> Numbers:
    """W ∘ values, of `backsolve.storage`."""
    return values * algebra.constant(weights(pattern, np.dtype(np.float64)), values)


def columns(rhs: Numbers, vectors: bool) -> Numbers:
    """Vectors as blocks of one column."""
    return rhs[..., None] if vectors else rhs


def _structured_gradient(
    algebra: Algebra,
    pattern: StructuredPattern,
    operator: Operator,
    lam: Numbers,
    x: Numbers,
    values: Numbers | None,
) -> Numbers:
    """Gradient of the parameters, from blocks of columns."""
    parts = pull(pattern.kind, algebra.ops, pattern.split(values), lam, x, operator)
    return join(algebra.ops, pattern.parts, parts)
