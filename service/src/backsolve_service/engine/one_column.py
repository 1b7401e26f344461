"""The certificate of the commonest call, one right-hand side of one matrix, in plain floats.

At n = 1000 a cached solve takes 40 us, and the arrays of `certify.py` would cost twice that for
what are single numbers here. The formulas are the same (a test compares them); whatever is not
plainly good is left to the general way.
"""

import math

import numpy as np

from backsolve.types import Array, Trans

from .base import Controls, Factor
from .tolerance import direct_backward_error, epsilon, safe_magnitude

Figures = tuple[float, float, float]
"""Relative residual, backward error, lower bound on the condition number."""


def certify(factor: Factor, rhs: Array, x: Array, trans: Trans, controls: Controls, known: float) -> Figures | None:
    """Measure `x`, `[n, 1]`, of a direct factor of a single matrix; None unless all is plainly good.

    Args:
        factor, rhs, x, trans, controls: what was solved.
        known: what the factor itself says of the condition number (`conditioning.lower_bound`).
    """
    operand = factor.operand
    wide_dtype = operand.wide_dtype
    b = rhs.reshape(-1).astype(wide_dtype, copy=False)
    largest, far = _largest(b), safe_magnitude(operand.dtype)
    if not 1 / far <= largest <= far:
        return None
    wide = x.reshape(-1).astype(wide_dtype, copy=False)
    residual = b - operand.product(0, wide, trans)
    remainder, size = _largest(residual), _largest(wide)
    if not (remainder < math.inf and 0 < size < math.inf):
        return None
    # Divided through by ||x||: the product ||A|| ||x|| could overflow and hide the error.
    norm = operand.norm(0, trans)
    backward = (remainder / size) / (norm + largest / size)
    condition = norm * (size / largest)
    two = math.sqrt(np.vdot(residual, residual).real)
    scale = math.sqrt(np.vdot(b, b).real)
    good = (
        backward <= direct_backward_error(operand.dtype)
        and max(condition, known) < 1 / max(epsilon(operand.dtype), backward)
        and _asked(two, scale, controls)
    )
    return (two / scale, backward, condition) if good else None


def _largest(vector: Array) -> float:
    """The largest magnitude, NaN if there is one. Straight from the loop: `max` of an array takes twice as long."""
    return float(np.maximum.reduce(np.abs(vector)))


def _asked(two: float, scale: float, controls: Controls) -> bool:
    """Whether the residual meets the tolerances, where the caller gave any."""
    if controls.rtol is None and controls.atol is None:
        return True
    return two <= max((controls.rtol or 0.0) * scale, controls.atol or 0.0)
