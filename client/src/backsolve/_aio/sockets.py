"""Sockets that are awaited: bytes go out and come in without a copy, over TLS with the two that it takes.

They belong to no event loop between two calls, so that a pool of them serves whichever loop asks.
"""

import asyncio
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, final

import numpy as np

from .._transports.connection import GATHER, SLICE
from ..config import Endpoint

_RECORDS = 256 << 10
_YIELD_BYTES = 256 << 10
"""A socket that always has more would keep the loop for itself: after this much at once others get their turn."""


class Stream(ABC):
    """A connected socket.

    Attributes:
        socket: the socket itself; not blocking.
    """

    socket: socket.socket

    @abstractmethod
    async def send(self, parts: Sequence[memoryview]) -> None:
        """Send all parts.

        Raises:
            OSError: the connection broke.
        """

    @abstractmethod
    async def receive(self, room: memoryview) -> int:
        """Bytes that were put into `room`, as many as there are; 0 at the end.

        Raises:
            OSError: the connection broke.
        """

    def close(self) -> None:
        """End the connection at once."""
        self.socket.close()


@final
class PlainStream(Stream):
    """Bytes as they are."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected

    async def send(self, parts: Sequence[memoryview]) -> None:
        """Send all parts, in as few system calls as the socket's buffer allows."""
        waiting = list(parts)
        while waiting:
            try:
                sent = self.socket.sendmsg(waiting[:GATHER])
            except (BlockingIOError, InterruptedError):
                # The buffer is full: the loop says when there is room.
                piece = waiting[0][:SLICE]
                await asyncio.get_running_loop().sock_sendall(self.socket, piece)
                sent = len(piece)
            while waiting and sent >= len(waiting[0]):
                sent -= len(waiting.pop(0))
            if sent:
                waiting[0] = waiting[0][sent:]

    async def receive(self, room: memoryview) -> int:
        """Read straight into `room`."""
        count = await asyncio.get_running_loop().sock_recv_into(self.socket, room)
        if count >= _YIELD_BYTES:
            await asyncio.sleep(0)
        return count


@final
class TlsStream(Stream):
    """Bytes over TLS, whose records are made and read in memory.

    Args:
        connected: the socket.
        context: how certificates are checked.
        name: of the server, which its certificate must bear.
    """

    def __init__(self, connected: socket.socket, context: ssl.SSLContext, name: str) -> None:
        self.socket = connected
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._records = np.empty(_RECORDS, dtype=np.uint8).data

    async def handshake(self) -> None:
        """Agree on keys.

        Raises:
            OSError: the other side's certificate is not trusted, or it does not speak TLS.
        """
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._flush()
                await self._feed()
            except ssl.SSLError:
                await self._flush()  # it says why, before it closes
                raise
        await self._flush()

    async def send(self, parts: Sequence[memoryview]) -> None:
        """Encrypt and send all parts, a slice at a time."""
        for part in parts:
            position = 0
            while position < len(part):
                position += self._tls.write(part[position : position + SLICE])
                await self._flush()

    async def receive(self, room: memoryview) -> int:
        """Decrypt into `room`; an end without TLS's own farewell counts as one: HTTP says how long a body is."""
        while True:
            try:
                count: Any = self._tls.read(len(room), room)  # of bytes, since there is a buffer
                return int(count)
            except ssl.SSLWantReadError:
                await self._flush()
                await self._feed()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return 0

    async def _flush(self) -> None:
        """Send the records that are ready."""
        if self._outgoing.pending:
            await asyncio.get_running_loop().sock_sendall(self.socket, self._outgoing.read())

    async def _feed(self) -> None:
        """Take in what has come."""
        count = await asyncio.get_running_loop().sock_recv_into(self.socket, self._records)
        if count:
            self._incoming.write(self._records[:count])
        else:
            self._incoming.write_eof()
        if count >= _YIELD_BYTES:
            await asyncio.sleep(0)


async def open_stream(endpoint: Endpoint, tls: ssl.SSLContext | None) -> Stream:
    """Connect to an endpoint, by the first of its addresses that accepts.

    Raises:
        OSError: none does, or it cannot be trusted.
    """
    if endpoint.path:
        return PlainStream(await _connected(socket.AF_UNIX, socket.SOCK_STREAM, 0, endpoint.path))
    refusal: OSError | None = None
    for family, kind, protocol, _, address in await _addresses(endpoint.host, endpoint.port):
        try:
            connected = await _connected(family, kind, protocol, address)
        except OSError as err:
            refusal = err
            continue
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is None:
            return PlainStream(connected)
        stream = TlsStream(connected, tls, endpoint.host)
        try:
            await stream.handshake()
        except BaseException:
            stream.close()
            raise
        return stream
    raise refusal or OSError("the name has no address")


async def _connected(family: int, kind: int, protocol: int, address: object) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, address)  # type: ignore[arg-type]
    except BaseException:
        made.close()
        raise
    return made


async def _addresses(host: str, port: int) -> list[tuple[int, int, int, str, object]]:
    try:  # an address needs no look-up, and so no thread
        return [*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)]
    except socket.gaierror:
        return [*await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)]
