"""The same fault, as raw bytes over HTTP and as a raw message over gRPC, has the same code and echoes nothing."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest

from backsolve._rest.body import MEDIA_TYPE, encode
from backsolve._rpc import calls, framing
from backsolve._rpc.status import DETAILS_KEY, decode_error
from backsolve._transports.base import PutCall, SolveCall
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import ErrorCode, MatrixRef, Options
from backsolve.v1 import solver_pb2 as solver
from backsolve.v1 import types_pb2 as types
from backsolve.v1.solver_pb2_grpc import MatricesStub, SolverStub
from support.rest import Reply, ask
from support.servers import ServerProcess

MARK = 28_459_045
"""Stands in every fault that holds a number of the caller's; no text may contain it, whole or rounded."""

INDPTR, INDICES = np.array([0, 2, 4, 6], "int32"), np.array([0, 1, 1, 2, 0, 2], "int32")
VALUES = np.array([4.0, 1.0, 5.0, 2.0, 1.0, 3.0]) * MARK
RIGHT = Matrix(Pattern(INDPTR, INDICES, (3, 3)), VALUES)
UNKNOWN = MatrixRef(b"\x5c" * 32, b"\xa3" * 32)


def _i32(*numbers: int) -> np.ndarray:
    return np.array(numbers, "int32")


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()


def _joined(tensors: dict[str, np.ndarray], document: dict[str, Any]) -> bytes:
    return b"".join(encode(tensors, document).parts)


def _check_text(text: str) -> None:
    for trace in (str(MARK), f"{MARK:_}", f"{MARK:,}", f"{MARK:e}"[:4]):
        assert trace not in text


# -- uploads ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Upload:
    """A sparse matrix as it is sent: nothing of it is checked here."""

    indptr: np.ndarray | None = None
    indices: np.ndarray | None = None
    values: np.ndarray | None = None
    n: int = 3
    ref: MatrixRef = RIGHT.ref

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        given = {"indptr": self.indptr, "indices": self.indices, "values": self.values}
        usual = {"indptr": INDPTR, "indices": INDICES, "values": VALUES}
        return {name: usual[name] if array is None else array for name, array in given.items()}

    def over_http(self, port: int) -> Reply:
        body = _joined(self.tensors, {"layout": "csr", "shape": [self.n, self.n]})
        return ask(port, "PUT", f"/v1/matrices/{self.ref.key}", body, MEDIA_TYPE)

    def over_grpc(self, channel: grpc.Channel) -> Any:
        message = solver.PutRequest(matrix=calls.encode_ref(self.ref), layout=solver.LAYOUT_CSR, n=self.n)
        for name, array in self.tensors.items():
            getattr(message, name).CopyFrom(framing.describe(array))
        framing.embed(message, self.tensors)
        return MatricesStub(channel).Put(iter([solver.Frame(put=message)]), timeout=60)


def _spoilt(value: float) -> Upload:
    """Announced under its own digests: only the number is wrong."""
    values = np.where(np.arange(6) == 3, value, VALUES)
    return Upload(values=values, ref=Matrix(RIGHT.pattern, values).ref)


UPLOADS = {
    "indptr decreases": (Upload(indptr=_i32(0, 4, 2, 6)), "INVALID_PATTERN"),
    "indptr runs away": (Upload(indptr=_i32(0, MARK, 4, 6)), "INVALID_PATTERN"),
    "indptr begins late": (Upload(indptr=_i32(1, 2, 4, 6)), "INVALID_PATTERN"),
    "indptr ends beyond the indices": (Upload(indptr=_i32(0, 2, 4, MARK)), "INVALID_PATTERN"),
    "indptr ends before the indices": (Upload(indptr=_i32(0, 2, 4, 5)), "INVALID_PATTERN"),
    "indptr too short": (Upload(indptr=_i32(0, 2, 6)), "INVALID_PATTERN"),
    "indptr is a matrix": (Upload(indptr=INDPTR.reshape(2, 2)), "INVALID_PATTERN"),
    "index outside": (Upload(indices=_i32(0, 1, 1, MARK, 0, 2)), "INVALID_PATTERN"),
    "index below": (Upload(indices=_i32(0, 1, 1, 2, -MARK, 2)), "INVALID_PATTERN"),
    "unsorted": (Upload(indices=_i32(1, 0, 1, 2, 0, 2)), "INVALID_PATTERN"),
    "duplicated": (Upload(indices=_i32(0, 1, 2, 2, 0, 2)), "INVALID_PATTERN"),
    "indices that are no integers": (Upload(indices=VALUES), "INVALID_PATTERN"),
    "a value too many": (Upload(values=np.full(7, float(MARK))), "INVALID_SHAPE"),
    "a value too few": (Upload(values=np.full(5, float(MARK))), "INVALID_SHAPE"),
    "values with three axes": (Upload(values=VALUES.reshape(1, 1, 6)), "INVALID_SHAPE"),
    "integer values": (Upload(values=np.full(6, MARK)), "INVALID_DTYPE"),
    "a value that is no number": (_spoilt(np.nan), "NONFINITE_INPUT"),
    "an infinite value": (_spoilt(-np.inf), "NONFINITE_INPUT"),
    "another matrix's digests": (Upload(ref=UNKNOWN), "DIGEST_MISMATCH"),
    "other values than announced": (Upload(values=VALUES[::-1].copy()), "DIGEST_MISMATCH"),
}


