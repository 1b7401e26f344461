"""A bounded pool of connections that are awaited; `_transports.connection` is its sibling for threads."""

import asyncio
import ssl
import threading
from collections.abc import Sequence
from typing import final
from weakref import WeakKeyDictionary

from .._fork import renew_after_fork
from .._transports.connection import (
    CONNECT_SECONDS,
    StaleError,
    broken_off,
    is_quiet,
    not_connected,
    out_of_time,
    unanswered,
)
from .._transports.http import HttpRequest
from .._transports.reply import HttpReply, NoReplyError, parse_reply
from ..config import Endpoint
from ..errors import CancelledError
from .sockets import Stream, open_stream

MOST_CONNECTIONS = 64
"""In use at once by one event loop; further calls wait for one, within their time."""


@final
class AsyncConnectionPool:
    """Connections to one server, shared by the tasks of any number of event loops, renewed after a fork.

    Args:
        endpoint: where it listens.
        tls: context of an https server, else None.
    """

    def __init__(self, endpoint: Endpoint, tls: ssl.SSLContext | None) -> None:
        self._endpoint, self._tls = endpoint, tls
        self._idle: list[Stream] = []
        self._lock = threading.Lock()
        self._closed = False
        # A semaphore that tasks have waited on belongs to their loop.
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        renew_after_fork(self, AsyncConnectionPool._renew)

    async def exchange(self, request: HttpRequest) -> HttpReply:
        """Send one request and read its whole reply; over a connection that turns out to be dead, once more.

        Cancelled, it closes the connection, by which the server learns that nobody waits.

        Raises:
            DeadlineError: the time is over.
            UnreachableError: no connection, or it broke.
        """
        try:
            async with asyncio.timeout(request.timeout), self._turn():
                return await self._exchange(request)
        except TimeoutError:
            raise out_of_time() from None

    def close(self) -> None:
        """Close idle connections now, and those in use when their call ends."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for stream in idle:
            stream.close()

    def _renew(self) -> None:
        """In a forked child: the parent's sockets are left to it, and its lock may be held for ever."""
        self._lock = threading.Lock()
        idle, self._idle = self._idle, []
        self._turns = WeakKeyDictionary()
        for stream in idle:
            stream.close()

    def _turn(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        with self._lock:
            turns = self._turns.get(loop)
            if turns is None:
                turns = self._turns[loop] = asyncio.Semaphore(MOST_CONNECTIONS)
            return turns

    async def _exchange(self, request: HttpRequest) -> HttpReply:
        parts = (memoryview(request.head), *request.body.parts)
        if (stream := self._take()) is not None:
            try:
                return await self._attempt(stream, request.method, parts)
            except StaleError:
                pass  # it was closed while it lay idle: repeat on a fresh one, every call is idempotent
        try:
            return await self._attempt(await self._connect(), request.method, parts)
        except StaleError as err:
            raise unanswered(self._endpoint) from err.__cause__

    async def _attempt(self, stream: Stream, method: str, parts: Sequence[memoryview]) -> HttpReply:
        try:
            reply, keep = await _converse(stream, method, parts)
        except OSError as err:
            stream.close()
            raise broken_off(self._endpoint, err) from err
        except BaseException:
            stream.close()
            raise
        if keep:
            self._give_back(stream)
        else:
            stream.close()
        return reply

    async def _connect(self) -> Stream:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await open_stream(self._endpoint, self._tls)
        except OSError as err:
            raise not_connected(self._endpoint, err) from err

    def _take(self) -> Stream | None:
        """The idle connection used last, unless the server has closed it meanwhile."""
        while True:
            with self._lock:
                if self._closed:
                    raise CancelledError("the client is closed: make a new one")
                stream = self._idle.pop() if self._idle else None
            if stream is None or is_quiet(stream.socket):
                return stream
            stream.close()

    def _give_back(self, stream: Stream) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < MOST_CONNECTIONS:
                self._idle.append(stream)
                return
        stream.close()


async def _converse(stream: Stream, method: str, parts: Sequence[memoryview]) -> tuple[HttpReply, bool]:
    """One request and its reply; the flag tells whether the connection may be used again."""
    broken: OSError | None = None
    try:
        await stream.send(parts)
    except (BrokenPipeError, ConnectionResetError) as err:
        broken = err  # a server that refuses early may have said why before it closed
    try:
        reply, keep = await _read(stream, method)
    except NoReplyError as err:
        raise StaleError from (broken or err)
    return reply, keep and broken is None


async def _read(stream: Stream, method: str) -> tuple[HttpReply, bool]:
    reading = parse_reply(method)
    try:
        room = next(reading)
        while True:
            try:
                count = await stream.receive(room)
            except ConnectionError as err:
                room = reading.throw(err)
            else:
                room = reading.send(count)
    except StopIteration as end:
        read: tuple[HttpReply, bool] = end.value
        return read
