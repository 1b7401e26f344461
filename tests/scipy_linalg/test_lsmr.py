"""What SciPy's own tests ask of `lsmr`, and that its eight results are what they are called."""

import math

import numpy as np
import pytest
import scipy.sparse.linalg
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from backsolve.errors import (
    IllConditionedWarning,
    InvalidOptionError,
    InvalidShapeError,
    NonfiniteInputError,
    NotSupportedError,
)
from support.systems import random_like


def bidiagonal(m: int, n: int) -> sparse.coo_array:
    """1, 2, … on the diagonal and below it, with rows of zeros under them."""
    k = np.arange(min(m, n))
    below = k[: m - 1]
    rows, columns = np.append(k, below + 1), np.append(k, below)
    return sparse.coo_array((np.append(k + 1.0, below + 1.0), (rows, columns)), shape=(m, n))


def measured(a, b, x, damp=0.0, x0=0.0):
    """||r||, ||Aᴴr||, ||A|| and ||x|| by their definitions."""
    full = a.toarray() if sparse.issparse(a) else a
    step = x - x0
    r = np.append(b - full @ x, -damp * step)
    normal = full.conj().T @ r[: len(b)] - damp**2 * step
    return np.linalg.norm(r), np.linalg.norm(normal), np.linalg.norm(full), np.linalg.norm(x)


def rectangular(m: int, n: int, dtype: str = "float64", seed: int = 604_882_317) -> tuple[np.ndarray, np.ndarray]:
    return random_like((m, n), dtype, seed), random_like((m,), dtype, seed + 1)


@pytest.mark.parametrize("a", [np.eye(10), bidiagonal(20, 10), 4 * np.eye(10) + 1j * np.ones((10, 10))], ids=type)
@pytest.mark.parametrize("x", [np.zeros(10), np.ones(10), np.arange(10.0, 0, -1), np.arange(10, 0, -1) * (1 + 1j)])
def test_systems_that_have_a_solution(spla, a, x):
    b = a @ x
    found, istop, *_ = spla.lsmr(a, b)
    assert istop in (0, 1)
    assert np.linalg.norm(found - x) < 1e-5


def test_numbers_columns_and_rows_are_right_hand_sides(spla):
    a = np.array([[1.0, 2.0]])
    for b in (3.0, [3.0], np.array([[3.0]])):
        assert a @ spla.lsmr(a, b)[0] == pytest.approx(3.0, rel=1e-12)
    for b in (np.ones((10, 1)), np.ones((1, 10)), np.ones(10, dtype=int), [1] * 10):
        assert_allclose(spla.lsmr(np.eye(10), b)[0], np.ones(10), rtol=1e-12)


@pytest.mark.parametrize("form", [np.asarray, sparse.csc_matrix])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("damp", [0.0, 0.3, 50.0])
@pytest.mark.parametrize("shape", [(25, 8), (8, 25), (12, 12)])
def test_results_are_what_they_are_called(local, shape, damp, dtype, form):
    a, b = rectangular(*shape, dtype)
    x, istop, itn, normr, normar, norma, conda, normx = local.lsmr(form(a), b, damp=damp)
    assert x.dtype == np.result_type(dtype, np.float64)
    assert_allclose((normr, normar, norma, normx), measured(a.astype(x.dtype), b, x, damp), rtol=1e-6, atol=1e-12)
    singular = np.linalg.svd(a, compute_uv=False)
    assert 1 <= conda <= math.hypot(singular[0], damp) / math.hypot(singular[-1], damp) * (1 + 1e-6)
    assert 1 <= itn <= min(shape)
    size = float(np.linalg.norm(b))
    solves, minimises = normr <= 1e-6 * (norma * normx + size), normar <= 1e-6 * norma * normr
    assert istop == (1 if solves else 2)
    assert solves or minimises
    theirs = scipy.sparse.linalg.lsmr(a.astype(x.dtype), b.astype(x.dtype), damp=damp)
    assert_allclose(x, theirs[0], rtol=1e-4, atol=1e-4 * normx)
    assert istop == theirs[1]
    assert normr == pytest.approx(theirs[3], rel=1e-4, abs=1e-5 * size)


def test_tolerances_are_kept(local):
    a, b = rectangular(60, 30)
    a = a * np.logspace(0, 3, 30)
    seen = []
    for atol in (1e-2, 1e-5, 1e-9, 1e-12):
        _, istop, itn, normr, normar, norma, *_ = local.lsmr(a, b, atol=atol, btol=0, maxiter=10_000)
        assert istop == 2
        assert normar <= atol * norma * normr
        seen.append(itn)
    assert seen == sorted(set(seen))


def test_istop_follows_scipys_rule_at_every_limit(local):
    """Where x is large, a residual counts as small beside ||A|| ||x|| before it does beside ||b||."""
    a, b = np.diag(np.logspace(0, -3, 20)), np.ones(20)
    size, seen = np.linalg.norm(b), set()
    for limit in range(1, 150):
        _, istop, itn, normr, normar, norma, _, normx = local.lsmr(a, b, atol=1e-5, btol=1e-6, maxiter=limit)
        solves, minimises = normr <= 1e-5 * norma * normx + 1e-6 * size, normar <= 1e-5 * norma * normr
        assert istop == (1 if solves else 2 if minimises else 7)
        assert itn == limit or istop == 1
        seen.add((istop, bool(normr <= 1e-5 * size)))
    assert seen >= {(7, False), (1, False), (1, True)}


