"""What SciPy's own tests ask of `cg`, `bicgstab`, `gmres` and `minres` alone, and where the service promises more."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from backsolve.errors import InvalidOptionError, NotConvergedError, NotPositiveDefiniteError, NotSupportedError
from support.iterative import definite, random, residual
from support.systems import convection, dense, laplacian, random_like

# -- bicgstab and gmres ---------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [2, 3, 7])
def test_an_end_before_maxiter_counts_the_iteration_that_was_begun(embedded, local, restart):
    """The service counts products: a cycle of `restart` of them is one of SciPy's, and so is the part of one."""
    a, b = np.diag([1.0, 1, 1, 1, 0]), np.ones(5)
    with pytest.raises(NotConvergedError) as told:
        embedded.solve(a, b, method="gmres", rtol=1e-6, restart=restart, maxiter=1000)
    products = told.value.solution.stats.iterations
    assert 0 < products < 1000
    assert local.gmres(a, b, rtol=1e-6, restart=restart)[1] == -(-products // min(restart, 5))


# -- cg -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("a", [-np.eye(3), np.array([[1.0, 2.0], [0.0, 1.0]]), np.diag([1.0, -1.0])], ids=str)
def test_cg_refuses_what_is_not_definite(spla, a):
    with pytest.raises(NotPositiveDefiniteError, match=r"minres .* gmres"):
        spla.cg(a, np.ones(a.shape[0]))


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array, sparse.csc_matrix], ids=["dense", "csr", "matrix"])
@pytest.mark.parametrize("method", ["cg", "minres"])
def test_a_matrix_that_is_hermitian_but_for_rounding_is_solved(spla, method, form):
    """As products of matrices are, on machines that sum in another order."""
    factor, b = random_like((40, 40), "complex128", 557_103_298), np.arange(40.0)
    a = factor @ factor.conj().T + np.eye(40)
    a = a + 10 * np.finfo(float).eps * np.triu(random_like((40, 40), "complex128", 716_620_043), 1)
    x, info = getattr(spla, method)(form(a), b, rtol=1e-9)
    assert info == 0
    assert residual(a, x, b) <= 1e-9 * np.linalg.norm(b)


def _nearly_hermitian(kind: str, share: float) -> np.ndarray:
    """Off by `share` of n eps, relative to what is largest in the row and in the column, above the diagonal."""
    factor = random(40, kind, 308_661_742)
    a = factor @ factor.conj().T
    a = np.tril(a) + np.tril(a, -1).conj().T
    largest = np.abs(a).max(axis=1)
    off = share * 40 * np.finfo(float).eps * np.minimum.outer(largest, largest)
    return a + np.triu(off, 1) * (1j if kind == "c" else 1)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array, sparse.csc_matrix], ids=["dense", "csr", "matrix"])
@pytest.mark.parametrize("kind", ["f", "c"])
@pytest.mark.parametrize("method", ["cg", "minres"])
def test_rounding_is_what_a_sum_of_n_products_can_lose(local, method, kind, form):
    """The service calls 16 eps rounding; up to n eps is made Hermitian here, and beyond that is refused."""
    b = np.arange(40.0)
    a = _nearly_hermitian(kind, 0.6)
    x, info = getattr(local, method)(form(a), b, rtol=1e-6)
    assert info == 0
    assert residual(a, x, b) <= 1e-6 * np.linalg.norm(b)
    with pytest.raises((NotPositiveDefiniteError, InvalidOptionError), match="Hermitian"):
        getattr(local, method)(form(_nearly_hermitian(kind, 1.7)), b, rtol=1e-6)


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_the_answer_is_judged_by_the_matrix_that_was_given(local, method):
    n = 40
    a = np.eye(n) + 0.9 * n * np.finfo(float).eps * np.triu(np.ones((n, n)), 1)
    x, info = getattr(local, method)(a, np.ones(n), rtol=1e-14)
    assert residual(a, x, np.ones(n)) > 1e-14 * np.sqrt(n)
    assert info > 0


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_a_zero_that_is_stored_on_one_side_only_is_no_asymmetry(spla, method):
    a = sparse.csr_array(([4.0, 0.0, 3.0, 1.0, 1.0, 5.0], ([0, 0, 1, 1, 2, 2], [0, 2, 1, 2, 1, 2])), shape=(3, 3))
    x, info = getattr(spla, method)(a, np.ones(3), rtol=1e-10)
    assert info == 0
    assert_allclose(a @ x, np.ones(3), rtol=1e-9)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array], ids=["dense", "csr"])
