"""Who is let in: calls under way, and the memory of their bodies. All of it is for the event loop's thread alone."""

from collections.abc import Callable
from typing import final

from backsolve.errors import QueueFullError

from ..context import CallContext


@final
class Places:
    """The calls that are being read, worked on or answered.

    Args:
        refuse: given how many there are, and the one more, raises what turns it away.
        most_bytes: of all their bodies together.

    Attributes:
        nbytes: of their bodies now.
        calls: how many there are now.
    """

    def __init__(self, refuse: Callable[[int, CallContext], None], most_bytes: int) -> None:
        self._refuse, self._most_bytes = refuse, most_bytes
        self.nbytes = 0
        self.calls = 0

    def let_in(self, size: int, context: CallContext) -> "Place":
        """A place for one more, whose body has so many bytes; it ends with the `with` block.

        Raises:
            QueueFullError: there is no room to queue for it, or to read it.
            DrainingError: the service is shutting down.
        """
        self._refuse(self.calls, context)
        return Place(self, size)

    def take(self, size: int) -> None:
        """Account for a body as long as it is in memory.

        Raises:
            QueueFullError: there is no room for it.
        """
        if self.nbytes + size > self._most_bytes:
            raise QueueFullError("other bodies fill the memory set aside for them: try again", retry_after=1)
        self.nbytes += size


@final
class Place:
    """One call that was let in, with room for its body."""

    __slots__ = ("_places", "_size")

    def __init__(self, places: Places, size: int) -> None:
        self._places, self._size = places, 0
        self.take(size)

    def take(self, size: int) -> None:
        """Room for more bytes.

        Raises:
            QueueFullError: there is none.
        """
        self._places.take(size)
        self._size += size

    def __enter__(self) -> "Place":
        self._places.calls += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._places.calls -= 1
        self._places.nbytes -= self._size
