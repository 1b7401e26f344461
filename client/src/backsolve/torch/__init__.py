"""Differentiable linear solves on PyTorch tensors.

    from backsolve.torch import solve
    x = solve(A, b)                  # dense, sparse COO or CSR; real or complex; batched
    loss(x).backward()               # one adjoint solve with the factor of the forward

Works with `torch.func`, forward-mode derivatives, derivatives of derivatives, and, for all but sparse
tensors (there: `spsolve`, `splstsq`), `torch.compile(fullgraph=True)`.

`lstsq` and `splstsq` minimise `||b - A x||` for matrices of any shape, as differentiably.
"""

from .functional import solve, spsolve
from .least_squares import lstsq, splstsq
from .module import LinearSolve
from .structured import Circulant, Kronecker, LowRankPlusDiagonal, LowRankUpdate, Toeplitz

__all__ = [
    "Circulant",
    "Kronecker",
    "LinearSolve",
    "LowRankPlusDiagonal",
    "LowRankUpdate",
    "Toeplitz",
    "lstsq",
    "solve",
    "splstsq",
    "spsolve",
]
