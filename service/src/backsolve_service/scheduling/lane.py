"""A lane: one long-lived thread that runs jobs, fairly among tenants, in their order, several as one where they may."""

import atexit
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from time import perf_counter
from typing import final

from backsolve.errors import DrainingError

from .backlog import Backlog
from .fair import FairQueue
from .threads import delivered, keep_thread_dict

_log = logging.getLogger(__name__)

_EXIT_SECONDS = 1.0
"""The end of the interpreter waits this long for a job that runs."""


@final
class Deferred(Exception):  # noqa: N818  (nothing has failed)
    """What a job began on a caller's thread is to be gone on with on the lane's: it is run again there, as the next."""


class Job(ABC):
    """One piece of work for one worker.

    Attributes:
        key: jobs of equal key may run as one block; None: it runs alone.
        columns: its share of a block.
        max_columns: widest block that it may be part of.
        nbytes: what it holds while it waits and runs.
        born: `time.perf_counter()` when it was ordered.
        tenant: for whom it is; a lane's time is shared out fairly among tenants.
        quick: it takes some milliseconds at most, and is not to wait for what takes longer.
    """

    tenant: str = ""
    quick: bool = False
    key: Hashable | None
    columns: int
    max_columns: int
    nbytes: int
    born: float

    @abstractmethod
    def run(self, mates: "Sequence[Job]") -> None:
        """Do the work, together with `mates` of the same key; every failure goes to who waits."""

    @abstractmethod
    def fail(self, error: BaseException) -> None:
        """It will not be done; called instead of `run`, or if `run` itself failed."""


