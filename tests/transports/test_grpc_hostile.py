"""Clients that are broken or mean get an error that names the fault, and the server lives on."""

import grpc
import numpy as np
import pytest

from backsolve._rpc import calls
from backsolve._rpc.framing import CHUNK_BYTES
from backsolve._rpc.status import DETAILS_KEY, decode_error
from backsolve._transports.base import PutCall, SolveCall
from backsolve.errors import (
    BacksolveError,
    InvalidPatternError,
    InvalidShapeError,
    MalformedError,
    PayloadTooLargeError,
)
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import MatrixRef, Options
from backsolve.v1 import solver_pb2, types_pb2
from backsolve.v1.solver_pb2_grpc import MatricesStub, SolverStub

TIMEOUT = 30
RHS = 3
F64 = types_pb2.DTYPE_FLOAT64
Frame, Chunk, Tensor = solver_pb2.Frame, solver_pb2.Chunk, types_pb2.Tensor


def error_of(call) -> BacksolveError:
    """The error that a raw call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    trailer = dict(caught.value.trailing_metadata())
    assert len(trailer[DETAILS_KEY]) < 8192
    error = decode_error(trailer[DETAILS_KEY])
    assert error is not None
    assert caught.value.details() == str(error)
    return error


def header(held, rhs: Tensor) -> Frame:
    return Frame(solve=solver_pb2.SolveRequest(matrix=calls.encode_ref(held.ref), rhs=rhs))


def chunk(offset: int, data: bytes, tensor: int = RHS) -> Frame:
    return Frame(chunk=Chunk(tensor=tensor, offset=offset, data=data))


EIGHT = Tensor(dtype=F64, shape=[8], nbytes=64)
WHOLE = Tensor(dtype=F64, shape=[8], nbytes=64, data=bytes(64))

STREAMS = {
    "nothing": lambda held: [],
    "no header": lambda held: [chunk(0, b"x" * 64)],
    "header of another method": lambda held: [Frame(vjp=solver_pb2.VjpRequest())],
    "empty frame": lambda held: [Frame()],
    "ready from the client": lambda held: [Frame(ready=solver_pb2.Ready())],
    "no matrix": lambda held: [Frame(solve=solver_pb2.SolveRequest(rhs=WHOLE))],
    "short digest": lambda held: [
        Frame(solve=solver_pb2.SolveRequest(matrix=types_pb2.MatrixRef(pattern=b"p" * 31, values=b"v" * 32), rhs=WHOLE))
    ],
    "no right-hand side": lambda held: [Frame(solve=solver_pb2.SolveRequest(matrix=calls.encode_ref(held.ref)))],
    "second header": lambda held: [header(held, EIGHT), header(held, EIGHT)],
    "ends early": lambda held: [header(held, EIGHT), chunk(0, b"x" * 32)],
    "no chunks": lambda held: [header(held, EIGHT)],
    "too many bytes": lambda held: [header(held, EIGHT), chunk(0, b"x" * 65)],
    "bytes after the end": lambda held: [header(held, EIGHT), chunk(0, b"x" * 64), chunk(64, b"x")],
    "bytes twice": lambda held: [header(held, EIGHT), chunk(0, b"x" * 32), chunk(0, b"x" * 32)],
    "overlap": lambda held: [header(held, EIGHT), chunk(0, b"x" * 32), chunk(16, b"x" * 48)],
    "gap": lambda held: [header(held, EIGHT), chunk(32, b"x" * 32)],
    "offset near 2^64": lambda held: [header(held, EIGHT), chunk(2**64 - 8, b"x" * 16)],
    "empty chunk": lambda held: [header(held, EIGHT), chunk(0, b"")],
    "chunk of another field": lambda held: [header(held, EIGHT), chunk(0, b"x" * 64, tensor=4)],
    "chunks of a whole tensor": lambda held: [header(held, WHOLE), chunk(0, b"x" * 64)],
    "huge chunk": lambda held: [
        header(held, Tensor(dtype=F64, shape=[8, CHUNK_BYTES], nbytes=64 * CHUNK_BYTES)),
        chunk(0, b"x" * (CHUNK_BYTES + 1)),
    ],
    "elements from the client": lambda held: [header(held, EIGHT), Frame(elements=solver_pb2.ElementsPart())],
    "size that its shape contradicts": lambda held: [header(held, Tensor(dtype=F64, shape=[8], nbytes=72))],
    "half of its data": lambda held: [header(held, Tensor(dtype=F64, shape=[8], nbytes=64, data=b"x" * 32))],
    "negative shape": lambda held: [header(held, Tensor(dtype=F64, shape=[-8], nbytes=64))],
    "product overflows to 0": lambda held: [header(held, Tensor(dtype=F64, shape=[2**32, 2**32], nbytes=0))],
    "unknown type": lambda held: [header(held, Tensor(dtype=77, shape=[8], nbytes=64))],
}


@pytest.mark.parametrize("frames", STREAMS.values(), ids=STREAMS)
def test_frames_that_make_no_sense(running, channel, transport, held, frames):
    call = SolverStub(channel).SolveStream
    error = error_of(lambda: list(call(iter(frames(held)), timeout=TIMEOUT)))
    assert type(error) is MalformedError
    assert transport.solve(SolveCall(held.ref, Options(), np.ones(8)), TIMEOUT).x.shape == (8,)
    assert running.plane.inflight == 0


def test_a_declared_size_over_the_limit_is_refused_though_nothing_is_sent(channel, held):
    absurd = Tensor(dtype=F64, shape=[8, 2**50], nbytes=2**56)
    error = error_of(lambda: list(SolverStub(channel).SolveStream(iter([header(held, absurd)]), timeout=TIMEOUT)))
    assert isinstance(error, PayloadTooLargeError)
    assert error.details == {"limit": str(64 << 20), "size": str(2**56)}


def test_a_unary_call_over_4_mib_names_the_stream(channel, held):
    data = bytes(5 << 20)
    tensor = Tensor(dtype=F64, shape=[8, len(data) // 64], nbytes=len(data), data=data)
    request = solver_pb2.SolveRequest(matrix=calls.encode_ref(held.ref), rhs=tensor)
    error = error_of(lambda: SolverStub(channel).Solve(request, timeout=TIMEOUT))
    assert isinstance(error, PayloadTooLargeError)
    assert "SolveStream" in str(error)


def test_a_unary_call_whose_reply_outgrows_a_message_names_the_stream(channel, transport):
    n = 900
    rng = np.random.default_rng(580_462_913)
    a = np.eye(n) * n + rng.standard_normal((n, n))
    rows = np.arange(0, n * n + 1, n)
    matrix = Matrix(Pattern(rows, np.tile(np.arange(n), n), (n, n)), a.ravel())
    transport.put(PutCall(matrix.ref, matrix), TIMEOUT)
    vector = Tensor(dtype=F64, shape=[n], nbytes=8 * n, data=np.ones(n).tobytes())
    request = solver_pb2.VjpRequest(
        matrix=calls.encode_ref(matrix.ref), cotangent=vector, x=vector, want=[solver_pb2.WANT_VALUES]
    )
    error = error_of(lambda: SolverStub(channel).Vjp(request, timeout=TIMEOUT))
    assert isinstance(error, PayloadTooLargeError)
    assert "VjpStream" in str(error)


def test_a_message_above_the_limit_of_both_ends_never_gets_in(channel, held):
    data = bytes(9 << 20)
    request = solver_pb2.SolveRequest(rhs=Tensor(dtype=F64, shape=[len(data) // 8], nbytes=len(data), data=data))
    with pytest.raises(grpc.RpcError) as caught:
        SolverStub(channel).Solve(request, timeout=TIMEOUT)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("method", "kind"),
    [("Solver/Solve", "unary_unary"), ("Solver/GetStats", "unary_unary"), ("Matrices/Release", "unary_unary"),
     ("Matrices/Find", "unary_unary"), ("Matrices/Put", "stream_unary"), ("Solver/JvpStream", "stream_stream")],
)  # fmt: skip
def test_bytes_that_are_no_protobuf(channel, method, kind):
    call = getattr(channel, kind)(f"/backsolve.v1.{method}")
    garbage = b"\xff\xff\xff\xff"
    argument = garbage if kind == "unary_unary" else iter([garbage])
    error = error_of(lambda: list(call(argument, timeout=TIMEOUT)))
    assert type(error) is MalformedError


@pytest.mark.parametrize("method", ["Solver/Solve", "Solver/GetStats", "Matrices/Find"])
def test_a_unary_call_without_a_message(channel, method):
    call = channel.stream_unary(f"/backsolve.v1.{method}")
    error = error_of(lambda: call(iter([]), timeout=TIMEOUT))
    assert type(error) is MalformedError
    assert "brings no message" in str(error)


def put_header(**changes) -> Frame:
    def whole(values, dtype):
        array = np.array(values)
        return Tensor(dtype=dtype, shape=array.shape, nbytes=array.nbytes, data=array.tobytes())

    fields = {
        "matrix": types_pb2.MatrixRef(pattern=b"p" * 32, values=b"v" * 32),
        "layout": solver_pb2.LAYOUT_CSR,
        "n": 2,
        "indptr": whole(np.array([0, 1, 2], "int32"), types_pb2.DTYPE_INT32),
        "indices": whole(np.array([0, 1], "int32"), types_pb2.DTYPE_INT32),
        "values": whole(np.array([3.0, 4.0]), F64),
    }
    fields.update({name: whole(*value) if isinstance(value, tuple) else value for name, value in changes.items()})
    return Frame(put=solver_pb2.PutRequest(**{k: v for k, v in fields.items() if v is not None}))


I32 = types_pb2.DTYPE_INT32
UPLOADS = {
    "indptr decreases": ({"indptr": (np.array([0, 3, 2], "int32"), I32)}, InvalidPatternError),
    "points outside": ({"indices": (np.array([0, 2], "int32"), I32)}, InvalidPatternError),
    "points below": ({"indices": (np.array([0, -1], "int32"), I32)}, InvalidPatternError),
    "indptr is a matrix": ({"indptr": (np.array([[0, 1, 2]], "int32"), I32)}, InvalidPatternError),
    "indices of another type": ({"indices": (np.array([0, 1]), types_pb2.DTYPE_INT64)}, InvalidPatternError),
    "values do not fit": ({"values": (np.array([3.0, 4.0, 5.0]), F64)}, InvalidShapeError),
    "negative n": ({"n": -2}, InvalidShapeError),
    "no values": ({"values": None}, MalformedError),
    "no indptr": ({"indptr": None}, MalformedError),
    "no layout": ({"layout": None}, MalformedError),
    "dense with indices": ({"layout": solver_pb2.LAYOUT_DENSE}, MalformedError),
    "no digests": ({"matrix": None}, MalformedError),
}


@pytest.mark.parametrize(("changes", "kind"), UPLOADS.values(), ids=UPLOADS)
def test_uploads_that_are_no_matrix(channel, changes, kind):
    error = error_of(lambda: MatricesStub(channel).Put(iter([put_header(**changes)]), timeout=TIMEOUT))
    assert type(error) is kind


def test_a_pattern_whose_digest_is_another_matrix_cannot_be_planted(channel, transport, held):
    planted = MatrixRef(held.ref.pattern, b"v" * 32)
    error = error_of(
        lambda: MatricesStub(channel).Put(iter([put_header(matrix=calls.encode_ref(planted))]), timeout=TIMEOUT)
    )
    assert error.code.name == "DIGEST_MISMATCH"
