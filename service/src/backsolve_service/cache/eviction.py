"""Which entry goes first: GreedyDual-Size-Frequency over everything that nothing depends on.

Each entry has the priority `floor + uses * cost / nbytes`: seconds of work that a byte of it
saves, times how often. `floor` is the priority of the last victim at the time of the entry's
last use, so that what was dear once and is not asked for any more ages without a clock.

Source: Cherkasova, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency caching
policy", HP Laboratories HPL-98-69R1, 1998; the cost is the measured time to build.
"""

import heapq
from collections.abc import Callable
from itertools import count
from typing import final

from .entries import Entry, Offer

_RELEASED = -1.0
"""Below every other priority."""


def priority(entry: Entry) -> float:
    """The entry with the least goes first.

    A superseded matrix counts as used once: the many solves of one training step say nothing
    about the next step, whose values are others.
    """
    if entry.released:
        return _RELEASED
    uses = 1 if entry.superseded else entry.uses
    return entry.floor + uses * entry.cost / (entry.nbytes + entry.device_nbytes)


def reason(entry: Entry) -> str:
    """Why this victim was chosen: a label of the eviction counter."""
    if entry.released:
        return "released"
    return "superseded" if entry.superseded else "budget"


@final
class EvictionQueue:
    """Entries by priority. Not thread-safe: the cache's lock guards it.

    An entry has at most one valid offer. Offers are corrected when they come up rather than
    at each use, so that a hit costs no more than an addition. An entry that comes up while it
    is in use leaves the queue, and the cache offers it again when the use ends.
    """

    def __init__(self) -> None:
        self._heap: list[Offer] = []
        self._order = count()
        self._void = 0
        self.floor = 0.0

    def touch(self, entry: Entry) -> None:
        """The entry was asked for once more."""
        entry.uses += 1
        entry.floor = self.floor
        entry.released = False

    def offer(self, entry: Entry) -> None:
        """The entry may be evicted from now on, or sooner than it was thought."""
        rank = priority(entry)
        if entry.offered is None or rank < entry.offered.rank:
            self.withdraw(entry)
            entry.offered = Offer(rank, next(self._order), entry)
            heapq.heappush(self._heap, entry.offered)

    def withdraw(self, entry: Entry) -> None:
        """The entry is no longer to be had here: nothing of it is kept."""
        offer, entry.offered = entry.offered, None
        if offer is None:
            return
        offer.entry = None
        self._void += 1
        if 2 * self._void > len(self._heap):
            self._heap = [offer for offer in self._heap if offer.entry is not None]
            heapq.heapify(self._heap)
            self._void = 0

    def pop(self, wanted: Callable[[Entry], bool] = lambda _: True) -> Entry | None:
        """Take out the evictable entry of least priority among those wanted, and raise the floor to it."""
        passed: list[Entry] = []
        try:
            return self._first(wanted, passed)
        finally:
            for entry in passed:
                self.offer(entry)

    def _first(self, wanted: Callable[[Entry], bool], passed: list[Entry]) -> Entry | None:
        while self._heap:
            offer = heapq.heappop(self._heap)
            entry = offer.entry
            if entry is None:
                self._void -= 1
                continue
            entry.offered = None
            if not entry.evictable:
                continue
            if priority(entry) > offer.rank:
                self.offer(entry)
                continue
            if not wanted(entry):
                passed.append(entry)
                continue
            self.floor = max(self.floor, offer.rank)
            return entry
        return None
