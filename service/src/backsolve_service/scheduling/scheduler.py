"""Who works when: admission, placement, waiting with a deadline, and the end of service."""

import itertools
import threading
import time
from collections.abc import Callable, Sequence, Set
from concurrent.futures import Future
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar, final

from backsolve.errors import CancelledError, InvalidShapeError, MemoryBudgetError
from backsolve.pattern import AnyPattern
from backsolve.types import Array, Trans

from ..cache.flight import Made, Order
from ..context import CallContext
from ..engine.base import Controls, Factor, FactorSpec, Symbolic
from ..engine.device import CPU
from ..engine.krylov.basis import largest_restart
from ..engine.operand import Operand
from ..engine.registry import ROWS
from ..observer import Observer, Silent
from .backlog import Backlog
from .jobs import Solve, Solved, Task, wide, work
from .lane import Job
from .process import ProcessWorker
from .steps import Steps, finish
from .threads import delivered
from .ticket import Ticket, discard
from .worker import FactorRef, ThreadWorker, Worker

T = TypeVar("T")
W = TypeVar("W", bound=Worker)

Build = Made[FactorRef]
"""A factor that was built: `value` refers to it, beside the seconds queued and run."""


@final
@dataclass(frozen=True, slots=True)
class Stats:
    """What the scheduler is doing.

    Attributes:
        depth: jobs that wait.
        inflight: jobs that run.
        nbytes: bytes of right-hand sides that both hold.
    """

    depth: int
    inflight: int
    nbytes: int


@final
class OpenCall:
    """A call that was admitted, for as long as a `with` block lasts."""

    __slots__ = ("_backlog", "_context")

    def __init__(self, backlog: Backlog, context: CallContext) -> None:
        self._backlog, self._context = backlog, context

    def __enter__(self) -> None:
        self._backlog.open_call(self._context)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._backlog.close_call(self._context, answered=kind is None)


_AT_ONCE_BYTES = 64 << 20
"""Bytes of a factor times columns up to which a caller solves for itself (some 10 ms).

Beyond, the switch of threads no longer counts, and a caller must be free to leave at its deadline.
"""

STUCK_SECONDS = 300.0
"""By default a job in a process may go on for so long after its last caller left: it may yet be of use."""


