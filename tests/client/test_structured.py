"""Structured matrices as callers hold them, and as they travel."""

import pickle
from typing import Any

import numpy as np
import pytest
from scipy import linalg

import backsolve
from backsolve._rest.body import Message
from backsolve._rest.messages import read_put
from backsolve._rpc.calls import decode_put, encode_put
from backsolve._transports.base import PutCall
from backsolve.canonical import canonicalise
from backsolve.errors import (
    InvalidDtypeError,
    InvalidOptionError,
    InvalidPatternError,
    InvalidShapeError,
    MalformedError,
)
from backsolve.fingerprint import pattern_digest
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern, StructuredPattern
from backsolve.structured import Structured
from backsolve.v1 import solver_pb2
from support.systems import random_like


def made(name: str, dtype: str = "complex128") -> Structured:
    """One of each class."""
    if name == "LowRankPlusDiagonal":
        return backsolve.LowRankPlusDiagonal(
            *(random_like(s, dtype, 52_118 + i) for i, s in enumerate([(6,), (6, 2), (6, 2)]))
        )
    if name == "tied":
        return backsolve.LowRankPlusDiagonal(random_like((6,), dtype, 52_118), random_like((6, 2), dtype, 52_119))
    if name == "Kronecker":
        return backsolve.Kronecker(random_like((2, 2), dtype, 52_120), random_like((3, 3), dtype, 52_121))
    c, r = (random_like((6,), dtype, seed) for seed in (52_122, 52_123))
    return {
        "Circulant": backsolve.Circulant(c),
        "Toeplitz": backsolve.Toeplitz(c, r),
        "Hermitian": backsolve.Toeplitz(c),
    }[name]


each = pytest.mark.parametrize(
    "name", ["LowRankPlusDiagonal", "tied", "Kronecker", "Circulant", "Toeplitz", "Hermitian"]
)


@each
def test_products_agree_with_the_entries(name: str) -> None:
    a = made(name)
    full = a.toarray()
    assert full.shape == a.shape == (6, 6)
    assert a.dtype == full.dtype == np.complex128
    for x in (random_like((6,), "complex128", 7_731), random_like((6, 3), "complex128", 7_732)):
        np.testing.assert_allclose(a @ x, full @ x, rtol=1e-12)
        np.testing.assert_allclose(a.matvec(x), full @ x, rtol=1e-12)
    with pytest.raises(InvalidShapeError, match="x has shape"):
        a @ np.ones(5)
    with pytest.raises(TypeError):
        np.ones(6) @ a
    assert "6x6" in repr(a)


def test_low_rank_is_what_it_says() -> None:
    a, tied = made("LowRankPlusDiagonal"), made("tied")
    assert isinstance(a, backsolve.LowRankPlusDiagonal)
    assert isinstance(tied, backsolve.LowRankPlusDiagonal)
    np.testing.assert_allclose(a.toarray(), np.diag(a.d) + a.U @ a.V.conj().T, rtol=1e-12)
    np.testing.assert_allclose(tied.toarray(), np.diag(tied.d) + tied.U @ tied.U.conj().T, rtol=1e-12)
    assert tied.V is None


def test_the_others_are_what_scipy_makes() -> None:
    kronecker, circulant, general, hermitian = (made(n) for n in ("Kronecker", "Circulant", "Toeplitz", "Hermitian"))
    assert isinstance(kronecker, backsolve.Kronecker)
    assert isinstance(circulant, backsolve.Circulant)
    assert isinstance(general, backsolve.Toeplitz)
    assert isinstance(hermitian, backsolve.Toeplitz)
    np.testing.assert_allclose(kronecker.toarray(), np.kron(*kronecker.factors), rtol=1e-12)
    np.testing.assert_allclose(circulant.toarray(), linalg.circulant(circulant.c), rtol=0, atol=1e-13)
    np.testing.assert_allclose(general.toarray(), linalg.toeplitz(general.c, general.r), rtol=0, atol=1e-13)
    np.testing.assert_allclose(hermitian.toarray(), linalg.toeplitz(hermitian.c), rtol=0, atol=1e-13)
    empty = (backsolve.Circulant([]), backsolve.Toeplitz([]), backsolve.Kronecker(np.zeros((0, 0)), np.eye(2)))
    for a in empty:
        assert a.toarray().shape == (0, 0)
        assert canonicalise(a).like_caller(np.zeros(a.pattern.entries)).shape == (0, 0)


def test_shapes_and_types_that_do_not_fit() -> None:
    make = backsolve.LowRankPlusDiagonal
    with pytest.raises(InvalidShapeError, match="must be"):
        make(np.ones(3), np.ones((4, 1)))
    with pytest.raises(InvalidShapeError, match="must be"):
        make(np.ones(3), np.ones((3, 1)), np.ones((3, 2)))
    with pytest.raises(InvalidShapeError, match="batch"):
        make(np.ones((2, 3)), np.ones((3, 1)))
    with pytest.raises(InvalidShapeError, match="batch"):
        make(np.ones((2, 3)), np.ones((4, 3, 1)))
    with pytest.raises(InvalidShapeError, match="of a batch"):
        make(np.ones((2, 2, 3)), np.ones((2, 2, 3, 1)))
    with pytest.raises(InvalidShapeError, match="same batch axis"):
        backsolve.Kronecker(np.ones((2, 3, 3)), np.ones((2, 2)))
    with pytest.raises(InvalidShapeError, match="x has shape"):
        backsolve.Circulant(np.ones((2, 3))) @ np.ones((3, 2))
    with pytest.raises(InvalidShapeError, match="batch is not taken"):
        backsolve.LowRankUpdate(np.ones((2, 3, 3)), np.ones((2, 3, 1)))
    with pytest.raises(InvalidPatternError, match="use a dense matrix"):
        make(np.ones(3), np.ones((3, 4)))
    with pytest.raises(InvalidShapeError, match="factor 2"):
        backsolve.Kronecker(np.eye(2), np.ones((2, 3)))
    with pytest.raises(InvalidPatternError, match="1 to 16"):
        backsolve.Kronecker()
    with pytest.raises(InvalidShapeError, match="alike"):
        backsolve.Toeplitz(np.ones(3), np.ones(4))
    with pytest.raises(InvalidDtypeError):
        make(np.ones(3), np.array([["a"]] * 3))


