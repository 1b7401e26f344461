"""Differentiable linear solves on PyTorch tensors.

    from backsolve.torch import solve
    x = solve(A, b)                  # dense, sparse COO or CSR; real or complex; batched
    loss(x).backward()               # one adjoint solve with the factor of the forward

Works with `torch.func`, forward-mode derivatives, derivatives of derivatives, and, for all but sparse
tensors (there: `spsolve`, `splstsq`), `torch.compile(fullgraph=True)`.

`hvp`, `gnvp` and `jacobian` are products with second derivatives, and all first ones, of functions that solve.

`lstsq` and `splstsq` minimise `||b - A x||` for matrices of any shape, as differentiably.
"""

from .functional import solve, spsolve
from .least_squares import lstsq, splstsq
from .module import LinearSolve
from .products import HessianProducts, gnvp, hvp, jacobian
from .structured import Circulant, Kronecker, LowRankPlusDiagonal, LowRankUpdate, Toeplitz

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
