"""A worker that is a process: for libraries that hold the interpreter's lock, share state between threads or may crash.

A thread of this process owns the queue, as for any worker, and speaks to a child process that does
the work and holds the factors. When the child ends, whatever the reason, the job that was in it
fails with `ProcessLostError`, its factors are lost (a reference of an older generation is refused
with `FactorLostError`, and they are built again when they are asked for), and the next job starts
another child.
"""

import itertools
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar, final

import numpy as np

from backsolve._fork import renew_after_fork
from backsolve.errors import DrainingError, InternalError
from backsolve.pattern import AnyPattern, Pattern, StructuredPattern
from backsolve.types import Array, Trans

from ..engine.accelerator.faults import DeviceFaultError
from ..engine.answer import Answer
from ..engine.base import Controls, FactorSpec, Symbolic, never
from ..engine.device import CPU
from ..engine.operand import Operand
from ..observer import Observer, Restart
from .backlog import Backlog
from .block import parted
from .lane import Deferred, Job, Lane
from .launch import Child, launch
from .messages import (
    Analyze,
    Analyzed,
    Answered,
    Factored,
    Factorize,
    Failed,
    Move,
    Release,
    Reply,
    Request,
    Solve,
    Update,
)
from .worker import FactorLostError, FactorRef, Wanted, Worker

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.02
"""How often a job that runs is looked after: is it still wanted?"""

_LENT_SECONDS = 0.005
"""How long a caller's own thread waits for an answer; then the worker's goes on waiting for it."""

_LEAST_PAUSE_SECONDS = 0.1
_MOST_PAUSE_SECONDS = 10.0
"""Between a loss and the next start; it doubles with every loss that no finished job comes between."""

_END_SECONDS = 2.0
"""An idle process ends by itself within this time."""

R = TypeVar("R", Analyzed, Factored, Answered)


@final
class ProcessLostError(InternalError):
    """The process that did the work ended before it was done; the text says how."""


@final
class _StuckError(OSError):
    """Nobody waits for the job, and it goes on."""


@final
@dataclass(frozen=True, eq=False)
class RemoteSymbolic(Symbolic):
    """What a process prepared from a pattern: it stays there, and is prepared again where it is missing.

    Attributes:
        pattern: the pattern.
        number: its name in every process.
        spec: whose method analysed it.
        prepared: what the process tells of it.
    """

    pattern: AnyPattern
    number: int
    spec: FactorSpec
    prepared: Analyzed

    @property
    def nbytes(self) -> int:
        """Bytes in the process, its copy of the pattern among them."""
        return self.prepared.nbytes + self.pattern.nbytes

    def predicted_nbytes(self, precision: str) -> int | None:
        """As the method's own, and the process's copy of the values."""
        predicted = self.prepared.predicted.get(precision)
        return None if predicted is None else predicted + self.pattern.nnz * np.dtype(precision).itemsize


_numbers = itertools.count(1)
"""Symbolics and factors share one series, over all workers of this process."""


