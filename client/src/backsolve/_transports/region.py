"""Memory of this process that a server on the same machine can map: made here, sealed, and dealt out in slots.

A slot is free again when nothing refers to it any more, a view of it included, so an array that lies in
one stays good for as long as anybody holds it.
"""

import mmap
import os
from collections import deque
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

_PAGE = 4096
"""Slots begin and end on pages, so that two calls never write to the same cache line."""


@final
class Slot:
    """Some bytes of a region, taken for as long as this object lives."""

    def __init__(self, region: "Region", offset: int, nbytes: int) -> None:
        self.region, self.offset, self.nbytes = region, offset, nbytes
        self.__array_interface__ = {
            "version": 3,
            "data": (region.address + offset, False),
            "shape": (nbytes,),
            "typestr": "|u1",
        }

    @property
    def array(self) -> NDArray[np.uint8]:
        """Its bytes; every view of them keeps the slot."""
        return np.asarray(self)

    def __del__(self) -> None:
        # Any thread may be here, at any moment, even inside `take`: no lock, and this is atomic.
        self.region.returned.append((self.offset, _rounded(self.nbytes)))


@final
class Region:
    """Sealed anonymous memory. Not thread-safe, apart from slots that end.

    Args:
        size: in bytes.

    Attributes:
        descriptor: to be passed to the server.
        address: where it is mapped.
        handle: what the server knows it by; None while it knows it not.
        retired: whether it deals out no more slots.
        returned: slots that have ended and are not free yet.

    Raises:
        OSError: there is no such memory here, or not as much.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.handle: str | None = None
        self.retired = False
        self.returned: deque[tuple[int, int]] = deque()
        self._holes: list[tuple[int, int]] = [(0, size)]
        import fcntl  # noqa: PLC0415  (systems that lack it must still be able to load the client)

        self.descriptor = os.memfd_create("backsolve", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            # Taken now: memory that is missing later would end the process that touches it.
            os.posix_fallocate(self.descriptor, 0, size)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._bytes = np.frombuffer(mmap.mmap(self.descriptor, size), dtype=np.uint8)
        except OSError:
            self.forget()
            raise
        self.address = int(self._bytes.ctypes.data)

    @property
    def idle(self) -> bool:
        """Whether no slot is taken."""
        self._collect()
        return self._holes == [(0, self.size)]

    def take(self, nbytes: int) -> Slot | None:
        """A slot, or None if there is no hole of that size."""
        if self.retired:
            return None
        self._collect()
        wanted = _rounded(nbytes)
        for index, (offset, length) in enumerate(self._holes):
            if length >= wanted:
                self._holes[index : index + 1] = [(offset + wanted, length - wanted)] if length > wanted else []
                return Slot(self, offset, nbytes)
        return None

    def holds(self, address: int, nbytes: int) -> bool:
        """Whether some bytes of this process lie in it."""
        return self.address <= address and address + nbytes <= self.address + self.size

    def forget(self) -> None:
        """Close the descriptor; the memory goes when its last slot does."""
        self.retired = True
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            self.forget()

    def _collect(self) -> None:
        """Make holes of the slots that have ended, and one hole of neighbours."""
        if not self.returned:
            return
        while self.returned:
            self._holes.append(self.returned.popleft())
        merged: list[tuple[int, int]] = []
        for offset, length in sorted(self._holes):
            if merged and sum(merged[-1]) == offset:
                merged[-1] = merged[-1][0], merged[-1][1] + length
            else:
                merged.append((offset, length))
        self._holes = merged


def address_of(part: Any) -> int:
    """Where a buffer lies."""
    return int(np.frombuffer(part, dtype=np.uint8).ctypes.data)


def _rounded(nbytes: int) -> int:
    return max(_PAGE, -(-nbytes // _PAGE) * _PAGE)
