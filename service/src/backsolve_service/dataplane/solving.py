"""One solve with a prepared factor, and the certificate that comes with it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from backsolve.errors import DeviceOutOfMemoryError, NeedMatrixError, NotPositiveDefiniteError, SolveError
from backsolve.types import Array, Certificate, Element, Options, Status, Timings, Trans

from ..cache.entries import MatrixEntry
from ..cache.store import FactorCache
from ..context import CallContext
from ..engine.answer import Answer
from ..engine.base import Controls
from ..engine.operand import Operand
from ..engine.options import AUTO
from ..engine.registry import ROWS, least_squares
from ..scheduling.jobs import Solved
from ..scheduling.scheduler import Scheduler
from ..scheduling.steps import Steps
from ..scheduling.worker import FactorLostError, FactorRef
from .prepare import Prepared, Preparer, small_enough
from .reuse import Stale
from .telemetry import Telemetry

SEVERITY: Sequence[Status] = (
    Status.OK,
    Status.ILL_CONDITIONED,
    Status.MAX_ITER,
    Status.STAGNATION,
    Status.BREAKDOWN,
    Status.INCONSISTENT,
    Status.OUT_OF_RANGE,
    Status.NOT_POSITIVE_DEFINITE,
    Status.SINGULAR_NUMERIC,
    Status.SINGULAR_STRUCTURAL,
    Status.NONFINITE_INPUT,
)
"""From good to bad: a batch has the status of its worst system."""

_GOOD = (Status.OK, Status.ILL_CONDITIONED)
_ALL_GOOD = ((Status.OK,),)
"""What becomes of most calls: one column, one system."""


_REBUILDS = 2
"""So often a call has its factor built again when it is lost before the solve begins."""


def worst(statuses: Sequence[Status]) -> Status:
    """The worst of some statuses; OK of none."""
    return max(statuses, key=SEVERITY.index, default=Status.OK)


@final
class Answering:
    """Solves with a cached factor, or one that is built on the way."""

    def __init__(
        self,
        scheduler: Scheduler,
        preparer: Preparer,
        cache: FactorCache[FactorRef],
        telemetry: Telemetry,
        instance: str,
    ) -> None:
        self._scheduler = scheduler
        self._preparer = preparer
        self._cache = cache
        self._telemetry = telemetry
        self._instance = instance

    def at_hand(self, entry: MatrixEntry[FactorRef], options: Options, *, has_x0: bool) -> bool:
        """Whether a direct factor is there, so that nothing is left to be done but the solve."""
        ref = self._preparer.at_hand(entry, options, has_x0=has_x0)
        return ref is not None and ref.direct

    def small_at_hand(self, operand: Operand, options: Options) -> bool:
        """Whether a new matrix is so small that building its factor counts for nothing, and a worker sleeps."""
        plain = options == Options(method=options.method, trans=options.trans)
        direct = options.method == AUTO or (options.method in ROWS and ROWS[options.method].direct)
        return plain and direct and small_enough(operand) and self._scheduler.idle

    def answer(
        self,
        op: str,
        entry: MatrixEntry[FactorRef],
        options: Options,
        rhs: Array,
        x0: Array | None,
        context: CallContext,
    ) -> Steps[tuple[Array, Certificate]]:
        """Solve for columns `[n, k]` (`[batch, n, k]`); `entry` is pinned by the caller."""
        controls = Controls(
            rtol=options.rtol,
            atol=options.atol,
            maxiter=options.maxiter,
            restart=options.restart,
            refine=options.refine,
            condition=bool(options.condition),
            x0=x0,
            # Elsewhere it makes no difference, and would keep forward and adjoint solves apart.
            cotangent=op == "vjp" and (options.nullspace is not None or least_squares(options.method)),
            cancelled=context.over,
        )
        for rebuilds_left in range(_REBUILDS, -1, -1):
            try:
                prepared, solved = yield from self._solve(entry, options, rhs, controls, context)
                break
            except FactorLostError:
                # Its process ended, for another call's sake; the matrix is here, so nobody need hear of it.
                if not rebuilds_left:
                    raise
            except DeviceOutOfMemoryError:
                # No room for the columns: what other callers' factors hold there is of less use now.
                if not rebuilds_left or not self._preparer.vacate_device():
                    raise
        certificate = self._certificate(prepared, solved, entry)
        self._count(op, certificate, solved, rhs.shape[-1])
        return solved.answer.x, certificate

    def _solve(
        self,
        entry: MatrixEntry[FactorRef],
        options: Options,
        rhs: Array,
        controls: Controls,
        context: CallContext,
    ) -> Steps[tuple[Prepared, Solved]]:
        """Solve with whatever is prepared; a factor of older values that does not do it gives way to a new one."""
        has_x0 = controls.x0 is not None
        # Forward and adjoint solves of a symmetric matrix are the same, and may share a block.
        trans: Trans = "N" if options.trans in entry.operand.unchanged_by else options.trans
        prepared = self._preparer.prepare(entry, options, has_x0=has_x0, context=context)
        if prepared.stale is not None:
            older = self._on_older(entry, prepared, prepared.stale, rhs, trans, controls, context)
            preconditioned = yield from older
            if preconditioned is not None:
                return prepared, preconditioned
            prepared = self._preparer.prepare(entry, options, has_x0=has_x0, context=context)
        if options.recycle is not None:
            controls = replace(controls, recycle=self._preparer.recycling(entry, options.recycle, context))
        fallback = None if prepared.ref.direct else prepared.choice.fallback
        try:
            solved = yield from self._scheduler.solving(prepared.ref, rhs, trans, controls, context)
            ended = _worst_of(solved)
        except NotPositiveDefiniteError:
            if fallback is None:
                raise
            ended = Status.NOT_POSITIVE_DEFINITE
        if fallback is not None and ended not in _GOOD:
            # Chosen here, not by the caller: what it could not do is done by what stands behind it.
            reason = f"{prepared.choice.spec.method} ended with {ended.name}: {fallback.spec.method} instead"
            prepared = self._preparer.substitute(entry, replace(fallback, reason=reason), context)
            solved = yield from self._scheduler.solving(prepared.ref, rhs, trans, controls, context)
        if options.reuse is not None:
            # Each refinement is another solve with the factor.
            single = solved.seconds_solved / (1 + solved.answer.refinements)
            self._preparer.reuse.solved(entry, prepared.built_as, solved.seconds_solved, single)
        return prepared, solved

    def _on_older(
        self,
        entry: MatrixEntry[FactorRef],
        prepared: Prepared,
        stale: Stale,
        rhs: Array,
        trans: Trans,
        controls: Controls,
        context: CallContext,
    ) -> Steps[Solved | None]:
        """Solve with a factor of older values as the preconditioner; None: it did not do."""
        limited = replace(controls, maxiter=stale.most_iterations, refine=None)
        reuse = self._preparer.reuse
        with self._cache.pin(stale.base):
            try:
                older = self._scheduler.solving(stale.ref, rhs, trans, limited, context, instead=entry.operand)
                solved: Solved | None = yield from older
            except (SolveError, NeedMatrixError):
                solved = None
        if solved is None or _worst_of(solved) not in _GOOD:
            reuse.failed(entry, prepared.built_as)
            return None
        iterations = max(solved.answer.iterations, default=0)
        reuse.preconditioned(entry, prepared.built_as, solved.seconds_solved, iterations)
        return solved

    def _certificate(self, prepared: Prepared, solved: Solved, entry: MatrixEntry[FactorRef]) -> Certificate:
        answer = solved.answer
        return Certificate(
            status=_worst_of(solved),
            method=prepared.choice.spec.method,
            reason=_reason(prepared, answer),
            precision=prepared.choice.spec.precision,
            iterations=max(answer.iterations, default=0),
            relative_residual=_largest(answer.relative_residual),
            backward_error=_largest(answer.backward_error),
            condition_estimate=answer.condition,
            symbolic_hit=prepared.symbolic_hit,
            factor_hit=prepared.factor_hit,
            seconds=Timings(
                queue=prepared.seconds_queued + solved.seconds_queued,
                analyze=prepared.seconds_analyze,
                factor=prepared.seconds_factor,
                solve=solved.seconds_solved,
            ),
            instance=self._instance,
            refinements=answer.refinements,
            elements=() if entry.operand.batch is None else _elements(answer),
            preconditioner=prepared.choice.spec.preconditioner,
            inverse_norm=answer.inverse_norm,
        )

    def _count(self, op: str, certificate: Certificate, solved: Solved, width: int) -> None:
        self._telemetry.count("columns", width)
        self._telemetry.phase("solve", solved.seconds_solved)
        good = certificate.status in _GOOD
        self._telemetry.solved(op, certificate.iterations, certificate.relative_residual, good)


def _elements(answer: Answer) -> tuple[Element, ...]:
    """What became of each system of a batch."""
    return tuple(
        Element(worst(statuses), iterations, _largest(residual), _largest(error))
        for statuses, iterations, residual, error in zip(
            answer.statuses, answer.iterations, answer.relative_residual, answer.backward_error, strict=True
        )
    )


def _worst_of(solved: Solved) -> Status:
    statuses = solved.answer.statuses
    return Status.OK if statuses == _ALL_GOOD else worst([status for system in statuses for status in system])


def _reason(prepared: Prepared, answer: Answer) -> str:
    return "; ".join(part for part in (prepared.choice.reason, prepared.ref.note, answer.note) if part is not None)


def _largest(values: Array) -> float:
    if values.size == 1:
        return float(values.item())
    return float(values.max()) if values.size else 0.0
