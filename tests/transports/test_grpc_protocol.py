"""Dataclasses survive the way through messages; errors the one through `google.rpc.Status`."""

from dataclasses import fields, replace

import numpy as np
import pytest
from google.rpc import status_pb2

from backsolve._rpc import calls, framing, replies
from backsolve._rpc.status import decode_error, encode_error
from backsolve._transports.base import JvpCall, PutCall, SolveCall, SolveReply, VjpCall, VjpReply
from backsolve.errors import (
    BY_CODE,
    WIRE,
    InvalidInputError,
    InvalidOptionError,
    InvalidPatternError,
    MalformedError,
    QueueFullError,
    from_wire,
)
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern, Pattern
from backsolve.types import (
    DTYPES,
    TRANS,
    Certificate,
    Element,
    ErrorCode,
    Limits,
    MatrixRef,
    Options,
    ServerInfo,
    Status,
    Timings,
)
from backsolve.v1 import solver_pb2, types_pb2
from support.systems import random_like

REF = MatrixRef(bytes(range(32)), bytes(range(32, 64)))
OPTIONS = Options("cg", "jacobi", "H", 1e-7, 1e-9, 173, 4)


def travel(message, arrays):
    """What the other side gets of a message: encoded with its data, parsed, its arrays read."""
    framing.embed(message, arrays)
    arrived = type(message).FromString(message.SerializeToString())
    return arrived, framing.embedded(arrived, None)


def assert_same(ours, theirs):
    """Equality field by field, arrays by shape, type and bits."""
    assert type(ours) is type(theirs)
    for field in fields(ours):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b, strict=True)
            assert b.flags.writeable
        else:
            assert a == b, field.name


@pytest.mark.parametrize("dtype", [d.name for d in DTYPES])
@pytest.mark.parametrize("shape", [(5,), (5, 2), (3, 5, 2), (0,), (5, 0)], ids=str)
def test_calls_arrive_as_they_were(dtype, shape):
    a, b, c = (random_like(shape, dtype, seed) for seed in (118_273_645, 604_951_827, 390_586_112))
    for options in (Options(), OPTIONS):
        solve = SolveCall(REF, options, a, b)
        assert_same(solve, calls.decode_solve(*travel(*calls.encode_solve(solve))))
        vjp = VjpCall(REF, options, a, ("values", "b"), b)
        assert_same(vjp, calls.decode_vjp(*travel(*calls.encode_vjp(vjp))))
        jvp = JvpCall(REF, options, a, b, c)
        assert_same(jvp, calls.decode_jvp(*travel(*calls.encode_jvp(jvp))))


def test_what_is_absent_stays_absent():
    rhs = random_like((3,), "float64", 275_640_918)
    assert_same(
        SolveCall(REF, Options(), rhs),
        calls.decode_solve(*travel(*calls.encode_solve(SolveCall(REF, Options(), rhs)))),
    )
    vjp = VjpCall(REF, Options(), rhs)
    assert_same(vjp, calls.decode_vjp(*travel(*calls.encode_vjp(vjp))))
    jvp = JvpCall(REF, Options(), None, rhs, None)
    assert_same(jvp, calls.decode_jvp(*travel(*calls.encode_jvp(jvp))))


@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize("blank", [f.name for f in fields(Options) if f.default is None])
def test_each_option_is_told_from_its_absence(trans, blank):
    given = replace(OPTIONS, trans=trans, **{blank: None})
    assert calls.decode_options(calls.encode_options(given)) == given


def test_zero_is_a_value_of_an_option():
    given = Options("cg", "", "N", 0.0, 0.0, 0, 0)
    assert calls.decode_options(calls.encode_options(given)) == given


