"""Derivatives of least squares from applications of one Hermitian operator, G = (AᴴA + damp² I)⁺.

With x = G Aᴴ b, r = b - A x and a cotangent g = ∂L/∂conj(x), in the sense of `gradient.py`:

    λ = G g,   u = A λ,   q = g - Aᴴ u,   w = A G x
    ∂b = u
    ∂A = -u xᴴ + r λᴴ + w qᴴ

and forward, of tangents dA and db:

    dx = G Aᴴ(db - dA x) + G dAᴴ r + (I - AᴴA G) dAᴴ w

Without damping the last terms are those of the null space of A; they vanish where the columns of A
are independent. With damping G is an inverse, those terms are not there, and the others follow from
(AᴴA + damp² I) x = Aᴴ b. All hold while the rank of A does not change; where it does, x is not even
continuous. No m x n array is formed for a sparse A.

Source: Golub and Pereyra, "The differentiation of pseudo-inverses and nonlinear least squares
problems whose variables separate", SIAM J. Numer. Anal. 10 (1973), theorem 4.3.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ._protocol import Steps
from .errors import InvalidPatternError, InvalidShapeError
from .gradient import outer, product
from .matrix import Matrix
from .types import Array, Certificate, Gradients, Solution

Solve = Callable[[Array], Steps[Solution]]
"""`G Aᴴ v`, for arrays shaped as callers shape b."""

Normal = Callable[[Array], Steps[Gradients]]
"""`b` is `G v`, for arrays shaped as callers shape columns of x."""


def pull(
    matrix: Matrix, b: Array, x: Array, cotangent: Array, normal: Normal, *, damped: bool
) -> Steps[tuple[Array, Array, Certificate]]:
    """Gradients of b and of A's values; one application of G, to twice the columns without damping.

    Args:
        matrix: A.
        b: `[m]` or `[m, k]`, with the batch axis if there is one.
        x, cotangent: likewise with n rows.
        normal: applies G.
        damped: there is damping.

    Returns:
        Shaped like b, and like the values of A; and the certificate of G.

    Raises:
        InvalidShapeError: the shapes do not fit each other.
    """
    rhs, answer, g = _columns(matrix, b, x, cotangent)
    pattern, values = matrix.pattern, _stacked(matrix)
    reply = yield from normal(_unstacked(matrix, g if damped else np.concatenate([g, answer], axis=-1)))
    k = g.shape[-1]
    both = np.asarray(reply.b).reshape(*g.shape[:2], k if damped else 2 * k)
    lam = both[..., :k]
    u = product(pattern, values, lam, "N")
    r = rhs - product(pattern, values, answer, "N")
    gradient = outer(pattern, r, lam) - outer(pattern, u, answer)
    if not damped:
        q = g - product(pattern, values, u, "H")
        gradient += outer(pattern, product(pattern, values, both[..., k:], "N"), q)
    return u.reshape(b.shape), gradient.reshape(matrix.values.shape), reply.stats


def push(
    matrix: Matrix,
    b: Array,
    x: Array,
    moving: Matrix | None,
    db: Array | None,
    solve: Solve,
    normal: Normal,
    *,
    damped: bool,
) -> Steps[Solution]:
    """The tangent of x: one solve, and for a tangent of A one application of G, two without damping.

    Args:
        matrix: A.
        b, x: as for `pull`.
        moving: the tangent of A, on A's pattern; None: A does not move.
        db: the tangent of b, shaped like it; None: b does not move.
        solve: applies G Aᴴ.
        normal: applies G.
        damped: there is damping.

    Raises:
        InvalidShapeError, InvalidPatternError: the tangents do not fit.
    """
    rhs, answer, _ = _columns(matrix, b, x, x)
    if db is not None and db.shape != b.shape:
        raise InvalidShapeError(f"b_tangent has shape {db.shape}, b {b.shape}: they must be alike")
    pushed = np.zeros_like(rhs) if db is None else db.reshape(rhs.shape)
    if moving is None:
        return (yield from solve(pushed.reshape(b.shape)))
    pattern, values, dvalues = matrix.pattern, _stacked(matrix), _tangent_values(matrix, moving)
    first = yield from solve(np.asarray(pushed - product(pattern, dvalues, answer, "N")).reshape(b.shape))
    pulled = product(pattern, dvalues, rhs - product(pattern, values, answer, "N"), "H")
    if damped:
        applied = yield from _apply(normal, matrix, pulled)
        return replace(first, x=first.x + applied.reshape(first.x.shape))
    k = answer.shape[-1]
    both = yield from _apply(normal, matrix, np.concatenate([pulled, answer], axis=-1))
    outside = product(pattern, dvalues, product(pattern, values, both[..., k:], "N"), "H")
    applied = yield from _apply(normal, matrix, outside)
    inside = product(pattern, values, product(pattern, values, applied, "N"), "H")
    return replace(first, x=first.x + (both[..., :k] + outside - inside).reshape(first.x.shape))


def _apply(normal: Normal, matrix: Matrix, columns: Array) -> Steps[Array]:
    reply = yield from normal(_unstacked(matrix, columns))
    return np.asarray(reply.b).reshape(columns.shape)


def _columns(matrix: Matrix, b: Array, x: Array, cotangent: Array) -> tuple[Array, Array, Array]:
    """b, x and a cotangent as `[systems, rows, k]`, each shaped as the matrix asks."""
    vector = matrix.is_vector(b)
    systems = 1 if matrix.batch is None else matrix.batch
    k = 1 if vector else b.shape[-1]
    shape = (*matrix.systems_shape, matrix.n, *(() if vector else (k,)))
    for array, name in ((x, "x"), (cotangent, "the cotangent")):
        if array.shape != shape:
            raise InvalidShapeError(f"{name} has shape {array.shape}, with this A and b it must be {shape}")
    full = (systems, matrix.n, k)
    return b.reshape(systems, matrix.m, k), x.reshape(full), cotangent.reshape(full)


def _unstacked(matrix: Matrix, columns: Array) -> Array:
    return columns if matrix.batch is not None else columns[0]


def _stacked(matrix: Matrix) -> Array:
    """The values with a leading axis of systems."""
    return matrix.values if matrix.batch is not None else matrix.values[None]


def _tangent_values(matrix: Matrix, tangent: Matrix) -> Array:
    """The tangent of A's values with a leading axis of systems."""
    if not matrix.pattern.same_as(tangent.pattern):
        raise InvalidPatternError("A_tangent must have the stored entries of A, explicit zeros included")
    if tangent.values.shape != matrix.values.shape:
        raise InvalidShapeError(f"A_tangent has shape {tangent.values.shape}, A's values {matrix.values.shape}")
    return _stacked(tangent).astype(matrix.dtype, copy=False)
