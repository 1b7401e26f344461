"""What one caller waits on: an answer that comes once, or the end of its patience."""

import threading
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar, cast, final

from backsolve.errors import CancelledError, DeadlineError

from ..context import CallContext

T = TypeVar("T")


def discard(_: object) -> None:
    """What becomes of an answer that nobody waits for."""


class Bell(Protocol):
    """Calls back who waits without a thread; from any thread."""

    def ring(self) -> None:
        """Look which of the tickets that are waited for have settled."""


@final
class Ticket(Generic[T]):
    """A future for one who waits, made of two bare locks.

    It has the three methods by which a worker resolves a `concurrent.futures.Future`, at a third
    of that one's round trip: a small solve takes 50 us, the hand-over must not double it.

    Args:
        unwanted: takes the answer if the caller left before it was there.
    """

    __slots__ = ("_claim", "_done", "_error", "_unwanted", "_value", "bell")

    def __init__(self, unwanted: Callable[[T], None] = discard) -> None:
        self._claim = threading.Lock()  # whoever takes it settles the ticket; never let go
        self._done = threading.Lock()
        self._done.acquire()
        self._value: T | None = None
        self._error: BaseException | None = None
        self._unwanted = unwanted
        self.bell: Bell | None = None

    @property
    def done(self) -> bool:
        """Whether `taken` would return at once; of one whose thread does not wait."""
        return not self._done.locked()

    @property
    def settled(self) -> bool:
        """Whether there is an answer, or nobody waits for one any more."""
        return self._claim.locked()

    def set_running_or_notify_cancel(self) -> bool:
        """Whether the work is still wanted."""
        return not self._claim.locked()

    def set_result(self, value: T, *, ring: bool = True) -> None:
        """The answer, unless the caller has left; with `ring` false somebody will `ring` for several."""
        if self._claim.acquire(blocking=False):
            self._value = value
            self._done.release()
            if ring:
                self._ring()
        else:
            self._unwanted(value)

    def set_exception(self, error: BaseException) -> None:
        """The failure, unless the caller has left."""
        if self._claim.acquire(blocking=False):
            self._error = error
            self._done.release()
            self._ring()

    def wait(self, context: CallContext) -> None:
        """Wait on this thread until it is settled, which it is when `context` ends; called once."""
        self.heed(context)
        left = context.remaining()
        if not self._done.acquire(timeout=-1 if left is None else min(max(left, 0.0), threading.TIMEOUT_MAX)):
            self.expire()
            self._done.acquire()  # settled now, by this line's predecessor or by a worker just before it

    def heed(self, context: CallContext) -> None:
        """Settle when the caller goes away."""
        context.on_cancel(self._cancel)

    def expire(self) -> None:
        """The deadline is there."""
        self.set_exception(DeadlineError("the deadline passed before the answer was there: raise timeout="))

    def taken(self) -> T:
        """What it was settled with; called once, when it is.

        Raises:
            DeadlineError, CancelledError: the caller's context ended first.
            BaseException: what the work raised.
        """
        value, error = self._value, self._error
        self._value = self._error = None  # the context keeps this ticket, it must not keep the answer
        if error is not None:
            raise error
        return cast("T", value)

    def _cancel(self) -> None:
        self.set_exception(CancelledError("the caller took the call back"))

    def _ring(self) -> None:
        if self.bell is not None:
            self.bell.ring()


def ring(tickets: "Iterable[Ticket[T]]") -> None:
    """Call back everybody who waits for these, each event loop once."""
    for bell in {ticket.bell for ticket in tickets}:
        if bell is not None:
            bell.ring()
