"""Differentiable linear solves on JAX arrays.

    from backsolve.jax import solve
    x = solve(A, b)                              # dense, BCOO or BCSR; real or complex; batched
    jax.grad(lambda b: loss(solve(A, b)))(b)     # one adjoint solve with the factor of the forward

Works under `jit`, `vmap`, `grad`, `jvp` and whatever is made of them, to every order. Outside of `jit`
failures are exceptions of `backsolve.errors`; inside they are NaN and a status (`return_stats=True`).

`lstsq` and `splstsq` minimise `||b - A x||` for matrices of any shape, as differentiably. `hvp`, `gnvp` and
`jacobian` are products with second derivatives, and all first ones, of functions that solve.
"""

from .functional import solve, spsolve
from .least_squares import lstsq, splstsq
from .products import HessianProducts, gnvp, hvp, jacobian
from .statistics import Stats
from .structured import Circulant, Kronecker, LowRankPlusDiagonal, LowRankUpdate, Toeplitz

__all__ = [
    "Circulant",
    "HessianProducts",
    "Kronecker",
    "LowRankPlusDiagonal",
    "LowRankUpdate",
    "Stats",
    "Toeplitz",
    "gnvp",
    "hvp",
    "jacobian",
    "lstsq",
    "solve",
    "splstsq",
    "spsolve",
]
