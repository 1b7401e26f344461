"""Workers: they own their factors, and everything that is done with them.

A factor is born and freed on one thread of its worker. SuperLU demands it (memory it took on one thread cannot
be given back on another, and dies with the thread), and it leaves room for workers that are
processes (`process.py`). It is solved with by its worker or, while that one sleeps, by a caller
that takes its turn.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import ClassVar, final

from backsolve.errors import NeedMatrixError
from backsolve.pattern import AnyPattern
from backsolve.types import Array, Trans

from ..engine.answer import Answer, answer, answer_each
from ..engine.base import Controls, Factor, FactorSpec, Pivots, Symbolic
from ..engine.operand import Operand
from ..engine.precond.stale import preconditioned
from ..engine.restricted import solver_for
from ..engine.structured.update import factorize_update
from .backlog import Backlog
from .block import parted, stacked
from .lane import Job, Lane
from .threads import trim

_TRIM_BYTES = 64 << 20
"""Freed factors add up to this before the allocator is asked to give pages back (about 1 ms)."""

Wanted = Callable[[], bool]
"""Whether anybody still waits for what is built."""


@final
class FactorLostError(NeedMatrixError):
    """The factor is no more, though its matrix may be: build it again."""


@final
@dataclass(frozen=True, slots=True)
class FactorRef:
    """Where a factor is; the cache and the data plane hold this, never the factor.

    Attributes:
        worker: who owns it.
        id: its number there.
        nbytes: bytes that freeing it gives back.
        spec: what it was built with.
        n: columns of the matrix.
        batch: number of systems on one pattern, or None.
        direct: a factorization rather than a preconditioner.
        max_columns: widest block worth solving at once.
        m: rows, where they differ from n, the columns; None: n.
        note: what the certificate says of it.
        generation: of the worker's process, with which the factor dies; 0 for a thread.
        device_nbytes: those of `nbytes` that lie on a device when it is built.
        movable: its numbers can be copied to the host and back.
        anywhere: any thread of this process may solve with it.
        pivots: where its pivots come from.
    """

    worker: "Worker"
    id: int
    nbytes: int
    spec: FactorSpec
    n: int
    batch: int | None
    direct: bool
    max_columns: int
    generation: int = 0
    m: int | None = None
    note: str | None = None
    device_nbytes: int = 0
    movable: bool = False
    anywhere: bool = False
    pivots: Pivots = "new"

    @property
    def precision(self) -> str:
        """NumPy name of the type the factor was computed in."""
        return self.spec.precision


class Worker(ABC):
    """Runs jobs one after another, in the order in which they came, and owns the factors they make.

    `analyze`, `factorize` and `answer` are called by a job of this worker, on its thread.
    """

    shares_memory: ClassVar[bool]
    """Its factors can be used with arrays of this process, without sending them."""

    @property
    @abstractmethod
    def load(self) -> tuple[int, int]:
        """(jobs that wait or run, bytes of factors): the least loaded worker gets the next build."""

    @property
    def asleep(self) -> bool:
        """Whether `lend` of something quick would succeed now."""
        return False

    @property
    def idle(self) -> bool:
        """Whether `lend` of a build would succeed now."""
        return False

    @abstractmethod
    def post(self, job: Job) -> None:
        """Queue a job that the backlog has admitted.

        Raises:
            DrainingError: the worker is closed.
        """

    def lend(self, job: Job) -> bool:
        """Run an admitted job at once on the calling thread, in the worker's place; False: it has to be posted."""
        del job
        return False

    def borrow(self) -> bool:
        """Take the worker's turn for something quick, which the backlog has yet to admit; False: it does not sleep.

        Then `answer` is called by the borrower, and `give_back` whatever came of it.
        """
        return False

    def give_back(self, tenant: str, seconds: float) -> None:
        """The borrowed turn is over; the tenant has had so many seconds of it."""
        del tenant, seconds

    @abstractmethod
    def withdraw(self, job: Job) -> None:
        """Take a job out of the queue, unless it has begun."""

    @abstractmethod
    def analyze(self, spec: FactorSpec, pattern: AnyPattern, wanted: Wanted) -> Symbolic:
        """What the method of `spec` prepares from a pattern."""

    @abstractmethod
    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec, wanted: Wanted) -> FactorRef:
        """Build a factor and own it; `symbolic` is of a worker of this kind."""

    @abstractmethod
    def update(self, base: FactorRef, operand: Operand, spec: FactorSpec, wanted: Wanted) -> FactorRef:
        """Build the factor of an update on one of its factors, and own it.

        Args:
            base: the factor of S; it stays as long as the update's does.
            operand: of `S + U Vᴴ`.
            spec: what the new factor is known by.
            wanted: whether anybody waits.

        Raises:
            FactorLostError: the factor of S is no more.
        """

    @abstractmethod
    def answer(
        self,
        ref: FactorRef,
        columns: Sequence[Array],
        trans: Trans,
        controls: Controls,
        *,
        instead: Operand | None = None,
    ) -> list[Answer]:
        """Solve for the columns of several callers as one block; an answer for each of them.

        Args:
            ref: one of its factors.
            columns: `[n, k]` each.
            trans, controls: as for `engine.answer`.
            instead: solve with this matrix, on the factor's pattern, and let the factor precondition it;
                of factors on threads only.

        Raises:
            NeedMatrixError: the factor was freed before the job began, or is lost.
        """

    @abstractmethod
    def holds(self, ref: FactorRef) -> bool:
        """Whether the factor has not been lost with its process."""

    @abstractmethod
    def free(self, ref: FactorRef) -> None:
        """Let a factor go before the next job begins; returns at once, and may be repeated."""

    @abstractmethod
    def move(self, ref: FactorRef, device: str) -> None:
        """Have a movable factor copied to a device before the next job runs; returns at once."""

    @abstractmethod
    def close(self, timeout: float) -> bool:
        """Run what waits, free every factor, end. False: it took longer than `timeout` seconds.

        What has not begun by then fails with `DrainingError`.
        """


