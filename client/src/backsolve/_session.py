"""Does the steps of calls over one transport, and blocks until they are done."""

import inspect
import time
import warnings
from typing import TypeVar, final

from ._protocol import Exchange, Pause, Step, Steps, Warn
from ._steps import drive
from ._transports.base import Transport, carry

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
        return drive(steps, self._do)

    def _do(self, step: Step) -> object:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        if isinstance(step, Warn):
            warn(step)
            return None
        return carry(self.transport, step.call, step.left)


def warn(step: Warn) -> None:
    """Warn, of the line of the caller's own code that made the call."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == __package__:
        level, frame = level + 1, frame.f_back
    warnings.warn(step.text, step.category, stacklevel=level)