# -- solves -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """A solve as it is sent: `options` in the words of HTTP's document, which are those of the message."""

    b: np.ndarray | None
    options: dict[str, Any] | None = None
    ref: MatrixRef = RIGHT.ref
    x0: np.ndarray | None = None

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        return {name: array for name, array in (("b", self.b), ("x0", self.x0)) if array is not None}

    def over_http(self, port: int) -> Reply:
        body = _joined(self.tensors, {"matrix": self.ref.key, "options": self.options or {}})
        return ask(port, "POST", "/v1/solve", body, MEDIA_TYPE)

    def as_json(self, port: int) -> Reply:
        lists = {name: array.tolist() for name, array in self.tensors.items()}
        document = {"matrix": {"ref": self.ref.key}, "options": self.options or {}, **lists}
        return ask(port, "POST", "/v1/solve", _json(document), "application/json")

    def over_grpc(self, channel: grpc.Channel) -> Any:
        options = {**(self.options or {})}
        if "trans" in options:
            options["trans"] = dict(types.Trans.items()).get(f"TRANS_{options['trans']}", 77)
        message = solver.SolveRequest(matrix=calls.encode_ref(self.ref), options=types.Options(**options))
        arrays = {{"b": "rhs"}.get(name, name): array for name, array in self.tensors.items()}
        for name, array in arrays.items():
            getattr(message, name).CopyFrom(framing.describe(array))
        framing.embed(message, arrays)
        return SolverStub(channel).Solve(message, timeout=60)


B = np.full(3, float(MARK))
SOLVES = {
    "b of another type": (Ask(B.astype("float32")), "INVALID_DTYPE"),
    "complex b": (Ask(B.astype("complex128")), "INVALID_DTYPE"),
    "integer b": (Ask(np.full(3, MARK)), "INVALID_DTYPE"),
    "b that is no number": (Ask(np.array([MARK, np.nan, MARK])), "NONFINITE_INPUT"),
    "infinite b": (Ask(np.array([MARK, MARK, np.inf])), "NONFINITE_INPUT"),
    "b too short": (Ask(B[:2]), "INVALID_SHAPE"),
    "b with three axes": (Ask(B.reshape(1, 3, 1)), "INVALID_SHAPE"),
    "no b": (Ask(None), "MALFORMED"),
    "x0 of another shape": (Ask(B, {"method": "cg"}, x0=B[:2]), "INVALID_SHAPE"),
    "x0 that no method uses": (Ask(B, {"method": "superlu"}, x0=B), "INVALID_OPTION"),
    "x0 of another type": (Ask(B, {"method": "cg"}, x0=B.astype("float32")), "INVALID_DTYPE"),
    "x0 that is no number": (Ask(B, {"method": "cg"}, x0=B * np.nan), "NONFINITE_INPUT"),
    "unknown method": (Ask(B, {"method": "luu"}), "INVALID_OPTION"),
    "unknown preconditioner": (Ask(B, {"method": "cg", "preconditioner": "jacoby"}), "INVALID_OPTION"),
    "method for dense matrices": (Ask(B, {"method": "lu"}), "INVALID_OPTION"),
    "method for definite matrices": (Ask(B, {"method": "cholesky"}), "NOT_POSITIVE_DEFINITE"),
    "unused option": (Ask(B, {"method": "superlu", "maxiter": MARK}), "INVALID_OPTION"),
    "negative tolerance": (Ask(B, {"rtol": -float(MARK)}), "INVALID_OPTION"),
    "negative floor": (Ask(B, {"atol": -float(MARK)}), "INVALID_OPTION"),
    "no iterations": (Ask(B, {"method": "cg", "maxiter": 0}), "INVALID_OPTION"),
    "negative refinement": (Ask(B, {"method": "superlu", "refine": -MARK}), "INVALID_OPTION"),
    "unknown trans": (Ask(B, {"trans": "C"}), "INVALID_OPTION"),
    "unknown matrix": (Ask(B, ref=UNKNOWN), "NEED_MATRIX"),
    "digest too short": (Ask(B, ref=MatrixRef(b"p" * 31, b"v" * 32)), "MALFORMED"),
    "digest too long": (Ask(B, ref=MatrixRef(b"p" * 32, b"v" * 33)), "MALFORMED"),
    "no digests": (Ask(B, ref=MatrixRef(b"", b"")), "MALFORMED"),
}
IN_BINARY_ONLY = {"b of another type", "complex b", "integer b", "x0 of another type"} | {
    "b that is no number",
    "infinite b",
    "x0 that is no number",
}
"""Faults that JSON, which has finite numbers and one "dtype" for all of them, cannot have."""


