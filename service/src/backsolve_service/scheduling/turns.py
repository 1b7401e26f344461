"""When callers who find no room are to come back: each in its own turn, as in a queue that is waited in at home."""

from typing import final

_LEAST_SECONDS = 0.05
_MOST_SECONDS = 30.0
"""Nobody is told to come back later than this, and no turn is kept for longer."""


@final
class Turns:
    """Keeps turns for those who were turned away, so that they need not ask again and again.

    If all were told the same time they would all come at it, for the one that can be served; and a newcomer would
    take the place of whoever has waited. So turns are as far apart as calls are served. Of several tenants each
    has turns of its own, so much further apart. Who cannot be answered before its deadline is given none.

    Not thread-safe: its owner has a lock.

    Args:
        most: calls that may wait in the queue.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._next: dict[str, float] = {}

    def room(self, now: float, *, repeated: bool) -> int:
        """How many may wait before one more is turned away.

        While turns are kept, half of the queue is for those whose turn it is.

        Args:
            now: seconds that only grow.
            repeated: it was turned away before, and has come back.
        """
        if repeated or not any(at > now for at in self._next.values()):
            return self._most
        return max(self._most // 2, 1)

    def keep(self, now: float, interval: float, tenant: str, left: float | None) -> float:
        """In how many seconds one who is turned away is to come back.

        Args:
            now: seconds that only grow.
            interval: seconds in which one call is served.
            tenant: whose call it is.
            left: seconds until its deadline; None: it has none.
        """
        self._next = {name: at for name, at in self._next.items() if at > now}
        queue = interval * self._most
        turn = max(self._next.get(tenant, 0.0), now + max(queue / 2, _LEAST_SECONDS))
        seconds = turn - now
        if left is not None and 2 * seconds + queue >= left:
            # In its turn it has to wait for what is before it in the queue, and times are estimates: half is for that.
            return min(max(seconds, left), _MOST_SECONDS)
        if seconds > _MOST_SECONDS:
            return _MOST_SECONDS
        self._next[tenant] = turn + interval * len(self._next.keys() | {tenant})
        return seconds