@pytest.mark.parametrize("method", ["cg", "minres"])
def test_more_than_rounding_is_an_asymmetry(local, method, form):
    a = laplacian(4).toarray()
    a[0, 1] += 1e-11
    with pytest.raises((NotPositiveDefiniteError, InvalidOptionError), match="Hermitian"):
        getattr(local, method)(form(a), np.ones(16))


# -- bicgstab -----------------------------------------------------------------------------------


def test_a_system_on_which_scipys_bicgstab_breaks_down(local):
    links = np.array(
        [[1, -1, 0, 0, 0, 0], [2, 0, -1, 0, 0, 0], [2, 0, 0, -1, 0, 0], [2, 0, 0, 0, -1, 0], [1, 0, 0, 0, 0, -1]]
    )
    a = np.block([[np.zeros((5, 5)), links], [links.T, np.diag([0.0, -1, -1, -1, -1, -1])]])
    a[5, 5] = 0
    b = np.zeros(11)
    b[5] = 1
    assert scipy.sparse.linalg.bicgstab(a, b)[1] < 0
    x, info = local.bicgstab(a, b)
    assert info != 0 or residual(a, x, b) <= 1e-5
    assert residual(a, x, b) <= 1  # never further off than zero
    for method in ("gmres", "minres"):
        x, info = getattr(local, method)(a, b)
        assert info == 0
        assert residual(a, x, b) <= 1e-5


def test_a_breakdown_has_a_negative_code(local):
    """Aᵀ = -A: every vector is orthogonal to its image."""
    a = np.array([[0.0, 1.0], [-1.0, 0.0]])
    singular = np.array([[0.0, 1.0], [0.0, 0.0]])
    _, info = local.bicgstab(singular, np.array([1.0, 1.0]), maxiter=100)
    assert info != 0
    x, info = local.bicgstab(a, np.array([1.0, 0.0]))
    assert info != 0 or residual(a, x, np.array([1.0, 0.0])) <= 1e-5


# -- gmres --------------------------------------------------------------------------------------


def test_one_short_cycle_gives_scipys_iterate(spla):
    a = np.vander(np.arange(10) + 1)[:, ::-1].astype(float)
    b = np.zeros(10)
    b[0] = 1
    expected, there = scipy.sparse.linalg.gmres(a, b, restart=5, maxiter=1)
    x, info = spla.gmres(a, b, restart=5, maxiter=1)
    assert (info, there) == (1, 1)
    assert_allclose(x[0], expected[0], rtol=1e-2)


def test_gmres_of_complex_data_agrees_with_real(local):
    x, info = local.gmres(np.eye(2), np.ones(2))
    y, other = local.gmres(np.eye(2).astype(complex), np.ones(2).astype(complex))
    assert y.dtype == np.complex128
    assert info == other == 0
    assert_allclose(x, y)


def test_tolerances_of_small_right_hand_sides_are_relative(local):
    a = dense(30)
    for b in (1e-6 * np.ones(30), 1e-10 * np.ones(30)):
        x, info = local.gmres(a, b, rtol=1e-8, atol=0.0, restart=20)
        assert info == 0
        assert residual(a, x, b) <= 1e-8 * np.linalg.norm(b)


def test_a_singular_matrix_ends_without_nan_or_false_success(spla):
    a, b = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 0]]), np.array([1.0, 0, 1])
    x, info = spla.gmres(a, b, rtol=1e-8, atol=0)
    assert 0 < info < 30  # the cycles until nothing was gained, rather than all that were allowed
    assert np.isfinite(x).all()
    assert_allclose(a @ (a @ x), a @ b, atol=1e-12)


