"""Calls that block, made on threads while a task awaits them."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar, final

import numpy as np

from .._fork import renew_after_fork
from .._transports.base import Call, Transport, carry
from .._transports.recall import CURRENT, Recall
from ..errors import CancelledError, DeadlineError
from ..types import Array
from .base import AsyncTransport

MOST_THREADS = 32
"""Calls of one transport under way at once; further ones wait for a thread, within their time."""

T = TypeVar("T")


@final
class Threads:
    """A few threads, started when they are needed, and anew after a fork.

    Args:
        most: how many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._renew()
        renew_after_fork(self, Threads._renew)

    def _renew(self) -> None:
        self._pool = ThreadPoolExecutor(self._most, thread_name_prefix="backsolve-async")

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns, or raises, on one of them, in the context of the awaiting task."""
        context = copy_context()
        try:
            future = self._pool.submit(context.run, work)
        except RuntimeError:  # "cannot schedule new futures after shutdown"
            raise CancelledError("the client is closed: make a new one") from None
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Let them end after what they are doing."""
        self._pool.shutdown(wait=False)


@final
class ThreadedTransport(AsyncTransport):
    """A transport that blocks, on threads of its own: the engine in this process, and gRPC.

    A cancelled call is taken back: gRPC tells its server, the embedded engine stops at its next step. A transport
    that says nothing of how (`_transports.recall`) works on to its end, unheeded, and its thread with it.

    Args:
        transport: what carries the calls.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._threads = Threads(MOST_THREADS)

    async def carry(self, call: Call, timeout: float | None) -> object:
        """Make a call on the next thread that is free."""
        deadline = None if timeout is None else time.monotonic() + timeout
        recall = Recall()

        def work() -> object:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise DeadlineError(
                    f"no thread was free in time, {MOST_THREADS} calls are under way: raise timeout=, or ask less"
                )
            CURRENT.set(recall)
            return carry(self.transport, call, left)

        try:
            return await self._threads.run(work)
        except asyncio.CancelledError:
            recall.take()
            raise

    async def empty(self, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> Array:
        """An array of the transport's, which may first have to ask its server."""
        return await self._threads.run(lambda: self.transport.empty(shape, dtype))

    async def close(self) -> None:
        """Close the transport, which may have to wait for work under way."""
        closing = Threads(1)
        try:
            await closing.run(self.transport.close)
        finally:
            closing.close()
            self._threads.close()
