"""Matrices of training steps that are over: which of them go although there is room.

A job whose values change in each step leaves one matrix and one factor behind by every step, and none of them is
asked for again. Kept until the budget is full, they are memory touched for the first time in each step, which takes
longer than to solve with it, and they drive out what others share. So they have a small part of the budget to
themselves, as a queue, and their memory serves the next ones. The digests of those that went are remembered a while:
should one of them come back, this pattern's matrices do recur, and from then on they are kept like any others.

Source: the small queue and the ghost queue of S3-FIFO, Yang et al., "FIFO queues are all you need for cache
eviction", SOSP 2023; here by pattern, since a job's values share one.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, final

from backsolve.types import MatrixRef

from .entries import MatrixEntry, R

_SHARE = 32
"""The part of the budget that they have is one in so many."""

_LAST = 4
"""So many stay, however large: a line search goes back to the values before."""

_REMEMBERED = 1 << 14
"""Digests of matrices that went."""


@final
class Bygones(Generic[R]):
    """Superseded matrices by age, and the digests of those that went. Not thread-safe.

    Args:
        budget_bytes: of the whole cache.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._room = budget_bytes // _SHARE
        self._waiting: OrderedDict[MatrixEntry[R], int] = OrderedDict()
        self._held = 0
        self._went: OrderedDict[tuple[str, MatrixRef], None] = OrderedDict()

    def add(self, entry: MatrixEntry[R]) -> None:
        """Newer values came on its pattern."""
        if entry.live and entry.superseded and not entry.pattern.recurs:
            nbytes = entry.nbytes + sum(factor.nbytes for factor in entry.factors.values())
            self._waiting[entry] = nbytes
            self._held += nbytes

    def due(self) -> Iterator[MatrixEntry[R]]:
        """Those to drop now, the oldest first; each is taken from the queue, and to be added again if it stays."""
        for _ in range(len(self._waiting) - _LAST):
            if self._held <= self._room:
                return
            entry = next(iter(self._waiting))
            self.remove(entry)
            if entry.superseded and not entry.pattern.recurs:
                yield entry

    def remove(self, entry: MatrixEntry[R]) -> None:
        """It was dropped, or counts as any other from now on."""
        self._held -= self._waiting.pop(entry, 0)

    def went(self, entry: MatrixEntry[R]) -> None:
        """It was dropped because it was due."""
        self._went[entry.tenant, entry.ref] = None
        if len(self._went) > _REMEMBERED:
            self._went.popitem(last=False)

    def returned(self, entry: MatrixEntry[R]) -> bool:
        """Whether a matrix that is taken in is one of those that went."""
        return self._went.pop((entry.tenant, entry.ref), self) is None
