"""Keeps `os.fork` out of the way of libraries that cannot be forked while they are in use."""

import os
import threading
from typing import final

PATIENCE_SECONDS = 5.0
"""How long a fork waits for calls under way; after that it is left to luck."""


@final
class ForkGate:
    """The calls under way in this process: a fork waits for them, new ones wait for the fork.

    gRPC prepares itself for a fork only while no thread is inside it. Otherwise the child, and with
    old releases the parent too, may hang or crash. Enter around every call; make one for each library.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._forking = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._before, after_in_parent=self._after, after_in_child=self._renew)

    def __enter__(self) -> None:
        with self._changed:
            while self._forking:
                self._changed.wait()
            self._running += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def _before(self) -> None:
        with self._changed:
            self._forking = True
            self._changed.wait_for(lambda: self._running == 0, PATIENCE_SECONDS)

    def _after(self) -> None:
        with self._changed:
            self._forking = False
            self._changed.notify_all()

    def _renew(self) -> None:
        """In the child: the parent's threads, and the calls that they were in, are not here."""
        self._changed = threading.Condition()
        self._running = 0
        self._forking = False
