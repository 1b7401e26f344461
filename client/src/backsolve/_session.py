"""Does the steps of calls over one transport, and blocks until they are done."""

import time
from typing import TypeVar, final

from ._protocol import Call, Exchange, InfoCall, Pause, Progress, StatsCall, Steps
from ._transports.base import JvpCall, PutCall, SolveCall, Transport, VjpCall
from .errors import BacksolveError

T = TypeVar("T")


@final
class Session:
    """One transport, and what is kept from call to call. Thread-safe.

    Args:
        transport: what carries the calls.
        timeout: seconds for each call unless it says otherwise; None waits for ever.
    """

    def __init__(self, transport: Transport, timeout: float | None) -> None:
        self.transport = transport
        self.exchange = Exchange(timeout)

    def run(self, steps: Steps[T]) -> T:
        """Do what a call asks for until it has its result.

        Raises:
            BacksolveError: the call has failed.
        """
        progress = Progress(steps)
        while progress.step is not None:
            step = progress.step
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                progress.give(None)
                continue
            try:
                reply = self._carry(step.call, step.left)
            except BacksolveError as error:
                progress.fail(error)
            else:
                progress.give(reply)
        return progress.result

    def _carry(self, call: Call, left: float | None) -> object:
        match call:
            case SolveCall():
                return self.transport.solve(call, left)
            case VjpCall():
                return self.transport.vjp(call, left)
            case JvpCall():
                return self.transport.jvp(call, left)
            case PutCall():
                return self.transport.put(call, left)
            case InfoCall():
                return self.transport.info(left)
            case StatsCall():
                return self.transport.stats(left)