def test_integers_and_mixed_types_become_common() -> None:
    a = backsolve.LowRankPlusDiagonal(np.arange(1, 4), np.ones((3, 1), dtype=np.float32), 1j * np.ones((3, 1)))
    assert a.dtype == np.complex128
    assert canonicalise(a).matrix.dtype == np.complex128
    assert canonicalise(a, np.dtype(np.complex64)).matrix.dtype == np.complex64


@each
def test_a_gradient_is_of_the_same_class(name: str) -> None:
    a = made(name)
    canonical = canonicalise(a)
    back = canonical.like_caller(canonical.matrix.values)
    assert type(back) is type(a)
    with pytest.raises(InvalidShapeError, match="batch"):
        canonical.like_caller(canonical.matrix.values[None])


PATTERN = StructuredPattern("low_rank", (4, 1))
VALUES = np.arange(12.0)


def test_digests_tell_kinds_and_sizes_apart() -> None:
    """The same numbers are another matrix as another kind, or cut in other places."""
    patterns = [
        StructuredPattern("circulant", (9,)),
        StructuredPattern("toeplitz", (5,)),
        StructuredPattern("kronecker", (3,)),
        StructuredPattern("low_rank", (3, 1)),
        StructuredPattern("low_rank", (9, 0)),
    ]
    assert {p.nnz for p in patterns} == {9}
    assert len({pattern_digest(p) for p in patterns}) == len(patterns)
    assert pattern_digest(StructuredPattern("low_rank", [3, 1])) == pattern_digest(patterns[3])


def test_a_pattern_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(PATTERN))
    assert again.same_as(PATTERN)
    assert not again.same_as(StructuredPattern("low_rank", (4, 2)))
    assert not again.same_as(DensePattern((4, 4)))


def put() -> PutCall:
    m = Matrix(PATTERN, VALUES)
    return PutCall(m.ref, m)


def test_uploads_survive_both_wires() -> None:
    message, arrays = encode_put(put())
    assert decode_put(message, arrays, None).matrix.pattern.same_as(PATTERN)
    pattern, values = read_put(
        Message({"values": VALUES}, {"layout": "structured", "kind": "low_rank", "dims": [4, 1]})
    )
    assert PATTERN.same_as(pattern)
    np.testing.assert_array_equal(values, VALUES)


@pytest.mark.parametrize(
    ("document", "error", "says"),
    [
        ({"layout": "structured", "dims": [4, 1]}, MalformedError, "kind"),
        ({"layout": "structured", "kind": 3, "dims": [4, 1]}, MalformedError, "kind"),
        ({"layout": "structured", "kind": "low_rank"}, MalformedError, "dims"),
        ({"layout": "structured", "kind": "low_rank", "dims": [4.0, 1]}, MalformedError, "dims"),
        ({"layout": "structured", "kind": "low_rank", "dims": [4, True]}, MalformedError, "dims"),
        (
            {"layout": "structured", "kind": "low_rank", "dims": [4, 1], "shape": [4, 4]},
            InvalidOptionError,
            "known are layout, kind",
        ),
        ({"layout": "dense", "kind": "low_rank", "shape": [4, 4]}, InvalidOptionError, "known are layout, shape"),
        ({"values_only": True, "kind": "low_rank", "dims": [4, 1]}, InvalidOptionError, "known are"),
        ({"layout": "structured", "kind": "hankel", "dims": [4]}, InvalidPatternError, "low_rank"),
        ({"layout": "structured", "kind": "low_rank", "dims": [-4, 1]}, InvalidPatternError, "negative"),
        ({"layout": "structured", "kind": "kronecker", "dims": [1 << 20, 1 << 20]}, InvalidPatternError, "rows"),
        ({"layout": "structured", "kind": "circulant", "dims": [1 << 80]}, InvalidPatternError, "rows"),
    ],
)
def test_what_rest_does_not_take(document: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        read_put(Message({"values": VALUES}, document))


def test_what_grpc_does_not_take() -> None:
    def broken(**fields: Any) -> Any:
        message, arrays = encode_put(put())
        for name, value in fields.items():
            message.ClearField(name)
            getattr(message, name).extend(value) if name == "dims" else setattr(message, name, value)
        return decode_put(message, arrays, PATTERN if message.values_only else None)

    for fields in ({"n": 5}, {"layout": solver_pb2.LAYOUT_DENSE}, {"values_only": True}, {"layout": 0}):
        with pytest.raises(MalformedError):
            broken(**fields)
    with pytest.raises(MalformedError, match="takes its pattern by digest"):
        broken(values_only=True, layout=0, n=0)
    with pytest.raises(InvalidPatternError):
        broken(kind="hankel")
    with pytest.raises(InvalidPatternError):
        broken(dims=[4])
    with pytest.raises(InvalidShapeError):
        broken(dims=[4, 2])
