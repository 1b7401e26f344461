"""One least-squares answer from a factor, and its proof: the way `answer` goes for those methods.

What proves x is not ||b - A x||, which the data decide, but what of that residual an x could still
remove. With Ā = [A; damp I], b̄ = [b; 0], r̄ = b̄ - Ā x and any vector δ, three perturbations of Ā
or b̄ make x exact, and the least of them is reported:

    ||Āᴴ r̄|| / (||Ā|| ||r̄||)                                Stewart: of the normal equations
    ||r̄|| / (||Ā|| ||x|| + ||b̄||)                            of a system that has a solution
    ||Ā δ|| / (||Ā|| ||x||) + the first, with r̄ - Ā δ for r̄    Ā + E, E x = Ā δ, reaches x + δ from x

The third serves where the residual is small, but not as small as rounding: rounding x alone then
spoils the first. δ is the correction that one more solve proposes. ||Ā|| is replaced by a lower
bound, its largest column, so that errors are over- rather than understated.

The cotangent solve λ = (AᴴA + damp² I)⁺ g is measured by ρ = g - Āᴴ Ā λ: by ||ρ|| against ||g|| and
against ||Ā||² ||λ|| + ||g||, or, where columns may be dependent, by ||Ā ρ|| / (||Ā|| ||ρ||). There too a
g with a small part outside the range of Āᴴ leaves a ρ beside which rounding is large; then Āᴴ Ā δ is the
part of ρ that a correction explains, counted against ||g||, and the last bound is taken of the rest.

Source: Stewart, "Research, development, and LINPACK", in Mathematical Software III, 1977; Higham,
"Accuracy and stability of numerical algorithms", 2nd ed., section 20.7.
"""

from dataclasses import dataclass, replace
from typing import final

import numpy as np

from backsolve.errors import InvalidDtypeError, InvalidShapeError
from backsolve.types import Array, Status

from .answer import Answer
from .base import Controls
from .faults import systems
from .lstsq.base import LeastSquaresFactor, largest_column
from .scaling import exponents, magnitude, shift
from .tolerance import ATTAINABLE, REFINEMENTS, direct_backward_error, epsilon, iterative_rtol


