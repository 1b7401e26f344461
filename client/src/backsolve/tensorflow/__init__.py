"""Differentiable linear solves on tensors of TensorFlow.

    from backsolve.tensorflow import solve
    x = solve(A, b)                  # dense or tf.SparseTensor; real or complex; batched
    tape.gradient(loss(x), [A, b])   # one adjoint solve with the factor of the forward

Works eagerly and in `tf.function`, with tapes and forward accumulators in any nesting. `LinearSolve`
is a layer of Keras, which is imported with it alone.

`hvp`, `gnvp` and `jacobian` are products with second derivatives, and all first ones, of functions that solve.

`lstsq` and `splstsq` minimise `||b - A x||` for matrices of any shape, as differentiably.
"""

from typing import TYPE_CHECKING, Any

from .functional import solve, spsolve
from .least_squares import lstsq, splstsq
from .products import HessianProducts, gnvp, hvp, jacobian
from .structured import Circulant, Kronecker, LowRankPlusDiagonal, LowRankUpdate, Toeplitz

if TYPE_CHECKING:
    from .layer import LinearSolve

__all__ = [
    "Circulant",
    "HessianProducts",
    "Kronecker",
    "LinearSolve",
    "LowRankPlusDiagonal",
    "LowRankUpdate",
    "Toeplitz",
    "gnvp",
    "hvp",
    "jacobian",
    "lstsq",
    "solve",
    "splstsq",
    "spsolve",
]


def __getattr__(name: str) -> Any:
    if name != "LinearSolve":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .layer import LinearSolve  # noqa: PLC0415  (Keras would be loaded by those who do not use it)

    return LinearSolve
