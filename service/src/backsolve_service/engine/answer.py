"""One solve from a factor, refined where it must be and proved: the way every reply is computed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from backsolve.errors import InvalidDtypeError, InvalidShapeError
from backsolve.types import Array, Status, Trans

from .base import Controls, Factor, Outcome
from .certify import Evidence, Proof, Reference, accept, measure, reference
from .conditioning import Conditioning, estimate, lower_bound, lower_bounds, unresolved
from .faults import systems
from .lstsq.base import LeastSquaresFactor
from .one_column import Figures, certify
from .ranged import RangedFactor
from .refine import refine
from .scaling import exponents, magnitude, shift
from .tolerance import (
    ATTAINABLE,
    MIXED_REFINEMENTS,
    REFINEMENTS,
    direct_backward_error,
    epsilon,
    iterative_rtol,
    safe_magnitude,
    wrong_backward_error,
)

_SOLVED = 1e-2
"""An iterative answer whose residual is above this part of b has not solved its system."""


_UNRESOLVED = "single precision cannot tell A from a singular matrix: use precision='full'"


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """What a solve gave, with the evidence; a single matrix is one system.

    Attributes:
        x: shaped like the right-hand side; NaN where a system of a batch has no answer.
        statuses: `[systems][k]`.
        iterations: of each system, the largest of its columns; 0 for direct methods.
        refinements: steps of refinement that improved some column.
        relative_residual: `[systems, k]` ||b - op(A) x|| / ||b||, float64; 0 for b = 0, infinite without an answer.
        backward_error: `[systems, k]`, likewise.
        condition: the factor's estimate of the condition number, or the lower bound that the
            answer itself gives if that is larger; of a batch, the worst. None when n or k is 0.
        inverse_norm: an estimate of a bound on ||A⁻¹||₂, where the condition was asked for.
        note: what the caller should know of this one solve.
    """

    x: Array
    statuses: tuple[tuple[Status, ...], ...]
    iterations: tuple[int, ...]
    refinements: int
    relative_residual: Array
    backward_error: Array
    condition: float | None
    inverse_norm: float | None = None
    note: str | None = None


def answer(factor: Factor, rhs: Array, trans: Trans, controls: Controls) -> Answer:
    """Solve `op(A) x = rhs` and measure the answer.

    A direct answer whose backward error is above 1e-12 (1e-5 in single precision), or that
    misses an asked tolerance, is refined. A column of `rhs` that is not finite gets its status
    and NaN; the others are solved.

    Args:
        factor: of one matrix, or of a batch.
        rhs: `[n, k]`, or `[batch, n, k]`; in the matrix's element type.
        trans: "N", "T" or "H".
        controls: the solve spec.

    Raises:
        InvalidShapeError, InvalidDtypeError: `rhs` (or x0) does not fit.
        NotPositiveDefiniteError, CancelledError: as `Factor.solve`.
    """
    if isinstance(factor, LeastSquaresFactor):
        from .least_squares import answer_least_squares  # noqa: PLC0415  (it is made of what is defined here)

        return answer_least_squares(factor, rhs, controls)
    if isinstance(factor, RangedFactor):
        return factor.answer(rhs, trans, controls, answer)
    _check(factor, rhs, controls.x0)
    stacked = rhs if rhs.ndim == 3 else rhs[None]
    if stacked.size == 0:
        return _empty(factor, rhs, stacked.shape)
    if factor.nullspace is None:
        return _answered(factor, rhs, trans, controls)
    projected, outside = factor.nullspace.split(stacked)
    found = _answered(factor, projected.reshape(rhs.shape), trans, controls)
    return found if controls.cotangent or not outside.any() else _inconsistent(found, factor, rhs, trans, outside)


def answer_each(factor: Factor, columns: Sequence[Array], trans: Trans, controls: Controls) -> list[Answer] | None:
    """Answers to right-hand sides `[n, 1]` of several callers, solved as one block and measured singly.

    None: the factor has no way to do that, or not every answer is plainly good; `answer` them as a block.
    """
    operand = factor.operand
    usual = factor.direct and operand.batch is None and factor.nullspace is None and not controls.condition
    if not usual or any(column.shape != (operand.n, 1) or column.dtype != operand.dtype for column in columns):
        return None
    with np.errstate(all="ignore"):
        solved = factor.solve_each([column.reshape(-1) for column in columns], trans)
        if solved is None:
            return None
        known, answers = lower_bound(factor), []
        for column, x in zip(columns, solved, strict=True):
            outcome = Outcome(x.reshape(-1, 1), (Status.OK,), (0,))
            figures = certify(factor, column, outcome.x, trans, controls, known)
            if figures is None:
                return None
            answers.append(_plain(outcome, figures, known))
    return answers


def _answered(factor: Factor, rhs: Array, trans: Trans, controls: Controls) -> Answer:
    """The answer for a right-hand side of the right shape, in the range of A where that is not everything."""
    stacked = rhs if rhs.ndim == 3 else rhs[None]
    with np.errstate(all="ignore"):
        if controls.condition:
            estimated = estimate(factor)
            return _conditioned(_answered(factor, rhs, trans, replace(controls, condition=False)), estimated, factor)
        outcome = None
        if factor.direct and not factor.narrow and factor.operand.batch is None and rhs.shape[1] == 1:
            outcome = factor.solve(rhs, trans, controls)
            known = lower_bound(factor)
            figures = None if outcome.proof else certify(factor, rhs, outcome.x, trans, controls, known)
            if figures is not None:
                return _plain(outcome, figures, known)
        return _Run(factor, stacked, trans, controls, outcome).answer(rhs.shape)


@final
class _Run:
    """The steps of one `answer`."""

    def __init__(self, factor: Factor, rhs: Array, trans: Trans, controls: Controls, outcome: Outcome | None) -> None:
        self.outcome = outcome
        self.note: str | None = None
        self.factor, self.trans, self.controls = factor, trans, controls
        self.operand = factor.operand
        self.known = lower_bounds(factor)[:, None]
        self.dtype = factor.operand.dtype
        largest = magnitude(rhs, 1)
        self.bad = ~np.isfinite(largest)
        if self.bad.any():
            rhs = np.where(self.bad[:, None, :], 0, rhs).astype(self.dtype)
            largest = np.where(self.bad, 0, largest)
        self.rhs = rhs
        self.powers = self._powers(largest)
        self.scaled = rhs if self.powers is None else shift(rhs, -self.powers)
        self.against: Reference = reference(self.operand, self.scaled, trans)
        self.target = self._target()

    def answer(self, shape: tuple[int, ...]) -> Answer:
        """Solve, refine, prove."""
        x, statuses, iterations, proof = self._solve()
        # Measured as it is returned: rounded, and scaled back.
        evidence = self._measured(x) if proof is None else accept(proof, self.against)
        refinements = 0
        if self.factor.direct:
            limit = self.controls.refine
            if limit is None:
                limit = MIXED_REFINEMENTS if self.factor.narrow else REFINEMENTS
            if limit and self._improvable(evidence).any():
                # Refinement needs the residuals themselves.
                evidence = evidence if proof is None else self._measured(x)
                x, evidence, refinements = self._refined(x, evidence, limit)
        grid = self._statuses(x, evidence, statuses)
        if self.bad.any():
            x = np.where(self.bad[:, None, :], np.nan, x).astype(self.dtype)
        estimates = [float(each.max(initial=0.0)) for each in (evidence.condition[~self.bad], self.known)]
        return Answer(
            x=x.reshape(shape),
            statuses=grid,
            iterations=iterations,
            refinements=refinements,
            relative_residual=np.where(self.bad, np.inf, evidence.relative),
            backward_error=np.where(self.bad, np.inf, evidence.backward),
            condition=max(estimates),
            note=self.note,
        )

    def _measured(self, x: Array) -> Evidence:
        return measure(self.operand, self.against, self._scaled(x), self.trans)

    def _solve(self) -> tuple[Array, tuple[Status, ...], tuple[int, ...], Proof | None]:
        """The method's own answer, `[systems, n, k]`, in the caller's units, and its own proof of it."""
        # Iterative methods scale each column themselves, x0 and atol with it.
        rhs = self.scaled if self.factor.direct else self.rhs
        outcome = self.outcome
        if outcome is None or self.powers is not None or self.bad.any():
            outcome = self.factor.solve(rhs if self.operand.batch is not None else rhs[0], self.trans, self.controls)
        x = outcome.x if outcome.x.ndim == 3 else outcome.x[None]
        proof, self.note = outcome.proof, outcome.note
        if self.factor.direct and self.powers is not None:
            x, proof = shift(x, self.powers), None  # what is returned may be rounded once more
        return x, outcome.statuses, outcome.iterations, proof

    def _refined(self, x: Array, evidence: Evidence, limit: int) -> tuple[Array, Evidence, int]:
        scaled, evidence, taken = refine(
            self.factor, self.against, self._scaled(x), evidence, self.trans, self._improvable, limit
        )
        if self.powers is None or not taken:
            return (x if not taken else scaled), evidence, taken
        x = shift(scaled, self.powers)
        return x, measure(self.operand, self.against, self._scaled(x), self.trans), taken

    def _scaled(self, x: Array) -> Array:
        return x if self.powers is None else shift(x, -self.powers)

    def _powers(self, largest: Array) -> Array | None:
        """`[systems, 1, k]` powers of two to divide by; None while squares of everything are safe."""
        far = safe_magnitude(self.dtype)
        if not np.any((largest > far) | ((largest < 1 / far) & (largest > 0))):
            return None
        return exponents(largest)[:, None, :]

    def _target(self) -> Array | None:
        """`[systems, k]` wanted 2-norms of the residuals where the caller asked for them."""
        rtol, atol = self.controls.rtol, self.controls.atol
        if rtol is None and not self.factor.direct:
            rtol = iterative_rtol(self.dtype)
        if rtol is None and atol is None:
            return None
        target = (rtol or 0.0) * self.against.two
        if not atol:
            return target
        if self.powers is None:
            return np.asarray(np.maximum(target, atol))
        return np.asarray(np.maximum(target, shift(np.full(target.shape, atol), -self.powers[:, 0, :])))

    def _unmet(self, evidence: Evidence) -> Array:
        """Columns that miss what was asked, or what a direct method owes in any case."""
        missed = self._missed(evidence)
        if self.factor.direct:
            return missed | (evidence.backward > direct_backward_error(self.dtype))
        return missed

    def _improvable(self, evidence: Evidence) -> Array:
        """Columns to refine; with a factor in single precision, to what a double one would have given."""
        if self.factor.narrow:
            return self._missed(evidence) | (evidence.backward > ATTAINABLE * epsilon(self.dtype))
        return self._unmet(evidence)

    def _missed(self, evidence: Evidence) -> Array:
        """Columns that miss the tolerance that was asked for, or that an iterative method has by default."""
        missed = np.zeros_like(evidence.two, dtype=bool)
        if self.factor.direct:
            # What refinement could not bring to double precision is no answer from a factor in single, and what it
            # left far from any is none at all.
            owed = direct_backward_error if self.factor.narrow else wrong_backward_error
            missed = evidence.backward > owed(self.dtype)
        if self.target is None:
            return missed
        missed = missed | ~(evidence.two <= self.target)
        if self.factor.direct:
            return missed
        if self.controls.rtol is None and self.controls.atol is None:
            # Nothing was asked: an answer that its element type cannot hold better is good. But a
            # huge x makes any backward error small: of an inconsistent system it solves nothing.
            attained = evidence.backward <= ATTAINABLE * epsilon(self.dtype)
            missed &= ~(attained & (evidence.relative < _SOLVED))
        return missed

    def _statuses(self, x: Array, evidence: Evidence, systems_: tuple[Status, ...]) -> tuple[tuple[Status, ...], ...]:
        count, k = int(x.shape[0]), int(x.shape[2])
        unmet = self._unmet(evidence)
        hopeless = np.asarray(~np.isfinite(x).all(axis=1))
        # The error of x is at most the condition times the backward error: from 1 on, no digit is certain. What an
        # iterative method left of the residual is judged by its tolerance, and not once more here.
        error = np.maximum(evidence.backward, epsilon(self.dtype)) if self.factor.direct else epsilon(self.dtype)
        unmet = unmet | (np.maximum(evidence.condition, self.known) >= 1 / error)
        doubted = unresolved(self.factor)
        if doubted.any():
            unmet, self.note = unmet | doubted[:, None], _UNRESOLVED
        missed = self._missed(evidence)
        spoilt = self.factor.direct and any(status is not Status.OK for status in systems_)
        if not spoilt and not np.any(unmet | hopeless | self.bad):
            return tuple((Status.OK,) * k for _ in range(count))
        beyond = self._beyond(hopeless) if hopeless.any() else hopeless
        # Below the smallest normal number digits are lost, whatever the matrix is.
        vanished = magnitude(x, 1) < float(np.finfo(self.dtype).tiny)
        beyond = beyond | (vanished & (evidence.backward > direct_backward_error(self.dtype)))
        grid: list[tuple[Status, ...]] = []
        for s, status in enumerate(systems_):
            flags = zip(*(of[s].tolist() for of in (self.bad, hopeless, missed, unmet, beyond)), strict=True)
            grid.append(tuple(self._status(status, *of_column) for of_column in flags))
        return tuple(grid)

    def _beyond(self, hopeless: Array) -> Array:
        """Which columns are not numbers because x is beyond the range of its type, and for no other reason.

        Where no pivot is zero, elimination answers a right-hand side that is small enough.
        """
        if not self.factor.direct:
            return hopeless  # an iteration that fails says so, and what it returns is finite
        powers = exponents(magnitude(self.rhs, 1))[:, None, :] - int(np.finfo(self.dtype).minexp) // 10 * 9
        rhs = shift(self.rhs, -powers)
        x = self.factor.solve(rhs if self.operand.batch is not None else rhs[0], self.trans, Controls()).x
        return hopeless & np.isfinite(x.reshape(rhs.shape)).all(axis=1)

    def _status(  # noqa: PLR0911
        self, system: Status, bad: bool, hopeless: bool, missed: bool, unmet: bool, beyond: bool
    ) -> Status:
        """The status of one column."""
        if bad:
            return Status.NONFINITE_INPUT
        if not (self.factor.direct or unmet or hopeless):
            return Status.OK
        if system is not Status.OK and (self.factor.direct or missed or hopeless):
            return system
        if beyond:
            return Status.OUT_OF_RANGE
        if self.factor.direct and hopeless and not self.factor.narrow:
            return Status.SINGULAR_NUMERIC
        if not (missed or hopeless):
            return Status.ILL_CONDITIONED if unmet else Status.OK
        # Refinement gained no more; or an iterative method was content, and rounding x spoilt it.
        return Status.STAGNATION


def _plain(outcome: Outcome, figures: Figures, known: float) -> Answer:
    """One column, plainly good."""
    relative, backward, condition = figures
    return Answer(
        x=outcome.x,
        statuses=((Status.OK,),),
        iterations=outcome.iterations,
        refinements=0,
        relative_residual=np.array([[relative]]),
        backward_error=np.array([[backward]]),
        condition=max(condition, known),
    )


def _conditioned(unconditioned: Answer, found: Conditioning | None, factor: Factor) -> Answer:
    """The answer with an estimate that was asked for; beyond 1/eps no digit of x is certain."""
    if found is None:
        return unconditioned
    statuses = unconditioned.statuses
    if found.number >= 1 / epsilon(factor.operand.dtype):
        worse = {Status.OK: Status.ILL_CONDITIONED}
        statuses = tuple(tuple(worse.get(status, status) for status in system) for system in statuses)
    condition = max(found.number, unconditioned.condition or 0.0)
    return replace(unconditioned, statuses=statuses, condition=condition, inverse_norm=found.inverse_norm)


_SOLVES_PROJECTED = (Status.OK, Status.ILL_CONDITIONED, Status.MAX_ITER, Status.STAGNATION)


def _inconsistent(found: Answer, factor: Factor, rhs: Array, trans: Trans, outside: Array) -> Answer:
    """The answer to the projected right-hand sides, told apart and measured against what was asked."""
    shape = (1, *rhs.shape) if rhs.ndim == 2 else rhs.shape
    b, x = rhs.reshape(shape), found.x.reshape(shape)
    with np.errstate(all="ignore"):
        powers = exponents(magnitude(b, 1))[:, None, :]
        against = reference(factor.operand, shift(b, -powers), trans)
        evidence = measure(factor.operand, against, shift(x, -powers), trans)
    statuses = tuple(
        tuple(
            Status.INCONSISTENT if off and status in _SOLVES_PROJECTED else status
            for status, off in zip(system, flags, strict=True)
        )
        for system, flags in zip(found.statuses, outside.tolist(), strict=True)
    )
    return replace(
        found,
        statuses=statuses,
        relative_residual=np.where(outside, evidence.relative, found.relative_residual),
        backward_error=np.where(outside, evidence.backward, found.backward_error),
    )


def _check(factor: Factor, rhs: Array, x0: Array | None) -> None:
    operand = factor.operand
    lead = (operand.n,) if operand.batch is None else (operand.batch, operand.n)
    if rhs.ndim != len(lead) + 1 or rhs.shape[:-1] != lead:
        raise InvalidShapeError(f"b has shape {rhs.shape}, this matrix takes {(*lead, 'k')}")
    if rhs.dtype != operand.dtype:
        raise InvalidDtypeError(f"b is {rhs.dtype} and A is {operand.dtype}: convert b to A's element type")
    if x0 is not None and (x0.shape != rhs.shape or x0.dtype != rhs.dtype):
        raise InvalidShapeError(f"x0 is {x0.dtype} of shape {x0.shape}, it must be like b: {rhs.dtype}, {rhs.shape}")


def _empty(factor: Factor, rhs: Array, shape: tuple[int, ...]) -> Answer:
    """Nothing but shapes, for n = 0, k = 0, or a batch of nothing: no equation, none unmet."""
    count, _, k = shape
    none = np.zeros((count, k))
    assert count == systems(factor.operand)
    return Answer(rhs.copy(), ((Status.OK,) * k,) * count, (0,) * count, 0, none, none.copy(), None)
