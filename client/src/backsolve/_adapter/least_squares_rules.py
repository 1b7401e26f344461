"""Derivatives of least squares and of its normal inverse, in products with A and in those two operations.

    minimise(b) = x = G Aᴴ b        normal(g) = λ = G g        G = (AᴴA + damp² I)⁺

Those of x are in `backsolve.least_squares`. Of λ, with a cotangent c, μ = G c and, without damping,
q_g = g - AᴴA λ and q_c = c - AᴴA μ, what of them lies in the null space of A:

    ∂g = μ
    ∂A = -(A λ) μᴴ - (A μ) λᴴ + (A G μ) q_gᴴ + (A G λ) q_cᴴ
    dλ = G(dg - dAᴴ A λ - Aᴴ dA λ) + G G Aᴴ dA q_g + (I - G AᴴA) dAᴴ A G λ

The last two terms come from dS⁺ = -S⁺ dS S⁺ + S⁺S⁺ dS (I - S S⁺) + (I - S S⁺) dS S⁺S⁺ for S = AᴴA, in
which all of dS but Aᴴ dA on one side and dAᴴ A on the other is projected out. With damping they are
not there.

Source: Golub and Pereyra, "The differentiation of pseudo-inverses and nonlinear least squares
problems whose variables separate", SIAM J. Numer. Anal. 10 (1973), theorem 4.3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from ..kinds.base import Numbers
from ..pattern import AnyPattern
from .rules import Algebra

Operation = Callable[[Numbers], Numbers]
"""`minimise` or `normal` with one A."""


@final
@dataclass(frozen=True, slots=True)
class Products:
    """A, as differentiable products with columns `[..., rows, k]`."""

    algebra: Algebra
    pattern: AnyPattern
    values: Numbers

    def apply(self, x: Numbers) -> Numbers:
        """`A x`."""
        return self.algebra.product(self.pattern, self.values, x, transposed=False)

    def adjoint(self, y: Numbers) -> Numbers:
        """`Aᴴ y`."""
        return self.algebra.product(self.pattern, self.algebra.conj(self.values), y, transposed=True)

    def outer(self, left: Numbers, right: Numbers) -> Numbers:
        """`left rightᴴ` on A's stored entries."""
        return self.algebra.outer(self.pattern, left, right)


def pull_minimise(
    a: Products, rhs: Numbers, x: Numbers, grad: Numbers, normal: Operation, *, damped: bool, of_values: bool
) -> tuple[Numbers | None, Numbers]:
    """Gradients of A's entries (None unless `of_values`) and of b, from the cotangent of x."""
    lam = normal(grad)
    u = a.apply(lam)
    if not of_values:
        return None, u
    gradient = a.outer(rhs - a.apply(x), lam) - a.outer(u, x)
    if not damped:
        gradient = gradient + a.outer(a.apply(normal(x)), grad - a.adjoint(u))
    return gradient, u


def push_minimise(
    a: Products,
    da: Products,
    rhs: Numbers,
    x: Numbers,
    db: Numbers,
    minimise: Operation,
    normal: Operation,
    *,
    damped: bool,
) -> Numbers:
    """The tangent of x, where A moves by `da` and b by `db`."""
    tangent = minimise(db - da.apply(x)) + normal(da.adjoint(rhs - a.apply(x)))
    return tangent if damped else tangent + _out_of_null_space(a, da, x, normal)


def pull_normal(
    a: Products, g: Numbers, lam: Numbers, grad: Numbers, normal: Operation, *, damped: bool, of_values: bool
) -> tuple[Numbers | None, Numbers]:
    """Gradients of A's entries (None unless `of_values`) and of g, from the cotangent of λ."""
    mu = normal(grad)
    if not of_values:
        return None, mu
    image, other = a.apply(lam), a.apply(mu)
    gradient = -a.outer(image, mu) - a.outer(other, lam)
    if not damped:
        gradient = gradient + a.outer(a.apply(normal(mu)), g - a.adjoint(image))
        gradient = gradient + a.outer(a.apply(normal(lam)), grad - a.adjoint(other))
    return gradient, mu


def push_normal(
    a: Products, da: Products, g: Numbers, lam: Numbers, dg: Numbers, normal: Operation, *, damped: bool
) -> Numbers:
    """The tangent of λ, where A moves by `da` and g by `dg`."""
    image = a.apply(lam)
    tangent = normal(dg - da.adjoint(image) - a.adjoint(da.apply(lam)))
    if damped:
        return tangent
    within = normal(normal(a.adjoint(da.apply(g - a.adjoint(image)))))
    return tangent + within + _out_of_null_space(a, da, lam, normal)


def _out_of_null_space(a: Products, da: Products, x: Numbers, normal: Operation) -> Numbers:
    """`(I - G AᴴA) dAᴴ A G x`: what the moving row space takes out of the null space of A."""
    moved = da.adjoint(a.apply(normal(x)))
    return moved - normal(a.adjoint(a.apply(moved)))
