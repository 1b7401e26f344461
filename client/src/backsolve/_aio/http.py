"""Calls over REST, awaited."""

from typing import final

from .._steps import drive_async
from .._transports.base import Call
from .._transports.http import RestCalls, tls_context
from ..config import Endpoint
from .base import AsyncTransport
from .connection import AsyncConnectionPool


@final
class AsyncHttpTransport(AsyncTransport):
    """REST over sockets that the event loop watches.

    Args:
        endpoint: of the scheme http, https or unix.

    Raises:
        InvalidOptionError: the CA file cannot be read, or the token cannot be a header.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._calls = RestCalls(endpoint)
        self._pool = AsyncConnectionPool(endpoint, tls_context(endpoint))

    async def carry(self, call: Call, timeout: float | None) -> object:
        """Make a call; cancelled, it closes the connection."""
        return await drive_async(self._calls.carry(call, timeout), self._pool.exchange)

    async def close(self) -> None:
        """Close the connections."""
        self._pool.close()
