"""Factors in single precision whose answers are as good as double ones, or say that they are not."""

import numpy as np
import pytest

from backsolve.errors import InvalidOptionError, NonfiniteInputError, NotPositiveDefiniteError, SingularMatrixError
from backsolve.types import TRANS, Options, Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.direct.mixed import MixedFactor
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import ROWS, solver
from backsolve_service.engine.select import choose
from backsolve_service.engine.structure import inspect, inspect_pattern
from engine.table import absent, array, factor_of, matrix, numbers, op, poisson

SINGLE = {"float64": "float32", "complex128": "complex64"}

WAYS = [
    ("lu", "dense", "general"),
    ("lu", "dense", "zero_diagonal"),
    ("cholesky", "dense", "definite"),
    ("ldl", "dense", "indefinite"),
    ("ldl", "dense", "symmetric"),
    ("ldl", "dense", "saddle"),
    ("cholesky", "csr", "definite"),
    ("superlu", "csr", "general"),
    ("superlu", "csr", "indefinite"),
    ("superlu", "csr", "zero_diagonal"),
    ("rslab", "csr", "general"),
    ("rslab", "csr", "zero_diagonal"),
    ("rslab_ldl", "csr", "symmetric"),
    ("rslab_klu", "csr", "general"),
]

HERE = [way for way in WAYS if absent(way[0]) is None]

each_way = pytest.mark.parametrize(("method", "layout", "structure"), HERE)
each_trans = pytest.mark.parametrize("trans", TRANS)


def mixed(method, layout, a):
    m = matrix(layout, a)
    spec = FactorSpec(method, None, SINGLE[m.dtype.name], "cpu")
    chosen = solver(method)
    return chosen.factorize(chosen.analyze(m.pattern, spec), Operand(m), spec)


def pick(m, **options):
    return choose(inspect(inspect_pattern(m.pattern), Operand(m)), Options(**options), has_x0=False, device="cpu")


def ill_conditioned(condition, n=40, definite=False):
    """A dense matrix of a given condition number."""
    rng = np.random.default_rng(907_155)
    q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    p, _ = np.linalg.qr(rng.standard_normal((n, n)))
    middle = q * np.logspace(0, -np.log10(condition), n)
    a = middle @ (q.T if definite else p.T)
    return (a + a.T) / 2 if definite else a


def test_the_ways_are_all_that_the_registry_offers():
    offered = {(name, layout) for name, row in ROWS.items() if "precision" in row.options for layout in row.layouts}
    assert {way[:2] for way in WAYS} == offered