def test_tolerances_are_relative_to_the_matrix_and_not_to_the_damping(local):
    a, b = rectangular(60, 30)
    for atol in np.logspace(-2, -9, 30):
        _, istop, _, normr, normar, norma, *_ = local.lsmr(a, b, 30 * np.linalg.norm(a), atol, 0.0, maxiter=50)
        assert istop == 2
        assert normar <= atol * norma * normr


def test_btol_alone_is_enough_for_a_system_that_has_a_solution(local):
    a, _ = rectangular(40, 40)
    b = a @ np.ones(40)
    _, istop, _, normr, *_ = local.lsmr(a, b, atol=0, btol=1e-3, maxiter=2000)
    assert istop == 1
    assert normr <= 1e-3 * np.linalg.norm(b)


def test_nothing_but_rounding_is_wanted(local):
    a, _ = rectangular(30, 10)
    b = a @ np.ones(10)
    x, istop, *_ = local.lsmr(a, b, atol=0, btol=0, conlim=0, maxiter=1000)
    assert istop == 4
    assert_allclose(x, np.ones(10), rtol=1e-12)
    defaults = local.lsmr(a, b)
    for none in ({"atol": None}, {"btol": None}, {"conlim": None}, {"damp": None}):
        assert_array_equal(local.lsmr(a, b, **none)[0], defaults[0])
    assert local.lsmr(a, b, atol=np.inf)[1] == 1


def test_a_limit_is_kept_and_told(spla):
    a, b = rectangular(50, 40)
    x, istop, itn, normr, *_ = spla.lsmr(a, b, maxiter=3)
    theirs = scipy.sparse.linalg.lsmr(a, b, maxiter=3)
    assert (istop, itn) == (7, 3) == theirs[1:3]
    assert_allclose(x, theirs[0], rtol=1e-9)
    assert normr == pytest.approx(theirs[3], rel=1e-9)
    assert spla.lsmr(a, b, maxiter=40.0)[2] <= 40


def test_the_default_limit_is_scipys(local):
    a = np.diag(np.logspace(0, 7, 20))
    assert local.lsmr(a, np.ones(20), atol=1e-14, btol=1e-14)[1:3] == (7, 20)


def test_no_iteration_gives_where_it_would_have_begun(spla):
    x, istop, itn, normr, *_ = spla.lsmr(np.eye(3), np.ones(3), maxiter=0, show=True)
    assert_array_equal(x, np.zeros(3))
    assert (istop, itn) == (7, 0)  # it is no solution; SciPy calls this 0
    assert normr == pytest.approx(math.sqrt(3))
    assert_array_equal(spla.lsmr(np.eye(3), np.ones(3), maxiter=0, x0=np.full(3, 2.0))[0], np.full(3, 2.0))


def test_the_condition_that_is_met_is_a_bound_from_below(spla):
    rng = np.random.default_rng(402_998_173)
    u, v = np.linalg.qr(rng.standard_normal((40, 10)))[0], np.linalg.qr(rng.standard_normal((10, 10)))[0]
    a, b = (u * np.logspace(0, -4, 10)) @ v.T, rng.standard_normal(40)
    conda = spla.lsmr(a, b, atol=1e-13, btol=0, maxiter=1000, conlim=0)[6]
    assert 1e3 < conda <= 1e4 * (1 + 1e-6)
    theirs = scipy.sparse.linalg.lsmr(a, b, atol=1e-13, btol=0, maxiter=1000, conlim=0)[6]
    assert theirs / 10 < conda < theirs * 10


@pytest.mark.parametrize("conlim", [2.0, 30.0])
def test_conlim_stops_where_scipy_stops(spla, conlim):
    rng = np.random.default_rng(730_118_449)
    u, v = np.linalg.qr(rng.standard_normal((60, 24)))[0], np.linalg.qr(rng.standard_normal((24, 24)))[0]
    a, b = (u * np.logspace(0, -6, 24)) @ v.T, rng.standard_normal(60)
    with pytest.warns(IllConditionedWarning):
        x, istop, itn, *_, conda, _ = spla.lsmr(a, b, atol=1e-12, btol=1e-12, conlim=conlim)
    theirs = scipy.sparse.linalg.lsmr(a, b, atol=1e-12, btol=1e-12, conlim=conlim)
    assert (istop, itn) == (3, theirs[2]) == theirs[1:3]
    assert conlim <= conda <= 1e6
    assert_allclose(x, theirs[0], atol=1e-6 * theirs[7])
    assert spla.lsmr(a, b, atol=1e-12, btol=1e-12, conlim=0)[2] > itn
    assert spla.lsmr(a, b, atol=1e-12, btol=1e-12, conlim=np.inf)[2] > itn


