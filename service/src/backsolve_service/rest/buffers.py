"""Buffers for large bodies that are used again: the pages of a fresh one cost as much as filling it.

A buffer comes back when nothing refers to it any more, views of it included. Bodies that stay (uploads)
have buffers of their own.
"""

from collections import deque
from typing import final

import numpy as np
from numpy.typing import NDArray

from backsolve._rest.body import aligned

LEAST_BYTES = 1 << 20
"""Smaller ones are quickly made."""

KEPT_BYTES = 128 << 20
"""More than this is not kept for later."""

_SLACK = 8
"""A buffer serves if it is larger than what is asked for by at most this fraction of its size."""


@final
class Buffers:
    """A few buffers of the sizes that were needed last. Thread-safe, without a lock."""

    def __init__(self) -> None:
        self._kept: deque[NDArray[np.uint8]] = deque()

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """An uninitialised buffer on a 64-byte boundary."""
        if nbytes < LEAST_BYTES:
            return aligned(nbytes)
        return np.asarray(_Block(self, self._find(nbytes)))[:nbytes]

    def give_back(self, memory: NDArray[np.uint8]) -> None:
        """Keep some memory; what was kept longest goes when it becomes too much."""
        self._kept.append(memory)
        try:
            while sum(block.size for block in tuple(self._kept)) > KEPT_BYTES:
                self._kept.popleft()
        except (IndexError, RuntimeError):
            pass  # another thread is here as well

    def _find(self, nbytes: int) -> NDArray[np.uint8]:
        for _ in range(len(self._kept)):
            try:
                memory = self._kept.pop()
            except IndexError:
                break
            if nbytes <= memory.size <= nbytes + memory.size // _SLACK:
                return memory
            self._kept.appendleft(memory)
        return aligned(nbytes)


@final
class _Block:
    """A buffer in use; arrays keep it as their base."""

    def __init__(self, pool: Buffers, memory: NDArray[np.uint8]) -> None:
        self._pool, self._memory = pool, memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        # Any thread may be here, at any moment: nothing below takes a lock.
        self._pool.give_back(self._memory)
