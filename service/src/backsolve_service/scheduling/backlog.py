"""How much work waits and runs, the bound on it, and how fast it drains."""

import threading
import time
from typing import final

from backsolve.errors import DrainingError, QueueFullError

from ..observer import Observer

_LEAST_RETRY_SECONDS = 0.05
_MOST_RETRY_SECONDS = 30.0
_MEMORY = 0.1
"""Weight of the newest in the running means: of the time between two ends of work, and of refusals in that time."""


@final
class Backlog:
    """Bounded admission of work, shared by all workers of one scheduler.

    A job counts against `max_queue` while it waits, against `max_bytes` until it ends.

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
        self._refusals = 0.0
        self._last_end = time.monotonic()
        self._calls: set[int] = set()
        self.idle = threading.Condition(self._lock)
        self.draining = False
        self.waiting = 0
        self.running = 0

    @property
    def quiet(self) -> bool:
        """Nothing waits, nothing runs, no call is open; once draining, `idle` is notified when it becomes true."""
        return not (self.waiting or self.running or self._calls)

    def open_call(self, call: int) -> None:
        """Admit a call: what it asks for until `close_call` is served even while draining.

        Raises:
            DrainingError: the service is shutting down.
        """
        with self._lock:
            if self.draining:
                raise _draining()
            self._calls.add(call)

    def close_call(self, call: int) -> None:
        """The call has ended."""
        with self._lock:
            self._calls.discard(call)
            self._tell()

    def drain(self) -> None:
        """Admit nothing new."""
        with self._lock:
            self.draining = True

    def enter(self, nbytes: int, call: int | None) -> None:
        """Admit one job.

        Args:
            nbytes: what it holds.
            call: whose it is; None: a build for several calls, one of which is open.

        Raises:
            QueueFullError: too many jobs wait, or too many bytes are held.
            DrainingError: the service is shutting down, and the job is of no open call.
        """
        with self._lock:
            self._admit(nbytes, call)
            self.waiting += 1

    def enter_running(self, nbytes: int, call: int) -> None:
        """Admit one job that begins at once.

        Raises:
            QueueFullError, DrainingError: as `enter`.
        """
        with self._lock:
            self._admit(nbytes, call)
            self._start(1)
        self._observer.queued(0.0)

    def refuse_when_full(self, calls: int) -> None:
        """Turn a call away before anything is read or computed for it, if its first job would be.

        Args:
            calls: that were let in and have no answer yet, whether or not their jobs wait already.

        Raises:
            QueueFullError: as many wait, or will, as may.
        """
        if max(self.waiting, calls - self.running) < self._max_queue:
            return
        with self._lock:
            raise self._refusal()

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
        now = time.monotonic()
        with self._lock:
            self.running -= jobs
            self.nbytes -= nbytes
            self._interval += _MEMORY * ((now - self._last_end) / jobs - self._interval)
            self._refusals *= (1 - _MEMORY) ** jobs
            self._last_end = now
            self._tell()

    def _admit(self, nbytes: int, call: int | None) -> None:
        """Count what a job holds, or refuse it; the lock is held."""
        if self.draining and not (call in self._calls or (call is None and self._calls)):
            raise _draining()
        if self.waiting >= self._max_queue or (self.nbytes and self.nbytes + nbytes > self.max_bytes):
            raise self._refusal()
        self.nbytes += nbytes

    def _start(self, jobs: int) -> None:
        """Jobs begin; the lock is held."""
        if not self.running:
            self._last_end = time.monotonic()  # an idle hour says nothing about the rate
        self.running += jobs

    def _tell(self) -> None:
        """Wake who waits for the end, if it has come; the lock is held."""
        if self.draining and self.quiet:
            self.idle.notify_all()

    def _refusal(self) -> QueueFullError:
        """One more is turned away; the lock is held."""
        self._refusals += _MEMORY
        return QueueFullError(
            f"{self.waiting} jobs wait (at most {self._max_queue}) and {self.nbytes} bytes are held "
            f"(at most {self.max_bytes}): come back later, or ask another replica",
            retry_after=round(self._retry_seconds(), 3),
        )

    def _retry_seconds(self) -> float:
        """Until about half of what may wait will have gone, at the rate at which work ends now.

        So many times as long as are turned away for each one that is served: all of them come back, and
        those who would be turned away again had better come later.
        """
        interval = max(self._interval, time.monotonic() - self._last_end if self.running else 0.0)
        seconds = interval * self._max_queue / 2 * max(self._refusals, 1.0)
        return min(max(seconds, _LEAST_RETRY_SECONDS), _MOST_RETRY_SECONDS)


def _draining() -> DrainingError:
    return DrainingError("the service is shutting down: ask another replica, or come back", retry_after=1.0)
