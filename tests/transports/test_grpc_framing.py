"""Chunks fill exactly the arrays that were announced, or are refused."""

import numpy as np
import pytest

from backsolve._rpc import framing, streams
from backsolve._rpc.framing import CHUNK_BYTES, Assembler
from backsolve.errors import InvalidDtypeError, MalformedError, PayloadTooLargeError
from backsolve.v1 import solver_pb2, types_pb2
from support.systems import random_like

RHS, X0 = 3, 4  # field numbers in SolveRequest


def announced(**arrays):
    tensors = {name: framing.describe(array) for name, array in arrays.items()}
    return solver_pb2.SolveRequest(**tensors)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128", "int32", "int64"])
@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES // 4, CHUNK_BYTES // 2 + 1, 600_011])
def test_arrays_arrive_bit_by_bit_in_pieces(dtype, size):
    given = random_like((size,), "float64", 193_740_562).astype(dtype)
    other = random_like((7, 3), "complex128", 640_215_983)
    message = announced(rhs=given, x0=other)
    target = Assembler(message, None)
    pieces = list(framing.chunks(message, {"rhs": given, "x0": other}))
    for piece in sorted(pieces, key=lambda p: (p[1], -p[0])):  # tensors may alternate
        target.add(*piece)
    assert target.complete
    arrived = target.finish()
    np.testing.assert_array_equal(arrived["rhs"], given, strict=True)
    np.testing.assert_array_equal(arrived["x0"], other, strict=True)
    assert all(0 < len(data) <= CHUNK_BYTES for _, _, data in pieces)


def test_strided_reversed_and_foreign_byte_order_is_sent_by_value():
    base = random_like((6, 8), "float64", 571_038_246)
    for given in (base[::2, ::-1], base.T, base.astype(">f8"), np.asfortranarray(base)):
        message = announced(rhs=given)
        framing.embed(message, {"rhs": given})
        np.testing.assert_array_equal(framing.embedded(message, None)["rhs"], given)


def test_element_types_that_cannot_be_sent_have_their_error():
    for dtype in ("float16", "uint8", "bool", "U3", "O"):
        with pytest.raises(InvalidDtypeError, match="convert"):
            framing.describe(np.zeros(3, dtype))


BAD_PIECES = {
    "gap": [(RHS, 8, b"x" * 8)],
    "again": [(RHS, 0, b"x" * 8), (RHS, 0, b"x" * 8)],
    "overlap": [(RHS, 0, b"x" * 16), (RHS, 8, b"x" * 8)],
    "beyond": [(RHS, 0, b"x" * 25)],
    "after the end": [(RHS, 0, b"x" * 24), (RHS, 24, b"x")],
    "empty": [(RHS, 0, b"")],
    "too long": [(RHS, 0, b"x" * (CHUNK_BYTES + 1))],
    "no such tensor": [(X0, 0, b"x")],
    "no tensor at all": [(1, 0, b"x")],
}


@pytest.mark.parametrize("pieces", BAD_PIECES.values(), ids=BAD_PIECES)
def test_pieces_that_do_not_fit_are_refused(pieces):
    target = Assembler(announced(rhs=np.zeros(3)), None)
    for piece in pieces[:-1]:
        target.add(*piece)
    with pytest.raises(MalformedError, match="chunk"):
        target.add(*pieces[-1])


def test_missing_bytes_are_counted():
    target = Assembler(announced(rhs=np.zeros(3), x0=np.zeros(2)), None)
    target.add(RHS, 0, b"x" * 8)
    with pytest.raises(MalformedError, match="32 announced bytes are missing"):
        target.finish()


def test_a_message_that_is_to_hold_all_of_its_data_and_does_not_is_refused():
    message = announced(rhs=np.zeros(3), x0=np.zeros(2))
    framing.embed(message, {"rhs": np.zeros(3)})
    with pytest.raises(MalformedError, match="16 announced bytes are missing"):
        framing.embedded(message, None)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (2, 3)])
def test_what_a_message_held_is_the_readers_own(shape):
    message = announced(rhs=np.ones(shape))
    framing.embed(message, {"rhs": np.ones(shape)})
    found = framing.embedded(message, None)["rhs"]
    found += 1
    assert found.shape == shape
    np.testing.assert_array_equal(framing.embedded(message, None)["rhs"], np.ones(shape))


F64 = types_pb2.DTYPE_FLOAT64
LIES = {
    "more bytes than its shape": types_pb2.Tensor(dtype=F64, shape=[3], nbytes=25),
    "fewer": types_pb2.Tensor(dtype=F64, shape=[3], nbytes=0),
    "negative": types_pb2.Tensor(dtype=F64, shape=[-3], nbytes=24),
    "two negatives": types_pb2.Tensor(dtype=F64, shape=[-3, -1], nbytes=24),
    "overflow to 0": types_pb2.Tensor(dtype=F64, shape=[2**32, 2**32], nbytes=0),
    "absurd but empty": types_pb2.Tensor(dtype=F64, shape=[2**62, 0, 2**62], nbytes=0),
    "no type": types_pb2.Tensor(shape=[3], nbytes=24),
    "unknown type": types_pb2.Tensor(dtype=99, shape=[3], nbytes=24),
    "many axes": types_pb2.Tensor(dtype=F64, shape=[1] * 100, nbytes=8),
    "part of its data": types_pb2.Tensor(dtype=F64, shape=[3], nbytes=24, data=b"x" * 16),
    "more data than bytes": types_pb2.Tensor(dtype=F64, shape=[0], nbytes=0, data=b"x"),
}


@pytest.mark.parametrize("tensor", LIES.values(), ids=LIES)
def test_sizes_that_lie_are_refused(tensor):
    for read in (Assembler, framing.embedded):
        with pytest.raises(MalformedError, match="tensor rhs"):
            read(solver_pb2.SolveRequest(rhs=tensor), None)


def test_the_limit_counts_all_tensors_and_is_told():
    message = announced(rhs=np.zeros(100), x0=np.zeros(25))
    assert Assembler(message, 1000).size == 1000
    with pytest.raises(PayloadTooLargeError, match="1000 bytes, the limit is 999") as caught:
        Assembler(message, 999)
    assert caught.value.details == {"limit": "999", "size": "1000"}
    with pytest.raises(PayloadTooLargeError, match="1000 bytes, the limit is 999"):
        framing.embedded(message, 999)


def test_an_upload_sends_its_chunks_only_when_told():
    message = announced(rhs=np.zeros(CHUNK_BYTES // 4))
    sent: list[int] = []
    header = solver_pb2.Frame(solve=message)
    upload = streams.Upload(header, streams.chunk_frames(message, {"rhs": np.zeros(CHUNK_BYTES // 4)}), sent.append)
    assert next(upload) == header
    assert sent == []
    upload.go()
    assert next(upload).chunk.offset == 0
    upload.stop()
    assert list(upload) == []
    assert sent == [CHUNK_BYTES]


def test_elements_travel_in_parts_and_in_order():
    elements = [types_pb2.Element(iterations=i) for i in range(2 * framing.ELEMENTS_PER_FRAME + 5)]
    frames = list(streams.element_frames(elements))
    assert max(frame.ByteSize() for frame in frames) < framing.MESSAGE_BYTES // 2
    arrived: list[types_pb2.Element] = []
    streams.receive(frames, Assembler(solver_pb2.SolveResponse(), None), arrived)
    assert arrived == elements
    largest = types_pb2.Element(status=10, iterations=2**62, relative_residual=1.5, backward_error=0.5)
    assert largest.ByteSize() + 2 <= framing.ELEMENT_BYTES
