"""How much a matrix may amplify errors: a bound that every factor is asked for once, and an estimate on request."""

import math
from dataclasses import dataclass
from typing import final
from weakref import WeakKeyDictionary

import numpy as np

from backsolve.errors import InvalidOptionError
from backsolve.pattern import StructuredPattern
from backsolve.types import Array, Trans

from .base import Controls, Factor
from .direct.condition import condition_number, inverse_norm
from .tolerance import MIXED_REFINEMENTS, epsilon


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


_LARGEST = 1.5
"""Entries of the probe are between a third of this and this: near 1, so that constants are seen, yet of no regular
shape, and no two alike, since of equal rows with equal entries it would see nothing."""

_probed: "WeakKeyDictionary[Factor, float]" = WeakKeyDictionary()


def lower_bound(factor: Factor) -> float:
    """What a factor says of its matrix's condition number, whatever is solved with it; 0 where it says nothing.

    A dense factor was asked when it was made. Any other direct factor of one matrix is asked here, once,
    with one solve, rarely two: with s the row sums of |A| and entries of v of 1.5 at most,

        ||A⁻¹ (s v)||_∞ / 1.5  <=  || |A⁻¹| |A| ||_∞  <=  ||A⁻¹||_∞ ||A||_∞

    The number in the middle tells how far x may move when every entry of A is changed by a part of itself.
    It does not see how the rows are scaled, so that one row of 1e30 is not taken for a singular matrix.
    One v may miss the worst by a large factor. Where it says that most digits are gone, a second solve gives
    the whole row of |A⁻¹| |A| that it was largest in, which tells the singular from the merely bad.

    Source: Skeel, "Scaling for numerical stability in Gaussian elimination", J. ACM 26 (1979), section 2.
    """
    if factor.condition is not None:
        return factor.condition
    operand = factor.operand
    if not factor.direct or factor.narrow or operand.batch is not None or operand.n == 0:
        return 0.0
    if isinstance(operand.pattern, StructuredPattern):
        return 0.0  # its entries, and so the sums of its rows, are not at hand
    known = _probed.get(factor)
    if known is None:
        known = _probed[factor] = _probe(factor)
    return known


def _probe(factor: Factor) -> float:
    operand = factor.operand
    with np.errstate(all="ignore"):
        sums = operand.row_sums
        given = (sums * _entries(operand.n)).astype(operand.dtype)[:, None]
        if not np.isfinite(given).all():
            return 0.0  # sums out of range say nothing of the matrix
        answer = np.abs(_solved(factor, given, "N"))
        found = float(answer.max()) / _LARGEST
        if np.isfinite(found) and found >= _DOUBTFUL / epsilon(operand.dtype):
            unit = np.zeros_like(given)
            unit[np.argmax(answer)] = 1
            whole = float(np.abs(_solved(factor, unit, "H"))[:, 0] @ sums)
            found = max(found, whole) if np.isfinite(whole) else np.inf
    return found if np.isfinite(found) else float(np.finfo(np.float64).max)


_DOUBTFUL = 1e-4
"""Part of 1/ε from which the first probe is not enough: it has missed singular matrices by as much."""


_REFINED = 1e4
"""Condition number up to which single precision has digits to spare."""

_LEFT = 1e-6
"""Part of b that refinement may leave of a solve in single precision; of a singular matrix it leaves what is outside
the range."""

_unresolved: "WeakKeyDictionary[Factor, bool]" = WeakKeyDictionary()


def unresolved(factor: Factor) -> bool:
    """Whether a factor in single precision cannot tell its matrix, which is a double one, from a singular one.

    Refinement gives b in the range of a singular matrix as good an answer as any b of a regular one. So a b that is
    of no particular kind is tried, once, unless the factor itself says that its precision is ample.
    """
    operand = factor.operand
    if not factor.narrow or operand.batch is not None or operand.n == 0 or factor.nullspace is not None:
        return False
    if isinstance(operand.pattern, StructuredPattern):
        return False
    known = _unresolved.get(factor)
    if known is None:
        with np.errstate(all="ignore"):
            known = _unresolved[factor] = _stays(factor)
    return known


def _stays(factor: Factor) -> bool:
    """Whether refinement leaves a part of the probe."""
    operand = factor.operand
    if factor.condition is not None and factor.condition <= _REFINED:
        return False
    given = (operand.row_sums * _entries(operand.n)).astype(operand.dtype)[:, None]
    if not np.isfinite(given).all():
        return False  # sums out of range say nothing of the matrix
    x = _solved(factor, given, "N")
    if factor.condition is None and float(np.abs(x).max()) <= _REFINED * _LARGEST:
        return False
    last = np.inf
    for _ in range(MIXED_REFINEMENTS):
        rest = given - operand.product(0, x, "N")
        left = float((np.abs(rest) / np.abs(given)).max())
        if left <= _LEFT:
            return False
        if not left < last:
            break
        last, x = left, x + _solved(factor, rest, "N")
    return True


def _entries(n: int) -> Array:
    """`[n]` entries of the probe, the same each time.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA (2014), one round of it.
    """
    bits = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    return _LARGEST / 3 * (1 + (bits >> np.uint64(32)) * 2.0**-31)


def _solved(factor: Factor, v: Array, trans: Trans) -> Array:
    return factor.solve(v, trans, Controls()).x
