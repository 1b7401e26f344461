"""Gradients of `x = op(A)⁻¹ b` from the adjoint λ and x alone, on A's own stored entries.

Derivation, for the cotangent g = ∂L/∂conj(x) that PyTorch means by a gradient. With
dL = Re(gᴴ dx) and A dx = db - dA x:

    dL = Re(gᴴ A⁻¹ (db - dA x)) = Re(λᴴ db) - Re(λᴴ dA x),    Aᴴ λ = g

so the gradient of b is λ, and of A it is -λ xᴴ: at the entry (r, c), -λ[r] conj(x[c]). The other
two operators follow by putting dAᵀ or dAᴴ for dA:

    trans   adjoint system        gradient at (r, c)
    N       Aᴴ λ = g              -λ[r] conj(x[c])
    T       conj(A) λ = g         -conj(x[r]) λ[c]
    H       A λ = g               -x[r] conj(λ[c])

A right-hand side of several columns sums over them. No n x n array is formed for a sparse A, and
for a structured one the gradient goes on to the parameters: each kind knows how (`backsolve.kinds`). Of a
Hermitian A that is stored as such it is the gradient of what is stored: `backsolve.storage`.

Source: Giles, "An extended collection of matrix derivative results for forward and reverse mode
algorithmic differentiation", 2008, section 2.2.3.
"""

import numpy as np

from .errors import InvalidOptionError, InvalidShapeError
from .kinds.base import NUMPY, join, pull, push
from .matrix import Matrix
from .pattern import AnyPattern, DensePattern, Pattern, StructuredPattern
from .storage import entries_of, weights
from .types import Array, Trans

_CHUNK = 1 << 14
"""Numbers gathered at a time: 128 kB in double precision, which stay in the cache.

Longer pieces are given back to the system by the allocator, and asked for again: touching them anew took most of
the time.
"""


def adjoint(trans: Trans) -> tuple[Trans, bool]:
    """The solve that gives λ: its operator, and whether it is done on conjugated data.

    With `(op, conjugate) = adjoint(trans)`: λ = solve(op, g), or, if `conjugate`,
    λ = conj(solve(op, conj(g))). For real data conjugation does nothing.
    """
    if trans == "N":
        return "H", False
    if trans == "H":
        return "N", False
    if trans == "T":
        # conj(A) λ = g is the conjugate of A conj(λ) = conj(g).
        return "N", True
    raise InvalidOptionError("trans is not known: there are N, T, H", option="trans")


def values_gradient(
    pattern: AnyPattern,
    lam: Array,
    x: Array,
    trans: Trans,
    *,
    batched: bool | None = None,
    values: Array | None = None,
) -> Array:
    """Gradient of A's values; costs nnz multiply-adds a column.

    Args:
        pattern: of A.
        lam: `[n]`, `[n, k]`, `[batch, n]` or `[batch, n, k]`: the adjoint.
        x: shaped like `lam`: the forward answer.
        trans: of the forward solve.
        batched: whether the first axis is a batch. None reads it off the shape, which is
            impossible for `[n, n]` alone: say it there.
        values: of A; needed on a structured pattern alone, whose entries are no linear function
            of all parameters together.

    Returns:
        `[nnz]` (`[n, n]` on a dense pattern), with the batch axis if there is one: the gradient of what the
        pattern's storage has stored (`backsolve.storage`).

    Raises:
        InvalidShapeError: `lam` and `x` fit neither the pattern nor each other.
    """
    adjoint(trans)
    if lam.shape != x.shape:
        raise InvalidShapeError(f"lam has shape {lam.shape} and x {x.shape}: they must be alike")
    batch = _has_batch(pattern.n, lam.shape) if batched is None else batched
    systems = lam if batch else lam[None]
    others = x if batch else x[None]
    if systems.ndim not in (2, 3) or systems.shape[1] != pattern.n:
        raise InvalidShapeError(f"lam has shape {lam.shape}, the matrix {pattern.n} rows: it fits no right-hand side")
    if systems.ndim == 2:
        systems, others = systems[:, :, None], others[:, :, None]
    if isinstance(pattern, StructuredPattern):
        parts = pattern.split(_needed(values).reshape(systems.shape[0], pattern.nnz))
        found = join(NUMPY, pattern.parts, pull(pattern.kind, NUMPY, parts, systems, others, trans))
        return np.asarray(found if batch else found[0])
    # -left[r] conj(right[c]); "T" is the conjugate of "H".
    left, right = (systems, others) if trans == "N" else (others, systems)
    on = entries_of(pattern)
    out = _entries(on, left, right)
    if pattern.storage != "general":
        # The conjugate transpose of left rightᴴ is right leftᴴ.
        out = weights(pattern, out.real.dtype) * (out + _entries(on, right, left))
    if trans == "T":
        out = _conj(out)
    return out if batch else out[0]


