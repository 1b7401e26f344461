"""Calls that wait for a block without a thread: the event loop serves others until their tickets have settled."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, final

from ..context import CallContext
from ..scheduling.steps import Steps
from ..scheduling.ticket import Ticket

T = TypeVar("T")

Gone = Callable[[], Coroutine[Any, Any, None]]
"""Returns when the caller has gone away."""

WATCH_AFTER_SECONDS = 0.05
"""A call that takes longer is cancelled when its caller goes away; shorter ones are not worth the watching."""


@final
class Parking:
    """The calls of one event loop that wait; made within that loop.

    However many settle at one word from another thread, it wakes the loop once.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Ticket[Any], asyncio.Future[None]] = {}
        self._rung = False

    async def finish(self, steps: Steps[T], context: CallContext, gone: Gone) -> T:
        """Go through a call, and leave the event loop to others where it waits, at most as long as `context` lasts.

        Args:
            steps: of the call.
            context: of the call; cancelled when the caller goes away in the midst of a long wait.
            gone: tells of that.

        Raises:
            BaseException: of the call.
        """
        try:
            ticket = next(steps)
            while True:
                await self._settled(ticket, context, gone)
                ticket = next(steps)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            steps.close()

    def ring(self) -> None:
        """Some ticket has settled; called on any thread."""
        if not self._rung:
            self._rung = True
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        # First this, so that what settles from now on rings again.
        self._rung = False
        for ticket in [ticket for ticket in self._waiting if ticket.done]:
            future = self._waiting.pop(ticket)
            if not future.done():
                future.set_result(None)

    async def _settled(self, ticket: Ticket[Any], context: CallContext, gone: Gone) -> None:
        future = self._loop.create_future()
        self._waiting[ticket] = future
        ticket.bell = self
        if ticket.done:  # it may have settled before it knew whom to tell
            self.ring()
        ticket.heed(context)
        left, watches = context.remaining(), list[asyncio.Task[None]]()
        timers = [
            self._loop.call_later(
                WATCH_AFTER_SECONDS, lambda: watches.append(self._loop.create_task(_cancel(context, gone)))
            )
        ]
        if left is not None:
            timers.append(self._loop.call_later(max(left, 0.0), ticket.expire))
        try:
            await future
        finally:
            self._waiting.pop(ticket, None)
            for timer in timers:
                timer.cancel()
            for ended in watches:
                ended.cancel()


async def _cancel(context: CallContext, gone: Gone) -> None:
    """Cancel a call when its caller goes away; on another thread, since whoever listens may take a lock."""
    await gone()
    await asyncio.get_running_loop().run_in_executor(None, context.cancel)
