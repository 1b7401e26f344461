"""Does the steps of calls over one transport, and awaits them."""

import asyncio
from typing import TypeVar, final

from .._protocol import Exchange, Pause, Step, Steps, Warn
from .._session import warn
from .._steps import at_once, drive_async
from .base import AsyncTransport
from .threads import Threads

_MOST_THREADS = 4

T = TypeVar("T")


@final
class AsyncSession:
    """One transport, and what is kept from call to call; for the tasks of any number of event loops.

    Args:
        transport: what carries the calls.
        timeout: seconds for each call unless it says otherwise; None waits for ever.
    """

    def __init__(self, transport: AsyncTransport, timeout: float | None) -> None:
        self.transport = transport
        self.exchange = Exchange(timeout)
        self._threads = Threads(_MOST_THREADS)

    async def run(self, steps: Steps[T], *, heavy: bool) -> T:
        """Do what a call asks for until it has its result.

        Args:
            steps: the call.
            heavy: whether what it does between its steps takes long, so that it must not be done on the event loop.

        Raises:
            BacksolveError: the call has failed.
        """
        return await drive_async(steps, self._do, self._threads.run if heavy else at_once)

    async def close(self) -> None:
        """Free what the transport holds."""
        self._threads.close()
        await self.transport.close()

    async def _do(self, step: Step) -> object:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        if isinstance(step, Warn):
            warn(step)
            return None
        return await self.transport.carry(step.call, step.left)
