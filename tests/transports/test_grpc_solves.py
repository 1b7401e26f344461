"""Calls over a real socket, small and large, and what travels for them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from backsolve._rpc import framing
from backsolve._transports.base import JvpCall, PutCall, SolveCall, VjpCall
from backsolve.errors import DigestMismatchError, NeedMatrixError, NeedValuesError, PayloadTooLargeError
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern, Pattern
from backsolve.types import DTYPES, Holding, MatrixRef, Options, Status
from support.systems import convection, random_like

TIMEOUT = 60
MIB = 1 << 20


def columns(megabytes: int, dtype: str = "float64") -> np.ndarray:
    """Right-hand sides for the 8x8 matrix of about this size."""
    return random_like((8, megabytes * 1_000_000 // (8 * np.dtype(dtype).itemsize)), dtype, 862_501_397)


@pytest.mark.parametrize("megabytes", [0, 3, 5, 40])
def test_solves_of_any_size(transport, held, megabytes):
    b = columns(megabytes) if megabytes else random_like((8,), "float64", 315_906_284)
    sent, received = transport.sent, transport.received
    reply = transport.solve(SolveCall(held.ref, Options(), b), TIMEOUT)
    np.testing.assert_allclose(held.values @ reply.x, b, rtol=1e-9, atol=1e-12)
    assert reply.x.shape == b.shape
    assert reply.x.flags.writeable
    assert reply.certificate.status is Status.OK
    assert (transport.sent - sent, transport.received - received) == (b.nbytes, b.nbytes)
    assert transport.received_arrays == transport.received


@pytest.mark.parametrize("megabytes", [3, 5])
def test_a_first_iterate_counts_into_the_size(transport, held, megabytes):
    b = columns(megabytes)
    matrix = Matrix(held.pattern, held.values @ held.values.T)
    transport.put(PutCall(matrix.ref, matrix), TIMEOUT)
    x0 = np.linalg.solve(matrix.values, b)
    reply = transport.solve(SolveCall(matrix.ref, Options("cg", rtol=1e-6), b, x0), TIMEOUT)
    assert reply.certificate.iterations == 0
    np.testing.assert_array_equal(reply.x, x0)


@pytest.mark.parametrize("dtype", [d.name for d in DTYPES])
@pytest.mark.parametrize("megabytes", [1, 5])
def test_adjoints_with_and_without_the_gradient_of_the_values(transport, dtype, megabytes):
    matrix = Matrix(DensePattern((8, 8)), random_like((8, 8), dtype, 943_217_605) + 8 * np.eye(8, dtype=dtype))
    transport.put(PutCall(matrix.ref, matrix), TIMEOUT)
    g, x = columns(megabytes, dtype), columns(megabytes, dtype)[:, ::-1].copy()
    alone = transport.vjp(VjpCall(matrix.ref, Options(), g), TIMEOUT)
    both = transport.vjp(VjpCall(matrix.ref, Options(), g, ("b", "values"), x), TIMEOUT)
    lam = np.linalg.solve(matrix.values.conj().T.astype("complex128"), g)
    tolerance = 1e-3 if np.dtype(dtype).itemsize // (1 + (np.dtype(dtype).kind == "c")) == 4 else 1e-9
    np.testing.assert_allclose(alone.b, lam, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(both.b, alone.b)
    assert alone.values is None
    expected = -lam @ x.conj().T
    np.testing.assert_allclose(both.values, expected, rtol=tolerance, atol=tolerance * abs(expected).max())


@pytest.mark.parametrize("megabytes", [1, 5])
def test_tangents(transport, held, megabytes):
    x, db, da = columns(megabytes), columns(megabytes)[::-1].copy(), random_like((8, 8), "float64", 130_596_728)
    for given in (JvpCall(held.ref, Options(), x, db, da), JvpCall(held.ref, Options(), x, None, da)):
        expected = (0 if given.b_tangent is None else db) - da @ x
        dx = transport.jvp(given, TIMEOUT).x
        np.testing.assert_allclose(held.values @ dx, expected, rtol=1e-9, atol=1e-11)


def test_the_elements_of_a_large_batch_follow_in_frames_of_their_own(transport):
    count = 40_000
    values = random_like((count, 1, 1), "float64", 708_135_249) + 9
    matrix = Matrix(DensePattern((1, 1)), values)
    transport.put(PutCall(matrix.ref, matrix), TIMEOUT)
    g = random_like((count, 1), "float64", 251_874_960)
    reply = transport.vjp(VjpCall(matrix.ref, Options(), g, ("b", "values"), g), TIMEOUT)
    np.testing.assert_allclose(reply.b, g / values[:, :, 0], rtol=1e-12)
    np.testing.assert_allclose(reply.values[:, :, 0], -reply.b * g, rtol=1e-12)
    assert len(reply.certificate.elements) == count > 2 * framing.ELEMENTS_PER_FRAME
    worst = max(element.relative_residual for element in reply.certificate.elements)
    assert reply.certificate.relative_residual == worst


def test_a_batch_with_too_many_elements_for_one_message_is_streamed(transport):
    many = np.empty((140_000, 1))
    assert many.nbytes < framing.UNARY_BYTES
    before = transport.sent
    with pytest.raises(NeedMatrixError):
        transport.solve(SolveCall(MatrixRef(b"p" * 32, b"v" * 32), Options(), many), TIMEOUT)
    assert transport.sent == before  # a unary call would have taken it along


def test_a_miss_is_answered_before_the_bulk_is_sent(transport, held):
    before = transport.sent
    b = columns(30)
    with pytest.raises(NeedMatrixError):
        transport.solve(SolveCall(MatrixRef(b"p" * 32, b"v" * 32), Options(), b), TIMEOUT)
    with pytest.raises(NeedValuesError):
        transport.vjp(VjpCall(MatrixRef(held.ref.pattern, b"v" * 32), Options(), b), TIMEOUT)
    with pytest.raises(NeedMatrixError):
        transport.jvp(JvpCall(MatrixRef(b"p" * 32, b"v" * 32), Options(), b, b, None), TIMEOUT)
    assert transport.sent == before


def test_a_call_over_the_limit_is_refused_before_the_bulk_is_sent(transport, held):
    before = transport.sent
    b = columns(68)
    with pytest.raises(PayloadTooLargeError, match=str(64 << 20)) as caught:
        transport.solve(SolveCall(held.ref, Options(), b), TIMEOUT)
    assert caught.value.details == {"limit": str(64 << 20), "size": str(b.nbytes)}
    assert transport.sent == before


@pytest.mark.parametrize("m", [10, 300], ids=["one frame", "chunks"])
def test_uploads_of_a_matrix_and_then_of_its_values_alone(transport, m):
    a = convection(m)
    matrix = Matrix(Pattern.from_csr(a), a.data)
    newer = Matrix(matrix.pattern, a.data * 1.5)
    assert transport.find([matrix.ref, newer.ref], TIMEOUT) == [Holding.ABSENT] * 2
    with pytest.raises(NeedMatrixError):
        transport.put(PutCall(matrix.ref, matrix, values_only=True), TIMEOUT)
    before = transport.sent
    assert transport.put(PutCall(matrix.ref, matrix), TIMEOUT) == matrix.ref
    assert transport.sent - before == matrix.values.nbytes + matrix.pattern.nbytes
    assert transport.find([matrix.ref, newer.ref], TIMEOUT) == [Holding.VALUES, Holding.PATTERN]
    before = transport.sent
    assert transport.put(PutCall(newer.ref, newer, values_only=True), TIMEOUT) == newer.ref
    assert transport.sent - before == newer.values.nbytes
    b = random_like((m * m,), "float64", 489_021_736)
    x = transport.solve(SolveCall(newer.ref, Options(), b), TIMEOUT).x
    np.testing.assert_allclose(1.5 * (a @ x), b, rtol=1e-9, atol=1e-9)
    transport.release(newer.ref, TIMEOUT)


def test_an_upload_over_the_limit_tells_the_limit_while_its_bulk_is_under_way(transport):
    matrix = Matrix(DensePattern((3000, 3000)), random_like((3000, 3000), "float64", 617_358_024))
    with pytest.raises(PayloadTooLargeError) as caught:
        transport.put(PutCall(matrix.ref, matrix), TIMEOUT)
    assert caught.value.details == {"limit": str(64 << 20), "size": str(matrix.values.nbytes)}


def test_data_that_is_not_what_its_digest_says_is_refused(transport, held):
    other = Matrix(held.pattern, held.values + 1)
    with pytest.raises(DigestMismatchError, match="values"):
        transport.put(PutCall(held.ref, other), TIMEOUT)
    assert transport.find([other.ref], TIMEOUT) == [Holding.PATTERN]


def test_info_and_stats(transport, running, held):
    assert transport.info(TIMEOUT) == running.plane.info()
    before = transport.stats(TIMEOUT)["solves"]
    transport.solve(SolveCall(held.ref, Options(), np.ones(8)), TIMEOUT)
    assert transport.stats(TIMEOUT)["solves"] == before + 1


def test_threads_share_one_transport(transport, held):
    sizes = [2, 70_000, 5, 90_000, 3, 75_000, 8, 1]  # unary and streamed, mixed
    sent = transport.sent

    def ask(k: int) -> float:
        b = random_like((8, k), "float64", 773_190_254 + k)
        x = transport.solve(SolveCall(held.ref, Options(), b), None).x
        return float(abs(held.values @ x - b).max())

    with ThreadPoolExecutor(len(sizes)) as pool:
        assert max(pool.map(ask, sizes)) < 1e-9
    assert transport.sent - sent == 64 * sum(sizes)
