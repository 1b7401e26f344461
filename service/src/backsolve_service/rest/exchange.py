"""One HTTP request and its reply, at the level of ASGI messages.

Bodies are read into a single buffer sized from a checked Content-Length, and replies leave in
slices of 4 MiB: the event loop only moves bytes, it never parses, hashes or joins bulk.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from backsolve._rest.body import aligned
from backsolve.errors import InvalidOptionError, MalformedError, PayloadTooLargeError

from ..context import PUBLIC_TENANT, new_request_id
from .bulk import EXTENSION, LEAST_BYTES, Wire
from .problems import PROBLEM_TYPE, Problem, problem_of

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

SLICE = 4 << 20
STALL_SECONDS = 60.0
"""A body of which nothing arrives for this long is given up: its buffer is needed by others."""

DRAIN_SECONDS = 30.0
"""How long a refused body is read and thrown away, so that the sender gets to see the reply."""

_JOIN_BYTES = 64 << 10
_AT_ONCE_BYTES = 512 << 10
"""A reply that is handed to the socket in one go; what it has no room for waits in the process."""

_SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@final
@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back: the body is sent piece by piece, without joining bulk."""

    status: int
    media_type: str
    pieces: tuple[bytes | memoryview, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


@final
class Exchange:
    """One request and its reply.

    Args:
        scope, receive, send: of ASGI.
        drain_bytes: most bytes of a refused body that are read before the reply.

    Attributes:
        tenant: whose request it is.
        request_id: the caller's if it is harmless in a log line, else a new one.
        headers: by lower-case name; repeated ones joined with commas.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, drain_bytes: int) -> None:
        self.scope = scope
        self.tenant = PUBLIC_TENANT
        self.drain_bytes = drain_bytes
        self.headers = _headers(scope["headers"])
        given = self.headers.get("x-request-id")
        self.request_id = given if given is not None and _SAFE_ID.fullmatch(given) else new_request_id()
        self.started = False
        self._receive, self._send = receive, send
        # Taken out, since it leads back to the scope: what holds itself is left to the garbage collector.
        self._wire: Wire | None = scope.get("extensions", {}).pop(EXTENSION, None)
        # A caller that waits for "100 Continue" has sent nothing yet, and will not when it is refused.
        self._waits = self.headers.get("expect", "").lower() == "100-continue"
        self._unread = "transfer-encoding" in self.headers or self.headers.get("content-length", "0") != "0"

    async def receive(self) -> MutableMapping[str, Any]:
        """The next ASGI message."""
        message = await self._receive()
        self._waits = False
        if not message.get("more_body"):
            self._unread = False
        return message

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Send an ASGI message; every reply carries the request id."""
        if message["type"] == "http.response.start":
            message = {**message, "headers": self._headed(message.get("headers", []))}
        await self._send(message)

    def _headed(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """The headers of a reply, which begins with them."""
        self.started = True
        whole = [*headers, (b"x-request-id", self.request_id.encode())]
        if self._unread:
            whole.append((b"connection", b"close"))  # what is still under way is not the next request
        return whole

    def length(self, limit: int, elsewhere: int = 0) -> int:
        """Size of the message that was announced: the body, and what is not in it.

        Args:
            limit: most bytes of both.
            elsewhere: bytes in shared memory.

        Raises:
            MalformedError: none was, or not a number.
            PayloadTooLargeError: more than `limit`.
        """
        text = self.headers.get("content-length")
        if text is None:
            raise MalformedError(
                "the request has no Content-Length: send the body in one piece, not chunked "
                "(curl: --data-binary @file rather than -T -)"
            )
        if not (text.isascii() and text.isdigit()):
            raise MalformedError("Content-Length is not a number")
        size = int(text) + elsewhere
        if size > limit:
            raise PayloadTooLargeError(
                f"the body has {size} bytes, at most {limit} are accepted: send less at a time",
                limit=limit,
                size=size,
            )
        return size

    async def read(
        self,
        size: int,
        allocate: Callable[[int], NDArray[np.uint8]] = aligned,
        watch: Callable[[NDArray[np.uint8], int], None] | None = None,
    ) -> NDArray[np.uint8]:
        """The whole body, of `size` bytes, in one buffer that nobody else writes to.

        Args:
            size: that was announced.
            allocate: makes the buffer, unless the body is there already.
            watch: hears how many bytes of the buffer have arrived, whenever some have.

        Raises:
            MalformedError: it ended early, or stalled.
        """
        body = None if self._wire is None else self._wire.arrived()
        if body is not None:
            # Nothing is waited for, so there is nothing to lose patience with.
            self._unread = self._waits = False
            if len(body) != size:
                raise _cut_short(len(body), size)
            buffer = np.frombuffer(body, np.uint8) if size else allocate(0)
            if watch is not None:
                watch(buffer, size)
            return buffer
        buffer = allocate(size)
        view = buffer.data
        position = 0
        loop = asyncio.get_running_loop()
        into = None if self._wire is None else self._wire.into
        try:
            async with asyncio.timeout(STALL_SECONDS) as patience:

                def came(count: int) -> None:
                    patience.reschedule(loop.time() + STALL_SECONDS)
                    if watch is not None:
                        watch(buffer, position + count)

                while self._unread:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        break
                    chunk = message.get("body", b"")
                    end = position + len(chunk)
                    if end > size:
                        raise MalformedError("the body is longer than its Content-Length")
                    view[position:end] = chunk
                    position = end
                    came(0)
                    if into is not None and size - position >= LEAST_BYTES:
                        position += await into(view[position:], came)
                        self._unread = False
        except TimeoutError:
            raise MalformedError(f"no more of the body arrived for {STALL_SECONDS:g} s: send it again") from None
        if position != size:
            raise _cut_short(position, size)
        return buffer

    async def gone(self) -> None:
        """Return when the caller has closed the connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def reply(self, reply: Reply) -> None:
        """Send a whole reply."""
        size = sum(map(len, reply.pieces))
        plain = reply.media_type and not (reply.headers or self._unread)
        if self._wire is not None and size <= _AT_ONCE_BYTES and plain:
            usual = f"content-length: {size}\r\ncontent-type: {reply.media_type}\r\nx-request-id: {self.request_id}\r\n"
            if self._wire.answer(reply.status, usual.encode(), reply.pieces):
                self.started = True
                return
        headers = [(b"content-length", b"%d" % size)] if reply.status != 204 else []
        if reply.media_type:
            headers.append((b"content-type", reply.media_type.encode()))
        headers += [(name.encode(), value.encode()) for name, value in reply.headers.items()]
        await self._send({"type": "http.response.start", "status": reply.status, "headers": self._headed(headers)})
        if size <= _JOIN_BYTES:
            await self._send({"type": "http.response.body", "body": b"".join(reply.pieces), "more_body": False})
            return
        for piece in _slices(reply.pieces):
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: Exception) -> None:
        """Reply with the problem that an error is, after reading what the caller is still sending."""
        await self.refuse(problem_of(error, self.request_id))

    async def refuse(self, problem: Problem) -> None:
        """Reply with a problem; too late once a reply has begun, then the connection is dropped."""
        if self.started:
            raise ConnectionAbortedError("a reply broke off")
        await self.drain()
        await self.reply(Reply(problem.status, PROBLEM_TYPE, (problem.body,), problem.headers))

    async def drain(self) -> None:
        """Read the rest of a refused body, within bounds: a sender cut off in mid-body sees a broken pipe, not why."""
        if self._waits:
            return
        left = self.drain_bytes
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while self._unread and left > 0:
                    left -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            return


def _headers(raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    named = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}
    if len(named) < len(raw):
        named.clear()
        for name, value in raw:
            key, text = name.decode("latin-1"), value.decode("latin-1")
            named[key] = f"{named[key]},{text}" if key in named else text
    return named


def _slices(pieces: Iterable[bytes | memoryview]) -> Iterable[bytes | memoryview]:
    for piece in pieces:
        for start in range(0, len(piece), SLICE):
            yield piece[start : start + SLICE]


def _cut_short(position: int, size: int) -> MalformedError:
    if position > size:
        return MalformedError("the body is longer than its Content-Length")
    return MalformedError(f"the body ended after {position} of {size} bytes: send it again")


def query_choice(exchange: Exchange, name: str, choices: tuple[str, ...]) -> str:
    """The value of the only query parameter that a route has; the first choice when it is absent.

    Raises:
        InvalidOptionError: another parameter, or another value.
    """
    given: bytes = exchange.scope.get("query_string", b"")
    if not given:
        return choices[0]
    text = given.decode("latin-1")
    key, _, value = text.partition("=")
    if key != name or value not in choices:
        raise InvalidOptionError(f"the query may only be {name}= one of {', '.join(choices)}")
    return value
