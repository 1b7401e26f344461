"""What a direct answer says about itself, and what refinement does for it."""

from dataclasses import replace

import numpy as np
import pytest

from backsolve.types import Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, Outcome
from backsolve_service.engine.certify import measure, reference
from backsolve_service.engine.conditioning import estimate, lower_bound
from backsolve_service.engine.direct import superlu
from backsolve_service.engine.direct.condition import inverse_norm
from backsolve_service.engine.one_column import certify
from backsolve_service.engine.operand import Operand
from engine.table import Row, array, factor, factor_of, matrix, numbers, op, poisson

DENSE = Row("lu", None, "dense", "general")
SPARSE = Row("superlu", None, "csr", "general")


def spoiled(f, digits):
    """The same factor, as if rounding had left it so many digits only."""

    class Spoiled(type(f)):
        def solve(self, rhs, trans, controls):
            got = super().solve(rhs, trans, controls)
            noise = 1 + 10.0**-digits * np.sin(np.arange(got.x.size)).reshape(got.x.shape)
            return Outcome(got.x * noise, got.statuses, got.iterations)

    return Spoiled(**{name: getattr(f, name) for name in f.__dataclass_fields__})


@pytest.mark.parametrize("row", [DENSE, SPARSE], ids=str)
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 1e-180])
def test_refinement_recovers_lost_digits(row, k, scale):
    a = array("general", "float64")
    b = scale * numbers((40, k), "float64", 64_027_118)
    f = spoiled(factor(row, a), digits=6)
    bare = answer(f, b, "T", Controls(refine=0))
    assert bare.refinements == 0
    assert bare.statuses == ((Status.ILL_CONDITIONED,) * k,)
    assert bare.backward_error.max() > 1e-9
    refined = answer(f, b, "T", Controls())
    assert refined.refinements in (1, 2)
    assert refined.statuses == ((Status.OK,) * k,)
    assert refined.backward_error.max() <= 1e-12
    np.testing.assert_allclose(refined.x / scale, np.linalg.solve(a.T, b / scale), rtol=1e-9, atol=1e-11)


def test_refinement_leaves_good_columns_alone():
    f = factor(DENSE, array("general", "float64"))
    got = answer(f, numbers((40, 2), "float64", 64_027_119), "N", Controls(refine=5))
    assert got.refinements == 0


def test_a_factor_that_cannot_help_is_flagged():
    f = spoiled(factor(DENSE, array("general", "float64")), digits=-1)
    got = answer(f, numbers((40, 1), "float64", 64_027_120), "N", Controls())
    assert got.backward_error.max() > 1e-3
    assert got.statuses == ((Status.STAGNATION,),)  # x solves another system: a warning is not enough


@pytest.mark.parametrize("rtol", [1e-15, 1e-14, 1e-12])
def test_an_asked_tolerance_is_met_or_flagged(rtol):
    m = poisson(30)
    b = numbers((900, 4), "float64", 11_927_045)
    got = answer(factor_of("superlu", m), b, "N", Controls(rtol=rtol))
    for status, residual in zip(got.statuses[0], got.relative_residual[0], strict=True):
        assert status is (Status.OK if residual <= rtol else Status.STAGNATION)
    assert got.relative_residual.max() < 1e-13


def test_single_precision_is_refined_to_an_asked_tolerance():
    a = array("general", "float32")
    b = numbers((40, 3), "float32", 75_100_932)
    plain = answer(factor(DENSE, a), b, "N", Controls(refine=0))
    tolerance = float(plain.relative_residual.max()) * 0.8
    got = answer(factor(DENSE, a), b, "N", Controls(rtol=tolerance))
    assert got.refinements >= 1
    assert got.relative_residual.max() < plain.relative_residual.max()


