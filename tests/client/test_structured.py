"""Structured matrices as callers hold them."""

import numpy as np
import pytest
from scipy import linalg

import backsolve
from backsolve.canonical import canonicalise
from backsolve.errors import InvalidDtypeError, InvalidPatternError, InvalidShapeError
from backsolve.structured import Structured
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