def test_the_error_of_a_singular_system_does_not_grow_with_maxiter(local):
    c = -0.1112795288033378
    a = np.zeros((4, 4), dtype=complex)
    a[0, 0], a[0, 3], a[3, 0], a[3, 3] = c, 0.05 - c, -c, c - 0.05
    a[1, 1], a[2, 2] = c - 0.025 + 2j * np.pi, c - 0.025 - 2j * np.pi
    b, best = np.ones(4), np.inf
    for limit in range(1, 20):
        x, info = local.gmres(a, b, maxiter=limit, rtol=1e-8, atol=0.0)
        error = residual(a, x, b)
        assert info != 0 or error <= 1e-8 * np.linalg.norm(b)
        assert error <= best * (1 + 1e-9)
        best = min(best, error)


def _cycles(spla: Any, a: np.ndarray, b: np.ndarray, **more: Any) -> tuple[list[np.ndarray], np.ndarray, int]:
    seen: list[np.ndarray] = []
    x, info = spla.gmres(a, b, rtol=1e-6, atol=0.0, callback=seen.append, callback_type="x", **more)
    return seen, x, info


def test_the_callback_sees_x_after_each_cycle(spla):
    rng = np.random.default_rng(214_330_981)
    a, b = rng.random((20, 20)) + np.eye(20), rng.random(20)
    seen, x, info = _cycles(spla, a, b, restart=10, maxiter=20)
    assert len(seen) == (20 if info else len(seen))
    sizes = [residual(a, each, b) for each in seen]
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(sizes))
    assert_array_equal(seen[-1], x)
    theirs: list[np.ndarray] = []
    scipy.sparse.linalg.gmres(
        a, b, rtol=1e-6, restart=10, maxiter=3, callback=lambda x: theirs.append(x.copy()), callback_type="x"
    )
    for mine, other in zip(seen, theirs, strict=False):
        assert_allclose(mine, other, rtol=1e-6, atol=1e-8)


def test_one_cycle_of_the_whole_space_is_one_callback(local):
    rng = np.random.default_rng(661_904_217)
    a, b = rng.random((20, 20)), rng.random(20)
    seen, x, info = _cycles(local, a, b, restart=50, maxiter=2)
    assert (info, len(seen)) == (0, 1)
    assert residual(a, x, b) <= 1e-6 * np.linalg.norm(b)
    again, y, info = _cycles(local, a, b, restart=50, maxiter=2, x0=x)
    assert (info, again) == (0, [])
    assert_array_equal(x, y)
    assert _cycles(local, a, 0 * b)[0] == []


def test_the_callbacks_x_is_its_own(local):
    a, b = convection(5).toarray(), np.ones(25)

    def spoil(x: np.ndarray) -> None:
        x[:] = np.nan

    x, info = local.gmres(a, b, restart=3, callback=spoil, callback_type="x")
    assert info == 0
    assert np.isfinite(x).all()


def test_a_watched_singular_system_ends(local):
    a, b = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 0]]), np.array([1.0, 0, 1])
    seen, x, info = _cycles(local, a, b, restart=3, maxiter=50)
    assert 0 < info <= 50
    assert len(seen) == info
    assert np.isfinite(x).all()


def test_a_watched_singular_system_that_is_seen_to_have_no_solution_ends_early(local):
    seen, x, info = _cycles(local, np.diag([1.0, 1, 1, 1, 0]), np.ones(5), restart=3, maxiter=50)
    assert 0 < info < 50
    assert len(seen) == info
    assert_allclose(x[:4], np.ones(4))


@pytest.mark.parametrize("kind", [None, "legacy", "pr_norm"])
def test_callbacks_at_each_iteration_are_refused(local, kind):
    a, b = definite()
    with pytest.raises(NotSupportedError, match="callback_type='x'"):
        local.gmres(a, b, callback=print, callback_type=kind)
    assert local.gmres(a, b, callback_type=kind)[1] == 0  # without a callback it means nothing


def test_an_unknown_callback_type_is_a_value_error(local):
    with pytest.raises(ValueError, match="callback_type"):
        local.gmres(*definite(), callback_type="y")


@pytest.mark.parametrize("wrong", [0, -3, 2.5])
def test_a_basis_of_nothing_is_a_value_error(local, wrong):
    with pytest.raises(ValueError, match="restart"):
        local.gmres(*definite(), restart=wrong)


