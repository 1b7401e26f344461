"""The framing of bulk bodies, and the calls and replies in it."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from backsolve._rest import messages
from backsolve._rest.body import ALIGNMENT, MAX_HEADER_BYTES, Body, Header, aligned, decode, encode, read_header
from backsolve._rest.documents import certificate_from_json, certificate_to_json, info_from_json, info_to_json
from backsolve._transports.base import JvpCall, PutCall, SolveCall, SolveReply, VjpCall, VjpReply
from backsolve.errors import BacksolveError, InvalidDtypeError, InvalidOptionError, MalformedError
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern, Pattern
from backsolve.types import Certificate, Element, Limits, MatrixRef, Options, ServerInfo, Status, Timings

REF = MatrixRef(bytes(range(32)), bytes(range(32, 64)))
CERTIFICATE = Certificate(
    status=Status.MAX_ITER,
    method="cg",
    reason="asked for",
    precision="float32",
    iterations=17,
    relative_residual=1.25e-3,
    backward_error=float("inf"),
    condition_estimate=None,
    symbolic_hit=True,
    factor_hit=False,
    seconds=Timings(0.1, 0.2, 0.3, 0.4, 0.5),
    instance="r1",
    refinements=2,
)


def received(body: Body) -> np.ndarray:
    """A body as the other side has it."""
    data = b"".join(body.parts)
    assert len(data) == body.nbytes
    buffer = aligned(len(data))
    buffer[:] = np.frombuffer(data, np.uint8)
    return buffer


def framed(header: object, data: bytes = b"") -> np.ndarray:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return np.frombuffer(len(text).to_bytes(8, "little") + text + data, np.uint8)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128", "int32", "int64"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (0, 4), (4, 0), (2, 3, 5)])
def test_tensors_survive(dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(802_117_346)
    array = (rng.standard_normal(shape) * 100 * (1 + (1j if np.dtype(dtype).kind == "c" else 0))).astype(dtype)
    message = decode(received(encode({"first": np.arange(3, dtype=np.int32), "b": array}, {"key": ["é", 1.5]})))
    assert message.document == {"key": ["é", 1.5]}
    assert message.tensors["b"].dtype == dtype
    np.testing.assert_array_equal(message.tensors["b"], array, strict=True)
    np.testing.assert_array_equal(message.tensors["first"], [0, 1, 2])


def test_strided_and_reversed_arrays_are_sent_in_c_order() -> None:
    array = np.arange(24.0).reshape(4, 6)[::-1, ::2].T
    np.testing.assert_array_equal(decode(received(encode({"b": array}, {}))).tensors["b"], array)


def test_encoding_and_decoding_copy_no_tensor() -> None:
    big = np.random.default_rng(395_662_018).standard_normal(1 << 16)
    body = encode({"small": np.arange(3, dtype=np.int32), "b": big}, {})
    assert any(np.shares_memory(np.asarray(part), big) for part in body.parts)
    buffer = received(body)
    tensors = decode(buffer).tensors
    for tensor in tensors.values():
        assert np.shares_memory(tensor, buffer)
        assert tensor.ctypes.data % tensor.dtype.alignment == 0
    assert tensors["b"].ctypes.data % ALIGNMENT == 0


def test_another_encoders_order_is_read_by_name() -> None:
    data = np.array([7], "<i4").tobytes() + np.array([1.5, 2.5], "<f8").tobytes()
    header = {
        "b": {"dtype": "F64", "shape": [2], "data_offsets": [4, 20]},
        "a": {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]},
        "__metadata__": {"format": "pt"},
    }
    tensors = decode(framed(header, data)).tensors
    np.testing.assert_array_equal(tensors["b"], [1.5, 2.5])
    assert tensors["b"].flags.aligned
    assert tensors["a"].tolist() == [7]


ENTRY = {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}
DEEP = b'{"a":' * 9000 + b"1" + b"}" * 9000
BAD = {
    "empty": lambda: np.zeros(0, np.uint8),
    "short": lambda: np.zeros(7, np.uint8),
    "length-lies": lambda: np.frombuffer((1 << 40).to_bytes(8, "little") + b"{}", np.uint8),
    "long-header": lambda: framed(b"{" + b" " * MAX_HEADER_BYTES + b"}"),
    "not-utf8": lambda: framed(b"\xff\xfe{}"),
    "not-json": lambda: framed(b"{]"),
    "not-object": lambda: framed([1]),
    "deep": lambda: framed(DEEP[:MAX_HEADER_BYTES]),
    "repeated-name": lambda: framed(b'{"a": {}, "a": {}}'),
    "nan": lambda: framed(b'{"a": NaN}'),
    "long-integer": lambda: framed(b'{"a": ' + b"9" * 5000 + b"}"),
    "no-shape": lambda: framed({"a": {"dtype": "F64", "data_offsets": [0, 8]}}, bytes(8)),
    "entry-is-list": lambda: framed({"a": [1]}, bytes(8)),
    "three-offsets": lambda: framed({"a": {**ENTRY, "data_offsets": [0, 4, 8]}}, bytes(8)),
    "negative": lambda: framed({"a": {**ENTRY, "shape": [-1]}}, bytes(8)),
    "boolean": lambda: framed({"a": {**ENTRY, "shape": [True]}}, bytes(8)),
    "fraction": lambda: framed({"a": {**ENTRY, "shape": [1.0]}}, bytes(8)),
    "overflow": lambda: framed({"a": {**ENTRY, "shape": [1 << 61, 8]}}, bytes(8)),
    "many-dimensions": lambda: framed({"a": {**ENTRY, "shape": [1] * 70}}, bytes(8)),
    "outside": lambda: framed({"a": {**ENTRY, "data_offsets": [8, 16]}}, bytes(8)),
    "backwards": lambda: framed({"a": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8)),
    "wrong-size": lambda: framed({"a": {**ENTRY, "shape": [2]}}, bytes(8)),
    "overlap": lambda: framed({"a": ENTRY, "b": ENTRY}, bytes(8)),
    "hole": lambda: framed({"a": {**ENTRY, "data_offsets": [8, 16]}}, bytes(16)),
    "rest": lambda: framed({"a": ENTRY}, bytes(9)),
    "metadata-list": lambda: framed({"__metadata__": []}),
    "metadata-number": lambda: framed({"__metadata__": {"backsolve": 5}}),
    "document-list": lambda: framed({"__metadata__": {"backsolve": "[]"}}),
    "complex-absent": lambda: framed({"__metadata__": {"backsolve": '{"complex": ["b"]}'}}),
    "complex-no-list": lambda: framed({"__metadata__": {"backsolve": '{"complex": {"b": 1}}'}}),
    "complex-odd": lambda: framed({"b": ENTRY, "__metadata__": {"backsolve": '{"complex": ["b"]}'}}, bytes(8)),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_such_a_body_is_malformed(case: str) -> None:
    with pytest.raises(MalformedError):
        decode(BAD[case]())


@pytest.mark.parametrize("kind", ["F16", "BF16", "BOOL", "F8_E4M3", 7, None])
def test_unknown_element_types_are_told(kind: object) -> None:
    with pytest.raises(InvalidDtypeError, match="F64"):
        decode(framed({"a": {**ENTRY, "dtype": kind}}, bytes(8)))
    with pytest.raises(InvalidDtypeError, match="float16"):
        encode({"a": np.ones(3, np.float16)}, {})


def test_random_bytes_never_raise_anything_else() -> None:
    rng = np.random.default_rng(140_773_925)
    good = received(messages.solve_body(SolveCall(REF, Options(rtol=1e-8), np.ones(5, complex))))
    for _ in range(1500):
        body = good.copy()
        for position in rng.integers(0, body.size, rng.integers(1, 8)):
            body[position] = rng.integers(0, 256)
        body = body[: rng.integers(0, body.size)] if rng.random() < 0.2 else body
        try:
            messages.read_solve(decode(body))
        except BacksolveError:
            continue


OPTIONS = Options("cg", "jacobi", "H", 1e-7, 0.0, 33, None)
B = np.arange(6.0).reshape(3, 2)


def same(left: object, right: object) -> None:
    """Equality of records that hold arrays."""
    assert type(left) is type(right)
    for name in left.__dataclass_fields__:
        ours, theirs = getattr(left, name), getattr(right, name)
        if isinstance(ours, np.ndarray):
            np.testing.assert_array_equal(ours, theirs, strict=True)
        else:
            assert ours == theirs, name


@pytest.mark.parametrize(
    ("record", "write", "read"),
    [
        (SolveCall(REF, OPTIONS, B), messages.solve_body, messages.read_solve),
        (SolveCall(REF, Options(), B, B + 1), messages.solve_body, messages.read_solve),
        (VjpCall(REF, OPTIONS, B), messages.vjp_body, messages.read_vjp),
        (VjpCall(REF, OPTIONS, B, ("b", "values"), 2 * B), messages.vjp_body, messages.read_vjp),
        (JvpCall(REF, OPTIONS, None, B, None), messages.jvp_body, messages.read_jvp),
        (JvpCall(REF, OPTIONS, B, None, B + 2j), messages.jvp_body, messages.read_jvp),
        (SolveReply(B, CERTIFICATE), messages.solve_reply_body, messages.read_solve_reply),
        (VjpReply(B, None, CERTIFICATE), messages.vjp_reply_body, messages.read_vjp_reply),
        (VjpReply(None, B, CERTIFICATE), messages.vjp_reply_body, messages.read_vjp_reply),
    ],
)
def test_calls_and_replies_survive(record: object, write: Callable, read: Callable) -> None:
    same(read(decode(received(write(record)))), record)


def test_a_batch_of_any_size_fits_the_header() -> None:
    elements = tuple(Element(Status.OK, i, i * 1e-9, float("nan") if i == 3 else 0.5) for i in range(5000))
    reply = SolveReply(B, replace(CERTIFICATE, elements=elements))
    back = messages.read_solve_reply(decode(received(messages.solve_reply_body(reply)))).certificate.elements
    assert np.isnan(back[3].backward_error)
    assert (back[:3], back[4:]) == (elements[:3], elements[4:])
    assert back[3].iterations == 3


def test_matrices_survive() -> None:
    pattern = Pattern([0, 1, 3], [1, 0, 1], (2, 2))
    for matrix in (Matrix(pattern, np.ones((4, 3), np.float32)), Matrix(DensePattern((2, 2)), np.eye(2) * 1j)):
        back, values = messages.read_put(decode(received(messages.put_body(PutCall(matrix.ref, matrix)))))
        assert Matrix(back, values).ref == matrix.ref
        none, values = messages.read_put(decode(received(messages.put_body(PutCall(matrix.ref, matrix, True)))))
        assert none is None
        np.testing.assert_array_equal(values, matrix.values, strict=True)


@pytest.mark.parametrize(
    ("tensors", "document", "error"),
    [
        ({}, {"matrix": REF.key}, MalformedError),
        ({"b": B}, {}, MalformedError),
        ({"b": B}, {"matrix": REF.key.upper() + "0"}, MalformedError),
        ({"b": B, "bb": B}, {"matrix": REF.key}, InvalidOptionError),
        ({"b": B}, {"matrix": REF.key, "option": {}}, InvalidOptionError),
        ({"b": B}, {"matrix": REF.key, "options": {"rtol": "1"}}, InvalidOptionError),
        ({"b": B}, {"matrix": REF.key, "options": {"maxiter": True}}, InvalidOptionError),
        ({"b": B}, {"matrix": REF.key, "options": []}, MalformedError),
    ],
)
def test_faulty_calls_are_refused(tensors: dict, document: dict, error: type[BacksolveError]) -> None:
    with pytest.raises(error):
        messages.read_solve(decode(received(encode(tensors, document))))


@pytest.mark.parametrize("want", [[], ["x"], "b", [1], ["b", None]])
def test_want_is_a_list_of_known_names(want: object) -> None:
    with pytest.raises(InvalidOptionError, match="values"):
        messages.read_want(want)


def test_replies_of_newer_servers_are_read() -> None:
    document = {**certificate_to_json(CERTIFICATE), "energy_joules": 3}
    assert certificate_from_json(json.loads(json.dumps(document))) == CERTIFICATE
    info = ServerInfo("9", ("v1", "v2"), 1, "i", "cpu", ("float64",), ("lu",), (), Limits(1, 2), http_port=80)
    document = {**info_to_json(info), "colour": "blue"}
    document["limits"]["max_dreams"] = 4
    assert info_from_json(json.loads(json.dumps(document))) == info
    for broken in (None, [], {}, {"status": "FINE"}):
        with pytest.raises(MalformedError):
            certificate_from_json(broken)
        with pytest.raises(MalformedError):
            info_from_json(broken)


def test_a_header_that_is_remembered_serves_every_body_that_begins_with_it() -> None:
    rng = np.random.default_rng(517_064_923)
    known: dict[bytes, Header] = {}
    read: list[bytes] = []

    def remembered(text: bytes) -> Header:
        if text not in known:
            read.append(text)
            known[text] = read_header(text)
        return known[text]

    for _ in range(3):
        b, w = rng.standard_normal(5), rng.standard_normal(4) + 1j
        buffer = received(encode({"b": b, "w": w}, {"key": 7}))
        message = decode(buffer, read=remembered)
        np.testing.assert_array_equal(message.tensors["b"], b, strict=True)
        np.testing.assert_array_equal(message.tensors["w"], w, strict=True)
        assert message.document == {"key": 7}
    assert len(read) == 1
    for size, text in ((buffer.size - 8, "point outside"), (buffer.size + 8, "8 bytes follow")):
        other = np.zeros(size, np.uint8)
        other[: min(size, buffer.size)] = buffer[: min(size, buffer.size)]
        with pytest.raises(MalformedError, match=text):
            decode(other, read=remembered)