@final
class ProcessWorker(Worker):
    """A process and the thread that speaks to it; the process starts with the first job.

    Args:
        name: of the thread.
        backlog: has admitted the jobs.
        observer: hears of restarts.
        lost: told, on the worker's thread, when all factors are lost.
        patience: seconds for which a job may go on that nobody waits for any more; then its
            process is killed.
    """

    shares_memory = False

    def __init__(
        self, name: str, backlog: Backlog, observer: Observer, lost: Callable[[Worker], None], patience: float
    ) -> None:
        self._observer = observer
        self._told_lost = lost
        self._patience = patience
        self._child: Child | None = None
        self._asked = False  # a caller's thread has sent what the worker's is to hear the reply of
        self._generation = 0
        self._factors: dict[int, int] = {}
        self._symbolics: set[int] = set()
        self._forgotten: deque[int] = deque()  # by a finalizer, which may run anywhere: it takes no lock
        self._moves: deque[tuple[FactorRef, str]] = deque()
        self._losses_in_row = 0
        self._last_loss: Restart | None = None
        self._not_before = 0.0
        self._closing = threading.Event()
        self._lane = Lane(name, backlog, self._drop, self._end)
        renew_after_fork(self, ProcessWorker._forked)

    @property
    def load(self) -> tuple[int, int]:
        """(jobs that wait or run, bytes of factors)."""
        return (self._lane.jobs, sum(tuple(self._factors.values())))

    @property
    def pid(self) -> int | None:
        """Number of the process, while there is one."""
        child = self._child
        return None if child is None else child.pid

    def post(self, job: Job) -> None:
        """Queue a job."""
        self._lane.post(job)

    def lend(self, job: Job) -> bool:
        """Let the calling thread speak to the process, while the worker's own sleeps and a process is there."""
        return self._child is not None and self._lane.lend(job)

    def withdraw(self, job: Job) -> None:
        """Take a job out of the queue, unless it has begun."""
        self._lane.withdraw(job)

    def analyze(self, spec: FactorSpec, pattern: AnyPattern, wanted: Wanted) -> Symbolic:
        """Have a pattern analysed in the process, where the outcome stays.

        Raises:
            ProcessLostError: the process ended meanwhile.
            BacksolveError: what the method raised.
        """
        number = next(_numbers)
        prepared = self._prepare(self._ready(), number, spec, pattern, wanted)
        symbolic = RemoteSymbolic(pattern, number, spec, prepared)
        self._remember(symbolic)
        return symbolic

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec, wanted: Wanted) -> FactorRef:
        """Have values factorized in the process; what it has not analysed itself is analysed first.

        Raises:
            ProcessLostError: the process ended meanwhile.
            BacksolveError: what the method raised.
        """
        assert isinstance(symbolic, RemoteSymbolic)
        symbolic.check(operand)
        child = self._ready()
        if symbolic.number not in self._symbolics:
            self._prepare(child, symbolic.number, symbolic.spec, symbolic.pattern, wanted)
            self._remember(symbolic)
        number = next(_numbers)
        request = Factorize(number, symbolic.number, spec)
        made, _ = self._call(child, request, Factored, [[operand.values]], lambda: not wanted())
        return self._kept(number, made, operand, spec)

    def update(self, base: FactorRef, operand: Operand, spec: FactorSpec, wanted: Wanted) -> FactorRef:
        """Have the process build the factor of an update on one that it holds; S itself is there.

        Raises:
            FactorLostError: that one went with its process.
            ProcessLostError: the process ended meanwhile.
            BacksolveError: the update has no factor.
        """
        assert isinstance(operand.pattern, StructuredPattern)
        child = self._holding(base)
        number = next(_numbers)
        request = Update(number, base.id, operand.pattern.dims)
        made, _ = self._call(child, request, Factored, [[operand.values]], lambda: not wanted())
        return self._kept(number, made, operand, spec)

    def _kept(self, number: int, made: Factored, operand: Operand, spec: FactorSpec) -> FactorRef:
        self._factors[number] = made.nbytes
        return FactorRef(
            worker=self,
            id=number,
            nbytes=made.nbytes,
            spec=spec,
            n=operand.n,
            batch=operand.batch,
            direct=made.direct,
            max_columns=made.max_columns,
            generation=self._generation,
            m=operand.m,
            note=made.note,
            device_nbytes=made.device_nbytes,
            movable=made.movable,
            anywhere=spec.device == CPU,
            pivots=made.pivots,
        )

    def _holding(self, ref: FactorRef) -> Child:
        """The process, which holds this factor."""
        child = self._ready()
        if not self.holds(ref):
            raise FactorLostError("the process that held the factor has ended, and the factor with it: send it again")
        if ref.id not in self._factors:
            raise FactorLostError("the factor was released before this solve began: send the matrix again")
        return child

    def answer(
        self,
        ref: FactorRef,
        columns: Sequence[Array],
        trans: Trans,
        controls: Controls,
        *,
        instead: Operand | None = None,
    ) -> list[Answer]:
        """Have the process solve; the right-hand sides are put together in the memory it reads them from.

        Raises:
            FactorLostError: the factor went with its process.
            ProcessLostError: the process ended during this solve.
            BacksolveError: what the solve raised.
        """
        child = self._holding(ref)
        arrays = [columns] if controls.x0 is None else [columns, [controls.x0]]
        if instead is not None:
            arrays = [[instead.values], *arrays]
        request = Solve(ref.id, trans, replace(controls, x0=None, cancelled=never), instead is not None)
        reply, results = self._call(child, request, Answered, arrays, controls.cancelled)
        answered = replace(reply.answer, x=np.array(results[0], copy=True))
        del results
        self._trim()
        return parted(answered, columns)

    def holds(self, ref: FactorRef) -> bool:
        """Whether the process that made the factor still runs, as far as is known."""
        return ref.generation == self._generation

    def free(self, ref: FactorRef) -> None:
        """Let a factor go before the next job begins."""
        self._lane.discard(ref.id)

    def move(self, ref: FactorRef, device: str) -> None:
        """Have a movable factor copied to a device before the next job runs."""
        self._moves.append((ref, device))

    def close(self, timeout: float) -> bool:
        """Run what waits, end the process. A job that takes longer loses its process, and fails."""
        self._closing.set()
        if self._lane.close(timeout):
            return True
        child = self._child
        if child is not None:
            child.kill()
        return False

    # On the worker's thread

    def _prepare(self, child: Child, number: int, spec: FactorSpec, pattern: AnyPattern, wanted: Wanted) -> Analyzed:
        arrays: list[list[Array]] = []
        if isinstance(pattern, Pattern):
            arrays = [[pattern.indptr], [pattern.indices]]
            request = Analyze(number, spec, pattern.shape)
        else:
            request = Analyze(number, spec, pattern)
        return self._call(child, request, Analyzed, arrays, lambda: not wanted())[0]

    def _remember(self, symbolic: RemoteSymbolic) -> None:
        """The process holds a symbolic until nobody here does."""
        self._symbolics.add(symbolic.number)
        weakref.finalize(symbolic, self._forgotten.append, symbolic.number).atexit = False

    def _call(
        self,
        child: Child,
        request: Request,
        kind: type[R],
        arrays: Sequence[Sequence[Array]],
        over: Callable[[], bool],
    ) -> tuple[R, list[Array]]:
        """Ask, and wait for the reply; its arrays are good until the next call."""
        verb = type(request).__name__.lower()
        if self._lane.lent:
            reply, results = self._lent_call(child, request, arrays)
            return self._checked(reply, kind), results
        try:
            if not self._asked:
                child.cancel(False)
                child.channel.send(request, arrays)
            self._asked = False
            self._await(child, over)
            reply, results = child.channel.receive()
        except (OSError, EOFError) as error:
            reason: Restart = "stuck" if isinstance(error, _StuckError) else "crash"
            fate = self._lose(child, reason)
            raise ProcessLostError(
                f"the process that was to {verb} {fate}{error if reason == 'stuck' else ''}: "
                "it is started again; if the same call ends it again, use another method"
            ) from error
        if isinstance(reply, Failed) and isinstance(reply.error, DeviceFaultError):
            fate = self._lose(child, "device")
            _log.error("a job met a failure of its device\n%s", reply.trace)
            raise ProcessLostError(
                f"the process that was to {verb} {fate}: it is started again; "
                "if the same call ends it again, use device 'cpu'"
            ) from reply.error
        self._losses_in_row = 0
        return self._checked(reply, kind), results

    def _lent_call(
        self, child: Child, request: Request, arrays: Sequence[Sequence[Array]]
    ) -> tuple[Reply, list[Array]]:
        """Ask on a caller's thread, which must be free to leave: a reply that is late is the worker's to wait for.

        Raises:
            Deferred: there is no reply yet, or the process has ended, which the worker will see and tell.
        """
        try:
            try:
                child.cancel(False)
                child.channel.send(request, arrays)
            except (OSError, EOFError) as error:
                raise Deferred from error  # nothing was asked: the next process may be
            self._asked = True
            with suppress(OSError, EOFError):
                if child.channel.readable(_LENT_SECONDS):
                    reply = child.channel.receive()
                    self._asked = False
                    return reply
        except Deferred:
            raise
        except BaseException:  # an interrupt: nobody knows how much was sent or read
            self._asked = False
            child.kill()
            raise
        raise Deferred

    def _checked(self, reply: Reply, kind: type[R]) -> R:
        if isinstance(reply, kind):
            return reply
        assert isinstance(reply, Failed)
        if reply.trace:
            _log.error("a job failed in the worker process\n%s", reply.trace)
        raise reply.error

    def _await(self, child: Child, over: Callable[[], bool]) -> None:
        """Wait for the reply; a job that nobody waits for is told so, and killed when it does not end."""
        since: float | None = None
        while not child.channel.readable(_LOOK_SECONDS):
            if not over():
                since = None
                continue
            child.cancel(True)
            now = time.monotonic()
            since = now if since is None else since
            if now - since > self._patience:
                child.kill()
                raise _StuckError(f" (nobody had waited for the job for {self._patience:g} seconds)")

    def _ready(self) -> Child:
        """The process, started if there is none; one that ended while idle is noticed here."""
        child = self._child
        if self._lane.lent:
            if child is None or not child.alive:
                raise Deferred
            return child
        if child is not None and not self._asked and not child.alive:
            self._lose(child, "crash")
            child = None
        if child is None:
            child = self._start()
        self._forget()
        self._rearrange()
        return child

    def _start(self) -> Child:
        if self._closing.wait(max(self._not_before - time.monotonic(), 0.0)) and self._last_loss is not None:
            raise DrainingError("the service is shutting down: ask another replica", retry_after=1.0)
        try:
            child = launch()
        except (OSError, EOFError) as error:
            self._fell()
            _log.error("a worker process could not be started: %s", error)
            raise ProcessLostError(f"{error}; it is tried again with the next call") from error
        self._child = child
        if self._last_loss is not None:
            self._observer.restarted(self._last_loss)
            self._last_loss = None
        _log.info("a worker process runs", extra={"pid": child.pid})
        return child

    def _lose(self, child: Child, reason: Restart) -> str:
        """The process has ended or is given up: forget all it held. Returns how it ended."""
        child.channel.close()
        fate = child.fate()
        self._asked = False
        self._child = None
        self._generation += 1
        self._factors.clear()
        self._symbolics.clear()
        self._last_loss = reason
        self._fell()
        _log.error("a worker process %s", fate, extra={"pid": child.pid, "reason": reason})
        self._told_lost(self)
        return fate

    def _fell(self) -> None:
        pause = _LEAST_PAUSE_SECONDS * 2.0 ** min(self._losses_in_row, 16)
        self._losses_in_row += 1
        self._not_before = time.monotonic() + min(pause, _MOST_PAUSE_SECONDS)

    def _drop(self, numbers: Sequence[int]) -> None:
        """Free factors; those of an earlier process are gone already."""
        held = tuple(number for number in numbers if self._factors.pop(number, None) is not None)
        if held:
            self._tell(Release(held))

    def _forget(self) -> None:
        """Free what was prepared from patterns that nobody holds any more."""
        gone = []
        while self._forgotten:
            number = self._forgotten.popleft()
            if number in self._symbolics:
                self._symbolics.discard(number)
                gone.append(number)
        if gone:
            self._tell(Release(tuple(gone)))

    def _rearrange(self) -> None:
        """Pass on what is to be moved; only a job needs the room, so it is done when one begins."""
        while self._moves:
            ref, device = self._moves.popleft()
            if self.holds(ref) and ref.id in self._factors:
                self._tell(Move(ref.id, device))

    def _trim(self) -> None:
        """Give a large arena back, here and there."""
        child = self._child
        if child is not None and child.channel.large:
            child.channel.forget_arena()
            self._tell(Release((), arena=True))

    def _tell(self, message: Release | Move) -> None:
        child = self._child
        if child is None:
            return
        try:
            child.channel.send(message)
        except OSError:
            _log.debug("a worker process ended before it was told what to free")  # the next job notices

    def _end(self) -> None:
        """The worker has ended: end the process."""
        child, self._child = self._child, None
        if child is not None:
            child.end(_END_SECONDS)

    def _forked(self) -> None:
        """In a forked copy of this process: the child belongs to the original."""
        child, self._child = self._child, None
        if child is not None:
            child.abandon()
