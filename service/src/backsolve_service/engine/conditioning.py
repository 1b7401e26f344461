"""The condition number of a factor that did not estimate it when it was made, on request."""

from weakref import WeakKeyDictionary

from backsolve.errors import InvalidOptionError
from backsolve.types import Array, Trans

from .base import Controls, Factor
from .direct.condition import condition_number, inverse_norm

_known: "WeakKeyDictionary[Factor, float]" = WeakKeyDictionary()


def estimate(factor: Factor) -> float | None:
    """1-norm condition number of a direct factor; costs 4 to 11 solves once, then nothing.

    Returns:
        The estimate, which is a lower bound and rarely more than 3 times too small; None when n is 0.

    Raises:
        InvalidOptionError: the factor is of a batch.
    """
    if factor.condition is not None:
        return factor.condition
    operand = factor.operand
    if operand.batch is not None:
        raise InvalidOptionError("condition is estimated for single matrices, not for a batch: leave it out")
    if operand.n == 0:
        return None
    known = _known.get(factor)
    if known is None:

        def solve(v: Array, trans: Trans) -> Array:
            return factor.solve(v, trans, Controls()).x

        inverse = inverse_norm(lambda v: solve(v, "N"), lambda v: solve(v, "H"), operand.n, operand.dtype)
        known = _known[factor] = condition_number(operand.norms[0][0], inverse)
    return known
