"""Taking back a call that another thread is in: whatever carries the call says here how that is done."""

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import final


@final
class Recall:
    """One call that may be taken back. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False
        self._how: Callable[[], object] | None = None

    def by(self, how: Callable[[], object]) -> None:
        """From now on the call is taken back by calling `how`; at once if it has been taken back already.

        `how` may be called in any thread, at any time, also after the call has ended.
        """
        with self._lock:
            self._how = how
            if not self._taken:
                return
        how()

    def take(self) -> None:
        """Take the call back."""
        with self._lock:
            self._taken, how = True, self._how
        if how is not None:
            how()


CURRENT: ContextVar[Recall | None] = ContextVar("CURRENT", default=None)
"""That of the call which the running thread is in; None: nobody will take it back."""


def recalled_by(how: Callable[[], object]) -> None:
    """Say how the call that the running thread is in is taken back."""
    recall = CURRENT.get()
    if recall is not None:
        recall.by(how)
