"""Replies of HTTP/1.1, read straight into the buffer that will be x.

Nothing here touches a socket: `parse_reply` is a generator that yields room for bytes and is given how many came.
`http.client` parses headers with the machinery of e-mail, which costs as much as a small solve, and
copies bodies. What a server or a proxy may answer is read here instead: a status, headers of at
most 64 KiB, and a body that is announced by its length, chunked, or ended by closing (RFC 9112,
sections 4 to 6). Anything else is refused rather than guessed at.
"""

import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from .._rest.body import aligned
from ..errors import DeadlineError

_FIRST_READ = 64 << 10
_SLICE = 1 << 20
_MOST_HEAD = 64 << 10
_MOST_INTERIM = 16
"""Replies of the kind "100 Continue" that may come before the real one."""

_NO_BODY = (204, 304)
_PROTOCOL = b"HTTP/1."
_FOREIGN = "what answers does not speak HTTP/1.1"
_HEX = frozenset(b"0123456789abcdefABCDEF")

T = TypeVar("T")


@final
@dataclass(frozen=True, slots=True)
class HttpReply:
    """One reply: status, headers by lower-case name, and the body in an aligned buffer.

    Attributes:
        tensors: what the body lacks of them, where they were in shared memory.
    """

    status: int
    headers: Mapping[str, str]
    body: NDArray[np.uint8]
    tensors: NDArray[np.uint8] | None = None


class BrokenReplyError(OSError):
    """What came is no reply, or not all of one."""


class NoReplyError(BrokenReplyError):
    """The connection was closed before anything came."""


def seconds_left(deadline: float | None) -> float | None:
    """Seconds until a deadline; None: there is none.

    Raises:
        DeadlineError: it has passed.
    """
    if deadline is None:
        return None
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise DeadlineError("the deadline passed before the answer was there: raise timeout=, or try again later")
    return seconds


Reading = Generator[memoryview, int, T]
"""Yields where the next bytes go; is given how many came, 0 at the end, or thrown the connection's error."""


def read_reply(sock: Any, method: str, deadline: float | None) -> tuple[HttpReply, bool]:
    """Read one reply from a blocking socket.

    Args:
        sock: a connected socket, or a TLS one.
        method: of the request; a HEAD has no body.
        deadline: `time.monotonic()` seconds, or None.

    Returns:
        As `parse_reply`.

    Raises:
        DeadlineError, TimeoutError: the time is over.
        OSError: as `parse_reply`.
    """
    reading = parse_reply(method)
    try:
        room = next(reading)
        while True:
            sock.settimeout(seconds_left(deadline))
            try:
                count = sock.recv_into(room)
            except ConnectionError as err:
                room = reading.throw(err)
            else:
                room = reading.send(count)
    except StopIteration as end:
        read: tuple[HttpReply, bool] = end.value
        return read


def parse_reply(method: str) -> Reading[tuple[HttpReply, bool]]:
    """Read one reply.

    Args:
        method: of the request; a HEAD has no body.

    Returns:
        The reply, and whether the connection may be used again.

    Raises:
        NoReplyError: the other side closed without a word.
        OSError: the connection broke, or what came is no reply.
    """
    stream = _Stream()
    for _ in range(_MOST_INTERIM):
        version, status, headers = _head((yield from stream.head()))
        if status >= 200:
            break
    else:
        raise BrokenReplyError("the server never comes to its answer")
    coding = headers.get("transfer-encoding", "").lower()
    closes = False
    if method == "HEAD" or status in _NO_BODY:
        body = aligned(0)
    elif coding == "chunked":
        body = yield from stream.chunked()
    elif coding:
        raise BrokenReplyError("the reply has a transfer coding that is not known here")
    elif "content-length" in headers:
        body = yield from stream.exactly(_length(headers["content-length"]))
    else:
        closes, body = True, (yield from stream.rest())
    options = headers.get("connection", "").lower()
    keep = not closes and not stream.ahead and "close" not in options and (version == b"1.1" or "keep-alive" in options)
    return HttpReply(status, headers, body), keep


