"""Does the steps of calls over the transports of a client, and awaits them."""

import asyncio
import socket
from collections.abc import Sequence
from typing import Any, TypeVar, final

from .._fleet import Replica
from .._protocol import Dismiss, Exchange, LookUp, Pause, Send, Step, Steps, Warn
from .._session import addresses_of, no_address, warn
from .._steps import at_once, drive_async
from ..config import Endpoint
from .base import AsyncTransport
from .entry import connect_async
from .threads import Threads

_MOST_THREADS = 4

T = TypeVar("T")


@final
class AsyncSession:
    """The transports to the replicas of one service, and what is kept from call to call.

    For the tasks of any number of event loops.

    Args:
        endpoints: of the replicas.
        timeout: seconds for each call unless it says otherwise; None waits for ever.
        transport: carries the calls to the one replica, in place of what its endpoint names.
    """

    def __init__(self, endpoints: Sequence[Endpoint], timeout: float | None, transport: AsyncTransport | None) -> None:
        self.exchange = Exchange(endpoints, timeout)
        self._threads = Threads(_MOST_THREADS)
        self._closed = False
        for replica in self.exchange.fleet.members:
            replica.carried_by(transport or connect_async(replica.endpoint))

    @property
    def transports(self) -> list[AsyncTransport]:
        """Those that are open, in the order in which the replicas were named."""
        found = (replica.carrier for replica in self.exchange.fleet.members)
        return [transport for transport in found if transport is not None]

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
        """Free what the transports hold."""
        self._closed = True
        self._threads.close()
        for replica in self.exchange.fleet.known:
            if replica.carrier is not None:
                await replica.carrier.close()

    async def _do(self, step: Step) -> Any:
        match step:
            case Send():
                transport: AsyncTransport = step.to.carrier or await self._opened(step.to)
                return await transport.carry(step.call, step.left)
            case Pause():
                await asyncio.sleep(step.seconds)
            case Warn():
                warn(step)
            case LookUp():
                return await _look_up(step.endpoint)
            case Dismiss():
                if step.replica.carrier is not None:
                    await step.replica.carrier.close()
        return None

    async def _opened(self, replica: Replica) -> AsyncTransport:
        """The transport to a replica whose address was looked up."""
        transport = connect_async(replica.endpoint)
        if self._closed:
            await transport.close()
        carrier: AsyncTransport = replica.carried_by(transport)
        return carrier


async def _look_up(endpoint: Endpoint) -> list[str]:
    loop = asyncio.get_running_loop()
    try:
        return addresses_of(await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM))
    except OSError as err:
        raise no_address(endpoint) from err
