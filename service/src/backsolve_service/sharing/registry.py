"""Every region that is mapped now, by its handle, within limits."""

import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from backsolve._shared.spans import Span
from backsolve.errors import MemoryBudgetError

from .region import Region, check_sealed, unknown_region

_HANDLE_BYTES = 16


@final
@dataclass(frozen=True, slots=True)
class Quotas:
    """How much callers may share.

    Attributes:
        total_bytes, total_regions: of all callers.
        caller_bytes, caller_regions: of one connection to the control socket.
    """

    total_bytes: int
    caller_bytes: int
    total_regions: int
    caller_regions: int


@final
class Registry:
    """The regions of all callers. Thread-safe.

    Args:
        quotas: what they may share.
    """

    def __init__(self, quotas: Quotas) -> None:
        self.quotas = quotas
        self._lock = threading.Lock()
        self._regions: dict[str, tuple[object, Region]] = {}

    @property
    def regions(self) -> int:
        """How many are mapped."""
        return len(self._regions)

    @property
    def nbytes(self) -> int:
        """Their size together."""
        with self._lock:
            return sum(region.size for _, region in self._regions.values())

    def add(self, owner: object, descriptor: int) -> str:
        """Map a caller's memory.

        Args:
            owner: the connection that it came over.
            descriptor: the memory; the caller of this closes it.

        Returns:
            The handle, which only this caller learns.

        Raises:
            MalformedError: not memory that is safe to map.
            MemoryBudgetError: a quota is used up.
        """
        size = check_sealed(descriptor)
        with self._lock:
            self._check_quotas(owner, size)
            handle = secrets.token_hex(_HANDLE_BYTES)
            self._regions[handle] = owner, Region(descriptor, size)
        return handle

    def drop(self, owner: object, handle: str) -> None:
        """Unmap a region: when this returns, nothing reads or writes it any more.

        Raises:
            NotFoundError: this caller has no such region.
        """
        with self._lock:
            found = self._regions.get(handle)
            if found is None or found[0] is not owner:
                raise unknown_region()
        self._close(handle, found[1])

    def drop_all(self, owner: object) -> None:
        """Unmap all regions of a caller that has gone."""
        with self._lock:
            theirs = [(handle, region) for handle, (by, region) in self._regions.items() if by is owner]
        for handle, region in theirs:
            self._close(handle, region)

    def gather(self, inline: NDArray[np.uint8], spans: Sequence[Span], whole: NDArray[np.uint8]) -> None:
        """Put a message together in memory of our own: what came in the body, then the spans.

        Args:
            inline: what came in the body.
            spans: the rest.
            whole: as long as both; all of it is written.

        Raises:
            NotFoundError: a region is not registered.
            MalformedError: a span is not in its region.
        """
        whole[: inline.size] = inline
        position = inline.size
        for span in spans:
            self._region(span).read(span.offset, whole[position : position + span.length])
            position += span.length

    def scatter(self, span: Span, pieces: Sequence[memoryview]) -> Span:
        """Write pieces to the beginning of a span, one after the other; they fit.

        Returns:
            The part that was written.

        Raises:
            NotFoundError: the region is not registered any more.
            MalformedError: the span is not in its region.
        """
        self._region(span).write(span.offset, pieces)
        return Span(span.handle, span.offset, sum(len(piece) for piece in pieces))

    def check(self, span: Span) -> None:
        """See that a span lies in a region that is registered.

        Raises:
            NotFoundError, MalformedError: it does not.
        """
        self._region(span).check(span.offset, span.length)

    def _region(self, span: Span) -> Region:
        found = self._regions.get(span.handle)
        if found is None:
            raise unknown_region()
        return found[1]

    def _close(self, handle: str, region: Region) -> None:
        """Counted until it is unmapped: a quota that a copy under way still uses is not free."""
        region.close()
        with self._lock:
            self._regions.pop(handle, None)

    def _check_quotas(self, owner: object, size: int) -> None:
        everything = [(by, region.size) for by, region in self._regions.values()]
        theirs = [used for by, used in everything if by is owner]
        quotas = self.quotas
        limits = (
            (len(theirs), 1, quotas.caller_regions, "regions a caller", "CLIENT_REGIONS"),
            (len(everything), 1, quotas.total_regions, "regions in all", "REGIONS"),
            (sum(theirs), size, quotas.caller_bytes, "bytes of shared memory a caller", "CLIENT_BYTES"),
            (sum(used for _, used in everything), size, quotas.total_bytes, "bytes of shared memory in all", "BYTES"),
        )
        for used, more, limit, what, variable in limits:
            if used + more > limit:
                raise MemoryBudgetError(
                    f"at most {limit} {what} are mapped, {used} are, and {more} more were asked for: release some, or "
                    f"raise BACKSOLVE_SHARED_{variable}",
                    limit=limit,
                    size=more,
                )
