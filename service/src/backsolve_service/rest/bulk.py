"""Large bodies go from the socket straight into their buffer, past the parser of HTTP.

On the usual way each byte is copied four times between the socket and the application: into an object of the event
loop's, one of the parser's, and two of the server's. Of a body whose length is known the parser has nothing to find, so
once a request has room for what is left of its body, a protocol that only receives stands in for the one that parses.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

EXTENSION = "backsolve.into"
"""Name of the extension in the scope of ASGI: `Into`."""

ARRIVED = "backsolve.arrived"
"""Name of the extension `Arrived`."""

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

Arrived = Callable[[], bool]
"""Whether the whole body is there, so that one `receive` gives all of it without waiting."""

_SKIPPED = bytes(1 << 20)


@final
class BulkProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which tells whether a body has `Arrived`, and offers `Into` to requests without TLS."""

    _skipping = False

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        extensions: Any = {ARRIVED: self._arrived}
        if self.scheme == "http":
            extensions[EXTENSION] = self._into
        self.scope["extensions"] = extensions

    def on_body(self, body: bytes) -> None:
        """Some of a body has been parsed."""
        if not self._skipping:
            super().on_body(body)

    def _arrived(self) -> bool:
        # Where a later request has been parsed already this speaks of that one, and is wrong only in saying no.
        return not self.cycle.more_body

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
