"""Which first iterates are of use: one that is far too large hides the right-hand side from the iteration."""

import numpy as np

from backsolve.types import Array, Trans

from ..operand import Operand
from ..scaling import exponents, magnitude

LEFT_OUT = "x0 was left out: it is so large beside b that its residual has no digit of b"

_DIGITS = np.finfo(np.float64).nmant


def useful(operand: Operand, x0: Array | None, rhs: Array, trans: Trans) -> tuple[Array | None, str | None]:
    """The first iterates with zero in place of those in whose residual b is below the rounding, and a note if any is.

    Compared by their exponents, so that no size of numbers is too large.

    Args:
        operand: A.
        x0: `[systems, n, k]`, or None.
        rhs: b, of the same shape.
        trans: which operator.
    """
    if x0 is None or x0.size == 0:
        return x0, None
    norm = exponents(operand.norm_table[:, 1 if trans == "N" else 0])[:, None]
    size, wanted = magnitude(x0, 1), magnitude(rhs, 1)
    # Where b = 0 the answer is 0, whatever x0 is.
    far = (norm + exponents(size) - exponents(wanted) > _DIGITS) & (size > 0) & (wanted > 0)
    return (np.where(far[:, None, :], 0, x0), LEFT_OUT) if far.any() else (x0, None)
