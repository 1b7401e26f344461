"""Ends uploads that have gone silent: their handler and their buffer are needed by others."""

import threading
from collections.abc import Iterator
from typing import Any, TypeVar, final

T = TypeVar("T")


@final
class Stalls:
    """Looks after all calls of a server that are being read; one thread, which begins with the first of them.

    Args:
        seconds: a call of which nothing has come for so long, to twice that, is cancelled.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._open: set[Watched[Any]] = set()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._watch: threading.Thread | None = None

    def watched(self, items: Iterator[T], context: Any) -> "Watched[T]":
        """The items of a stream, looked after while they are read.

        Args:
            items: what the sender sends.
            context: the call's gRPC context.
        """
        return Watched(self, items, context)

    def close(self) -> None:
        """Look after nothing more."""
        self._over.set()

    def add(self, one: "Watched[Any]") -> None:
        """Look after one."""
        self._open.add(one)
        if self._watch is None:
            with self._lock:
                if self._watch is None:
                    self._watch = threading.Thread(target=self._run, name="backsolve-upload-watch", daemon=True)
                    self._watch.start()

    def discard(self, one: "Watched[Any]") -> None:
        """Do not look after one any more."""
        self._open.discard(one)

    def _run(self) -> None:
        while not self._over.wait(self._seconds):
            for one in self._open.copy():
                one.look()


@final
class Watched(Iterator[T]):
    """The items of a stream; the call is cancelled once none has come for long.

    Use as a context manager around the reading. Made by `Stalls.watched`.
    """

    def __init__(self, stalls: Stalls, items: Iterator[T], context: Any) -> None:
        self._stalls, self._items, self._context = stalls, items, context
        self._count, self._seen = 0, -1

    def __next__(self) -> T:
        item = next(self._items)
        self._count += 1
        return item

    def __enter__(self) -> "Watched[T]":
        self._stalls.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._stalls.discard(self)

    def look(self) -> None:
        """Cancel the call, unless something has come since the last look."""
        if self._seen == self._count:
            self._context.cancel()
        self._seen = self._count
