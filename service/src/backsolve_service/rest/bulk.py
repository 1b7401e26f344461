"""Large bodies go from the socket straight into their buffer, past the parser of HTTP; small replies straight out.

On the usual way each byte is copied four times between the socket and the application: into an object of the event
loop's, one of the parser's, and two of the server's. Of a body whose length is known the parser has nothing to find, so
once a request has room for what is left of its body, a protocol that only receives stands in for the one that parses.

A small call is the opposite: its body is there when it begins, and its reply is ready when it is sent. The messages of
ASGI for that cost as much as the numerics of n = 100, so such a body is taken and such a reply written in one go.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast, final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

EXTENSION = "backsolve.wire"
"""Name of the extension in the scope of ASGI: a `Wire`."""

LEAST_BYTES = 256 << 10
"""A smaller rest of a body comes in one piece or two, for which nothing is exchanged."""

MOST_AT_ONCE = 4 << 20
"""Bytes read at a time; a few socket buffers, so that other connections get their turn in between."""

Progress = Callable[[int], None]
"""Hears how many bytes are there, whenever some have come."""

Into = Callable[[memoryview, Progress], Awaitable[int]]
"""Fills room with the rest of the body, which is exactly as long.

Returns the number of bytes, fewer if the caller has gone. To be awaited once all that came before has been taken.
"""

_JOINED_BYTES = 16 << 10
"""A body that is copied in less time than it takes to name its pieces to the system."""

_SKIPPED = bytes(1 << 20)


@final
class BulkProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a `Wire` for each request."""

    _skipping = False

    def on_headers_complete(self) -> None:
        """A request has been read up to its body; the task that answers it has not begun."""
        super().on_headers_complete()
        if self.cycle is not None and self.cycle.scope is self.scope:
            extensions: Any = {EXTENSION: Wire(self, self.cycle)}
            self.scope["extensions"] = extensions

    def on_body(self, body: bytes) -> None:
        """Some of a body has been parsed."""
        if not self._skipping:
            super().on_body(body)

    async def _into(self, room: memoryview, progress: Progress) -> int:
        receiver = _Receiver(self, room, progress)
        self.transport.set_protocol(receiver)
        self.flow.resume_reading()
        try:
            await receiver.ended
        finally:
            if not self.transport.is_closing():
                self.transport.set_protocol(self)
                self._catch_up(receiver.filled, len(room))
        return receiver.filled

    def _catch_up(self, received: int, size: int) -> None:
        """Bring the parser to where the connection is."""
        if received == size:
            # What follows is another request, for which a new parser is the same as one that has read this body.
            self.parser = type(self.parser)(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self.cycle.more_body = False
            return
        self._skipping = True
        try:
            for start in range(0, received, len(_SKIPPED)):
                self.parser.feed_data(_SKIPPED[: received - start])
        finally:
            self._skipping = False


@final
class Wire:
    """One request's way past the messages of ASGI; whatever is not plain is left to them.

    Args:
        protocol: of the connection.
        cycle: uvicorn's record of the request.
    """

    __slots__ = ("_cycle", "_protocol")

    def __init__(self, protocol: BulkProtocol, cycle: Any) -> None:
        self._protocol, self._cycle = protocol, cycle

    @property
    def into(self) -> Into | None:
        """How the rest of a large body is received; None under TLS, whose bytes have to be decrypted anyway."""
        return self._protocol._into if self._protocol.scheme == "http" else None

    def arrived(self) -> bytearray | None:
        """The whole body, which is the caller's from now on; None: some of it is still to come, or to be asked for."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue:
            return None
        body, cycle.body = cycle.body, bytearray()
        self._protocol.flow.resume_reading()
        return cast("bytearray", body)

    def answer(self, status: int, headers: bytes, pieces: Sequence[bytes | memoryview]) -> bool:
        """Write a whole reply, by one call of the system as far as the socket has room.

        Args:
            status: of HTTP.
            headers: lines with their ends, Content-Length among them; none of them from outside.
            pieces: of the body, which is as long as they say; nobody writes to them any more.

        Returns:
            False: nothing was done; it has to be sent as messages.
        """
        cycle, protocol = self._cycle, self._protocol
        plain = cycle.keep_alive and not cycle.response_started and cycle.scope["method"] != "HEAD"
        if not plain or cycle.disconnected or protocol.flow.write_paused:
            return False
        cycle.response_started = cycle.response_complete = True
        own = b"".join([b"%b: %b\r\n" % header for header in cycle.default_headers])
        head = (STATUS_LINE[status], own, headers, b"\r\n")
        if sum(map(len, pieces)) <= _JOINED_BYTES:
            protocol.transport.write(b"".join((*head, *pieces)))
        else:
            protocol.transport.writelines((b"".join(head), *pieces))
        cycle.message_event.set()
        cycle.on_response()
        return True


@final
class _Receiver(asyncio.BufferedProtocol):
    """Stands in for a protocol of HTTP until room is filled; everything but bytes is passed on to it."""

    def __init__(self, http: BulkProtocol, room: memoryview, progress: Progress) -> None:
        self._http, self._room, self._progress = http, room, progress
        self.filled = 0
        self.ended: asyncio.Future[None] = http.loop.create_future()

    def get_buffer(self, sizehint: int) -> Any:
        """Where the next bytes go."""
        return self._room[self.filled : self.filled + MOST_AT_ONCE]

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        self.filled += nbytes
        self._progress(self.filled)
        if self.filled == len(self._room):
            # Whatever the caller sends beyond the body waits until the parser is back.
            self._http.flow.pause_reading()
            self._end()

    def eof_received(self) -> None:
        """The caller sends nothing more."""
        self._http.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._http.connection_lost(exc)
        self._end()

    def pause_writing(self) -> None:
        """Nothing is written meanwhile but an answer that came early."""
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """The same."""
        self._http.resume_writing()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