# -- both ways ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", framing.channel_options()) as opened:
        stub = MatricesStub(opened)
        message, arrays = calls.encode_put(PutCall(RIGHT.ref, RIGHT))
        framing.embed(message, arrays)
        stub.Put(iter([solver.Frame(put=message)]), timeout=60)
        yield opened


def _refused_over_http(reply: Reply) -> str:
    problem = reply.json()
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.status == problem["status"] >= 400
    _check_text(reply.body.decode())
    return str(problem["reason"])


def _refused_over_grpc(call: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = decode_error(dict(caught.value.trailing_metadata())[DETAILS_KEY])
    assert error is not None
    _check_text(f"{caught.value.details()} {error} {error.details}")
    return error.code.name


def test_what_is_not_broken_is_taken(server: ServerProcess, channel: grpc.Channel) -> None:
    """The faults below are the only ones: without them both ways answer."""
    assert Upload().over_http(server.http_port).status in (200, 201)
    assert Upload().over_grpc(channel).matrix == calls.encode_ref(RIGHT.ref)
    good = Ask(B, {"method": "superlu", "trans": "T", "rtol": 1e-9, "refine": 2})
    for reply in (good.over_http(server.http_port), good.as_json(server.http_port)):
        assert reply.status == 200, reply.body
    x = np.frombuffer(good.over_grpc(channel).x.data)
    full = np.zeros((3, 3))
    full[RIGHT.pattern.rows, INDICES] = VALUES
    np.testing.assert_allclose(full.T @ x, B, rtol=1e-12)


@pytest.mark.parametrize("fault", UPLOADS)
def test_a_broken_upload_has_one_code(server: ServerProcess, channel: grpc.Channel, fault: str) -> None:
    upload, code = UPLOADS[fault]
    assert code in ErrorCode.__members__
    assert _refused_over_http(upload.over_http(server.http_port)) == code
    assert _refused_over_grpc(lambda: upload.over_grpc(channel)) == code


@pytest.mark.parametrize("fault", SOLVES)
def test_a_broken_solve_has_one_code(server: ServerProcess, channel: grpc.Channel, fault: str) -> None:
    asked, code = SOLVES[fault]
    assert code in ErrorCode.__members__
    assert _refused_over_http(asked.over_http(server.http_port)) == code
    assert _refused_over_grpc(lambda: asked.over_grpc(channel)) == code
    if fault not in IN_BINARY_ONLY:
        assert _refused_over_http(asked.as_json(server.http_port)) == code


BYTES = {
    "nothing": b"",
    "noise": b"\xff" * 64,
    "text": b"28459045 is no message",
    "cut short": _joined({"b": B}, {"matrix": RIGHT.ref.key})[:-9],
}


@pytest.mark.parametrize("kind", BYTES)
@pytest.mark.parametrize("media", [MEDIA_TYPE, "application/json"])
def test_bytes_that_are_no_call_have_one_code(
    server: ServerProcess, channel: grpc.Channel, kind: str, media: str
) -> None:
    cut = calls.encode_solve(SolveCall(RIGHT.ref, Options(), B))[0].SerializeToString()[:-3]
    message = cut if kind == "cut short" else BYTES[kind]
    raw = channel.unary_unary("/backsolve.v1.Solver/Solve")
    assert _refused_over_http(ask(server.http_port, "POST", "/v1/solve", BYTES[kind], media)) == "MALFORMED"
    assert _refused_over_grpc(lambda: raw(message, timeout=60)) == "MALFORMED"


def test_broken_arrays_in_json_have_the_codes_of_binary_ones(server: ServerProcess) -> None:
    """Save for those it cannot have, and unsorted and duplicated entries, which are brought into order there."""
    for fault, (upload, code) in UPLOADS.items():
        if fault in ("unsorted", "duplicated", "integer values") or code in ("DIGEST_MISMATCH", "NONFINITE_INPUT"):
            continue
        arrays = {name: array.tolist() for name, array in upload.tensors.items()}
        body = _json({"shape": [3, 3], **arrays})
        reason = _refused_over_http(ask(server.http_port, "POST", "/v1/matrices", body, "application/json"))
        # What is no list of integers is not JSON of ours to begin with.
        wanted = "MALFORMED" if fault in ("indptr is a matrix", "indices that are no integers") else code
        assert reason == wanted, fault
