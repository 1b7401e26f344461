"""One region: a caller's memory, mapped here, of which only copies are ever looked at.

The caller can write to it at any moment, so nothing here decides anything by what it reads: bytes
are copied out once, into memory of our own, before anybody checks, hashes or computes with them.
What the caller can not do is make the memory disappear: it is anonymous (no path is ever opened) and
sealed against shrinking, since touching a page beyond the end of a file kills the process.
"""

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from backsolve.errors import MalformedError, NotFoundError

Bytes = NDArray[np.uint8]


def check_sealed(descriptor: int) -> int:
    """See that a descriptor is memory that nobody can shrink, grow or unseal.

    Returns:
        Its size in bytes.

    Raises:
        MalformedError: it is not.
    """
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        raise MalformedError("the descriptor is no anonymous memory: make it with memfd_create") from None
    wanted = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    if seals & wanted != wanted:
        raise MalformedError("the memory can change its size: seal it with F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_SEAL")
    if os.fstatvfs(descriptor).f_bsize != mmap.PAGESIZE:
        # A huge page that is not there when it is touched is a SIGBUS; an ordinary one is made.
        raise MalformedError("memory of huge pages is not taken: make it without MFD_HUGETLB")
    size = os.fstat(descriptor).st_size
    if size == 0:
        raise MalformedError("the memory is empty: give it a size before it is sealed")
    return size


@final
class Region:
    """A caller's memory. Thread-safe.

    Args:
        descriptor: checked by `check_sealed`; stays the caller's to close.
        size: in bytes.

    Raises:
        MalformedError: it cannot be mapped for reading and writing.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        try:
            self._map: mmap.mmap | None = mmap.mmap(descriptor, size)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES):
                raise MalformedError("the memory cannot be written to: pass it open for reading and writing") from None
            raise
        self.size = size
        self._view: Bytes | None = np.frombuffer(self._map, dtype=np.uint8)
        self._idle = threading.Condition()
        self._users = 0

    def read(self, offset: int, target: Bytes) -> None:
        """Copy bytes out."""
        self._use(offset, target.size, lambda part: np.copyto(target, part))

    def write(self, offset: int, pieces: Sequence[memoryview]) -> None:
        """Copy pieces in, one after the other."""

        def copy(part: Bytes) -> None:
            position = 0
            for piece in pieces:
                np.copyto(part[position : position + len(piece)], np.frombuffer(piece, dtype=np.uint8))
                position += len(piece)

        self._use(offset, sum(len(piece) for piece in pieces), copy)

    def check(self, offset: int, length: int) -> None:
        """See that some bytes are in the region.

        Raises:
            MalformedError: they are not.
        """
        if length > self.size or offset > self.size - length:
            raise MalformedError("a span ends beyond its region")

    def close(self) -> None:
        """Unmap it, once the copies under way have ended; later ones fail."""
        with self._idle:
            view, self._view = self._view, None
            if view is None:
                return
            self._idle.wait_for(lambda: self._users == 0)
            del view
            if self._map is not None:
                self._map.close()
            self._map = None

    def _use(self, offset: int, length: int, work: Callable[[Bytes], None]) -> None:
        """Do something with some bytes, which stay mapped meanwhile.

        Raises:
            MalformedError: they are not all in the region.
            NotFoundError: it has been released.
        """
        self.check(offset, length)
        with self._idle:
            if self._view is None:
                raise unknown_region()
            part = self._view[offset : offset + length]
            self._users += 1
        try:
            work(part)
        finally:
            del part  # a mapping cannot be closed while a view of it exists
            with self._idle:
                self._users -= 1
                self._idle.notify_all()


def unknown_region() -> NotFoundError:
    """The error of a handle that means nothing (any more)."""
    return NotFoundError("this region is not registered here (any more): register it again", region="unknown")