def parameters_gradient(matrix: Matrix, lam: Array, x: Array, trans: Trans) -> Array:
    """Gradient of all that a matrix is given by (`Matrix.parameters`): what `values_gradient` gives, S's before it."""
    batched = matrix.batch is not None
    own = values_gradient(matrix.pattern, lam, x, trans, batched=batched, values=matrix.values)
    if matrix.base is None:
        return own
    # A is the sum of S and U Vᴴ: its gradient is that of each.
    return np.concatenate([values_gradient(matrix.base.pattern, lam, x, trans, batched=False).reshape(-1), own])


def parameters_tangent_rhs(
    matrix: Matrix, tangent: Array | None, x: Array | None, b_tangent: Array | None, trans: Trans
) -> Array:
    """`tangent_rhs` where all that a matrix is given by moves, along `tangent`, shaped like `Matrix.parameters`.

    Raises:
        InvalidShapeError: as of `tangent_rhs`.
    """
    if tangent is not None and matrix.base is not None:
        if tangent.shape != matrix.parameters_shape:
            raise InvalidShapeError(
                f"the tangent of A has shape {tangent.shape}, its parameters {matrix.parameters_shape}"
            )
        size = tangent.size - matrix.values.size
        of_base = tangent[:size].reshape(matrix.base.values.shape)
        b_tangent, tangent = tangent_rhs(matrix.base.pattern, of_base, x, b_tangent, trans), tangent[size:]
    return tangent_rhs(matrix.pattern, tangent, x, b_tangent, trans, values=matrix.values)


def tangent_rhs(
    pattern: AnyPattern,
    values_tangent: Array | None,
    x: Array | None,
    b_tangent: Array | None,
    trans: Trans,
    *,
    values: Array | None = None,
) -> Array:
    """`db - op(dA) x`: what op(A) dx equals.

    Args:
        pattern: of A.
        values_tangent: dA, shaped like A's values; None for zero.
        x: the forward answer; needed with `values_tangent`.
        b_tangent: db, shaped like b; None for zero.
        trans: of the forward solve.
        values: of A; needed on a structured pattern alone.

    Raises:
        InvalidShapeError: both tangents are None, x is missing, or shapes do not fit.
    """
    adjoint(trans)
    if values_tangent is None:
        if b_tangent is None:
            raise InvalidShapeError("a tangent of A or of b is needed, both are missing")
        return b_tangent
    entries = pattern.entries
    batch = values_tangent.ndim == len(entries) + 1
    if values_tangent.shape[batch:] != entries:
        raise InvalidShapeError(f"the tangent of A has shape {values_tangent.shape}, the pattern needs {entries}")
    if x is None:
        raise InvalidShapeError("the tangent of A needs x, the forward answer")
    lead = (*values_tangent.shape[:batch], pattern.n)
    if x.shape[: len(lead)] != lead or x.ndim > len(lead) + 1:
        raise InvalidShapeError(f"x has shape {x.shape}, these values need {lead} or {(*lead, 'k')}")
    if b_tangent is not None and b_tangent.shape != x.shape:
        raise InvalidShapeError(f"the tangent of b has shape {b_tangent.shape} and x {x.shape}: they must be alike")
    count = values_tangent.shape[0] if batch else 1
    columns = x.reshape(count, pattern.n, 1 if x.ndim == len(lead) else x.shape[-1])
    direction = values_tangent.reshape(count, *entries)
    if pattern.storage != "general" and not isinstance(pattern, StructuredPattern):
        moved = _hermitian_product(pattern, direction, columns, trans)
    elif isinstance(pattern, Pattern):
        moved = np.empty(columns.shape, dtype=np.result_type(direction, columns))
        for s in range(count):
            moved[s] = _product(pattern, direction[s], columns[s], trans)
    elif isinstance(pattern, StructuredPattern):
        parts = pattern.split(_needed(values).reshape(count, *entries))
        moved = push(pattern.kind, NUMPY, parts, pattern.split(direction), columns, trans)
    else:
        op = direction if trans == "N" else direction.swapaxes(-1, -2)
        moved = (_conj(op) if trans == "H" else op) @ columns
    moved = moved.reshape(x.shape)
    return -moved if b_tangent is None else b_tangent - moved


