"""Who calls, until when, and whether they still wait: what a transport knows beside the call itself."""

import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from backsolve.errors import CancelledError, DeadlineError

PUBLIC_TENANT = "public"


class WouldWaitError(Exception):
    """A call that was to be answered at once cannot be: make it again where waiting harms nobody."""


def new_request_id() -> str:
    """A request id for callers that sent none: to find a line in a log by, not to be kept secret."""
    return f"{random.getrandbits(128):032x}"


@dataclass(frozen=True, slots=True)
class CallContext:
    """The circumstances of one call.

    Attributes:
        transport: "embedded", "grpc" or "rest"; a metrics label.
        deadline: `time.monotonic()` seconds after which nobody waits any more; None: never.
        tenant: cache namespace.
        request_id: appears in log lines and in the text of internal errors.
        cancelled: set by the transport when the caller has gone.
        at_once: the calling thread must not wait: answer on it, yield what is to be waited for, or raise
            `WouldWaitError`.
        repeated: the caller was told to come back, and has.
        most_bytes: of a factor times columns, that the calling thread may read itself.
    """

    transport: str
    deadline: float | None = None
    tenant: str = PUBLIC_TENANT
    request_id: str = field(default_factory=new_request_id)
    cancelled: threading.Event = field(default_factory=threading.Event)
    at_once: bool = False
    most_bytes: int = sys.maxsize
    repeated: bool = False
    _callbacks: list[Callable[[], None]] = field(default_factory=list)

    @classmethod
    def within(
        cls,
        timeout: float | None,
        transport: str,
        request_id: str | None = None,
        tenant: str = PUBLIC_TENANT,
        *,
        repeated: bool = False,
    ) -> "CallContext":
        """A context that ends `timeout` seconds from now."""
        deadline = None if timeout is None else time.monotonic() + timeout
        return cls(transport, deadline, tenant, request_id or new_request_id(), repeated=repeated)

    def hurried(self, most_bytes: int) -> "CallContext":
        """The same call, on a thread that must not wait, nor read more; whoever cancels one of both cancels both."""
        same = (self.transport, self.deadline, self.tenant, self.request_id, self.cancelled)
        return CallContext(*same, True, most_bytes, self.repeated, self._callbacks)

    def remaining(self) -> float | None:
        """Seconds left, or None when there is no deadline."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, when the caller goes away; at once if it has already gone."""
        self._callbacks.append(callback)
        if self.cancelled.is_set():
            callback()

    def cancel(self) -> None:
        """The caller has gone: stop waiting, and stop iterating."""
        self.cancelled.set()
        for callback in tuple(self._callbacks):
            callback()

    def over(self) -> bool:
        """Whether the answer is of no more use."""
        left = self.remaining()
        return self.cancelled.is_set() or (left is not None and left <= 0)

    def check(self) -> None:
        """Stop here if the answer is of no more use.

        Raises:
            CancelledError: the caller has gone.
            DeadlineError: the deadline has passed.
        """
        if self.cancelled.is_set():
            raise CancelledError("the caller took the call back")
        left = self.remaining()
        if left is not None and left <= 0:
            raise DeadlineError("the deadline passed before the answer was there: raise timeout=")