@final
class Scheduler:
    """Workers behind one bounded queue.

    Args:
        workers: number of threads that compute.
        max_queue: most jobs that may wait.
        max_queue_bytes: most bytes of right-hand sides that waiting and running jobs may hold.
        observer: hears of waits, blocks, factorizations and restarts.
        processes: number of processes for methods that need one; none is started before there is such a job.
        isolated: methods that are run in processes although they could run on threads.
        stuck_seconds: how long a process may work on for nobody before it is killed.
        block_columns: most columns of several callers that are solved as one block; None: what the method gains by.
        lost: told which worker lost all its factors, on that worker's thread.

    Every method may be called from any thread but a worker's own.
    """

    def __init__(
        self,
        workers: int,
        max_queue: int,
        max_queue_bytes: int,
        observer: Observer | None = None,
        *,
        processes: int = 1,
        isolated: Set[str] = frozenset(),
        stuck_seconds: float = STUCK_SECONDS,
        block_columns: int | None = None,
        lost: Callable[[Worker], None] = discard,
    ) -> None:
        self._observer = observer or Silent()
        self._backlog = Backlog(max_queue, max_queue_bytes, self._observer)
        self._threads = tuple(ThreadWorker(f"backsolve-worker-{number}", self._backlog) for number in range(workers))
        self._isolated = isolated
        self._process_count = processes
        self._stuck_seconds = stuck_seconds
        self._block_columns = block_columns
        self._lost = lost
        self._processes: tuple[ProcessWorker, ...] = ()
        self._devices: dict[str, ProcessWorker] = {}
        self._starting = threading.Lock()
        self._turn = itertools.count()

    @property
    def stats(self) -> Stats:
        """Depth of the queue, jobs that run, and what they hold."""
        return Stats(self._backlog.waiting, self._backlog.running, self._backlog.nbytes)

    @property
    def draining(self) -> bool:
        """Whether new calls are refused."""
        return self._backlog.draining

    def refuse_when_full(self, calls: int, context: CallContext) -> None:
        """Turn a call away before its body is read, with `calls` others under way.

        Raises:
            QueueFullError: as many wait, or will, as may.
        """
        self._backlog.refuse_when_full(calls, context)

    def call(self, context: CallContext) -> "OpenCall":
        """Admit one call; what it asks for inside the `with` block is served even while draining.

        Raises:
            DrainingError: the service is shutting down.
        """
        return OpenCall(self._backlog, context)

    def keep_place(self, context: CallContext) -> None:
        """Something was built for an admitted call: its next jobs are not refused because the queue is full by now."""
        self._backlog.keep_place(context)

    def run(self, job: Callable[[], T], context: CallContext, *, nbytes: int = 0) -> T:
        """Call `job` on a worker and wait for it.

        Args:
            job: if the caller leaves before it begins, it never does; one that runs is finished.
            context: ends the wait, and frees the place in the queue at once.
            nbytes: what the job holds while it waits and runs.

        Raises:
            QueueFullError, DrainingError: it was not admitted.
            DeadlineError, CancelledError: of `context`.
            Exception: what the job raised.
        """
        ticket: Ticket[Made[T]] = Ticket()
        task = Task(job, ticket, nbytes, context.tenant)
        return finish(self._ask(self._place(self._threads), task, ticket, context), context).value

    def build(
        self,
        spec: FactorSpec,
        job: Callable[[], Factor],
        context: CallContext,
        *,
        keep: Callable[[FactorRef], None] | None = None,
        nbytes: int = 0,
    ) -> Build:
        """Factorize on a worker, leave the factor there, and wait for it.

        This is for a caller who builds for itself; `order_build` is for many who wait for one.

        Args:
            spec: what the factor is built with.
            job: the factorization.
            context: ends the wait. A factorization that runs is finished all the same.
            keep: takes the reference if the caller left meanwhile; None: the factor is freed.
            nbytes: what the job holds while it waits and runs.

        Raises:
            As `run`.
        """
        unwanted = keep or self.free
        ticket: Ticket[Build] = Ticket(lambda build: unwanted(build.value))
        worker = self._place(self._threads)
        return finish(self._ask(worker, self._build_task(worker, spec, job, ticket, nbytes), ticket, context), context)

    def order(self, job: Callable[[], T], *, nbytes: int = 0) -> "Future[Made[T]]":
        """Have `job` called on a worker; returns at once (what `FactorCache` starts a flight with).

        The future may be cancelled until the job begins, which frees its place in the queue.

        Raises:
            QueueFullError, DrainingError: it was not admitted.
        """
        future: Future[Made[T]] = Future()
        return self._order(self._place(self._threads), Task(job, future, nbytes), future)

    def order_build(self, spec: FactorSpec, job: Callable[[], Factor], *, nbytes: int = 0) -> "Future[Build]":
        """Have a factor made by `job` and left on a thread; otherwise as `order`."""
        future: Future[Build] = Future()
        worker = self._place(self._threads)
        return self._order(worker, self._build_task(worker, spec, job, future, nbytes), future)

    @property
    def idle(self) -> bool:
        """Whether a thread sleeps whose turn a caller could take."""
        return any(worker.idle for worker in self._threads)

    def order_analysis(
        self, spec: FactorSpec, pattern: AnyPattern, *, tenant: str = "", here: bool = False
    ) -> "Order[Symbolic]":
        """Have the method of `spec` analyse a pattern, where the method belongs; otherwise as `order`.

        Whose time it takes is said by `tenant`. With `here` it is done on the calling thread, if the
        worker builds nothing and is itself a thread.
        """
        order: Order[Symbolic] = Order()
        worker = self._place(self._home(spec))
        task = Task(lambda: worker.analyze(spec, pattern, order.wanted), order, tenant=tenant)
        self._order(worker, task, order, here=here)
        return order

    def order_factor(
        self,
        symbolic: Symbolic,
        operand: Operand,
        spec: FactorSpec,
        *,
        context: CallContext | None = None,
        here: bool = False,
    ) -> "Order[FactorRef]":
        """Have a matrix factorized where its method belongs, and the factor left there; as `order_analysis`.

        It is the tenant's time of `context`, whose call may have a place in the queue.
        """
        order: Order[FactorRef] = Order()
        worker = self._place(self._home(spec))

        def work() -> FactorRef:
            ref = worker.factorize(symbolic, operand, spec, order.wanted)
            self._observer.factorized(spec.method, ref.pivots)
            return ref

        tenant = "" if context is None else context.tenant
        self._order(worker, Task(work, order, tenant=tenant), order, context, here=here)
        return order

    def order_update(
        self, base: FactorRef, operand: Operand, spec: FactorSpec, context: CallContext
    ) -> "Order[FactorRef]":
        """Have an update prepared where the factor of S is, and left there; otherwise as `order`.

        It is no factorization, and not counted as one.
        """
        order: Order[FactorRef] = Order()
        worker = base.worker
        task = Task(lambda: worker.update(base, operand, spec, order.wanted), order, tenant=context.tenant)
        self._order(worker, task, order, context)
        return order

    def solving(
        self,
        ref: FactorRef,
        rhs: Array,
        trans: Trans,
        controls: Controls,
        context: CallContext,
        *,
        instead: Operand | None = None,
    ) -> Steps[Solved]:
        """Solve with a factor where it is, as one block with others that wait for the same.

        A small solve whose worker sleeps is done on the calling thread, in the worker's place; any other is waited for.

        Args:
            ref: its factor stays (is pinned in the cache) until this returns.
            rhs: `[n, k]`, of a batch `[batch, n, k]`; not modified, and kept no longer than the solve.
            trans: "N", "T" or "H".
            controls: tolerances and limits; their `cancelled` is heard beside `context`.
            context: ends the wait; an iterative solve whose callers have all left is stopped.
            instead: solve with this matrix, on the factor's pattern, and let the factor precondition it.

        Raises:
            QueueFullError, DrainingError: it was not admitted.
            DeadlineError, CancelledError: of `context`.
            InvalidShapeError: `rhs` does not have the factor's rows.
            BacksolveError: what the solve raised.
            MemoryBudgetError: the vectors of an iteration would be more than all calls together may hold.
        """
        n = ref.n if ref.m is None or controls.cotangent else ref.m
        rows = (n,) if ref.batch is None else (ref.batch, n)
        if rhs.shape[:-1] != rows:
            raise InvalidShapeError(f"b has shape {rhs.shape}, the factor solves {(*rows, 'k')}")
        # A thread that must not wait is one of the service's own, on which no caller sets any mode.
        most = min(_AT_ONCE_BYTES, context.most_bytes)
        here = (ref.anywhere or (ref.direct and context.at_once)) and ref.nbytes * rhs.shape[-1] <= most
        here = here and instead is None
        if here and ref.direct and (solved := self._here(ref, rhs, trans, controls, context)) is not None:
            return solved
        self._check_work(ref, rhs, controls, instead)
        job = Solve(ref, rhs, trans, controls, context, self._observer, instead, self._block_columns)
        return (yield from self._ask(ref.worker, job, job.ticket, context, at_once=here))

    def _here(
        self, ref: FactorRef, rhs: Array, trans: Trans, controls: Controls, context: CallContext
    ) -> Solved | None:
        """Solve on this thread in the worker's place, without a job to be queued; None: the worker cannot be borrowed.

        It comes to the same as `lend` of a job, for half the time of a small solve less.
        """
        context.check()
        worker, nbytes = ref.worker, rhs.nbytes
        if not worker.borrow():
            return None
        begun, seconds = perf_counter(), 0.0
        try:
            self._backlog.enter_running(nbytes, context)
            try:
                (found,) = worker.answer(ref, (rhs,), trans, controls)
            finally:
                seconds = perf_counter() - begun
                self._backlog.ended(1, nbytes)
        except BaseException as error:
            delivered(error)  # its frames let go of the factor, which must die on its worker's thread
            if isinstance(error, Exception):
                context.check()
            raise
        finally:
            worker.give_back(context.tenant, seconds)
        width = rhs.shape[-1]
        self._observer.block(width)
        return Solved(found, 0.0, seconds, width)

    def free(self, ref: FactorRef) -> None:
        """Let a factor go, on its worker; returns at once."""
        ref.worker.free(ref)

    def move(self, ref: FactorRef, device: str) -> None:
        """Have a factor's numbers copied between its device and the host before its worker's next job."""
        ref.worker.move(ref, device)

    def drain(self) -> None:
        """Refuse new calls from now on; those admitted go on."""
        self._backlog.drain()

    def close(self, timeout: float) -> bool:
        """Refuse new calls, finish those admitted, end the workers.

        Returns:
            True if everything ended within `timeout` seconds. Otherwise what had not begun
            failed with `DrainingError`, and what runs is left to run.
        """
        until = time.monotonic() + timeout
        self.drain()
        with self._backlog.idle:
            self._backlog.idle.wait_for(lambda: self._backlog.quiet, max(timeout, 0.0))
        workers = (*self._threads, *self._processes, *self._devices.values())
        return all([worker.close(max(until - time.monotonic(), 0.0)) for worker in workers])

    def _check_work(self, ref: FactorRef, rhs: Array, controls: Controls, instead: Operand | None) -> None:
        """Refuse an iteration whose vectors would not fit however long it waited."""
        limit, needed = self._backlog.max_bytes, work(ref, rhs[..., :1], controls, instead)
        if needed <= limit:
            return
        method, n = ref.spec.method, max(ref.n, ref.m or 0)
        restart = largest_restart(method, n, wide(rhs), limit)
        cure = f"ask for restart={restart}, or fewer, or for method 'bicgstab'" if restart else "use a direct method"
        raise MemoryBudgetError(
            f"the vectors of one column by method {method!r} need {needed} bytes, calls may hold {limit}: {cure}, or "
            "raise BACKSOLVE_QUEUE_BYTES",
            size=needed,
            limit=limit,
        )

    def _ask(
        self, worker: Worker, job: Job, ticket: Ticket[T], context: CallContext, *, at_once: bool = False
    ) -> Steps[T]:
        context.check()
        self._enter(worker, job, context, at_once=at_once)
        try:
            if not ticket.done:
                yield ticket
            return ticket.taken()
        except BaseException as error:
            if not ticket.settled:  # the wait itself was interrupted, by Ctrl-C for one
                ticket.set_exception(CancelledError(f"the caller was interrupted by {type(error).__name__}"))
            worker.withdraw(job)
            raise

    def _order(
        self,
        worker: Worker,
        task: Task[T],
        future: "Future[Made[T]]",
        context: CallContext | None = None,
        *,
        here: bool = False,
    ) -> "Future[Made[T]]":
        def settled(done: "Future[Made[T]]") -> None:
            if done.cancelled():
                worker.withdraw(task)
                task.drop()

        self._enter(worker, task, context, at_once=here)
        future.add_done_callback(settled)
        return future

    def _enter(self, worker: Worker, job: Job, context: CallContext | None, *, at_once: bool = False) -> None:
        self._backlog.enter(job.nbytes, context)
        if at_once and worker.lend(job):
            return
        try:
            worker.post(job)
        except BaseException:
            self._backlog.withdrawn(job.nbytes)
            raise

    def _home(self, spec: FactorSpec) -> Sequence[Worker]:
        """The workers that may run a method; a device has one process, since its failure takes all of it along."""
        if spec.device != CPU:
            with self._starting:
                if spec.device not in self._devices:
                    self._devices[spec.device] = self._process(spec.device)
                return (self._devices[spec.device],)
        if spec.method not in self._isolated and ROWS[spec.method].home == "thread":
            return self._threads
        with self._starting:
            if not self._processes:
                self._processes = tuple(self._process(str(number)) for number in range(self._process_count))
            return self._processes

    def _process(self, name: str) -> ProcessWorker:
        return ProcessWorker(
            f"backsolve-process-{name}", self._backlog, self._observer, self._lost, self._stuck_seconds
        )

    def _place(self, workers: Sequence[W]) -> W:
        """The least loaded worker; of equals, each in turn."""
        turn, count = next(self._turn), len(workers)
        return min((workers[(turn + step) % count] for step in range(count)), key=lambda worker: worker.load[0])

    def _build_task(
        self,
        worker: ThreadWorker,
        spec: FactorSpec,
        job: Callable[[], Factor],
        promise: "Ticket[Build] | Future[Build]",
        nbytes: int,
    ) -> Task[FactorRef]:
        def work() -> FactorRef:
            ref = worker.keep(job(), spec)
            self._observer.factorized(spec.method, ref.pivots)
            return ref

        return Task(work, promise, nbytes)
