"""How much work waits and runs, the bound on it, and how fast it drains."""

import threading
import time
from typing import final

from backsolve.errors import DrainingError, QueueFullError

from ..context import CallContext
from ..observer import Observer
from .turns import Turns

_MEMORY = 0.1
"""Weight of the newest in the running mean of the time between two answers."""


@final
class _Open:
    """A call that is under way.

    Attributes:
        asked: whether it had work done.
        placed: whether something was built for it.
    """

    __slots__ = ("asked", "placed")

    def __init__(self) -> None:
        self.asked = self.placed = False


@final
class Backlog:
    """Bounded admission of work, shared by all workers of one scheduler.

    A job counts against `max_queue` while it waits, against `max_bytes` until it ends. A call that something was built
    for has waited its turn: its further jobs may wait beyond `max_queue`, and are at most as many again.

    Args:
        max_queue: most jobs that may wait.
        max_bytes: most bytes of right-hand sides, and of the vectors that iterations will need for them, held for
            waiting and running jobs. A job larger than that is let in when it is alone.
        observer: hears how long each job waited.
    """

    def __init__(self, max_queue: int, max_bytes: int, observer: Observer) -> None:
        self._lock = threading.Lock()
        self._max_queue = max_queue
        self.max_bytes = max_bytes
        self._observer = observer
        self.nbytes = 0
        self._interval = 0.0
        self._last_end = time.monotonic()
        self._turns = Turns(max_queue)
        self._calls: dict[int, _Open] = {}
        self.idle = threading.Condition(self._lock)
        self.draining = False
        self.waiting = 0
        self.running = 0

    @property
    def quiet(self) -> bool:
        """Nothing waits, nothing runs, no call is open; once draining, `idle` is notified when it becomes true."""
        return not (self.waiting or self.running or self._calls)

    def open_call(self, context: CallContext) -> None:
        """Admit a call: what it asks for until `close_call` is served even while draining.

        Raises:
            DrainingError: the service is shutting down.
        """
        with self._lock:
            if self.draining:
                raise _draining()
            self._calls[id(context)] = _Open()

    def close_call(self, context: CallContext, *, answered: bool) -> None:
        """The call has ended."""
        now = time.monotonic()
        with self._lock:
            call = self._calls.pop(id(context), None)
            if answered and call is not None and call.asked:
                self._interval += _MEMORY * (now - self._last_end - self._interval)
                self._last_end = now
            self._tell()

    def keep_place(self, context: CallContext) -> None:
        """Something was built for a call: what it asks for next is not turned away for those who have come since."""
        with self._lock:
            call = self._calls.get(id(context))
            if call is not None:
                call.placed = True

    def drain(self) -> None:
        """Admit nothing new."""
        with self._lock:
            self.draining = True

    def enter(self, nbytes: int, context: CallContext | None) -> None:
        """Admit one job.

        Args:
            nbytes: what it holds.
            context: whose it is; None: it is for whoever waits for it, an open call among them.

        Raises:
            QueueFullError: too many jobs wait, or too many bytes are held.
            DrainingError: the service is shutting down, and the job is of no open call.
        """
        with self._lock:
            self._admit(nbytes, context)
            self.waiting += 1

    def enter_running(self, nbytes: int, context: CallContext) -> None:
        """Admit one job that begins at once.

        Raises:
            QueueFullError, DrainingError: as `enter`.
        """
        with self._lock:
            self._admit(nbytes, context)
            self._start(1)
        self._observer.queued(0.0)

    def refuse_when_full(self, calls: int, context: CallContext) -> None:
        """Turn a call away before anything is read or computed for it, if its first job would be.

        Args:
            calls: that were let in and have no answer yet, whether or not their jobs wait already.
            context: of the one that asks.

        Raises:
            QueueFullError: as many wait, or will, as may.
        """
        before = max(self.waiting, calls - self.running)
        if before < self._max_queue // 2:
            return
        with self._lock:
            room = self._turns.room(time.monotonic(), repeated=context.repeated)
            if before >= room:
                raise self._refusal(context, room)

    def withdrawn(self, nbytes: int) -> None:
        """A job left before it began."""
        with self._lock:
            self.waiting -= 1
            self.nbytes -= nbytes
            self._tell()

    def started(self, jobs: int, waited: float) -> None:
        """Jobs begin as one; the first has waited this many seconds."""
        with self._lock:
            self.waiting -= jobs
            self._start(jobs)
        self._observer.queued(waited)

    def ended(self, jobs: int, nbytes: int) -> None:
        """Jobs that ran as one have ended."""
        with self._lock:
            self.running -= jobs
            self.nbytes -= nbytes
            self._tell()

    def _admit(self, nbytes: int, context: CallContext | None) -> None:
        """Count what a job holds, or refuse it; the lock is held."""
        call = None if context is None else self._calls.get(id(context))
        if self.draining and call is None and (context is not None or not self._calls):
            raise _draining()
        full = self.waiting >= self._max_queue and not (call is not None and call.placed)
        if full or (self.nbytes and self.nbytes + nbytes > self.max_bytes):
            raise self._refusal(context, self._max_queue)
        if call is not None:
            call.asked = True
        self.nbytes += nbytes

    def _start(self, jobs: int) -> None:
        """Jobs begin; the lock is held."""
        if not self.waiting:
            self._last_end = time.monotonic()  # an hour in which nobody waited says nothing about the rate
        self.running += jobs

    def _tell(self) -> None:
        """Wake who waits for the end, if it has come; the lock is held."""
        if self.draining and self.quiet:
            self.idle.notify_all()

    def _refusal(self, context: CallContext | None, room: int) -> QueueFullError:
        """One more is turned away; the lock is held."""
        now = time.monotonic()
        interval = max(self._interval, now - self._last_end if self.running else 0.0)
        tenant, left = ("", None) if context is None else (context.tenant, context.remaining())
        kept = "" if room == self._max_queue else ", the rest is kept for those who were turned away before"
        return QueueFullError(
            f"{self.waiting} jobs wait (at most {room}{kept}) and {self.nbytes} bytes are held "
            f"(at most {self.max_bytes}): come back later, or ask another replica",
            retry_after=round(self._turns.keep(now, interval, tenant, left), 3),
        )


def _draining() -> DrainingError:
    return DrainingError("the service is shutting down: ask another replica, or come back", retry_after=1.0)
