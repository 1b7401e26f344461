"""Which matrices a server will not know, so that they are sent with the call instead of being asked for."""

from collections import OrderedDict
from typing import Final, TypeVar, final

from .types import MatrixRef

K = TypeVar("K")
T = TypeVar("T")

_REMEMBERED: Final = 1024
"""Matrices, and patterns, of which is known whether the server has them."""

_WARY_CALLS: Final = 4
"""After a server was full, so many calls are answered before values are sent to it unasked again."""


@final
class News:
    """Which matrices a server will not know: values that were never answered for, where the last such were missed.

    Digests alone tell it, in tables of bounded size. Dict operations are atomic, so no lock is held.

    A server that was full is better asked first: what it refuses, it has to read.
    """

    def __init__(self) -> None:
        self._wary = 0
        self._known: OrderedDict[MatrixRef, None] = OrderedDict()
        self._changing: OrderedDict[bytes, None] = OrderedDict()

    def expected(self, ref: MatrixRef) -> bool:
        """Whether the values are better sent with the call than asked for."""
        return ref.pattern in self._changing and ref not in self._known

    def changing(self, pattern: bytes) -> bool:
        """Whether the values on a pattern were new the last time."""
        return pattern in self._changing

    @property
    def wary(self) -> bool:
        """Whether the server was full lately."""
        return self._wary > 0

    def refused(self) -> None:
        """The server was full."""
        self._wary = _WARY_CALLS

    def missed(self, ref: MatrixRef) -> None:
        """The server had the pattern, and not the values."""
        note(self._changing, ref.pattern, None)

    def unfounded(self, ref: MatrixRef) -> None:
        """They need not have been sent, or could not be."""
        self._changing.pop(ref.pattern, None)

    def answered(self, ref: MatrixRef) -> None:
        """The server has it."""
        self._wary = max(self._wary - 1, 0)
        note(self._known, ref, None)


def note(table: OrderedDict[K, T], key: K, value: T) -> None:
    """Enter something in a table that forgets what was entered first."""
    table[key] = value
    while len(table) > _REMEMBERED:
        try:
            table.popitem(last=False)
        except KeyError:  # another thread was first
            return