@final
class Lane:
    """A thread that lives as long as its worker, asleep on a lock while there is nothing to do.

    Args:
        name: of the thread.
        backlog: has admitted the jobs, and hears when they begin and end.
        drop: frees factors by their numbers; called on the thread, between jobs.
        end: called on the thread, as the last.
    """

    def __init__(
        self, name: str, backlog: Backlog, drop: Callable[[Sequence[int]], None], end: Callable[[], None]
    ) -> None:
        self._backlog = backlog
        self._drop = drop
        self._end = end
        self._mutex = threading.Lock()
        self._sleep = threading.Lock()  # held while asleep: releasing it wakes the thread
        self._sleep.acquire()
        self._asleep = False
        self._lent = False
        self._begun: Job | None = None  # on a caller's thread, and deferred
        self._closed = False
        self._queue: FairQueue[Job] = FairQueue()
        self._unwanted: list[int] = []
        self._busy = 0
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._thread.start()
        atexit.register(self._exit)

    @property
    def jobs(self) -> int:
        """Jobs that wait or run."""
        return len(self._queue) + self._busy + (self._begun is not None)

    @property
    def lent(self) -> bool:
        """Whether a caller's thread has the turn; asked by what runs in a turn."""
        return self._lent

    @property
    def asleep(self) -> bool:
        """Nothing waits, nothing runs: `lend` would succeed now."""
        return self._asleep and not self._closed

    def post(self, job: Job) -> None:
        """Queue a job."""
        with self._mutex:
            if self._closed:
                raise DrainingError("the service has shut down: ask another replica", retry_after=1.0)
            self._queue.push(job)
            wake, self._asleep = self._asleep, False
        if wake:
            self._sleep.release()

    def lend(self, job: Job) -> bool:
        """Run a job at once, on the calling thread in this one's place; False: this one has work of its own.

        Two switches of threads are saved, and the caches of the caller's core kept warm. What is
        posted meanwhile waits as it would for any job. A job that raises `Deferred` is run again on this
        one's thread, before everything else.
        """
        if not self.borrow():
            return False
        try:
            self._run([job])
        finally:
            self.give_back()
        return True

    def borrow(self) -> bool:
        """Take this one's turn, as `lend` does; False: it has work of its own. To be given back whatever happens."""
        with self._mutex:
            if not self._asleep or self._closed:
                return False
            self._asleep, self._lent, self._busy = False, True, 1
            return True

    def give_back(self, tenant: str = "", seconds: float = 0.0) -> None:
        """The lent turn is over, of which a tenant has had so much: what came meanwhile is this thread's work."""
        try:
            self._take_back(tenant, seconds)
        except BaseException:  # an interrupt between two bytecodes must not leave the lane lent for ever
            self._take_back(tenant, seconds)
            raise

    def _take_back(self, tenant: str, seconds: float) -> None:
        with self._mutex:
            if not self._lent:
                return
            self._lent, self._busy = False, 0
            if seconds:
                self._queue.charge(tenant, seconds)
            self._asleep = not (self._begun or self._queue or self._unwanted or self._closed)
            wake = not self._asleep
        if wake:
            self._sleep.release()

    def withdraw(self, job: Job) -> None:
        """Take a job out of the queue, unless it has begun."""
        with self._mutex:
            if job not in self._queue:
                return
            self._queue.remove(job)
        self._backlog.withdrawn(job.nbytes)

    def discard(self, number: int) -> None:
        """Have a factor dropped before the next job begins; returns at once."""
        with self._mutex:
            self._unwanted.append(number)
            wake, self._asleep = self._asleep, False
        if wake:
            self._sleep.release()

    def close(self, timeout: float) -> bool:
        """Run what waits, drop what is unwanted, end; False: not within `timeout` seconds."""
        with self._mutex:
            self._closed = True
            wake, self._asleep = self._asleep, False
        if wake:
            self._sleep.release()
        self._thread.join(timeout)
        if not self._thread.is_alive():
            atexit.unregister(self._exit)
            return True
        self._dismiss()
        return False

    def _dismiss(self) -> None:
        """Fail what has not begun."""
        with self._mutex:
            left = list(self._queue)
            for job in left:
                self._queue.remove(job)
        for job in left:
            self._backlog.withdrawn(job.nbytes)
            job.fail(DrainingError("the service shut down before this call began", retry_after=1.0))

    def _exit(self) -> None:
        """The interpreter ends: free what can be freed; a thread in the midst of C code is not waited for long.

        A forked child has no such thread, and nothing to end.
        """
        if self._thread.is_alive():
            self._dismiss()
            self.close(_EXIT_SECONDS)

    def _live(self) -> None:
        keep_thread_dict()
        while self._turn():
            pass
        self._end()

    def _turn(self) -> bool:
        """Free what is unwanted and run one block; its jobs are forgotten when this returns."""
        begun, self._begun = self._begun, None
        if begun is not None:
            self._busy = 1
            self._run([begun], again=True)
            self._busy = 0
            return True
        jobs = self._next()
        if not jobs:
            return self._begun is not None
        self._busy = len(jobs)
        self._run(jobs)
        self._busy = 0
        return True

    def _run(self, jobs: Sequence[Job], *, again: bool = False) -> None:
        """Run one block, on whichever thread has the turn."""
        nbytes = sum(job.nbytes for job in jobs)
        began = perf_counter()
        try:
            if not again:
                self._backlog.started(len(jobs), perf_counter() - jobs[0].born)
            jobs[0].run(jobs[1:])
        except Deferred:
            self._begun = jobs[0]
        except BaseException as error:
            ends = self._lent and not isinstance(error, Exception)
            if not ends:
                _log.exception("a job let an exception out")
            for job in jobs:
                job.fail(delivered(error))
            if ends:  # Ctrl-C, for one: it was meant for the thread that the job ran on, which is the caller's
                raise
        finally:
            with self._mutex:
                self._queue.charge(jobs[0].tenant, perf_counter() - began)
            if self._begun is None:
                self._backlog.ended(len(jobs), nbytes)

    def _next(self) -> list[Job]:
        """The next block, as soon as there is one; empty when the worker is to end."""
        while True:
            with self._mutex:
                if self._begun is not None:
                    return []
                unwanted, self._unwanted = self._unwanted, []
                jobs = [] if unwanted else self._block()
                ended = not jobs and not unwanted and self._closed
                self._asleep = not (jobs or unwanted or ended)
            if unwanted:
                self._drop(unwanted)
            elif jobs or ended:
                return jobs
            else:
                self._sleep.acquire()

    def _block(self) -> list[Job]:
        """The first job, and those of its key that fit beside it; the mutex is held."""
        first = self._queue.pop()
        if first is None:
            return []
        jobs, columns = [first], first.columns
        for mate in self._queue.mates(first):
            columns += mate.columns
            if columns > first.max_columns:
                break
            self._queue.remove(mate)
            jobs.append(mate)
        return jobs