@pytest.mark.parametrize(
    "wrong",
    [{"trans": "X"}, {"trans": ["N"]}, {"maxiter": 2**70}, {"maxiter": 1.5}, {"rtol": "small"}, {"method": 3}],
    ids=str,
)
def test_options_that_cannot_be_sent_have_their_error(wrong):
    with pytest.raises(InvalidOptionError, match="impossible type or value"):
        calls.encode_options(replace(Options(), **wrong))


@pytest.mark.parametrize("want", [(), ("x",), ("b", "A")], ids=str)
def test_wanting_nothing_or_something_unknown_is_refused(want):
    with pytest.raises(InvalidOptionError, match="b, values"):
        calls.encode_vjp(VjpCall(REF, Options(), np.ones(3), want))


def certificate(elements: int = 0) -> Certificate:
    parts = tuple(Element(Status.MAX_ITER, 7 * i, 10.0**-i, 0.5 / (i + 1)) for i in range(elements))
    seconds = Timings(0.125, 0.25, 0.5, 1.5, 2.5)
    return Certificate(
        Status.STAGNATION, "cg", "because", "float32", 31, 3e-5, 4e-6, None, True, False, seconds, "here", 2, parts
    )


@pytest.mark.parametrize("condition", [None, 0.0, 3.5e12, float("inf")])
@pytest.mark.parametrize("elements", [0, 3])
def test_certificates_arrive_as_they_were(condition, elements):
    given = replace(certificate(elements), condition_estimate=condition)
    message = types_pb2.Certificate.FromString(replies.encode_certificate(given).SerializeToString())
    assert replies.decode_certificate(message) == given
    apart = replies.encode_certificate(given, elements=False)
    assert len(apart.elements) == 0
    assert replies.decode_certificate(apart, replies.encode_elements(given.elements)) == given


@pytest.mark.parametrize("status", Status)
def test_every_status_survives(status):
    given = replace(certificate(), status=status, elements=(Element(status, 1, 0.5, 0.25),))
    assert replies.decode_certificate(replies.encode_certificate(given)) == given


def test_a_status_of_a_later_version_is_not_guessed():
    with pytest.raises(MalformedError, match="upgrade"):
        replies.decode_certificate(types_pb2.Certificate(status=999))


def test_replies_arrive_as_they_were():
    x, y = random_like((4, 2), "complex64", 981_260_537), random_like((9,), "complex64", 447_903_216)
    solved = SolveReply(x, certificate(2))
    assert_same(solved, replies.decode_solved(*travel(*replies.encode_solved(solved))))
    assert_same(solved, replies.decode_solved(*travel(*replies.encode_pushed(solved))))
    for pulled in (VjpReply(x, y, certificate()), VjpReply(None, y, certificate()), VjpReply(x, None, certificate())):
        assert_same(pulled, replies.decode_pulled(*travel(*replies.encode_pulled(pulled))))


def test_server_info_arrives_as_it_was():
    full = ServerInfo(
        "1.2",
        ("v1", "v2"),
        1,
        "me",
        "cuda:0",
        ("float64",),
        ("lu", "cg"),
        ("none",),
        Limits(5, 2**40),
        ("x",),
        8080,
        0,
        unix_http="/run/a",
        unix_grpc="/run/b",
        unix_shared="/run/c",
        versions={"a": "b"},
    )
    nowhere = dict.fromkeys(("http_port", "grpc_port", "unix_http", "unix_grpc", "unix_shared"))
    for info in (full, replace(full, **nowhere, extensions=(), versions={})):
        sent = solver_pb2.GetServerInfoResponse.FromString(replies.encode_info(info).SerializeToString())
        assert replies.decode_info(sent) == info


def matrices():
    pattern = Pattern([0, 2, 3, 4], [0, 2, 1, 2], (3, 3))
    yield Matrix(pattern, random_like((4,), "float32", 718_245_093))
    yield Matrix(pattern, random_like((5, 4), "complex128", 266_901_574))
    yield Matrix(DensePattern((3, 3)), random_like((3, 3), "float64", 855_037_124))
    yield Matrix(DensePattern((3, 3)), random_like((2, 3, 3), "float64", 310_478_265))
    yield Matrix(Pattern([0], [], (0, 0)), np.zeros(0))


