"""Requests as bytes that were made beforehand, over connections that do as little as a caller can.

A Python client takes as long for a call as the server takes to answer it, so with both on one machine it is the clients
that limit the rate. Here a request is one `send` of bytes that lie ready, and of the reply only its end is looked for;
what a reply says is read by whoever checks it.
"""

import struct
from abc import ABC, abstractmethod
from collections import deque
from typing import final

Replies = list[tuple[int, bytes]]
"""Callers, by their number on the connection, and what each was sent."""


class BrokenLineError(RuntimeError):
    """The server has ended a connection or a call, or answers with something that is no answer."""


class Line(ABC):
    """One connection and the callers on it; does no input or output of its own."""

    @abstractmethod
    def hello(self) -> bytes:
        """What a connection begins with."""

    @abstractmethod
    def ask(self, caller: int, request: bytes) -> bytes:
        """What is sent for a caller's next request; empty if it must wait for `owed`."""

    @abstractmethod
    def came(self, data: bytes) -> Replies:
        """Take what the server has sent.

        Raises:
            BrokenLineError: it is no answer.
        """

    def owed(self) -> bytes:
        """What has to be sent because of what came."""
        return b""


@final
class HttpLine(Line):
    """HTTP/1.1: one caller, whose requests are complete; a reply is its body."""

    def __init__(self) -> None:
        self._data = b""

    def hello(self) -> bytes:
        """Nothing."""
        return b""

    def ask(self, caller: int, request: bytes) -> bytes:
        """The request."""
        return request

    def came(self, data: bytes) -> Replies:
        """A reply with a Content-Length and the status 200."""
        if self._data:
            data = self._data + data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            self._data = data
            return []
        if not data.startswith(b"HTTP/1.1 200 "):
            raise BrokenLineError(f"the server refused a request: {data[:400]!r}")
        start = data.index(b"content-length: ") + 16
        whole = end + int(data[start : data.index(b"\r", start)])
        if len(data) < whole:
            self._data = data
            return []
        self._data = b""
        return [(0, data[end:])]


_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_FIRST_WINDOW = (1 << 16) - 1
_MOST_WINDOW = (1 << 31) - 1
_FIRST_DYNAMIC = 62
"""HPACK: the entry of its dynamic table that was added last."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame of HTTP/2 (RFC 9113)."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _text(value: str) -> bytes:
    """A string as HPACK has it, not compressed (RFC 7541, section 5)."""
    data = value.encode()
    if len(data) < 127:
        return bytes((len(data),)) + data
    left, more = len(data) - 127, bytearray((127,))
    while left >= 128:
        more.append(left % 128 + 128)
        left //= 128
    more.append(left)
    return bytes(more) + data


@final
class GrpcLine(Line):
    """gRPC over HTTP/2: several callers, whose requests are serialized messages of one method, as are the replies.

    The headers of all requests are the same. They are told once and then named by their places in the table that
    both ends keep, which is what gRPC's own client does.

    Args:
        headers: of every request, in order.
    """

    def __init__(self, headers: list[tuple[str, str]]) -> None:
        self._told = b"".join(b"\x40" + _text(name) + _text(value) for name, value in headers)
        self._named = bytes(0x80 | (_FIRST_DYNAMIC + k) for k in reversed(range(len(headers))))
        self._stream = -1
        self._callers: dict[int, int] = {}
        self._parts: dict[int, bytes] = {}
        self._data = b""
        self._owed = bytearray()
        self._window = _FIRST_WINDOW
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._consumed = 0

    def hello(self) -> bytes:
        """The preface, and as much room for replies as there can be."""
        room = struct.pack(">HI", 4, _MOST_WINDOW)
        update = frame(_WINDOW, 0, 0, struct.pack(">I", _MOST_WINDOW - _FIRST_WINDOW))
        return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(_SETTINGS, 0, 0, room) + update

    def ask(self, caller: int, request: bytes) -> bytes:
        """Headers and message, once the server has room for them."""
        size = len(request) + 5
        if size > self._window or self._waiting:
            self._waiting.append((caller, request))
            return b""
        self._window -= size
        self._stream += 2
        stream = self._stream
        self._callers[stream] = caller
        head, self._told = self._told or self._named, b""
        message = b"\0" + struct.pack(">I", len(request)) + request
        return frame(_HEADERS, _END_HEADERS, stream, head) + frame(_DATA, _END_STREAM, stream, message)

    def owed(self) -> bytes:
        """Acknowledgements, and requests that waited for room."""
        while self._waiting and len(self._waiting[0][1]) + 5 <= self._window:
            waiting, self._waiting = self._waiting, deque()
            self._owed += self.ask(*waiting.popleft())
            self._waiting = waiting
        owed, self._owed = bytes(self._owed), bytearray()
        return owed

    def came(self, data: bytes) -> Replies:
        """Whole frames; a call is over with the headers that follow its message."""
        data = self._data + data
        replies: Replies = []
        start = 0
        while len(data) - start >= 9:
            size = int.from_bytes(data[start : start + 3], "big")
            if len(data) - start < 9 + size:
                break
            kind, flags = data[start + 3], data[start + 4]
            stream = int.from_bytes(data[start + 5 : start + 9], "big")
            payload = data[start + 9 : start + 9 + size]
            start += 9 + size
            if kind == _DATA:
                self._parts[stream] = self._parts.get(stream, b"") + payload
                self._consume(size)
            elif kind == _HEADERS and flags & _END_STREAM:
                message = self._parts.pop(stream, b"")
                if len(message) < 5:
                    raise BrokenLineError("the server refused a call")
                replies.append((self._callers.pop(stream), message[5:]))
            elif kind in (_RESET, _GOAWAY):
                raise BrokenLineError(f"the server ended a call or the connection: {payload!r}")
            elif kind == _SETTINGS and not flags & _ACK:
                self._owed += frame(_SETTINGS, _ACK, 0)
            elif kind == _PING and not flags & _ACK:
                self._owed += frame(_PING, _ACK, 0, payload)
            elif kind == _WINDOW and stream == 0:
                self._window += int.from_bytes(payload, "big")
        self._data = data[start:]
        return replies

    def _consume(self, size: int) -> None:
        """Give the server room again long before it has none."""
        self._consumed += size
        if self._consumed > 1 << 28:
            self._owed += frame(_WINDOW, 0, 0, struct.pack(">I", self._consumed))
            self._consumed = 0
