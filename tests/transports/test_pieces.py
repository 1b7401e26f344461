"""Chunks that are written and read past protobuf are the same bytes, and mean the same, as protobuf's own."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backsolve._rpc.pieces import Piece, read, write
from backsolve.v1.solver_pb2 import Chunk, Frame, Ready, SolveRequest

TENSORS = st.integers(0, 2**32 - 1)
OFFSETS = st.integers(0, 2**64 - 1)


def framed(tensor: int, offset: int, data: bytes) -> Frame:
    return Frame(chunk=Chunk(tensor=tensor, offset=offset, data=data))


def meaning(frame: Frame | Piece) -> tuple[int, int, bytes]:
    return frame.chunk.tensor, frame.chunk.offset, bytes(frame.chunk.data)


@given(st.integers(1, 2**32 - 1), OFFSETS, st.binary(min_size=1, max_size=300))
@example(127, 127, b"x" * 127)
@example(128, 128, b"x" * 128)
@example(1, 2**64 - 1, b"x")
def test_the_bytes_are_protobufs(tensor: int, offset: int, data: bytes) -> None:
    assert (
        write(Piece(tensor, offset, np.frombuffer(data, np.uint8))) == framed(tensor, offset, data).SerializeToString()
    )


@given(TENSORS, OFFSETS, st.binary(max_size=300))
@example(1, 0, b"x" * 127)
@example(1, 0, b"x" * 128)
def test_what_protobuf_writes_is_read(tensor: int, offset: int, data: bytes) -> None:
    assert meaning(read(framed(tensor, offset, data).SerializeToString())) == (tensor, offset, data)


def test_a_chunk_of_a_mebibyte_is_not_copied() -> None:
    message = framed(3, 5 << 20, b"ab" * (1 << 19)).SerializeToString()
    piece = read(message)
    assert isinstance(piece, Piece)
    assert piece.data.obj is message
    assert piece.WhichOneof("kind") == "chunk"


@given(st.data())
@settings(max_examples=500)
def test_whatever_comes_means_what_it_means_to_protobuf(data: st.DataObject) -> None:
    """Bytes that begin as a chunk does and go on in any way: cut, with other fields, in another order, twice."""
    whole = framed(data.draw(TENSORS), data.draw(OFFSETS), data.draw(st.binary(max_size=200))).SerializeToString()
    place = data.draw(st.integers(0, len(whole)))
    message = whole[:place] + data.draw(st.binary(max_size=4)) + whole[place + data.draw(st.integers(0, 3)) :]
    try:
        expected = Frame.FromString(message)
    except DecodeError:
        with pytest.raises(DecodeError):
            read(message)
        return
    found = read(message)
    if isinstance(found, Piece):
        assert expected.WhichOneof("kind") == "chunk"
        assert meaning(found) == meaning(expected)
    else:
        assert found == expected


@pytest.mark.parametrize(
    "message",
    [
        b"\x32\x07\x1a\x01x\x08\x03\x10\x02",  # in another order
        b"\x32\x05\x08\x03\x1a\x01x\x32\x02\x10\x02",  # in two parts, which are merged
        b"\x32\x07\x08\x03\x1a\x01x\x1a\x00",  # the last of two counts
        b"\x32\x05\x1a\x01x\x08\x03",
        b"\x32\x00",
    ],
)
def test_unusual_chunks_are_left_to_protobuf(message: bytes) -> None:
    assert read(message) == Frame.FromString(message)


@pytest.mark.parametrize("frame", [Frame(), Frame(ready=Ready()), Frame(solve=SolveRequest())])
def test_other_frames_are_protobufs(frame: Frame) -> None:
    assert read(write(frame)) == frame