@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ill_conditioned_is_flagged(layout, dtype):
    n = 14
    hilbert = (1 / (np.arange(n)[:, None] + np.arange(n) + 1)).astype(dtype)
    f = factor_of("lu" if layout == "dense" else "superlu", matrix(layout, hilbert))
    x = np.random.default_rng(90_114_226).standard_normal((n, 1))
    got = answer(f, (hilbert @ x).astype(dtype), "N", Controls())
    if layout == "dense":
        assert got.condition > 1 / np.finfo(dtype).eps
        assert got.statuses == ((Status.ILL_CONDITIONED,),)
    # A right-hand side that excites the smallest singular value shows it without any estimate.
    shows = answer(f, np.random.default_rng(90_114_227).standard_normal((n, 1)).astype(dtype), "N", Controls())
    assert shows.condition > 0.01 / np.finfo(dtype).eps


def test_an_answer_that_overflows_is_out_of_range():
    f = factor(DENSE, np.diag([1e-300, 1.0]))
    got = answer(f, np.array([[1e20, 1.0], [1.0, 1.0]]), "N", Controls())
    assert got.statuses[0][0] is Status.OUT_OF_RANGE
    assert got.relative_residual[0, 0] == np.inf


def test_a_backward_error_is_not_hidden_by_overflowing_norms():
    """||A|| ||x|| is beyond the largest double; a quotient by infinity would look perfect."""
    a = 1e200 * np.array([[1.0, 1.0], [1.0, -1.0]])
    f = factor_of("lu", matrix("dense", a))
    b, wrong = np.ones((1, 2, 2)), 1e108 * np.array([[[1.0, 1.0], [0.5, 0.2]]])
    got = measure(f.operand, reference(f.operand, b, "N"), wrong, "N")
    np.testing.assert_allclose(got.backward, [[0.75, 0.6]], rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_the_condition_estimate_is_sharp_on_most_matrices(dtype):
    ratios = []
    for seed in range(40):
        scale = 10.0 ** np.random.default_rng(99_026_311 + seed).uniform(-3, 3, (2, 12, 1))
        a = scale[0] * numbers((12, 12), dtype, 48_803_712 + seed) * scale[1].T
        estimate = factor(DENSE, a).condition
        ratios.append(estimate / np.linalg.cond(a, 1))
    assert max(ratios) <= 1 + 1e-6
    assert min(ratios) > 1 / 3
    assert np.median(ratios) > 0.99


def test_columns_are_judged_one_by_one():
    """A block of several callers is split by column: no verdict may leak."""
    m = poisson(20)
    f = factor_of("cg", m)
    easy = answer(factor_of("superlu", m), numbers((400, 1), "float64", 5_512_390), "N", Controls()).x
    b = np.concatenate([np.zeros((400, 1)), easy], axis=1)
    got = answer(f, b, "N", Controls(rtol=1e-9, maxiter=3))
    assert got.statuses == ((Status.OK, Status.MAX_ITER),)


@pytest.mark.parametrize("trans", ["N", "T", "H"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("row", [DENSE, SPARSE], ids=str)
def test_one_column_is_certified_as_many_are(row, dtype, trans):
    f = factor(row, array("general", dtype))
    b = numbers((40, 1), dtype, 7_726_401)
    x = f.solve(b, trans, Controls()).x
    figures = certify(f, b, x, trans, Controls(), 0.0)
    general = measure(f.operand, reference(f.operand, b[None], trans), x[None], trans)
    assert figures == pytest.approx((general.relative[0, 0], general.backward[0, 0], general.condition[0, 0]), rel=1e-6)


def test_one_column_that_is_not_plainly_good_goes_the_general_way():
    f = factor(DENSE, array("general", "float64"))
    b = numbers((40, 1), "float64", 7_726_402)
    x = f.solve(b, "N", Controls()).x
    assert certify(f, b, x, "N", Controls(), 0.0) is not None
    assert certify(f, b, x * (1 + 1e-9), "N", Controls(), 0.0) is None
    assert certify(f, b, x, "N", Controls(rtol=1e-18), 0.0) is None
    assert certify(f, b * np.nan, x, "N", Controls(), 0.0) is None
    assert certify(f, 1e-150 * b, 1e-150 * x, "N", Controls(), 0.0) is None
    assert certify(f, b, x * np.nan, "N", Controls(), 0.0) is None
    assert certify(f, 0 * b, 0 * x, "N", Controls(), 0.0) is None


def tiny_diagonal(kind):
    """Well-conditioned, with a stored diagonal on which elimination loses everything."""
    if kind == "moderate":
        chosen = np.random.default_rng(63_310_094).random((40, 40)) < 0.4
        a = np.where(chosen, numbers((40, 40), "float64", 5_029_117), 0)
    else:  # pivots grow by 1e14 each, so that every residual looks small beside x
        a = array("zero_diagonal", "float64")
    a[np.arange(40), np.arange(40)] = 1e-14
    assert np.linalg.cond(a) < 1e4
    return a


@pytest.mark.parametrize("kind", ["moderate", "boundless"])
def test_pivoting_is_redone_where_the_diagonal_was_a_bad_pivot(kind, monkeypatch):
    monkeypatch.setattr(superlu, "DIAGONAL_THRESHOLD", 0.0)
    a = tiny_diagonal(kind)
    b = numbers((40, 1), "float64", 81_664_290)
    got = answer(factor(SPARSE, a), b, "N", Controls(refine=0))
    assert got.relative_residual.max() < 1e-12
    np.testing.assert_allclose(got.x, np.linalg.solve(op(a, "N"), b), rtol=1e-6)
    # With panels of one column the growth would end in a zero pivot, which is mended by itself.
    monkeypatch.setattr(superlu, "panel_size", lambda ordering: None)
    monkeypatch.setattr(superlu, "_backward_errors", lambda operand, ordering, handles: np.zeros(len(handles)))
    unprobed = answer(factor(SPARSE, a), b, "N", Controls(refine=0))
    assert unprobed.relative_residual.max() > 1e-3
    assert unprobed.statuses == ((Status.STAGNATION,),)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_condition_is_estimated_on_request(dtype):
    a = array("general", dtype)
    f = factor(Row("superlu", None, "csr", "general"), a)
    b = numbers((40, 2), dtype, 71_330_554)
    asked = answer(f, b, "N", Controls(condition=True)).condition
    exact = np.linalg.cond(op(a, "N"), 1)
    assert exact / 3 <= asked <= 1.001 * exact


def test_a_condition_that_was_asked_for_can_show_that_no_digit_is_certain():
    a = np.diag([1.0, 1e-17]) + np.array([[0, 1e-18], [0, 0]])
    f = factor(Row("superlu", None, "csr", "general"), a)
    b = np.array([[1.0], [0.0]])  # its own answer is harmless, and shows nothing
    assert answer(f, b, "N", Controls()).statuses == ((Status.OK,),)
    assert answer(f, b, "N", Controls(condition=True)).statuses == ((Status.ILL_CONDITIONED,),)


def test_the_condition_estimate_sees_what_its_ascent_is_blind_to():
    """I + C, where C maps the constants and the first unit vector to zero, from both sides: the ascent stays at 1."""
    n = 31
    sign = (-1.0) ** np.arange(1, n)
    inverse = np.eye(n)
    inverse[1:, 1:] += 2.0**20 * np.outer(sign, sign)
    assert not (inverse - np.eye(n)).sum(axis=0).any()
    found = inverse_norm(lambda v: inverse @ v, lambda v: inverse.T @ v, n, np.dtype(np.float64))
    assert np.linalg.norm(inverse, 1) / 3 <= found <= np.linalg.norm(inverse, 1)


def test_a_condition_beyond_the_range_is_its_largest_number():
    huge = np.full((3, 3), 1e308)
    with np.errstate(all="ignore"):
        found = inverse_norm(lambda v: 4 * (huge @ v), lambda v: 4 * (huge.T @ v), 3, np.dtype(np.float64))
    assert found == np.finfo(np.float64).max


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_nothing_asked_and_nothing_answered_is_no_error(dtype):
    operand = Operand(matrix("dense", np.zeros((4, 4), dtype)))
    zeros = np.zeros((1, 4, 2), dtype)
    evidence = measure(operand, reference(operand, zeros, "N"), zeros, "N")
    for figure in (evidence.two, evidence.relative, evidence.backward, evidence.condition):
        np.testing.assert_array_equal(figure, np.zeros((1, 2)))


def test_the_condition_estimate_goes_by_the_phase_of_complex_numbers():
    """All of A⁻¹ is imaginary, and most of it in one column, where the ascent ends."""
    inverse = 1j * numbers((30, 30), "float64", 719_340_556)
    inverse[:, 17] *= 1e3
    adjoint = inverse.conj().T
    found = inverse_norm(lambda v: inverse @ v, lambda v: adjoint @ v, 30, np.dtype(np.complex128))
    assert found == pytest.approx(np.linalg.norm(inverse, 1), rel=1e-12)


def test_the_bound_on_the_inverse_takes_both_norms():
    """||A⁻¹||₂ is not below the 1-norm's part alone where one row of A⁻¹ is large, nor where one column is."""
    a = np.eye(30)
    a[3, 4:] = -50.0
    for one in (a, a.T):
        found = estimate(factor_of("lu", matrix("dense", one)))
        assert np.linalg.norm(np.linalg.inv(one), 2) <= 1.01 * found.inverse_norm
        both = np.sqrt(np.linalg.norm(np.linalg.inv(one), 1) * np.linalg.norm(np.linalg.inv(one), np.inf))
        assert found.inverse_norm == pytest.approx(both, rel=1e-9)


def after_the_first(f, change):
    """The same factor, whose first answer has four digits, and whose further ones are changed."""
    calls = []

    class Changed(type(f)):
        def solve(self, rhs, trans, controls):
            got = super().solve(rhs, trans, controls)
            calls.append(rhs)
            return replace(got, x=got.x * (1 + 1e-4) if len(calls) == 1 else change(got.x))

    made = Changed(**{name: getattr(f, name) for name in f.__dataclass_fields__})
    lower_bound(made)  # which asks it once, and never again
    calls.clear()
    return made, calls


@pytest.mark.parametrize("row", [DENSE, SPARSE], ids=str)
def test_a_step_that_makes_it_worse_is_not_taken(row):
    a, b = array(row.structure, "float64"), numbers((40, 2), "float64", 640_118_935)
    worse, calls = after_the_first(factor(row, a), lambda x: -30 * x)
    got = answer(worse, b, "N", Controls())
    assert len(calls) >= 2
    assert got.refinements == 0
    exact = np.linalg.solve(a, b)
    np.testing.assert_allclose(got.x, exact * (1 + 1e-4), rtol=1e-9)
    assert got.statuses != ((Status.OK,) * 2,)


@pytest.mark.parametrize("row", [DENSE, SPARSE], ids=str)
def test_a_step_is_taken_for_the_columns_that_it_improves(row):
    a, b = array(row.structure, "float64"), numbers((40, 2), "float64", 640_118_936)

    def change(x):
        return x * np.array([1.0, -30.0])[: x.shape[1]]

    mixed, _ = after_the_first(factor(row, a), change)
    got = answer(mixed, b, "N", Controls(refine=1))
    exact = np.linalg.solve(a, b)
    assert got.refinements == 1
    np.testing.assert_allclose(got.x[:, 0], exact[:, 0], rtol=1e-9)
    np.testing.assert_allclose(got.x[:, 1], exact[:, 1] * (1 + 1e-4), rtol=1e-9)


@pytest.mark.parametrize("row", [DENSE, SPARSE], ids=str)
def test_an_answer_that_is_no_number_at_any_scale_is_of_a_singular_matrix(row):
    """Not one that more refinement could have brought to its tolerance."""
    f = factor(row, array(row.structure, "float64"))
    nothing = type("Nothing", (type(f),), {"solve": lambda self, rhs, *_: Outcome(np.nan * rhs, (Status.OK,), (0,))})
    got = answer(
        nothing(**{name: getattr(f, name) for name in f.__dataclass_fields__}), np.ones((40, 1)), "N", Controls()
    )
    assert got.statuses == ((Status.SINGULAR_NUMERIC,),)
