"""Least squares as two operations of JAX's, each made of the other by derivatives.

    Minimise:  x = G Aᴴ b          Normal:  λ = G g,    G = (AᴴA + damp² I)⁺

The tangent of x is written with one application of G to all that moves,

    dx = G (Aᴴ (db - dA x) + dAᴴ r - AᴴA μ) + μ,    r = b - A x,    μ = dAᴴ A G x (0 with damping),

so that its transpose, the gradient, is one too: one request, and for μ another. Where b alone moves it is the
minimiser of db. The tangent of λ is that of `backsolve._adapter.least_squares_rules`.

Source: Golub and Pereyra, SIAM J. Numer. Anal. 10 (1973), theorem 4.3.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import jax.numpy as jnp
from jax import Array
from jax.interpreters import ad

from .._adapter.least_squares_rules import Products, push_normal
from . import _host, _operation
from ._asked import Asked
from ._primitive import still
from ._rules import ALGEBRA

minimise_p: Final = _operation.operation("backsolve_minimise", _host.minimise, lambda asked: asked.pattern.n)
normal_p: Final = _operation.operation("backsolve_normal", _host.normal, lambda asked: asked.pattern.n)


def minimise(values: Array, rhs: Array, chosen: Array | None, asked: Asked) -> list[Array]:
    """`G Aᴴ rhs`; `rhs` is `[(batch,) m, k]`, the first output `[(batch,) n, k]`."""
    return _operation.bind(minimise_p, values, rhs, None, chosen, asked)


def _inverse(values: Array, chosen: Array, asked: Asked) -> Callable[[Array], Array]:
    """G, with the factor of the forward."""
    return lambda v: _operation.bind(normal_p, values, v, None, chosen, asked.pushed_forward())[0]


def _products(asked: Asked, values: Array) -> Products:
    return Products(ALGEBRA, asked.pattern, values)


def _push_minimise(primals: Sequence[Any], tangents: Sequence[Any], *, asked: Asked) -> tuple[list[Array], list[Any]]:
    values, rhs, _ = primals
    found = _operation.bound(minimise_p, primals, asked)
    x, chosen = found[:2]
    dvalues, db = (None if isinstance(each, ad.Zero) else each for each in tangents[:2])
    if dvalues is None:
        if db is None:
            return found, still(found)
        return found, [minimise(values, db, chosen, asked.pushed_forward())[0], *still(found)[1:]]
    a, da, inverse = _products(asked, values), _products(asked, dvalues), _inverse(values, chosen, asked)
    left = -da.apply(x) if db is None else db - da.apply(x)
    moved = a.adjoint(left) + da.adjoint(rhs - a.apply(x))
    if asked.options.damp:
        return found, [inverse(moved), *still(found)[1:]]
    mu = da.adjoint(a.apply(inverse(x)))
    return found, [inverse(moved - a.adjoint(a.apply(mu))) + mu, *still(found)[1:]]


def _pull_minimise(cotangents: Sequence[Any], values: Any, rhs: Any, chosen: Any, *, asked: Asked) -> list[Any]:
    """The transpose of G Aᴴ is conj(A G), as G is Hermitian."""
    if isinstance(cotangents[0], ad.Zero):
        return [None, ad.Zero(rhs.aval), None]
    lam = _inverse(values, chosen, asked)(ALGEBRA.conj(cotangents[0]))
    return [None, ALGEBRA.conj(_products(asked, values).apply(lam)), None]


def _push_normal(primals: Sequence[Any], tangents: Sequence[Any], *, asked: Asked) -> tuple[list[Array], list[Any]]:
    values, g, _ = primals
    found = _operation.bound(normal_p, primals, asked)
    lam, chosen = found[:2]
    dvalues, dg = (None if isinstance(each, ad.Zero) else each for each in tangents[:2])
    inverse = _inverse(values, chosen, asked)
    if dvalues is None:
        return found, still(found) if dg is None else [inverse(dg), *still(found)[1:]]
    a, da = _products(asked, values), _products(asked, dvalues)
    direction = jnp.zeros_like(g) if dg is None else dg
    pushed = push_normal(a, da, g, lam, direction, inverse, damped=bool(asked.options.damp))
    return found, [pushed, *still(found)[1:]]


def _pull_normal(cotangents: Sequence[Any], values: Any, g: Any, chosen: Any, *, asked: Asked) -> list[Any]:
    """The transpose of G is its conjugate."""
    if isinstance(cotangents[0], ad.Zero):
        return [None, ad.Zero(g.aval), None]
    return [None, ALGEBRA.conj(_inverse(values, chosen, asked)(ALGEBRA.conj(cotangents[0]))), None]


ad.primitive_jvps[minimise_p] = _push_minimise
ad.primitive_transposes[minimise_p] = _pull_minimise
ad.primitive_jvps[normal_p] = _push_normal
ad.primitive_transposes[normal_p] = _pull_normal
