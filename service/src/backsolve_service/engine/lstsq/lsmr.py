"""Least squares by LSMR: nothing is factorized, every step takes a product with A and one with Aᴴ.

The answer x comes from one run. G g for a cotangent g takes two, since G = Ā⁺ (Ā⁺)ᴴ: the shortest y
with Āᴴ y = g, then the λ with Ā λ = y. Computed in double precision whatever A is stored in.

Source: Fong and Saunders, "LSMR: an iterative algorithm for sparse least-squares problems", SIAM J.
Sci. Comput. 33 (2011), sections 2 and 3.2 (when to stop).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from backsolve.errors import CancelledError
from backsolve.pattern import AnyPattern
from backsolve.types import Array, Status, Trans

from ..base import Controls, Factor, FactorSpec, Outcome, Solver, Symbolic
from ..faults import finite_statuses
from ..krylov.base import KrylovSymbolic
from ..krylov.lsmr import Progress, least_squares
from ..operand import Operand
from ..scaling import exponents, shift
from ..tolerance import ITERATIONS_PER_ROW, SINGLE_EPS, epsilon, iterative_rtol
from .base import Doubt, LeastSquaresFactor, largest_column, no_answer
from .unseen import unseen

MAX_COLUMNS = 16
"""Columns share the passes over A, and cost their own vectors: little is gained beyond."""

_LEAST_LOOK = 50
"""Iterations that a look at the matrix may take in any case."""

_LONG = 500
"""Iterations after which a run has met small singular values itself, and a look would cost too much."""

_SHARE = 0.25
"""Of the tolerance for the recurrence; the rest is for its distance from the truth."""


@final
@dataclass(frozen=True, slots=True)
class Stacked:
    """Ā of one system, scaled by a power of two to a norm near 1.

    Attributes:
        a: `csr_array` or 2-D array, in double precision.
        damp: of the scaled system.
        exponent: A is 2ᵉ times what is multiplied with.
        norm: a lower bound on the 2-norm of the scaled Ā.
    """

    a: Any
    damp: float
    exponent: int
    norm: float

    def multiply(self, rows: Array) -> Array:
        """`Ā v` for each of the rows of `[k, n]`: `[k, m]`, or `[k, m + n]` with damping."""
        top = self._scaled((self.a @ rows.T).T)
        return np.concatenate([top, self.damp * rows], axis=1) if self.damp else top

    def adjoint(self, rows: Array) -> Array:
        """`Āᴴ u` for each of the rows of `[k, m]`, with damping `[k, m + n]`."""
        m = self.a.shape[0]
        top = self._scaled(np.conj(self.a.T @ np.conj(rows[:, :m].T)).T)
        return top + self.damp * rows[:, m:] if self.damp else top

    def padded(self, rows: Array) -> Array:
        """`[k, m]` right-hand sides with the zeros that damping puts under them."""
        return np.concatenate([rows, np.zeros((rows.shape[0], self.a.shape[1]))], axis=1) if self.damp else rows

    def _scaled(self, rows: Array) -> Array:
        return np.ascontiguousarray(shift(rows, np.full(1, -self.exponent)))


@final
@dataclass(frozen=True, eq=False)
class LsmrFactor(LeastSquaresFactor):
    """Nothing but norms; None where a system is not finite.

    Attributes:
        found: what `doubt` has found, once it has looked; two threads that look at once find the same.
    """

    operand: Operand
    damp: float
    rcond: float | None
    parts: tuple[Stacked | None, ...]
    statuses: tuple[Status, ...]
    found: list[Doubt | None] = field(default_factory=list)

    direct = False
    max_columns = MAX_COLUMNS

    @property
    def nbytes(self) -> int:
        """Nothing is held beside the matrix."""
        return 0

    @property
    def condition(self) -> float | None:
        """Not estimated."""
        return None

    @property
    def independent(self) -> bool:
        """Damping makes them so; of the matrix alone nothing is known."""
        return self.damp > 0

    def doubt(self, controls: Controls, iterations: int) -> Doubt | None:
        """Directions that the iteration stops short of (`unseen.py`); costs one or two runs more, once.

        Damping decides every direction, and `rcond` says from where on they do not count.
        """
        if self.damp or self.rcond is not None or iterations > _LONG:
            return None
        if not self.found:
            self.found.append(self._looked(controls, iterations))
        return self.found[0]

    def _looked(self, controls: Controls, iterations: int) -> Doubt | None:
        """The worst of all systems."""
        tolerance, limit = iterative_rtol(self.operand.dtype), max(iterations, _LEAST_LOOK)
        noise = max(*self.operand.pattern.shape, 1) * epsilon(self.operand.dtype)
        check = _checker(controls)
        doubts = [
            unseen(part.multiply, part.adjoint, part.a.shape, part.a.dtype, part.norm, tolerance, noise, limit, check)
            for part in self.parts
            if part is not None
        ]
        found = [doubt for doubt in doubts if doubt is not None]
        return max(found, key=lambda doubt: (doubt.undecided, doubt.condition), default=None)

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """Iterate until the normal equations, or the residual, meet the tolerance.

        Raises:
            CancelledError: `controls.cancelled` said so.
        """
        del trans
        stacked = rhs if rhs.ndim == 3 else rhs[None]
        wide = self.operand.wide_dtype
        x = no_answer(stacked.shape[0], self.operand.n, stacked.shape[2], wide)
        statuses, iterations = list(self.statuses), [0] * len(self.statuses)
        condition = 1.0
        for index, part in enumerate(self.parts):
            if part is None:
                continue
            rows = np.ascontiguousarray(stacked[index].T).astype(wide, copy=False)
            found = (self._normal if controls.cotangent else self._forward)(part, rows, controls)
            x[index], iterations[index] = found.x.T, found.steps
            condition = max(condition, found.condition)
            statuses[index] = found.status
        shaped = x if rhs.ndim == 3 else x[0]
        return Outcome(shaped, tuple(statuses), tuple(iterations), condition=condition)

    def _forward(self, part: Stacked, b: Array, controls: Controls) -> "_Found":
        tolerance, limit = self._tolerance(controls), self._limit(controls)
        size = np.linalg.norm(b, axis=1)

        def met(state: Progress) -> Array:
            normal = state.normal <= tolerance * part.norm * state.residual
            return np.asarray(normal | (state.residual <= tolerance * size) | state.complete)

        watch = _Watch(met, self.rcond, len(b))
        steps, x = least_squares(
            part.multiply, part.adjoint, part.padded(b), 0.0, limit, watch.stop, _checker(controls)
        )
        return _Found(shift(x, np.full(1, -part.exponent)), steps, steps >= limit, watch.condition, watch.cut)

    def _normal(self, part: Stacked, g: Array, controls: Controls) -> "_Found":
        tolerance, limit = self._tolerance(controls), self._limit(controls)
        size, check = np.linalg.norm(g, axis=1), _checker(controls)

        def reached(state: Progress) -> Array:
            outside = state.normal <= tolerance * part.norm * state.residual
            return np.asarray((state.residual <= tolerance * size) | outside | state.complete)

        def solved(state: Progress) -> Array:
            return np.asarray((state.normal <= tolerance * size) | state.complete)

        one, two = _Watch(reached, self.rcond, len(g)), _Watch(solved, self.rcond, len(g))
        first, y = least_squares(part.adjoint, part.multiply, g, 0.0, limit, one.stop, check)
        second, lam = least_squares(part.multiply, part.adjoint, y, 0.0, limit, two.stop, check)
        return _Found(
            shift(lam, np.full(1, -2 * part.exponent)),
            first + second,
            max(first, second) >= limit,
            max(one.condition, two.condition),
            one.cut or two.cut,
        )

    def _tolerance(self, controls: Controls) -> float:
        rtol = controls.rtol
        if rtol is None:
            rtol = iterative_rtol(self.operand.dtype)
        return _SHARE * (rtol / 2 if epsilon(self.operand.dtype) >= SINGLE_EPS else rtol)

    def _limit(self, controls: Controls) -> int:
        return controls.maxiter or ITERATIONS_PER_ROW * max(min(self.operand.pattern.shape), 1)


@final
class LeastSquaresLsmr(Solver):
    """Any matrix, sparse or dense; the condition number decides how many steps it takes."""

    name = "lstsq_lsmr"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Nothing to prepare."""
        del spec
        return KrylovSymbolic(pattern)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Take norms, O(nnz).

        Raises:
            NonfiniteInputError: the matrix holds NaN or infinity.
        """
        symbolic.check(operand)
        statuses = finite_statuses(operand)
        parts: list[Stacked | None] = []
        for index, a in enumerate(operand.wide):
            part = None
            if statuses[index] is Status.OK:
                norm = largest_column(a, spec.damp)
                exponent = int(exponents(np.asarray(norm)))
                part = Stacked(a, float(np.ldexp(spec.damp, -exponent)), exponent, float(np.ldexp(norm, -exponent)))
            parts.append(part)
        return LsmrFactor(operand, spec.damp, spec.rcond, tuple(parts), tuple(statuses))


@final
@dataclass(frozen=True, slots=True)
class _Found:
    """What a run, or a pair of them, has given.

    Attributes:
        x: `[k, n]`.
        steps: iterations of all columns together.
        limited: the limit ended it.
        condition: the largest that any column has met.
        cut: a column was stopped for its condition.
    """

    x: Array
    steps: int
    limited: bool
    condition: float
    cut: bool

    @property
    def status(self) -> Status:
        """How it ended, before the answer is measured."""
        if self.limited:
            return Status.MAX_ITER
        return Status.ILL_CONDITIONED if self.cut else Status.OK


@final
class _Watch:
    """Stops each column where it has enough, or where it has met a singular value that counts as zero.

    Attributes:
        condition: the largest condition number that a column has met before it stopped.
        cut: a column was stopped for that.
    """

    def __init__(self, met: Callable[[Progress], Array], rcond: float | None, columns: int) -> None:
        self._met, self._rcond = met, rcond or 0.0
        self._open = np.ones(columns, dtype=bool)
        self.condition, self.cut = 1.0, False

    def stop(self, state: Progress) -> Array:
        """Which columns are to stop now."""
        enough, too_far = self._met(state), self._rcond * state.condition >= 1
        self.condition = max(self.condition, float(state.condition.max(initial=1.0)))
        self.cut = self.cut or bool(np.any(self._open & too_far & ~enough))
        self._open &= ~(enough | too_far)
        return np.asarray(~self._open)


def _checker(controls: Controls) -> Callable[[], None]:
    def check() -> None:
        if controls.cancelled():
            raise CancelledError("the solve was cancelled between two iterations")

    return check