@final
@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of an answer, `[systems, k]` each.

    Attributes:
        relative: ||r̄|| / ||b̄||, or one of the two others in the module's text over ||Ā||, if smaller.
        backward: the least of the module's three.
        rest: `[systems, n, k]` Āᴴ r̄, or ρ: what a correction is computed from.
    """

    relative: Array
    backward: Array
    rest: Array


def answer_least_squares(factor: LeastSquaresFactor, rhs: Array, controls: Controls) -> Answer:
    """Solve for `x = G Aᴴ rhs`, or with `controls.cotangent` for `G rhs`, and measure it.

    Args:
        factor: of one matrix, or of a batch.
        rhs: `[m, k]`, `[batch, m, k]`; for a cotangent n rows. In the matrix's element type.
        controls: the solve spec.

    Raises:
        InvalidShapeError, InvalidDtypeError: `rhs` does not fit.
        CancelledError: as `Factor.solve`.
    """
    operand = factor.operand
    rows = operand.n if controls.cotangent else operand.m
    lead = (rows,) if operand.batch is None else (operand.batch, rows)
    if rhs.ndim != len(lead) + 1 or rhs.shape[:-1] != lead:
        raise InvalidShapeError(f"b has shape {rhs.shape}, this matrix takes {(*lead, 'k')}")
    if rhs.dtype != operand.dtype:
        raise InvalidDtypeError(f"b is {rhs.dtype} and A is {operand.dtype}: convert b to A's element type")
    stacked = rhs if rhs.ndim == 3 else rhs[None]
    shape = (*rhs.shape[:-2], operand.n, rhs.shape[-1])
    if stacked.size == 0 or operand.n == 0:
        return _empty(factor, shape)
    with np.errstate(all="ignore"):
        return _Run(factor, stacked, controls).answer(shape)


@final
class _Run:
    """The steps of one answer; columns are solved at magnitudes near 1, whatever they are."""

    def __init__(self, factor: LeastSquaresFactor, rhs: Array, controls: Controls) -> None:
        self.factor, self.operand, self.controls = factor, factor.operand, controls
        largest = magnitude(rhs, 1)
        self.bad = ~np.isfinite(largest)
        clean = np.where(self.bad[:, None, :], 0, rhs) if self.bad.any() else rhs
        self.powers = exponents(np.where(self.bad, 0, largest))[:, None, :]
        self.wide = shift(clean.astype(self.operand.wide_dtype, copy=False), -self.powers)
        self.norms = np.array([largest_column(a, factor.damp) for a in self.operand.wide])
        self.size = two(self.wide)
        self.met: float | None = None

    def answer(self, shape: tuple[int, ...]) -> Answer:
        """Solve, correct, prove."""
        found, statuses, iterations = self._solve(self.wide)
        self.doubt = self.factor.doubt(self.controls, max(iterations, default=0))
        condition = self._condition()
        self.finite = np.asarray(np.isfinite(found).all(axis=1))
        x = self._returned(found)
        measured = self.measure(x)
        refinements = 0
        limit = REFINEMENTS if self.controls.refine is None else self.controls.refine
        if self._cut(statuses):
            limit = 0  # a correction would bring back what was left out
        for step in range(limit + 1):
            wanting = self._unmet(measured) & np.isfinite(measured.relative)
            if not wanting.any():
                break
            correction = self._solve(self._right_hand_side(x), of_rest=measured.rest)[0]
            explained = self.measure(x, correction)
            measured = replace(
                measured,
                relative=np.minimum(measured.relative, explained.relative),
                backward=np.minimum(measured.backward, explained.backward),
            )
            if step == limit or not self._unmet(measured).any():
                break
            trial = self._returned(np.where(wanting[:, None, :], self._wide(x) + correction, self._wide(x)))
            attempt = self.measure(trial)
            better = wanting & (attempt.relative < measured.relative)
            if not better.any():
                break
            refinements += 1
            x = np.where(better[:, None, :], trial, x)
            measured = Measured(
                np.where(better, attempt.relative, measured.relative),
                np.where(better, attempt.backward, measured.backward),
                np.where(better[:, None, :], attempt.rest, measured.rest),
            )
        grid = self._statuses(x, measured, statuses)
        if self.bad.any():
            x = np.where(self.bad[:, None, :], np.nan, x).astype(self.operand.dtype)
        return Answer(
            x=x.reshape(shape),
            statuses=grid,
            iterations=iterations,
            refinements=refinements,
            relative_residual=np.where(self.bad, np.inf, measured.relative),
            backward_error=np.where(self.bad, np.inf, measured.backward),
            condition=condition,
            note=None if self.doubt is None else self.doubt.note,
        )

    def _condition(self) -> float | None:
        """The factor's, or what the iteration has met: a bound from below."""
        if self.factor.direct:
            return self.factor.condition
        return self.met if self.doubt is None else max(self.met or 1.0, self.doubt.condition)

    def _cut(self, statuses: tuple[Status, ...]) -> bool:
        """An iteration was stopped where it met a singular value that counts as zero (`rcond`)."""
        return not self.factor.direct and Status.ILL_CONDITIONED in statuses

    def _solve(self, rhs: Array, of_rest: Array | None = None) -> tuple[Array, tuple[Status, ...], tuple[int, ...]]:
        """The method's own answer in the scaled units; of a rest Āᴴ r̄ or ρ, G times it."""
        controls = self.controls
        if of_rest is not None and (self.factor.damp or controls.cotangent):
            rhs, controls = of_rest, replace(controls, cotangent=True)
        outcome = self.factor.solve(rhs if self.operand.batch is not None else rhs[0], "N", controls)
        self.met = outcome.condition
        return (outcome.x if outcome.x.ndim == 3 else outcome.x[None]), outcome.statuses, outcome.iterations

    def _right_hand_side(self, x: Array) -> Array:
        """What is left of b."""
        if self.controls.cotangent:
            return self.wide
        return self.wide - self.operand.products(self._wide(x), "N")

    def _returned(self, scaled: Array) -> Array:
        """As the caller will see it: in the element type and the caller's units."""
        return shift(scaled, self.powers).astype(self.operand.dtype)

    def _wide(self, x: Array) -> Array:
        return shift(x.astype(self.operand.wide_dtype, copy=False), -self.powers)

    def measure(self, x: Array, correction: Array | None = None) -> Measured:
        """Measure `x` as it is returned; with a correction δ, the third of the module's bounds alone."""
        return (self._measure_cotangent if self.controls.cotangent else self._measure)(self._wide(x), correction)

    def _measure(self, x: Array, correction: Array | None) -> Measured:
        damp, norms = self.factor.damp, self.norms[:, None]
        size = two(x)
        top, bottom = self.wide - self.operand.products(x, "N"), -damp * x
        moved = np.zeros_like(size)
        if correction is not None:
            step, under = self.operand.products(correction, "N"), damp * correction
            moved = np.hypot(two(step), two(under))
            top, bottom = top - step, bottom - under
        remainder = np.hypot(two(top), two(bottom))
        rest = self.operand.products(top, "H") + damp * bottom
        normal = _over(_over(two(rest), norms), remainder)
        if correction is not None:
            normal = np.where(remainder > 0, normal, 0.0)
            return Measured(
                _or_infinite(_over(moved, self.size) + normal),
                _or_infinite(_over(_over(moved, norms), size) + normal),
                rest,
            )
        plain = _over(remainder, self.size)
        backward = _over(remainder, norms * size + self.size)
        return Measured(_or_infinite(np.minimum(normal, plain)), _or_infinite(np.minimum(normal, backward)), rest)

    def _measure_cotangent(self, lam: Array, correction: Array | None) -> Measured:
        norms = self.norms[:, None]
        if correction is not None and self.factor.independent:
            # Nothing is gained by a correction here: ρ says all.
            infinite = np.full(self.size.shape, np.inf)
            return Measured(infinite, infinite, lam)
        rest = self.wide - self._normal(lam)
        moved = np.zeros_like(self.size)
        if correction is not None:
            step = self._normal(correction)
            rest, moved = rest - step, two(step)
        remainder, reach = two(rest), norms * (norms * two(lam)) + self.size
        if self.factor.independent:
            return Measured(_or_infinite(_over(remainder, self.size)), _or_infinite(_over(remainder, reach)), rest)
        through = np.hypot(two(self.operand.products(rest, "N")), self.factor.damp * remainder)
        outside = _over(_over(through, norms), remainder)
        relative, backward = _over(moved, self.size) + outside, _over(moved, reach) + outside
        if correction is None:
            relative = np.minimum(relative, _over(remainder, self.size))
            backward = np.minimum(backward, _over(remainder, reach))
        return Measured(_or_infinite(relative), _or_infinite(backward), rest)

    def _normal(self, lam: Array) -> Array:
        """`(AᴴA + damp² I) lam`."""
        damp = self.factor.damp
        return self.operand.products(self.operand.products(lam, "N"), "H") + damp * (damp * lam)

    def _unmet(self, measured: Measured) -> Array:
        if self.factor.direct:
            return self._missed(measured) | ~(measured.backward <= direct_backward_error(self.operand.dtype))
        return self._missed(measured)

    def _missed(self, measured: Measured) -> Array:
        rtol = self.controls.rtol
        if rtol is None:
            if self.factor.direct:
                return np.zeros(measured.relative.shape, dtype=bool)
            attained = measured.backward <= ATTAINABLE * epsilon(self.operand.dtype)
            return np.asarray(~(measured.relative <= iterative_rtol(self.operand.dtype)) & ~attained)
        return np.asarray(~(measured.relative <= rtol))

    def _statuses(self, x: Array, measured: Measured, known: tuple[Status, ...]) -> tuple[tuple[Status, ...], ...]:
        missed, unmet = self._missed(measured), self._unmet(measured)
        hopeless = np.asarray(~np.isfinite(x).all(axis=1))
        # The answer was a number before it was brought to its type and units.
        beyond = hopeless & self.finite & ~self.bad
        far = (self.factor.condition or 0.0) >= 1 / epsilon(self.operand.dtype)
        undecided = self.doubt is not None and self.doubt.undecided
        grid = []
        for s, status in enumerate(known):
            row = []
            for j in range(x.shape[2]):
                if self.bad[s, j]:
                    row.append(Status.NONFINITE_INPUT)
                elif beyond[s, j]:
                    row.append(Status.OUT_OF_RANGE)
                elif status not in (Status.OK, Status.ILL_CONDITIONED) and (
                    self.factor.direct or missed[s, j] or hopeless[s, j]
                ):
                    row.append(status)
                elif self._cut((status,)) and not hopeless[s, j]:
                    row.append(Status.ILL_CONDITIONED if missed[s, j] else Status.OK)
                elif hopeless[s, j] or missed[s, j]:
                    row.append(Status.STAGNATION)
                elif unmet[s, j] or far or undecided or status is Status.ILL_CONDITIONED:
                    row.append(Status.ILL_CONDITIONED)
                else:
                    row.append(Status.OK)
            grid.append(tuple(row))
        return tuple(grid)


def two(a: Array) -> Array:
    """2-norm of each column, `[systems, k]`, without a square that could leave the range."""
    if a.shape[1] == 0:
        return np.zeros((a.shape[0], a.shape[2]))
    powers = exponents(magnitude(a, 1))
    scaled = shift(a, -powers[:, None, :])
    squares = scaled.real**2 + scaled.imag**2 if scaled.dtype.kind == "c" else scaled**2
    return np.asarray(np.ldexp(np.sqrt(squares.sum(axis=1)), powers))


def _over(a: Array, b: Array) -> Array:
    """A / b, and 0 where a is 0."""
    return np.where(a == 0, 0.0, a / b)


def _or_infinite(a: Array) -> Array:
    return np.where(np.isnan(a), np.inf, a)


def _empty(factor: LeastSquaresFactor, shape: tuple[int, ...]) -> Answer:
    """No equations, no unknowns, or no columns: the shortest x is zero."""
    count, k = systems(factor.operand), shape[-1]
    none = np.zeros((count, k))
    x = np.zeros(shape, dtype=factor.operand.dtype)
    return Answer(x, ((Status.OK,) * k,) * count, (0,) * count, 0, none, none.copy(), None)