@each_way
@each_trans
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("k", [1, 3])
def test_answers_are_as_good_as_in_double(method, layout, structure, trans, dtype, k):
    a = array(structure, dtype)
    b = numbers((40, k), dtype, 61_772_090)
    made = mixed(method, layout, a)
    assert isinstance(made, MixedFactor)
    assert made.inner.operand.dtype == np.dtype(SINGLE[dtype])
    got = answer(made, b, trans, Controls())
    assert got.statuses == ((Status.OK,) * k,)
    assert got.x.dtype == np.dtype(dtype)
    assert got.refinements >= 1
    assert got.backward_error.max() <= 8 * np.finfo(np.float64).eps
    expected = np.linalg.solve(op(a, trans), b)
    np.testing.assert_allclose(got.x, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@each_way
def test_a_factor_takes_half_the_room(method, layout, structure):
    m = matrix(layout, array(structure, "float64"))
    full, half = factor_of(method, m), mixed(method, layout, array(structure, "float64"))
    exponents = 2 * 40 * 4
    assert half.nbytes < 0.8 * full.nbytes + exponents
    assert half.inner.operand.values.strides == (0,) * m.values.ndim


@each_way
@each_trans
@pytest.mark.parametrize("scale", [1e-250, 1e-60, 1e60, 1e250])
def test_what_single_precision_cannot_hold_is_scaled(method, layout, structure, trans, scale):
    a = array(structure, "float64")
    b = numbers((40, 2), "float64", 27_610_553)
    got = answer(mixed(method, layout, scale * a), b, trans, Controls())
    assert got.statuses == ((Status.OK,) * 2,)
    expected = np.linalg.solve(op(a, trans), b)
    np.testing.assert_allclose(got.x * scale, expected, rtol=0, atol=1e-11 * np.abs(expected).max())
    other = answer(mixed(method, layout, a), scale * b, trans, Controls())
    np.testing.assert_allclose(other.x / scale, expected, rtol=0, atol=1e-11 * np.abs(expected).max())


@pytest.mark.parametrize(("method", "layout"), [("lu", "dense"), ("superlu", "csr")])
@each_trans
def test_rows_of_very_different_size(method, layout, trans):
    grade = 10.0 ** np.random.default_rng(71_430).uniform(-80, 80, (40, 1))
    a = grade * array("general", "float64")
    x = np.ones((40, 1)) if trans == "N" else 1 / grade
    got = mixed(method, layout, a).solve(op(a, trans) @ x, trans, Controls())
    np.testing.assert_allclose(got.x, x, rtol=1e-4)


@pytest.mark.parametrize(("method", "layout"), [("cholesky", "dense"), ("cholesky", "csr"), ("ldl", "dense")])
def test_a_hermitian_matrix_is_scaled_into_one(method, layout):
    grade = 10.0 ** np.linspace(-40, 40, 40)
    a = grade[:, None] * array("definite", "complex128") * grade
    x = (1 / grade)[:, None].astype(complex)
    got = mixed(method, layout, a).solve(a @ x, "N", Controls())
    np.testing.assert_allclose(got.x, x, rtol=1e-4)


@pytest.mark.parametrize("condition", [1e3, 1e5])
@pytest.mark.parametrize(("method", "definite"), [("lu", False), ("cholesky", True), ("ldl", True)])
def test_refinement_goes_on_for_as_long_as_it_gains(condition, method, definite):
    a = ill_conditioned(condition, definite=definite)
    b = numbers((40, 1), "float64", 990_412)
    got = answer(mixed(method, "dense", a), b, "N", Controls())
    assert got.statuses == ((Status.OK,),)
    assert got.backward_error.max() <= 8 * np.finfo(np.float64).eps
    assert got.refinements >= 2
    assert got.condition == pytest.approx(np.linalg.cond(a, 1), rel=0.7)
    graded = 10.0 ** np.linspace(-20, 20, 40)
    a = graded[:, None] * a * graded if definite else graded[:, None] * a
    got = answer(mixed(method, "dense", a), b, "N", Controls())
    assert got.condition == pytest.approx(np.linalg.cond(a, 1), rel=0.9)


@pytest.mark.parametrize("method", ["lu", "superlu"])
def test_what_cannot_be_refined_is_stagnation(method):
    a = ill_conditioned(1e11)
    b = numbers((40, 2), "float64", 990_413)
    layout = "csr" if method == "superlu" else "dense"
    got = answer(mixed(method, layout, a), b, "N", Controls())
    assert got.statuses == ((Status.STAGNATION,) * 2,)
    assert "precision='full'" in Status.STAGNATION.advice
    assert answer(factor_of(method, matrix(layout, a)), b, "N", Controls()).statuses == ((Status.OK,) * 2,)


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("method", ["lu", "superlu"])
def test_a_right_hand_side_in_the_range_hides_no_singular_matrix(method, columns):
    """Refinement gives it an answer as good as any, and there are as many others."""
    layout, flagged = "csr" if method == "superlu" else "dense", 0
    for seed in range(40):
        a = numbers((30, 30), "float64", seed + 340_771_905)
        a[19] = a[4]
        try:
            made = mixed(method, layout, a)
        except SingularMatrixError:
            continue
        got = answer(made, a @ numbers((30, columns), "float64", seed), "N", Controls())
        assert got.backward_error.max() <= 1e-12
        assert got.statuses == ((Status.ILL_CONDITIONED,) * columns,)
        assert "precision='full'" in (got.note or "")
        flagged += 1
    assert flagged > 10


def test_in_a_batch_it_hides_none_either():
    a = numbers((4, 30, 30), "float64", 340_771_990)
    a[2, 19] = a[2, 4] = np.rint(4 * a[2, 4]) / 4
    b = a @ numbers((4, 30, 1), "float64", 340_771_991)
    statuses = [Status.OK, Status.OK, Status.ILL_CONDITIONED, Status.OK]
    got = answer(mixed("lu", "dense", a), b, "N", Controls())
    assert [system[0] for system in got.statuses] == statuses


@each_trans
def test_rows_of_very_different_size_are_not_taken_for_singular(trans):
    grade = 10.0 ** np.random.default_rng(71_431).uniform(-8, 8, (40, 1))
    a = grade * array("general", "float64")
    b = op(a, trans) @ (np.ones((40, 1)) if trans == "N" else 1 / grade)
    assert answer(mixed("superlu", "csr", a), b, trans, Controls()).statuses == ((Status.OK,),)


def test_fewer_steps_than_needed_are_stagnation_too():
    a = array("general", "float64")
    b = numbers((40, 1), "float64", 990_414)
    got = answer(mixed("lu", "dense", a), b, "N", Controls(refine=0))
    assert got.refinements == 0
    assert got.statuses == ((Status.STAGNATION,),)


@pytest.mark.parametrize(("method", "layout"), [("lu", "dense"), ("ldl", "dense"), ("superlu", "csr")])
def test_what_is_singular_in_single_precision_says_so(method, layout):
    a = np.array([[1.0, 1.0, 0.0], [1.0, 1.0 + 1e-12, 0.0], [0.0, 0.0, 1.0]])
    with pytest.raises(SingularMatrixError, match=r"in single precision.*precision='full'"):
        mixed(method, layout, a)
    whole = factor_of(method, matrix(layout, a)).solve(np.ones((3, 1)), "N", Controls())
    assert whole.statuses == (Status.OK,)


@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_what_is_not_definite_in_single_precision_says_so(layout):
    a = np.array([[1.0, 1.0, 0.0], [1.0, 1.0 + 1e-12, 0.0], [0.0, 0.0, 1.0]])
    with pytest.raises(NotPositiveDefiniteError, match=r"in single precision.*precision='full'") as caught:
        mixed("cholesky", layout, a)
    assert caught.value.details["method"] == "cholesky"
    if layout == "dense":
        assert caught.value.details["column"] == "1"


@each_way
@each_trans
def test_batches_fail_one_by_one(method, layout, structure, trans):
    a = np.stack([array(structure, "complex128", n=12, seed=seed) for seed in (411_920, 411_921, 411_922, 411_923)])
    a[1] = 0 * a[1]
    a[3][a[3] != 0] = np.nan
    a[2] *= 1e200
    b = numbers((4, 12, 2), "complex128", 66_120_475)
    got = answer(mixed(method, layout, a), b, trans, Controls())
    bad = Status.NOT_POSITIVE_DEFINITE if method == "cholesky" else Status.SINGULAR_NUMERIC
    assert got.statuses == ((Status.OK,) * 2, (bad,) * 2, (Status.OK,) * 2, (Status.NONFINITE_INPUT,) * 2)
    for s in (0, 2):
        expected = np.linalg.solve(op(a[s], trans), b[s])
        np.testing.assert_allclose(got.x[s], expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    assert np.isnan(got.x[[1, 3]]).all()


@each_way
def test_sizes_nobody_thinks_of(method, layout, structure):
    for n, k in [(0, 0), (0, 2), (1, 0), (1, 1)]:
        a = np.full((n, n), 3.0)
        b = np.ones((n, k))
        got = answer(mixed(method, layout, a), b, "T", Controls())
        np.testing.assert_allclose(got.x, b / 3, rtol=1e-15)


@each_way
def test_columns_of_zeros_and_of_nan(method, layout, structure):
    a = array(structure, "float64")
    b = numbers((40, 3), "float64", 3_118)
    b[:, 0], b[5, 2] = 0, np.nan
    got = answer(mixed(method, layout, a), b, "N", Controls())
    assert got.statuses == ((Status.OK, Status.OK, Status.NONFINITE_INPUT),)
    assert not got.x[:, 0].any()
    np.testing.assert_allclose(got.x[:, 1], np.linalg.solve(a, b[:, 1]), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("method", ["lu", "cholesky", "ldl"])
def test_a_matrix_that_is_not_finite_is_refused(method):
    a = array("definite", "float64")
    a[3, 3] = np.inf
    with pytest.raises(NonfiniteInputError, match="A holds NaN or infinity"):
        mixed(method, "dense", a)


def test_mixed_is_asked_for_by_an_option():
    m = matrix("dense", array("definite", "complex128"))
    chosen = pick(m, precision="mixed")
    assert (chosen.spec.method, chosen.spec.precision) == ("cholesky", "complex64")
    assert pick(m, precision="full").spec.precision == "complex128"
    assert pick(poisson(5), method="cholesky", precision="mixed").spec.precision == "float32"
    with pytest.raises(InvalidOptionError, match="single precision already") as caught:
        pick(matrix("dense", array("definite", "float32")), precision="mixed")
    assert caught.value.details["option"] == "precision"
    with pytest.raises(InvalidOptionError, match="does not use precision"):
        pick(m, method="cg", precision="mixed")


def test_tolerances_are_met_beyond_single_precision():
    got = answer(
        mixed("superlu", "csr", array("general", "float64")), np.ones((40, 1)), "N", Controls(rtol=1e-15, atol=0.0)
    )
    assert got.relative_residual.max() <= 1e-15 or got.statuses == ((Status.STAGNATION,),)
    loose = answer(mixed("lu", "dense", array("general", "float64")), np.ones((40, 1)), "N", Controls(rtol=1e-3))
    assert loose.backward_error.max() <= 8 * np.finfo(np.float64).eps