def do_nothing() -> None:
    """What a thread that owns nothing does at its end."""


@final
class ThreadWorker(Worker):
    """Two threads of this process, for libraries that release the interpreter's lock.

    One builds, frees, and does whatever takes long; the other is for quick solves, which would
    otherwise wait for a factorization that they have nothing to do with. Where both have work, the
    operating system shares the processors out.
    """

    shares_memory = True

    def __init__(self, name: str, backlog: Backlog) -> None:
        self._factors: dict[int, Factor] = {}
        self._ids = itertools.count(1)
        self._held_bytes = 0
        self._freed_bytes = 0
        self._doomed: dict[int, Factor] = {}
        self._builds = Lane(name, backlog, self._drop, self._end)
        self._solves = Lane(f"{name}-solves", backlog, self._part_with, do_nothing)

    @property
    def load(self) -> tuple[int, int]:
        """(jobs that wait or run, bytes of factors)."""
        return (self._builds.jobs + self._solves.jobs, self._held_bytes)

    @property
    def asleep(self) -> bool:
        """Nothing quick waits or runs."""
        return self._solves.asleep

    @property
    def idle(self) -> bool:
        """Nothing is built."""
        return self._builds.asleep

    def post(self, job: Job) -> None:
        """Queue a job."""
        self._lane(job).post(job)

    def lend(self, job: Job) -> bool:
        """Run a job on the calling thread, if the worker's own for its kind sleeps."""
        return self._lane(job).lend(job)

    def borrow(self) -> bool:
        """Take the turn of the thread for solves."""
        return self._solves.borrow()

    def give_back(self, tenant: str, seconds: float) -> None:
        """The borrowed turn is over."""
        self._solves.give_back(tenant, seconds)

    def withdraw(self, job: Job) -> None:
        """Take a job out of the queue, unless it has begun."""
        self._lane(job).withdraw(job)

    def analyze(self, spec: FactorSpec, pattern: AnyPattern, wanted: Wanted) -> Symbolic:
        """What the method prepares from a pattern; no thread can be stopped, so it is finished in any case."""
        del wanted
        return solver_for(spec).analyze(pattern, spec)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec, wanted: Wanted) -> FactorRef:
        """Build a factor and own it; as `analyze`."""
        del wanted
        return self.keep(solver_for(spec).factorize(symbolic, operand, spec), spec)

    def update(self, base: FactorRef, operand: Operand, spec: FactorSpec, wanted: Wanted) -> FactorRef:
        """Build the factor of an update on one of this thread's, and own it; as `analyze`."""
        del wanted
        inner = self._factors.get(base.id)
        if inner is None:
            raise FactorLostError("the factor of S was released before the update was prepared: send it again")
        return self.keep(factorize_update(inner, operand), spec)

    def keep(self, factor: Factor, spec: FactorSpec) -> FactorRef:
        """Own a factor that a job of this worker has made."""
        number, nbytes = next(self._ids), factor.nbytes
        self._factors[number] = factor
        self._held_bytes += nbytes
        operand = factor.operand
        return FactorRef(
            worker=self,
            id=number,
            nbytes=nbytes,
            spec=spec,
            n=operand.n,
            batch=operand.batch,
            direct=factor.direct,
            max_columns=factor.max_columns,
            m=operand.m,
            note=factor.note,
            anywhere=factor.anywhere,
            pivots=factor.pivoting,
        )

    def answer(
        self,
        ref: FactorRef,
        columns: Sequence[Array],
        trans: Trans,
        controls: Controls,
        *,
        instead: Operand | None = None,
    ) -> list[Answer]:
        """Solve for the columns of several callers as one block."""
        factor = self._factors.get(ref.id)
        if factor is None:
            raise NeedMatrixError("the factor was released before this solve began: send the matrix again")
        if instead is not None:
            factor = preconditioned(factor, instead)
        singly = answer_each(factor, columns, trans, controls) if len(columns) > 1 else None
        return parted(answer(factor, stacked(columns), trans, controls), columns) if singly is None else singly

    def holds(self, ref: FactorRef) -> bool:
        """A thread loses nothing."""
        return True

    def free(self, ref: FactorRef) -> None:
        """Let a factor go before the next job begins."""
        self._solves.discard(ref.id)

    def move(self, ref: FactorRef, device: str) -> None:
        """No factor of a thread lies on a device: each device has a process."""
        del ref, device

    def close(self, timeout: float) -> bool:
        """Run what waits, free every factor, end."""
        until = monotonic() + timeout
        ended = self._solves.close(timeout)
        return self._builds.close(max(until - monotonic(), 0.0)) and ended

    def _lane(self, job: Job) -> Lane:
        return self._solves if job.quick else self._builds

    def _part_with(self, numbers: Sequence[int]) -> None:
        """On the thread of the solves, none of which runs now: none will find these factors any more."""
        for number in numbers:
            factor = self._factors.pop(number, None)
            if factor is not None:
                self._doomed[number] = factor
            del factor
            self._builds.discard(number)

    def _end(self) -> None:
        self._factors.clear()
        self._doomed.clear()

    def _drop(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            factor = self._doomed.pop(number, None)
            if factor is not None:
                self._held_bytes -= factor.nbytes
                self._freed_bytes += factor.nbytes
        factor = None
        if self._freed_bytes >= _TRIM_BYTES:
            self._freed_bytes = 0
            trim()
