"""One solve with a new factor, to see whether the pivots that its library allowed itself were good enough."""

from collections.abc import Callable

import numpy as np

from backsolve.types import Array

from ..operand import Operand

_SEED = 615_730_284


def probe(solve: Callable[[Array], Array], operand: Operand, index: int, *, refinements: int = 0) -> float:
    """Backward error of one solve with A; infinite if it is meaningless.

    Args:
        solve: from `[n, 1]` in A's element type to `A⁻¹ b`.
        operand: A.
        index: which system of it.
        refinements: steps of iterative refinement before it is measured.
    """
    signs = np.random.default_rng(_SEED).integers(0, 2, size=(operand.n, 1)) * 2 - 1
    b = signs.astype(operand.dtype)
    x = solve(b).astype(operand.wide_dtype)
    with np.errstate(all="ignore"):
        for _ in range(refinements):
            x = x + solve((b - operand.product(index, x, "N")).astype(operand.dtype))
        residual = float(np.abs(b - operand.product(index, x, "N")).max())
        size = float(np.abs(x).max())
    # Not a number (an overflow on the way) is as bad as it gets.
    if not (residual < np.inf and 0 < size < np.inf):
        return float("inf")
    return residual / size / (operand.norm(index, "N") + 1.0 / size)
