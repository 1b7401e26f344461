"""How much a matrix may amplify errors, estimated on request with a handful of solves with its factor."""

import math
from dataclasses import dataclass
from typing import final
from weakref import WeakKeyDictionary

from backsolve.errors import InvalidOptionError
from backsolve.types import Array, Trans

from .base import Controls, Factor
from .direct.condition import condition_number, inverse_norm


@final
@dataclass(frozen=True, slots=True)
class Conditioning:
    """Estimates from below, rarely by more than a factor of 3.

    Attributes:
        number: condition number in the 1-norm.
        inverse_norm: sqrt(||A⁻¹||₁ ||A⁻¹||_∞), which bounds ||A⁻¹||₂ from above.
    """

    number: float
    inverse_norm: float


_known: "WeakKeyDictionary[Factor, Conditioning]" = WeakKeyDictionary()


def estimate(factor: Factor) -> Conditioning | None:
    """Condition of a direct factor; costs 8 to 22 solves once, then nothing.

    Returns:
        None when n is 0.

    Raises:
        InvalidOptionError: the factor is of a batch.

    Source: Golub and Van Loan, "Matrix computations", 4th ed., corollary 2.3.2, for the bound.
    """
    operand = factor.operand
    if operand.batch is not None:
        raise InvalidOptionError("condition is estimated for single matrices, not for a batch: leave it out")
    if operand.n == 0:
        return None
    known = _known.get(factor)
    if known is None:

        def solve(v: Array) -> Array:
            return _solved(factor, v, "N")

        def adjoint(v: Array) -> Array:
            return _solved(factor, v, "H")

        one = inverse_norm(solve, adjoint, operand.n, operand.dtype)
        infinity = inverse_norm(adjoint, solve, operand.n, operand.dtype)
        # Root by root: the product of two huge norms would overflow.
        bound = math.sqrt(one) * math.sqrt(infinity)
        known = _known[factor] = Conditioning(condition_number(operand.norms[0][0], one), bound)
    return known


def _solved(factor: Factor, v: Array, trans: Trans) -> Array:
    return factor.solve(v, trans, Controls()).x
