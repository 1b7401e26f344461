"""Content codings: zstd, where the package `zstandard` is installed (extra `zstd`), and bodies as they are.

A body says how large it will be only to itself: nothing is allocated before that was checked, and nothing is written
beyond it. Windows above 8 MiB, which a decoder would have to hold, are refused as RFC 9659 has it.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backsolve.errors import MalformedError, PayloadTooLargeError, UnsupportedMediaError

from .exchange import Exchange, Reply

ZSTD = "zstd"
_IDENTITY = "identity"
LEAST_REPLY_BYTES = 1 << 10
"""A shorter reply fits a packet anyway."""

_WINDOW_BYTES = 8 << 20
_PIECE_BYTES = 1 << 20
_LEVEL = 1
_MOST_BLOCKS = 1 << 20
"""Writers fill blocks of 128 KiB; a body of empty ones would keep the loop over them busy for minutes."""
_BROKEN = (
    "the body is not one whole zstd frame with a window of at most 8 MiB: write it with zstd -19 or less, no --long"
)


@cache
def codings() -> tuple[str, ...]:
    """The content codings that are read here; looked for once, since not finding a package takes 0.1 ms."""
    return (ZSTD, _IDENTITY) if find_spec("zstandard") is not None else (_IDENTITY,)


def request_coding(exchange: Exchange) -> str | None:
    """The coding of the body; None: it is as it is.

    Raises:
        UnsupportedMediaError: it is not read here.
    """
    given = exchange.headers.get("content-encoding", _IDENTITY).strip().lower()
    known = codings()
    if given not in known:
        supported = ", ".join(known)
        raise UnsupportedMediaError(
            f"the body's Content-Encoding is not read here, but {supported}: send it in one of these",
            supported=supported,
        )
    return None if given == _IDENTITY else given


def wants_zstd(exchange: Exchange) -> bool:
    """Whether the caller asks for replies in zstd, by name, and they can be written."""
    for item in exchange.headers.get("accept-encoding", "").lower().split(","):
        name, _, quality = item.partition(";")
        if name.strip() == ZSTD:
            return quality.strip().replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000") and ZSTD in codings()
    return False


def decoded_size(body: NDArray[np.uint8], limit: int) -> int:
    """How large a body in zstd will be: as its frame says, or by decoding it into nothing.

    Raises:
        PayloadTooLargeError: larger than `limit`.
        MalformedError: it is no zstd frame.
    """
    import zstandard  # noqa: PLC0415  (optional)

    try:
        _check_frame(body, zstandard)
        size = int(zstandard.frame_content_size(body.data))
        if size < 0:
            size = 0
            piece = bytearray(_PIECE_BYTES)
            with _reader(body) as reader:
                while size <= limit and (got := reader.readinto(piece)):
                    size += got
    except zstandard.ZstdError:
        raise MalformedError(_BROKEN) from None
    if size > limit:
        raise PayloadTooLargeError(
            f"the body is larger than {limit} bytes when it is decoded: send less at a time", limit=limit
        )
    return size


def decode(body: NDArray[np.uint8], size: int, allocate: Callable[[int], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """A body in zstd, decoded.

    Args:
        body: as it came.
        size: from `decoded_size`.
        allocate: makes the buffer.

    Raises:
        MalformedError: it is broken, or not as long as it says.
    """
    import zstandard  # noqa: PLC0415  (optional)

    buffer = allocate(size)
    position = 0
    try:
        with _reader(body) as reader:
            while position < size and (got := reader.readinto(buffer[position : position + _PIECE_BYTES].data)):
                position += got
            if position != size or reader.read(1):
                raise MalformedError("the body is not as long as its zstd frame says: send it again")
    except zstandard.ZstdError:
        raise MalformedError(_BROKEN) from None
    return buffer


def encode(reply: Reply) -> Reply:
    """A reply in zstd; a short one, and one whose body gets no smaller, stay as they are."""
    import zstandard  # noqa: PLC0415  (optional)

    headers = {**reply.headers, "vary": "accept-encoding"}
    size = sum(len(piece) for piece in reply.pieces)
    plain = Reply(reply.status, reply.media_type, reply.pieces, headers)
    if size < LEAST_REPLY_BYTES:
        return plain
    packer = zstandard.ZstdCompressor(level=_LEVEL).compressobj(size=size)
    packed: list[bytes] = []
    for piece in reply.pieces:
        view = memoryview(piece)
        packed += [packer.compress(view[at : at + _PIECE_BYTES]) for at in range(0, len(view), _PIECE_BYTES)]
    packed.append(packer.flush())
    if sum(map(len, packed)) >= size:
        return plain
    return Reply(reply.status, reply.media_type, tuple(packed), {**headers, "content-encoding": ZSTD})


def _check_frame(body: NDArray[np.uint8], zstandard: Any) -> None:
    """Refuse what is not one whole frame: the decoder itself takes the end of the bytes for the end of the content.

    A frame is a header, blocks that say their length and which is the last, and perhaps a checksum (RFC 8878, 3.1.1).

    Raises:
        MalformedError: it is not.
        zstandard.ZstdError: it does not even begin like one.
    """
    end = int(zstandard.frame_header_size(body.data))
    for _ in range(_MOST_BLOCKS):
        head = int.from_bytes(body[end : end + 3].tobytes(), "little")
        last, repeated, length = head & 1, (head >> 1) & 3 == 1, head >> 3
        end += 3 + (1 if repeated else length)
        if last or end >= body.size:
            break
    else:
        raise MalformedError("the body's zstd blocks are too small: write it in one piece")
    if end + 4 * zstandard.get_frame_parameters(body.data).has_checksum != body.size or not last:
        raise MalformedError(_BROKEN)


def _reader(body: NDArray[np.uint8]) -> Any:
    import zstandard  # noqa: PLC0415  (optional)

    return zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).stream_reader(body.data)
