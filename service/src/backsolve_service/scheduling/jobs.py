"""The two kinds of work: a task (anything, a factorization among it), and a solve."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Generic, Protocol, TypeVar, final

from backsolve.errors import BacksolveError, InternalError
from backsolve.types import Array, Trans

from ..cache.flight import Made, fresh
from ..context import CallContext
from ..engine.answer import Answer
from ..engine.base import Controls
from ..engine.krylov.basis import work_bytes
from ..engine.operand import Operand
from ..observer import Observer
from .lane import Deferred, Job
from .threads import delivered
from .ticket import Ticket, ring
from .worker import FactorRef

QUICK_BYTES = 64 << 20
"""Bytes of a factor times columns up to which a solve is quick (some 10 to 30 ms)."""

_BLOCK_BYTES = 4 << 30
"""Likewise of a whole block (some 0.2 s, since its columns share the reading of the factor)."""

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class Promise(Protocol[T_contra]):
    """What a worker resolves: a `Ticket`, or a `concurrent.futures.Future`."""

    def set_running_or_notify_cancel(self) -> bool: ...  # noqa: D102
    def set_result(self, value: T_contra, /) -> None: ...  # noqa: D102
    def set_exception(self, error: BaseException, /) -> None: ...  # noqa: D102


@final
class Task(Job, Generic[T]):
    """A function to call on a worker."""

    key = None
    columns = 0
    max_columns = 0

    def __init__(self, work: Callable[[], T], promise: Promise[Made[T]], nbytes: int = 0, tenant: str = "") -> None:
        self._work: Callable[[], T] | None = work
        self.tenant = tenant
        self._promise: Promise[Made[T]] | None = promise
        self.nbytes = nbytes
        self.born = perf_counter()

    def run(self, mates: Sequence[Job]) -> None:
        """Call the function, if anybody still wants it, and let it go: it may hold a matrix."""
        work, promise = self._work, self._promise
        self.drop()
        if work is None or promise is None or not promise.set_running_or_notify_cancel():
            return
        begun = perf_counter()
        try:
            value = work()
        except BaseException as error:
            del work
            promise.set_exception(delivered(error))
            return
        made = Made(value, begun - self.born, perf_counter() - begun)
        promise.set_result(made)

    def fail(self, error: BaseException) -> None:
        """Tell who waits."""
        work, promise = self._work, self._promise
        self.drop()
        if work is not None and promise is not None and promise.set_running_or_notify_cancel():
            promise.set_exception(error)

    def drop(self) -> None:
        """Hold nothing any more: neither what the work needs, nor the promise, whose callbacks may hold this task."""
        self._work = self._promise = None


def block_key(
    ref: FactorRef, rhs: Array, trans: Trans, controls: Controls, instead: Operand | None, widest: int
) -> Hashable | None:
    """What right-hand sides must have in common to be solved together, as at most `widest`; None: solved alone.

    The element type belongs to it: in a wider block a float32 answer would have other digits.
    A first iterate and a batch on one pattern are never shared.
    """
    if controls.x0 is not None or ref.batch is not None or not 0 < rhs.shape[-1] < widest:
        return None
    return (ref.id, instead, trans, rhs.dtype, controls)


def work(ref: FactorRef, rhs: Array, controls: Controls, instead: Operand | None = None) -> int:
    """Bytes that an iterative solve will hold beside its right-hand sides; a direct one has none worth counting."""
    if ref.direct and instead is None:
        return 0
    method = ref.spec.method if instead is None else _ON_OLDER
    recycle = 0 if controls.recycle is None else controls.recycle.nbytes
    return work_bytes(method, max(ref.n, ref.m or 0), rhs.shape[-1], wide(rhs), controls.restart) + _RECYCLED * recycle


def wide(rhs: Array) -> int:
    """Bytes of a number in double precision, real or complex."""
    return 16 if rhs.dtype.kind == "c" else 8


_ON_OLDER = "fgmres"
"""What solves with new values where the factor of older ones preconditions."""

_RECYCLED = 8
"""Of what is recycled: the vectors, their products, and the directions that the next are made of, twice."""


@final
@dataclass(frozen=True, slots=True)
class Solved:
    """What one caller gets of the block that its right-hand side was part of.

    Attributes:
        answer: for its own columns.
        seconds_queued: from the order to the beginning of the block.
        seconds_solved: the whole block.
        block_columns: width of the block.
    """

    answer: Answer
    seconds_queued: float
    seconds_solved: float
    block_columns: int


@final
class Solve(Job):
    """One caller's columns, for one factor; `observer` hears of the block they were solved in.

    With `instead` it is that matrix that is solved with, and the factor only preconditions it. `widest` bounds the
    block beside what the factor's method gains by; 1: no caller's columns are joined to another's.
    """

    def __init__(
        self,
        ref: FactorRef,
        rhs: Array,
        trans: Trans,
        controls: Controls,
        context: CallContext,
        observer: Observer,
        instead: Operand | None = None,
        widest: int | None = None,
    ) -> None:
        self.ticket: Ticket[Solved] = Ticket()
        self.columns = rhs.shape[-1]
        self.quick = ref.direct and instead is None and ref.nbytes * self.columns <= QUICK_BYTES
        # So that no block takes long, whatever its method gains by width.
        self.max_columns = min(ref.max_columns, max(_BLOCK_BYTES // max(ref.nbytes, 1), 1))
        if widest is not None:
            self.max_columns = min(self.max_columns, widest)
        self.tenant = context.tenant
        self.nbytes = rhs.nbytes + work(ref, rhs, controls, instead)
        self.born = perf_counter()
        self.key = block_key(ref, rhs, trans, controls, instead, self.max_columns)
        self._ref = ref
        self._rhs: Array | None = rhs
        self._trans: Trans = trans
        self._controls = controls
        self._context = context
        self._observer = observer
        self._instead = instead
        self._deferred = False

    @property
    def over(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.ticket.settled or self._context.over() or self._controls.cancelled()

    def run(self, mates: Sequence[Job]) -> None:
        """Solve for every caller that still waits, as one block; singly, if the block fails."""
        if self._deferred:  # it has begun: it is ended even if its caller has left meanwhile
            self._solve([self])
            return
        jobs = [job for job in (self, *mates) if isinstance(job, Solve) and job._begin()]
        if not jobs or self._solve(jobs):
            return
        for job in jobs:  # one caller's fault must not fail the others
            if job._begin():
                job._solve([job])

    def fail(self, error: BaseException) -> None:
        """Tell who waits."""
        self._rhs = None
        self.ticket.set_exception(fresh(error))

    def _begin(self) -> bool:
        """Whether it is to be solved; a caller whose time is over is told so."""
        if self._rhs is None:
            return False
        ended = self._context_error()
        if ended is not None:
            self.fail(ended)
        return not self.ticket.settled

    def _context_error(self) -> BacksolveError | None:
        """Why nobody waits any more: a deadline shows in the engine as a cancellation."""
        try:
            self._context.check()
        except BacksolveError as error:
            return fresh(error)
        return None

    def _columns(self) -> Array:
        if self._rhs is None:
            raise InternalError("a solve ran twice")
        return self._rhs

    def _solve(self, jobs: "list[Solve]") -> bool:
        """Solve a block in this job's terms; False: it failed, and has several callers."""
        begun = perf_counter()
        controls = self._controls
        if not (self._ref.direct and self._ref.worker.shares_memory):  # a direct solve on a thread never asks
            controls = replace(controls, cancelled=lambda: all(job.over for job in jobs))
        try:
            columns = [job._columns() for job in jobs]
            answers = self._ref.worker.answer(self._ref, columns, self._trans, controls, instead=self._instead)
        except Deferred:
            self._deferred = True
            raise
        except BaseException as error:
            failure = delivered(error)
            if len(jobs) == 1:
                self.fail(self._context_error() or failure)
            if not isinstance(error, Exception):
                raise
            return len(jobs) == 1
        seconds = perf_counter() - begun
        width = sum(job.columns for job in jobs)
        self._observer.block(width)
        for job, own in zip(jobs, answers, strict=True):
            job._rhs = None
            job.ticket.set_result(Solved(own, begun - job.born, seconds, width), ring=False)
        ring([job.ticket for job in jobs])
        return True
