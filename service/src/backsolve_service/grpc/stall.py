"""Ends uploads that have gone silent: their handler and their buffer are needed by others."""

import threading
from collections.abc import Iterator
from typing import Any, TypeVar, final

T = TypeVar("T")


@final
class Watched(Iterator[T]):
    """The items of a stream; the call is cancelled once none has come for `seconds` (to twice that).

    Use as a context manager around the reading.

    Args:
        items: what the sender sends.
        context: the call's gRPC context.
        seconds: patience.
    """

    def __init__(self, items: Iterator[T], context: Any, seconds: float) -> None:
        self._items, self._context, self._seconds = items, context, seconds
        self._count = 0
        self._done = threading.Event()

    def __next__(self) -> T:
        item = next(self._items)
        self._count += 1
        return item

    def __enter__(self) -> "Watched[T]":
        threading.Thread(target=self._watch, name="backsolve-upload-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        seen = -1
        while seen != self._count:
            seen = self._count
            if self._done.wait(self._seconds):
                return
        self._context.cancel()