# -- minres -------------------------------------------------------------------------------------


def hermitian(kind: str) -> tuple[np.ndarray, np.ndarray]:
    a = random(10, kind, 820_615_433)
    return a + a.conj().T, np.random.default_rng(147_209_336).random(10)


each_kind = pytest.mark.parametrize("kind", ["f", "c"])


@each_kind
def test_minres_solves_a_singular_system_that_has_a_solution(spla, kind):
    a, b = hermitian(kind)
    a[0], a[:, 0], b[0] = 0, 0, 0
    x, info = spla.minres(a, b)
    assert info == 0
    assert residual(a, x, b) <= 1e-5 * np.linalg.norm(b)


@each_kind
def test_minres_minimises_the_residual_of_one_that_has_none(spla, kind):
    a, b = hermitian(kind)
    a[0], a[:, 0] = 0, 0
    x, info = spla.minres(a, b)
    assert info == 0
    assert residual(a, x, b) == pytest.approx(abs(b[0]), rel=1e-8)


@each_kind
def test_minres_counts_a_least_squares_solution_by_rtol_itself(local, kind):
    a, b = hermitian(kind)
    a[0], a[:, 0] = 0, 0
    x, info = local.minres(a, b, rtol=1e-14, maxiter=3)
    assert info > 0
    rest = b - a @ x
    size = np.linalg.norm(a, axis=0).max() * np.linalg.norm(rest)
    reached = np.linalg.norm(a @ rest) / size
    assert local.minres(a, b, rtol=reached / 3, maxiter=3)[1] > 0
    assert local.minres(a, b, rtol=reached * 1.1, maxiter=3)[1] == 0


@each_kind
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array, sparse.csc_matrix], ids=["dense", "csr", "matrix"])
def test_minres_shifts_the_matrix(spla, kind, form):
    a, b = hermitian(kind)
    x, info = spla.minres(form(a), b, shift=0.5, rtol=1e-9)
    y, _ = spla.minres(a - 0.5 * np.eye(10), b, rtol=1e-9)
    assert info == 0
    assert_allclose(x, y, rtol=1e-5)
    assert np.linalg.norm((a - 0.5 * np.eye(10)) @ x - b) <= 1e-8 * np.linalg.norm(b)


def test_a_shift_keeps_the_element_type(local):
    a = laplacian(4, "float32")
    assert local.minres(a, np.ones(16, dtype=np.float32), shift=0.5)[0].dtype == np.float32
    assert local.minres(a.astype(int), np.ones(16), shift=0.5)[0].dtype == np.float64


@each_kind
@pytest.mark.parametrize("check", [True, False])
def test_minres_refuses_a_matrix_that_is_not_hermitian(spla, kind, check):
    a, b = hermitian(kind)
    a[1, 2], a[2, 1] = 1, 2
    with pytest.raises(ValueError, match="Hermitian"):
        spla.minres(a, b, check=check)


def test_minres_refuses_a_preconditioner_that_is_not_definite(local):
    a, b = hermitian("f")
    with pytest.raises(ValueError, match="definite"):
        local.minres(a, b, M="ilu", check=True)


@each_kind
def test_minres_starts_from_x0(spla, kind):
    a = random(5, kind, 133_846_710)
    a, rng = a @ a.conj().T, np.random.default_rng(904_366_124)
    b, x0 = rng.standard_normal(5), rng.standard_normal(5)
    for M in (None, "jacobi"):
        x, info = spla.minres(a, b, x0=x0, rtol=1e-6, M=M)
        assert info == 0
        assert residual(a, x, b) <= 1e-6 * np.linalg.norm(b)


def test_minres_shows_a_summary(local, capsys):
    a, b = definite()
    quiet, _ = local.minres(a, b)
    assert capsys.readouterr().out == ""
    x, info = local.minres(a, b, show=True)
    printed = capsys.readouterr().out
    assert f"info = {info}" in printed
    assert f"|b - A x| = {residual(a, x, b):.3e}" in printed
    assert_array_equal(x, quiet)