@pytest.mark.parametrize("damp", [0.0, 0.5])
def test_a_start_is_where_it_begins_and_is_left_alone(spla, damp):
    a, b = bidiagonal(20, 10), np.arange(20.0)
    x0, kept = np.ones(10), np.ones(10)
    x, istop, _, normr, _, norma, _, normx = spla.lsmr(a, b, damp, 1e-10, 1e-10, x0=x0, maxiter=200)
    assert_array_equal(x0, kept)
    assert istop == 2
    assert_allclose((normr, norma, normx), np.array(measured(a, b, x, damp, x0))[[0, 2, 3]], rtol=1e-9)
    assert_allclose(x, scipy.sparse.linalg.lsmr(a, b, damp, 1e-10, 1e-10, x0=x0, maxiter=200)[0], atol=1e-8)


def test_starts_of_every_kind(local):
    a = 4 * np.eye(10) + np.ones((10, 10))
    x = np.arange(10.0, 0, -1)
    for x0 in (np.zeros(10, dtype=complex), np.zeros((10, 1)), [0] * 10):
        found = local.lsmr(a, a @ x, x0=x0)[0]
        assert np.linalg.norm(found - x) < 1e-5
    assert local.lsmr(a, a @ x, x0=np.zeros(10, dtype=complex))[0].dtype == np.complex128
    exact = local.lsmr(np.eye(3), np.ones(3), x0=np.ones(3))
    assert exact[1:4] == (0, 0, 0.0)
    warm = local.lsmr(a, a @ x, x0=local.lsmr(a, a @ x, maxiter=1)[0])
    assert np.linalg.norm(warm[0] - x) < 1e-5
    with pytest.raises(InvalidShapeError, match="x0"):
        local.lsmr(a, a @ x, x0=np.zeros(9))


def test_where_nothing_is_to_be_done(local):
    a, _ = rectangular(6, 4)
    x, istop, itn, normr, normar, _, _, normx = local.lsmr(a, np.zeros(6), x0=np.ones(4))
    assert_array_equal(x, np.zeros(4))
    assert (istop, itn, normr, normar, normx) == (0, 0, 0.0, 0.0, 0.0)
    orthogonal = local.lsmr(np.array([[1.0], [0.0]]), np.array([0.0, 2.0]))
    assert (orthogonal[0], orthogonal[1], orthogonal[3]) == (0.0, 0, 2.0)
    assert local.lsmr(np.zeros((3, 2)), np.ones(3))[1:3] == (0, 0)
    assert local.lsmr(np.zeros((3, 0)), np.ones(3))[0].shape == (0,)
    assert local.lsmr(np.zeros((0, 3)), np.ones(0))[0].shape == (3,)


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil", "dok", "dia", "bsr"])
def test_every_format_is_taken(local, form):
    a, b = bidiagonal(12, 7), np.arange(12.0)
    assert_allclose(local.lsmr(a.asformat(form), b)[0], np.linalg.lstsq(a.toarray(), b)[0], atol=1e-5)


def test_duplicates_count_once_and_nothing_is_modified(local):
    a = sparse.csr_array((np.array([1.0, 2, 4]), np.array([0, 0, 1]), np.array([0, 2, 3])), shape=(2, 2))
    x, *_, norma, _, _ = local.lsmr(a, np.array([3.0, 4.0]))
    assert_allclose(x, [1, 1], rtol=1e-9)
    assert norma == pytest.approx(5)
    assert_array_equal(a.data, [1, 2, 4])


def test_what_does_not_fit_is_refused(local):
    a, b = rectangular(6, 4)
    for bad in (b[:5], np.ones((6, 2)), np.ones((2, 3))):
        with pytest.raises(InvalidShapeError, match="b has shape"):
            local.lsmr(a, bad)
    for name in ("damp", "atol", "btol", "conlim"):
        with pytest.raises(InvalidOptionError, match=name):
            local.lsmr(a, b, **{name: -1.0})
    with pytest.raises(InvalidOptionError, match="maxiter"):
        local.lsmr(a, b, maxiter=-1)
    with pytest.raises(NonfiniteInputError):
        local.lsmr(a, np.full(6, np.nan))
    unknown = local.LinearOperator((6, 4), matvec=lambda v: a @ v, rmatvec=lambda v: a.T @ v, dtype=float)
    with pytest.raises(NotSupportedError, match=r"scipy\.sparse\.linalg\.lsmr"):
        local.lsmr(unknown, b)
    assert_allclose(local.lsmr(local.aslinearoperator(a), b)[0], np.linalg.lstsq(a, b)[0], rtol=1e-5)


def test_a_summary_is_shown(local, capsys):
    a, b = rectangular(6, 4)
    quiet = local.lsmr(a, b)
    assert capsys.readouterr().out == ""
    x, istop, itn, normr, *_ = local.lsmr(a, b, show=True)
    printed = capsys.readouterr().out
    assert f"istop = {istop}" in printed
    assert f"itn = {itn}, normr = {normr:.3e}" in printed
    assert_array_equal(x, quiet[0])
