"""One solve with a new factor, to see whether the pivots that its library allowed itself were good enough."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np

from backsolve.types import Array

from ..operand import Operand

_SEED = 615_730_284


@final
@dataclass(frozen=True, slots=True)
class Trial:
    """How a solve with a random vector went, in the maximum norm; infinite where it is meaningless.

    Attributes:
        backward: ||b - A x|| / (||A|| ||x|| + ||b||).
        relative: ||b - A x|| / ||b||. A random b is not in the range of a singular matrix, so the factor
            of a regular neighbour, which has a small backward error, leaves much of it.
    """

    backward: float
    relative: float


def probe(solve: Callable[[Array], Array], operand: Operand, index: int, *, refinements: int = 0) -> float:
    """The backward error of `trial`."""
    return trial(solve, operand, index, refinements=refinements).backward


def trial(solve: Callable[[Array], Array], operand: Operand, index: int, *, refinements: int = 0) -> Trial:
    """Solve once with A.

    Args:
        solve: from `[n, 1]` in A's element type to `A⁻¹ b`.
        operand: A.
        index: which system of it.
        refinements: steps of iterative refinement before it is measured.
    """
    # No signs alone: every other vector of signs is in the range where two rows are the same.
    b = np.random.default_rng(_SEED).uniform(-1.0, 1.0, size=(operand.n, 1)).astype(operand.dtype)
    x = solve(b).astype(operand.wide_dtype)
    norm = operand.norm(index, "N")
    with np.errstate(all="ignore"):
        for _ in range(refinements):
            x = x + solve((b - operand.product(index, x, "N")).astype(operand.dtype))
        residual = float(np.abs(b - operand.product(index, x, "N")).max())
        size = float(np.abs(x).max())
    # Not a number (an overflow on the way) is as bad as it gets.
    if not (residual < np.inf and 0 < size < np.inf):
        return Trial(np.inf, np.inf)
    right = float(np.abs(b).max())
    return Trial(residual / size / (norm + right / size), residual / right)
