"""Hashes the body of an upload on threads while the event loop receives the rest of it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import final

import numpy as np
from numpy.typing import NDArray

from backsolve._rest.body import Span, announced
from backsolve._rest.messages import read_shape, read_storage
from backsolve.errors import BacksolveError
from backsolve.fingerprint import Taken
from backsolve.pattern import DensePattern, Pattern, StructuredPattern

from ..arriving import UploadDigests

PIECE_BYTES = 1 << 20
"""Less than this is not worth the switch of threads."""

_LAYOUTS = (Pattern.layout, DensePattern.layout, StructuredPattern.layout)


@final
class BodyDigests:
    """The digests of one upload. Its methods are for the event loop's thread; one piece at a time is hashed on another.

    Args:
        pool: threads.
        held_layout: the layout of the pattern that is held, for values that come alone; may raise a `BacksolveError`.
    """

    def __init__(self, pool: Executor, held_layout: Callable[[], str]) -> None:
        self._pool, self._held_layout = pool, held_layout
        self._buffer: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._arrived = self._hashed = 0
        self._digests: UploadDigests | None = None
        self._spans: list[tuple[str, Span]] | None = None
        self._under_way: asyncio.Future[None] | None = None

    def came(self, buffer: NDArray[np.uint8], position: int) -> None:
        """So much of the body is in its buffer."""
        self._buffer, self._arrived = buffer, position
        if self._under_way is None and position - self._hashed >= PIECE_BYTES:
            self._go_on()

    async def taken(self) -> Taken:
        """The digests, when the whole body has come."""
        while self._under_way is not None or self._hashed < self._arrived:
            if self._under_way is None:
                self._go_on()
            assert self._under_way is not None
            await asyncio.wait((self._under_way,))
        return Taken() if self._digests is None else self._digests.taken

    def _go_on(self) -> None:
        loop = asyncio.get_running_loop()
        self._under_way = loop.run_in_executor(self._pool, self._hash, self._arrived)
        self._under_way.add_done_callback(self._went)

    def _went(self, done: "asyncio.Future[None]") -> None:
        self._under_way = None
        if done.cancelled() or done.exception() is not None:
            self._digests, self._spans = None, []
        self.came(self._buffer, self._arrived)

    def _hash(self, end: int) -> None:
        """On a thread: everything up to byte `end`."""
        if self._spans is None:
            self._spans = self._plan(end)
        if self._spans is None:
            return
        for name, span in self._spans:
            assert self._digests is not None
            stop = min(span.end, end)
            for start in range(max(span.begin, self._hashed), stop, PIECE_BYTES):
                self._digests.add(name, self._buffer[start : min(start + PIECE_BYTES, stop)])
        self._hashed = end

    def _plan(self, arrived: int) -> list[tuple[str, Span]] | None:
        """The tensors in their order; none if the body is none of an upload, which others will say."""
        try:
            read = announced(self._buffer, arrived)
            if read is None:
                return None
            spans, document = read
            alone = bool(document.get("values_only"))
            layout = self._held_layout() if alone else document.get("layout")
            shape = read_shape(document["shape"]) if layout == "csr" and not alone and "shape" in document else None
            storage = "general" if shape is None else read_storage(document, shape)
        except BacksolveError:
            return []
        if layout not in _LAYOUTS:
            return []
        self._digests = UploadDigests(
            layout, shape, storage, {name: (span.dtype, span.shape) for name, span in spans.items()}
        )
        return sorted(spans.items(), key=lambda item: item[1].begin)
