"""How much a matrix may amplify errors: a bound that every factor is asked for once, and an estimate on request."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final
from weakref import WeakKeyDictionary

import numpy as np

from backsolve.errors import InvalidOptionError
from backsolve.pattern import StructuredPattern
from backsolve.types import Array, Status, Trans

from .base import Controls, Factor, Outcome
from .direct.condition import condition_number, inverse_norm
from .faults import systems
from .operand import Operand
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
            return factor.solve(v, "N", Controls()).x

        def adjoint(v: Array) -> Array:
            return factor.solve(v, "H", Controls()).x

        one = inverse_norm(solve, adjoint, operand.n, operand.dtype)
        infinity = inverse_norm(adjoint, solve, operand.n, operand.dtype)
        # Root by root: the product of two huge norms would overflow.
        bound = math.sqrt(one) * math.sqrt(infinity)
        known = _known[factor] = Conditioning(condition_number(operand.norms[0][0], one), bound)
    return known


_LARGEST = 1.5
"""Entries of the probe are between a third of this and this: near 1, so that constants are seen, yet of no regular
shape, and no two alike, since of equal rows with equal entries it would see nothing."""

_probed: "WeakKeyDictionary[Factor, Array]" = WeakKeyDictionary()


def lower_bound(factor: Factor) -> float:
    """`lower_bounds` of a single matrix."""
    if factor.condition is not None:
        return factor.condition
    known = _probed.get(factor)
    return float((lower_bounds(factor) if known is None else known)[0])


def lower_bounds(factor: Factor) -> Array:
    """What a factor says of condition numbers, `[systems]`, whatever is solved with it; 0 where it says nothing.

    A dense factor of one matrix was asked when it was made. Any other direct factor is asked here, once,
    with one solve, rarely two: with s the row sums of |A| and entries of v of 1.5 at most,

        ||A⁻¹ (s v)||_∞ / 1.5  <=  || |A⁻¹| |A| ||_∞  <=  ||A⁻¹||_∞ ||A||_∞

    The number in the middle tells how far x may move when every entry of A is changed by a part of itself.
    It does not see how the rows are scaled, so that one row of 1e30 is not taken for a singular matrix.
    One v may miss the worst by a large factor. Where it says that most digits are gone, a second solve gives
    the whole row of |A⁻¹| |A| that it was largest in, which tells the singular from the merely bad.

    Source: Skeel, "Scaling for numerical stability in Gaussian elimination", J. ACM 26 (1979), section 2.
    """
    count = systems(factor.operand)
    if factor.condition is not None:
        return np.full(count, factor.condition)
    if not factor.direct or factor.narrow or not _has_entries(factor.operand):
        return np.zeros(count)
    return _asked(_probed, factor, _probe)


def _has_entries(operand: Operand) -> bool:
    """Whether there are any, at hand: of a structured matrix they are not, nor are the sums of its rows."""
    return bool(operand.n and systems(operand)) and not isinstance(operand.pattern, StructuredPattern)


def _probe(factor: Factor) -> Array:
    operand = factor.operand
    sums = operand.row_sums
    given, told = _given(operand, sums)
    outcome = _solved(factor, given, "N")
    answer = np.abs(outcome.x.reshape(given.shape))
    found = answer.max(axis=(1, 2)) / _LARGEST
    told &= np.array([status is Status.OK for status in outcome.statuses], dtype=bool)
    doubtful = np.flatnonzero(told & np.isfinite(found) & (found >= _DOUBTFUL / epsilon(operand.dtype)))
    if doubtful.size:
        unit = np.zeros_like(given)
        unit[doubtful, answer[doubtful, :, 0].argmax(axis=1)] = 1
        rows = np.abs(_solved(factor, unit, "H").x.reshape(given.shape)[doubtful, :, 0])
        whole = (rows * sums[doubtful]).sum(axis=1)
        found[doubtful] = np.where(np.isfinite(whole), np.maximum(found[doubtful], whole), np.inf)
    found = np.where(np.isfinite(found), found, np.finfo(np.float64).max)
    return np.asarray(np.where(told, found, 0.0))


def _given(operand: Operand, sums: Array) -> tuple[Array, Array]:
    """The probe of each system, `[systems, n, 1]`, and where it tells anything: sums out of range do not."""
    given = (sums * _entries(operand.n)).astype(operand.dtype)[:, :, None]
    told = np.isfinite(given).all(axis=(1, 2))
    return np.where(told[:, None, None], given, 1).astype(operand.dtype), told


_DOUBTFUL = 1e-4
"""Part of 1/ε from which the first probe is not enough: it has missed singular matrices by as much."""


_REFINED = 1e4
"""Condition number up to which single precision has digits to spare."""

_LEFT = 1e-6
"""Part of b that refinement may leave of a solve in single precision; of a singular matrix it leaves what is outside
the range."""

_unresolved: "WeakKeyDictionary[Factor, Array]" = WeakKeyDictionary()


def unresolved(factor: Factor) -> Array:
    """Whether a factor in single precision cannot tell its matrices, double ones, from singular ones: `[systems]`.

    Refinement gives b in the range of a singular matrix as good an answer as any b of a regular one. So a b that is
    of no particular kind is tried, once, unless the factor itself says that its precision is ample.
    """
    operand = factor.operand
    if not factor.narrow or factor.nullspace is not None or not _has_entries(operand):
        return np.zeros(systems(operand), dtype=bool)
    return _asked(_unresolved, factor, _left_over)


def _asked(answers: "WeakKeyDictionary[Factor, Array]", factor: Factor, ask: Callable[[Factor], Array]) -> Array:
    """What a factor answers, which it is asked once."""
    known = answers.get(factor)
    if known is None:
        with np.errstate(all="ignore"):
            known = answers[factor] = ask(factor)
    return known


def _left_over(factor: Factor) -> Array:
    """Of which systems refinement leaves a part of the probe."""
    operand = factor.operand
    if factor.condition is not None and factor.condition <= _REFINED:
        return np.zeros(systems(operand), dtype=bool)
    given, told = _given(operand, operand.row_sums)
    outcome = _solved(factor, given, "N")
    x = outcome.x.reshape(given.shape)
    open_ = told & np.array([status is Status.OK for status in outcome.statuses], dtype=bool)
    if factor.condition is None:
        open_ &= ~(np.abs(x).max(axis=(1, 2)) <= _REFINED * _LARGEST)
    last = np.full(open_.size, np.inf)
    for _ in range(MIXED_REFINEMENTS):
        rest = given - operand.products(x, "N")
        left = (np.abs(rest) / np.abs(given)).max(axis=(1, 2))
        open_ &= ~(left <= _LEFT)
        if not np.any(open_ & (left < last)):
            break
        last, x = left, x + _solved(factor, rest, "N").x.reshape(given.shape)
    return np.asarray(open_)


def _entries(n: int) -> Array:
    """`[n]` entries of the probe, the same each time.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA (2014), one round of it.
    """
    bits = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    return _LARGEST / 3 * (1 + (bits >> np.uint64(32)) * 2.0**-31)


def _solved(factor: Factor, v: Array, trans: Trans) -> Outcome:
    """Solve for `[systems, n, 1]`."""
    return factor.solve(v if factor.operand.batch is not None else v[0], trans, Controls())
