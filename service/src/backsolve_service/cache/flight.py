"""Single flight: callers that miss the same key at the same time cause one build.

The build belongs to the flight, not to the caller that happened to be first: it runs elsewhere
(on a worker), every caller only waits, and each may leave at its own deadline. A build that has
not begun when its last caller leaves is taken back; one that runs is finished and kept.
"""

import copy
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, final

from backsolve.errors import BacksolveError, DeadlineError

from ..context import CallContext, WouldWaitError

T = TypeVar("T")


@final
@dataclass(frozen=True, slots=True)
class Made(Generic[T]):
    """Something that was built, and how long that took.

    Attributes:
        value: what was built.
        seconds_queued: from the order to its beginning.
        seconds_run: the work itself.
    """

    value: T
    seconds_queued: float = 0.0
    seconds_run: float = 0.0


@final
class Order(Future[Made[T]]):
    """A build that knows whether anybody still waits for it: what nobody waits for may be given up."""

    def __init__(self) -> None:
        super().__init__()
        self._waited_for: Callable[[], bool] | None = None

    def watch(self, waited_for: Callable[[], bool]) -> None:
        """From now on `waited_for` knows."""
        self._waited_for = waited_for

    def wanted(self) -> bool:
        """Whether anybody waits, as far as is known."""
        return self._waited_for is None or self._waited_for()


Start = Callable[[], Future[Made[T]]]
"""Orders a build and returns at once; the future is resolved wherever the build runs.

It may be cancelled while the build has not begun."""


@final
class Flight(Generic[T]):
    """One build under way. `waiters` and `build` are guarded by the lock of `Flights`."""

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.waiters = 0
        self.build: Future[Made[T]] | None = None
        self.outcome: Future[Made[T]] = Future()


@final
class Flights:
    """All builds under way.

    Args:
        lock: of the owner, re-entrant: looking a value up and boarding its flight must be one
            step, or a second build could begin between the first one's landing and its removal.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._flights: dict[Hashable, Flight[Any]] = {}

    def board(self, key: Hashable) -> tuple[Flight[Any], bool]:
        """Join the flight to `key`; the lock is held. True for the caller who must launch it."""
        flight = self._flights.get(key)
        first = flight is None
        if flight is None:
            flight = self._flights[key] = Flight(key)
        flight.waiters += 1
        return flight, first

    def __contains__(self, key: Hashable) -> bool:
        """Whether a build to `key` is under way; the lock is held."""
        return key in self._flights

    def launch(self, flight: Flight[T], start: Start[T], land: Callable[[Future[Made[T]]], None]) -> None:
        """Order the build, without the lock; `land` sees its future first, whatever came of it.

        What `land` raises becomes the outcome for every waiter. It runs where the build ran.
        """
        try:
            build = start()
        except BaseException as error:
            build = Future()
            build.set_exception(error)
        if isinstance(build, Order):
            build.watch(lambda: flight.waiters > 0)
        with self._lock:
            flight.build = build
        build.add_done_callback(lambda done: self._landed(flight, done, land))

    def wait(self, flight: Flight[T], context: CallContext) -> Made[T]:
        """Wait for the flight to land, at most as long as `context` lasts.

        Raises:
            DeadlineError, CancelledError: this caller's time is over; the others fly on.
            WouldWaitError: `context` must not wait.
            BacksolveError: the build failed.
        """
        try:
            if context.at_once and not flight.outcome.done():
                raise WouldWaitError
            await_future(flight.outcome, context)
        finally:
            self._leave(flight)
        error = flight.outcome.exception()
        if error is not None:
            raise fresh(error)
        return flight.outcome.result()

    def _leave(self, flight: Flight[Any]) -> None:
        with self._lock:
            flight.waiters -= 1
            if flight.waiters == 0 and flight.build is not None:
                # Cancelling under the lock: nobody can board between the decision and the removal.
                flight.build.cancel()

    def _landed(self, flight: Flight[T], build: Future[Made[T]], land: Callable[[Future[Made[T]]], None]) -> None:
        error: BaseException | None = None
        try:
            land(build)  # what was built is stored before the flight is gone: no second build between
        except BaseException as failure:
            error = failure
        with self._lock:
            self._flights.pop(flight.key, None)
            # A future keeps its callbacks, and these the flight: without this cut, a matrix that has
            # left the cache would stay until the garbage collector comes.
            flight.build = None
        if error is None and not build.cancelled():
            error = build.exception()
        if error is not None:
            flight.outcome.set_exception(error)
        elif build.cancelled():
            flight.outcome.cancel()
        else:
            flight.outcome.set_result(build.result())


def await_future(future: Future[Any], context: CallContext) -> None:
    """Wait until `future` is done, whatever came of it.

    Raises:
        DeadlineError, CancelledError: `context` ended first.
    """
    ready = threading.Event()
    future.add_done_callback(lambda _: ready.set())
    context.on_cancel(ready.set)
    left = context.remaining()
    ready.wait(None if left is None else min(max(left, 0.0), threading.TIMEOUT_MAX))
    if not future.done():
        context.check()
        raise DeadlineError("the deadline passed before the answer was there: raise timeout=")


E = TypeVar("E", bound=BaseException)


def fresh(error: E) -> E:
    """The error for one more caller: a raised exception collects the frames of whoever raised it."""
    if not isinstance(error, BacksolveError):
        return error
    twin = copy.copy(error)
    twin.__cause__ = twin.__context__ = None
    return twin.with_traceback(None)
