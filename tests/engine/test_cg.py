"""Conjugate gradients: never an answer that is not one, and the same steps at every scale."""

import numpy as np
import pytest

from backsolve.errors import CancelledError, NotPositiveDefiniteError
from backsolve.types import TRANS, Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls
from engine.table import Row, array, factor, factor_of, matrix, numbers, op, poisson

SPARSE = Row("cg", "jacobi", "csr", "definite")
PLAIN = Row("cg", "none", "dense", "definite")

each_preconditioner = pytest.mark.parametrize("preconditioner", ["jacobi", "none"])


def true_residual(m, x, b):
    a = np.zeros((m.n, m.n))
    a[m.pattern.rows, m.pattern.indices] = m.values
    return np.linalg.norm(b - a @ x, axis=0) / np.linalg.norm(b, axis=0)


@each_preconditioner
@pytest.mark.parametrize("maxiter", [1, 2, 5, 10, 20, 40, 80])
def test_a_run_stopped_early_never_says_ok(preconditioner, maxiter):
    m = poisson(20)
    b = numbers((400, 2), "float64", 33_019_265)
    got = answer(factor_of("cg", m, preconditioner), b, "N", Controls(rtol=1e-8, maxiter=maxiter))
    measured = true_residual(m, got.x, b)
    np.testing.assert_allclose(got.relative_residual[0], measured, rtol=1e-5)
    assert got.iterations[0] <= maxiter
    for status, residual in zip(got.statuses[0], measured, strict=True):
        assert status is (Status.OK if residual <= 1e-8 else Status.MAX_ITER)


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-6, 1e-8])
def test_the_evidence_is_true_on_poisson(tol):
    """2-D Poisson, n = 3600: the error stays below condition times residual, and is no rounding noise."""
    m = poisson(60)
    x = numbers((3600, 1), "float64", 14_500_967)
    exact = factor_of("superlu", m)
    b = exact.operand.product(0, x, "N")
    got = answer(factor_of("cg", m), b, "N", Controls(rtol=tol))
    assert got.statuses == ((Status.OK,),)
    residual = np.linalg.norm(b - exact.operand.product(0, got.x, "N")) / np.linalg.norm(b)
    assert got.relative_residual[0, 0] == pytest.approx(residual, rel=1e-6)
    assert 1e-3 * tol < residual <= tol
    condition = 4 / (8 * np.sin(np.pi / 122) ** 2) * 2
    error = np.linalg.norm(got.x - x) / np.linalg.norm(x)
    assert residual / condition <= error <= condition * residual


def test_a_direct_answer_agrees_with_the_iterative_one():
    m = poisson(30)
    b = numbers((900, 3), "float64", 40_991_276)
    direct = answer(factor_of("superlu", m), b, "N", Controls())
    iterative = answer(factor_of("cg", m), b, "N", Controls())
    np.testing.assert_allclose(iterative.x, direct.x, rtol=0, atol=1e-7 * np.abs(direct.x).max())
    assert iterative.relative_residual.max() <= 1e-10
    assert direct.relative_residual.max() <= 1e-13


def test_the_preconditioner_changes_the_cost_and_not_the_answer():
    scale = np.exp(numbers(60, "float64", 77_410_229) * 2)
    a = scale[:, None] * array("definite", "float64", n=60) * scale
    b = numbers((60, 1), "float64", 5_120_048)
    jacobi, none = (answer(factor(Row("cg", p, "csr", ""), a), b, "N", Controls(rtol=1e-9)) for p in ("jacobi", "none"))
    assert jacobi.statuses == none.statuses == ((Status.OK,),)
    assert jacobi.iterations[0] * 2 < none.iterations[0]
    np.testing.assert_allclose(jacobi.x, none.x, rtol=1e-4, atol=1e-6 * np.abs(none.x).max())


def test_columns_do_not_depend_on_their_neighbours():
    m = poisson(15)
    f = factor_of("cg", m)
    b = numbers((225, 3), "float64", 21_840_774) * [1.0, 1e-12, 1e30]
    together = answer(f, b, "N", Controls())
    for j in range(3):
        alone = answer(f, b[:, j : j + 1].copy(), "N", Controls())
        np.testing.assert_allclose(together.x[:, j], alone.x[:, 0], rtol=1e-12)
    assert together.iterations[0] == max(
        answer(f, b[:, j : j + 1].copy(), "N", Controls()).iterations[0] for j in (0, 1, 2)
    )


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-200, 1e200])
def test_steps_do_not_depend_on_the_scale(scale):
    m = poisson(15)
    b = numbers((225, 1), "float64", 21_840_775)
    got, plain = (answer(factor_of("cg", m), c, "N", Controls(rtol=1e-8)) for c in (scale * b, b))
    assert got.iterations == plain.iterations
    exact = answer(factor_of("superlu", m), b, "N", Controls()).x
    errors = [np.linalg.norm(x - exact) for x in (got.x / scale, plain.x)]
    assert errors[1] / 2 <= errors[0] <= 2 * errors[1]


@pytest.mark.parametrize("trans", TRANS)
def test_a_good_first_iterate_is_used(trans):
    a = array("definite", "complex128")
    f = factor(PLAIN, a)
    b = numbers((40, 2), "complex128", 66_019_372)
    exact = np.linalg.solve(op(a, trans), b)
    far = answer(f, b, trans, Controls())
    near = answer(f, b, trans, Controls(x0=exact + 1e-9 * np.abs(exact).max()))
    assert near.iterations[0] < far.iterations[0] / 2
    arrived = answer(f, b, trans, Controls(x0=exact))
    assert arrived.iterations == (0,)
    np.testing.assert_array_equal(arrived.x, exact)