def _hermitian_product(pattern: Pattern | DensePattern, values: Array, x: Array, trans: Trans) -> Array:
    """`op(A) x` of each system, A = W + Wᴴ of what is stored (`backsolve.storage`)."""
    on, given = entries_of(pattern), values * weights(pattern, values.real.dtype)
    if trans == "T":  # Aᵀ x = conj(A conj(x))
        x = _conj(x)
    found = product(on, given, x, "N") + product(on, given, x, "H")
    return _conj(found) if trans == "T" else found


def _needed(values: Array | None) -> Array:
    if values is None:
        raise InvalidShapeError("derivatives of a structured matrix need its values: pass values=")
    return values


def outer(pattern: AnyPattern, left: Array, right: Array) -> Array:
    """`sum_k left[r, k] conj(right[c, k])` on the stored entries of each system.

    Args:
        pattern: of A, `[m, n]`.
        left: `[systems, m, k]`.
        right: `[systems, n, k]`.

    Returns:
        `[systems, nnz]` (`[systems, m, n]` on a dense pattern).
    """
    return -(_sparse(pattern, left, right) if isinstance(pattern, Pattern) else _dense(left, right))


def product(pattern: AnyPattern, values: Array, x: Array, trans: Trans) -> Array:
    """`op(A) x` of each system, summed in double precision where A is sparse.

    Args:
        pattern: of A, `[m, n]`.
        values: `[systems, nnz]` (`[systems, m, n]` on a dense pattern).
        x: `[systems, n, k]`, or with m rows for the transposed operators.
        trans: which operator.
    """
    if isinstance(pattern, Pattern):
        return np.stack([_product(pattern, values[s], x[s], trans) for s in range(x.shape[0])])
    op = values if trans == "N" else values.swapaxes(-1, -2)
    return np.asarray((_conj(op) if trans == "H" else op) @ x)


def _has_batch(n: int, shape: tuple[int, ...]) -> bool:
    if len(shape) != 2:
        return len(shape) == 3
    vectors, columns = shape[1] == n, shape[0] == n
    if vectors and columns:
        raise InvalidShapeError(f"shape {shape} may be a batch of vectors or one block of columns: pass batched=")
    return vectors and not columns


def _entries(pattern: Pattern | DensePattern, left: Array, right: Array) -> Array:
    return _sparse(pattern, left, right) if isinstance(pattern, Pattern) else _dense(left, right)


def _dense(left: Array, right: Array) -> Array:
    # The sign goes to the smaller side; of one column a product of numbers is faster than one of matrices.
    sides = -left, _conj(right.swapaxes(-1, -2))
    return np.asarray(np.multiply(*sides) if left.shape[-1] == 1 else np.matmul(*sides))


def _conj(a: Array) -> Array:
    """The conjugate; NumPy's own copies even what is real."""
    return np.conj(a) if a.dtype.kind == "c" else a


def _sparse(pattern: Pattern, left: Array, right: Array) -> Array:
    """`-sum_k left[r, k] conj(right[c, k])` at each stored entry, a chunk of entries at a time."""
    count, _, k = left.shape
    out = np.empty((count, pattern.nnz), dtype=np.result_type(left, right))
    if k == 1:
        # Once of each number, rather than of each entry.
        left, right = np.negative(left), _conj(right)
    step = max(1, _CHUNK // max(k, 1))
    for start in range(0, pattern.nnz, step):
        rows, columns = pattern.rows[start : start + step], pattern.indices[start : start + step]
        for s in range(count):
            part = out[s, start : start + step]
            if k == 1:
                np.multiply(left[s, :, 0].take(rows), right[s, :, 0].take(columns), out=part)
            else:
                np.einsum("ek,ek->e", left[s].take(rows, axis=0), _conj(right[s].take(columns, axis=0)), out=part)
                np.negative(part, out=part)
    return out


def _product(pattern: Pattern, values: Array, x: Array, trans: Trans) -> Array:
    """`op(dA) x` of one system, `[n, k]`, summed in double precision."""
    rows, columns = (pattern.rows, pattern.indices) if trans == "N" else (pattern.indices, pattern.rows)
    if trans == "H":
        values = _conj(values)
    size = pattern.m if trans == "N" else pattern.n
    out = np.empty((size, x.shape[1]), dtype=np.result_type(values, x))
    for j in range(x.shape[1]):
        terms = values * x[:, j].take(columns)
        if terms.dtype.kind == "c":
            out[:, j].real = np.bincount(rows, weights=terms.real, minlength=size)
            out[:, j].imag = np.bincount(rows, weights=terms.imag, minlength=size)
        else:
            out[:, j] = np.bincount(rows, weights=terms, minlength=size)
    return out
