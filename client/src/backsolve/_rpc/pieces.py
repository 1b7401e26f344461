"""Chunks as bytes on the wire, written and read past protobuf, which copies each byte of them three times more.

The bytes are protobuf's own: what is written here any implementation reads, and what any wrote is read here.

Source: "Encoding", protobuf.dev: a field is a varint of its number and its kind, and a value.
"""

from typing import Any, final

from ..v1 import solver_pb2 as solver

_CHUNK, _TENSOR, _OFFSET, _DATA = 0x32, 0x08, 0x10, 0x1A
"""First bytes of the fields `Frame.chunk`, `Chunk.tensor`, `Chunk.offset` and `Chunk.data`."""

_MOST_TENSOR = 0xFFFF_FFFF


@final
class Piece:
    """A frame with a chunk; where frames are told apart it is one.

    Args:
        tensor: field number of the tensor in the message that announced it.
        offset: bytes of that tensor before this piece.
        data: flat, of bytes; kept, not copied.
    """

    __slots__ = ("data", "offset", "tensor")

    def __init__(self, tensor: int, offset: int, data: Any) -> None:
        self.tensor, self.offset, self.data = tensor, offset, data

    def WhichOneof(self, _: str) -> str:  # noqa: N802  (protobuf's name)
        """What a `Frame` answers."""
        return "chunk"

    @property
    def chunk(self) -> "Piece":
        """The chunk."""
        return self


Frame = solver.Frame | Piece


def write(frame: Frame) -> bytes:
    """The bytes of a frame, those that protobuf writes."""
    if isinstance(frame, solver.Frame):
        message: bytes = frame.SerializeToString()
        return message
    size = len(frame.data)
    offset = bytes((_OFFSET, *_varint(frame.offset))) if frame.offset else b""
    head = bytes((_TENSOR, *_varint(frame.tensor))) + offset + bytes((_DATA, *_varint(size)))
    return b"".join((bytes((_CHUNK, *_varint(len(head) + size))), head, frame.data))


def read(message: bytes) -> Frame:
    """The frame of a message; of a plain chunk the data is a view of it.

    Raises:
        Exception: protobuf's own: it is none.
    """
    piece = _piece(message) if message[:1] == b"\x32" else None
    return solver.Frame.FromString(message) if piece is None else piece


def _piece(message: bytes) -> Piece | None:
    """The chunk of a message that holds nothing else, its fields in order; None: ask protobuf."""
    try:
        size, at = _number(message, 1)
        tensor = offset = 0
        if size == len(message) - at and message[at] == _TENSOR:
            tensor, at = _number(message, at + 1)
            if message[at] == _OFFSET:
                offset, at = _number(message, at + 1)
            if message[at] == _DATA and tensor <= _MOST_TENSOR:
                size, at = _number(message, at + 1)
                if size == len(message) - at:
                    return Piece(tensor, offset, memoryview(message)[at:])
    except IndexError:
        pass
    return None


def _varint(number: int) -> list[int]:
    """Seven bits a byte, the lowest first; all bytes but the last have the highest bit."""
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return parts


def _number(message: bytes, at: int) -> tuple[int, int]:
    """The varint at a place, and the place behind it.

    Raises:
        IndexError: it does not end in the message, or after as many bytes as 63 bits take.
    """
    number = 0
    for shift in range(0, 63, 7):
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise IndexError