def test_a_first_iterate_is_scaled_with_b():
    m = poisson(10)
    f = factor_of("cg", m)
    b = 1e-190 * numbers((100, 1), "float64", 9_003_812)
    exact = answer(factor_of("superlu", m), b, "N", Controls()).x
    assert answer(f, b, "N", Controls(x0=exact)).iterations == (0,)


def test_a_first_iterate_for_zero_gives_zero():
    got = answer(factor_of("cg", poisson(4)), np.zeros((16, 1)), "N", Controls(x0=np.ones((16, 1))))
    assert not got.x.any()
    assert got.statuses == ((Status.OK,),)


def test_atol_stops_in_the_units_of_b():
    m = poisson(20)
    b = 1e-5 * numbers((400, 1), "float64", 88_301_927)
    got = answer(factor_of("cg", m), b, "N", Controls(rtol=0.0, atol=1e-8))
    assert got.statuses == ((Status.OK,),)
    residual = true_residual(m, got.x, b) * np.linalg.norm(b)
    assert 1e-11 < residual[0] <= 1e-8


@pytest.mark.parametrize("rtol", [0.0, 1e-18])
def test_a_tolerance_beyond_rounding_is_stagnation(rtol):
    m = poisson(12)
    got = answer(factor_of("cg", m), numbers((144, 1), "float64", 50_276_113), "N", Controls(rtol=rtol, atol=0.0))
    assert got.statuses == ((Status.STAGNATION,),)
    assert 0 < got.relative_residual[0, 0] < 1e-12


def test_single_precision_says_when_rounding_x_missed_the_tolerance():
    m = poisson(40, dtype="float32")
    b = numbers((1600, 1), "float32", 72_264_001)
    f = factor_of("cg", m)
    assert answer(f, b, "N", Controls()).statuses == ((Status.OK,),)
    got = answer(f, b, "N", Controls(rtol=1e-9))
    assert got.statuses == ((Status.STAGNATION,),)
    assert got.relative_residual[0, 0] > 1e-9


def test_entries_at_the_end_of_the_range_are_told_apart():
    """Sums of two of them overflow: scaled, the one matrix is definite and the other is not."""
    a = 1e308 * np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.7]])
    b = np.ones((3, 1))
    got = answer(factor_of("cg", matrix("dense", a), "none"), b, "N", Controls())
    assert got.statuses == ((Status.OK,),)
    np.testing.assert_allclose(1e308 * got.x, np.linalg.solve(a / 1e308, b), rtol=1e-9)
    a[1, 2] = a[2, 1] = a[0, 1] = a[1, 0] = 0.9e308
    with pytest.raises(NotPositiveDefiniteError):
        answer(factor_of("cg", matrix("dense", a), "none"), b, "N", Controls())


@each_preconditioner
@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_indefinite_with_a_positive_diagonal_is_found_on_the_way(preconditioner, layout):
    a = array("definite", "float64")
    a[3, 20] = a[20, 3] = 5 * np.abs(a).max()
    with pytest.raises(NotPositiveDefiniteError, match="'lu'" if layout == "dense" else "'superlu'"):
        answer(
            factor(Row("cg", preconditioner, layout, ""), a), numbers((40, 1), "float64", 3_381_092), "N", Controls()
        )


def test_semidefinite_is_refused():
    f = factor_of("cg", matrix("dense", np.ones((2, 2))))
    with pytest.raises(NotPositiveDefiniteError):
        answer(f, np.array([[1.0], [-1.0]]), "N", Controls())


def test_indefinite_element_of_a_batch_is_a_status():
    a = np.stack([array("definite", "float64", n=10, seed=60_114)] * 2)
    a[1, 3, 7] = a[1, 7, 3] = 1e3
    got = answer(factor(PLAIN, a), np.ones((2, 10, 1)), "N", Controls())
    assert got.statuses == ((Status.OK,), (Status.NOT_POSITIVE_DEFINITE,))
    assert np.isnan(got.x[1]).all()


def test_cancelling_stops_at_the_next_iteration():
    asked = []

    def cancelled():
        asked.append(True)
        return len(asked) == 4

    with pytest.raises(CancelledError):
        answer(factor_of("cg", poisson(20)), np.ones((400, 1)), "N", Controls(cancelled=cancelled))
    assert len(asked) == 4


def test_direct_methods_are_not_asked():
    def cancelled():
        raise AssertionError

    answer(factor_of("superlu", poisson(5)), np.ones((25, 1)), "N", Controls(cancelled=cancelled))


def test_the_iteration_restarts_where_the_recurrence_deceives():
    """A first iterate far off leaves rounding in x that the recurrence never sees."""
    m = poisson(20)
    b = numbers((400, 1), "float64", 37_710_665)
    x0 = 1e9 * numbers((400, 1), "float64", 37_710_666)
    got = answer(factor_of("cg", m), b, "N", Controls(rtol=1e-11, x0=x0))
    assert got.statuses == ((Status.OK,),)
    assert true_residual(m, got.x, b)[0] <= 1e-11