@final
class _Stream:
    """Bytes in their order; those that came beyond what was asked for wait in `ahead`."""

    def __init__(self) -> None:
        self.ahead = b""
        self._silent = True

    def head(self) -> Reading[bytes]:
        """Up to the empty line, without it."""
        end = self.ahead.find(b"\r\n\r\n")
        while end < 0:
            if len(self.ahead) > _MOST_HEAD:
                raise BrokenReplyError("the headers of the reply do not end")
            self.ahead += yield from self._more()
            if not self.ahead.startswith(_PROTOCOL[: len(self.ahead)]):
                raise BrokenReplyError(_FOREIGN)
            end = self.ahead.find(b"\r\n\r\n")
        head, self.ahead = self.ahead[:end], self.ahead[end + 4 :]
        return head

    def exactly(self, size: int) -> Reading[NDArray[np.uint8]]:
        """The next `size` bytes, in a buffer allocated once."""
        buffer = aligned(size)
        yield from self._fill(buffer)
        return buffer

    def chunked(self) -> Reading[NDArray[np.uint8]]:
        """All chunks, joined; trailers are dropped."""
        chunks: list[NDArray[np.uint8]] = []
        while True:
            digits = (yield from self._line()).partition(b";")[0].strip()
            if not digits or len(digits) > 16 or not _HEX.issuperset(digits):
                raise BrokenReplyError("the size of a chunk is no number")
            size = int(digits, 16)
            if not size:
                break
            chunks.append((yield from self.exactly(size)))
            if (yield from self._line()):
                raise BrokenReplyError("a chunk is longer than it says")
        while (yield from self._line()):
            pass
        return _joined(chunks)

    def rest(self) -> Reading[NDArray[np.uint8]]:
        """Everything until the other side closes."""
        pieces = [np.frombuffer(self.ahead, dtype=np.uint8)]
        self.ahead = b""
        while piece := (yield from self._read()):
            pieces.append(np.frombuffer(piece, dtype=np.uint8))
        return _joined(pieces)

    def _line(self) -> Reading[bytes]:
        end = self.ahead.find(b"\r\n")
        while end < 0:
            if len(self.ahead) > _MOST_HEAD:
                raise BrokenReplyError("a line of the reply does not end")
            self.ahead += yield from self._more()
            end = self.ahead.find(b"\r\n")
        line, self.ahead = self.ahead[:end], self.ahead[end + 2 :]
        return line

    def _fill(self, buffer: NDArray[np.uint8]) -> Reading[None]:
        view = buffer.data
        position = min(len(self.ahead), buffer.size)
        view[:position] = self.ahead[:position]
        self.ahead = self.ahead[position:]
        while position < buffer.size:
            got = yield view[position : position + _SLICE]
            if not got:
                raise BrokenReplyError(f"the reply ended {buffer.size - position} bytes early")
            position += got

    def _more(self) -> Reading[bytes]:
        piece = yield from self._read()
        if not piece:
            raise NoReplyError("closed") if self._silent else BrokenReplyError("the reply ended in its headers")
        self._silent = False
        return piece

    def _read(self) -> Reading[bytes]:
        room = np.empty(_FIRST_READ, dtype=np.uint8).data
        try:
            count = yield room
        except ConnectionError as err:
            if self._silent:
                raise NoReplyError("reset") from err
            raise
        return bytes(room[:count])


def _head(head: bytes) -> tuple[bytes, int, dict[str, str]]:
    """Version, status and headers."""
    first, *lines = head.split(b"\r\n")
    protocol, _, rest = first.partition(b" ")
    code = rest[:3]
    if protocol not in (b"HTTP/1.1", b"HTTP/1.0") or not (
        code.isdigit() and len(code) == 3 and rest[3:4] in (b"", b" ")
    ):
        raise BrokenReplyError(_FOREIGN)
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or name != name.strip():
            raise BrokenReplyError("a header of the reply cannot be read")
        key, text = name.decode("latin-1").lower(), value.strip().decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return protocol[5:], int(code), headers


def _length(text: str) -> int:
    """A Content-Length; one that is repeated alike counts once."""
    texts = {each.strip() for each in text.split(",")}
    only = texts.pop()
    if texts or not (only.isascii() and only.isdigit()):
        raise BrokenReplyError("the reply's Content-Length is not a number")
    return int(only)


def _joined(pieces: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    body = aligned(sum(piece.size for piece in pieces))
    position = 0
    for piece in pieces:
        body[position : position + piece.size] = piece
        position += piece.size
    return body