@pytest.mark.parametrize("matrix", list(matrices()), ids=lambda m: f"{m.pattern.layout}-{m.values.shape}")
@pytest.mark.parametrize("values_only", [False, True])
def test_matrices_arrive_as_they_were(matrix, values_only):
    call = PutCall(matrix.ref, matrix, values_only)
    message, arrays = travel(*calls.encode_put(call))
    assert ("indptr" in arrays) == (matrix.pattern.layout == "csr" and not values_only)
    arrived = calls.decode_put(message, arrays, matrix.pattern if values_only else None)
    assert (arrived.ref, arrived.values_only) == (matrix.ref, values_only)
    assert arrived.matrix.pattern.same_as(matrix.pattern)
    np.testing.assert_array_equal(arrived.matrix.values, matrix.values, strict=True)
    assert arrived.matrix.ref == matrix.ref


def test_uploads_that_contradict_themselves_are_refused():
    matrix = next(matrices())
    message, arrays = travel(*calls.encode_put(PutCall(matrix.ref, matrix)))
    wide = {**arrays, "indices": arrays["indices"].astype(np.int64)}
    with pytest.raises(InvalidPatternError, match="must be int32"):
        calls.decode_put(message, wide, None)
    with pytest.raises(MalformedError, match="values is missing"):
        calls.decode_put(message, {k: v for k, v in arrays.items() if k != "values"}, None)
    message.layout = solver_pb2.LAYOUT_DENSE
    with pytest.raises(MalformedError, match="no indptr"):
        calls.decode_put(message, arrays, None)
    message.layout = solver_pb2.LAYOUT_UNSPECIFIED
    with pytest.raises(MalformedError, match="layout"):
        calls.decode_put(message, arrays, None)
    message.values_only = True
    with pytest.raises(MalformedError, match="by digest"):
        calls.decode_put(message, arrays, matrix.pattern)


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_survives(code):
    given = from_wire(code, f"text of {code.name}: raise it, ünïcödé too", {"limit": "17", "column": "3"})
    status = status_pb2.Status.FromString(encode_error(given))
    arrived = decode_error(encode_error(given))
    assert type(arrived) is BY_CODE[code]
    assert str(arrived) == str(given)
    assert arrived.details == given.details
    assert status.code > 0
    wrong_input = ["google.rpc.BadRequest"] if isinstance(given, InvalidInputError) else []
    assert [packed.TypeName() for packed in status.details] == ["google.rpc.ErrorInfo", *wrong_input]


@pytest.mark.parametrize("code", ErrorCode)
def test_when_to_come_back_is_told_where_that_helps(code):
    given = from_wire(code, "busy", {"retry_after": "0.25"})
    arrived = decode_error(encode_error(given))
    assert arrived.retry_after == (0.25 if WIRE[code].retry == "backoff" else None)


def test_long_texts_are_cut_below_the_limit_of_trailers():
    details = {f"detail{i}": "ü" * 5000 for i in range(40)}
    data = encode_error(QueueFullError("ü" * 100_000, **details, retry_after=3))
    assert len(data) < 8 * 1024
    arrived = decode_error(data)
    assert isinstance(arrived, QueueFullError)
    assert str(arrived).endswith("ü…")
    assert arrived.retry_after == 3.0


def test_statuses_of_others_are_not_taken_for_ours():
    foreign = status_pb2.Status(code=3, message="no")
    assert decode_error(foreign.SerializeToString()) is None
    assert decode_error(b"\xff\xff\xff") is None
    assert decode_error(b"") is None
    known = encode_error(QueueFullError("full"))
    assert decode_error(known.replace(b"QUEUE_FULL", b"QUEUE_FOOL")) is None
    assert decode_error(known.replace(b"backsolve", b"sacbolve")) is None
