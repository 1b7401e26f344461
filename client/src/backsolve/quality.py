"""What the residuals of a solve and of its adjoint say about a value and a gradient.

With r = b - op(A)x and r_λ = g - op(A)ᴴλ, both computed from the answers as they are:

* Re(gᴴx) differs from its exact value by Re(λ*ᴴr) for the exact adjoint λ*, so Re(gᴴx + λᴴr)
  differs by Re((λ* - λ)ᴴr), which is of second order;
* the gradient -λxᴴ differs from the exact one, in the Frobenius norm, by at most
  s(||r_λ|| ||x|| + ||r|| ||λ||) + s² ||r_λ|| ||r|| with s = ||A⁻¹||₂.

Source: Pierce and Giles, "Adjoint recovery of superconvergent functionals from PDE approximations",
SIAM Review 42 (2000), section 2, for the correction.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from .gradient import adjoint, tangent_rhs
from .kinds.base import NUMPY, apply
from .matrix import Matrix
from .pattern import StructuredPattern
from .types import Array, Trans


@final
@dataclass(frozen=True, slots=True)
class Quality:
    """Of one value and its gradient; of a block of columns or a batch, of their sum.

    Attributes:
        corrected_value: Re(gᴴx + λᴴr); None where b is not known.
        error_bound: on the Frobenius norm of the error of the gradient with respect to A; None
            without `inverse_norm`.
    """

    corrected_value: float | None
    error_bound: float | None


def quality(
    matrix: Matrix, trans: Trans, b: Array, x: Array, cotangent: Array, lam: Array, inverse_norm: float | None
) -> Quality:
    """Judge `x` and λ; costs two products with A.

    Args:
        matrix: A.
        trans: of the forward solve.
        b, x: its right-hand side and answer.
        cotangent, lam: g, and the answer of the adjoint solve; all four shaped alike.
        inverse_norm: ||A⁻¹||₂ or a bound on it, if known.
    """
    residual = _residual(matrix, x, b, trans)
    op, conjugate = adjoint(trans)
    if conjugate:
        other = np.conj(_residual(matrix, np.conj(lam), np.conj(cotangent), op))
    else:
        other = _residual(matrix, lam, cotangent, op)
    value = float(np.vdot(cotangent, x).real + np.vdot(lam, residual).real)
    if inverse_norm is None:
        return Quality(value, None)
    left, right = _norms(other, matrix), _norms(residual, matrix)
    size_x, size_lam = _norms(x, matrix), _norms(lam, matrix)
    # Folded onto a triangle, G + Gᴴ, an error is larger by at most the square root of 2.
    folded = 2**0.5 if matrix.pattern.storage == "lower" else 1.0
    bounds = inverse_norm * (left * size_x + right * size_lam) + inverse_norm**2 * left * right
    return Quality(value, folded * float(bounds.sum()))


def _residual(matrix: Matrix, x: Array, b: Array, trans: Trans) -> Array:
    """`b - op(A) x`."""
    pattern = matrix.pattern
    if isinstance(pattern, StructuredPattern):
        columns = x[..., None] if matrix.is_vector(x) else x
        moved = apply(pattern.kind, NUMPY, pattern.split(matrix.values), columns, trans)
        rest = np.asarray(b - moved.reshape(x.shape))
        return rest if matrix.base is None else _residual(matrix.base, x, rest, trans)
    # What `tangent_rhs` forms for dA = A.
    return tangent_rhs(pattern, matrix.values, x, b, trans)


def _norms(a: Array, matrix: Matrix) -> Array:
    """2-norm of each column of each system."""
    return np.asarray(np.linalg.norm(a, axis=len(matrix.systems_shape)), dtype=np.float64)
