"""Facts of patterns and values, and the method that follows from them."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from backsolve.errors import (
    InvalidOptionError,
    NotPositiveDefiniteError,
    NotSupportedError,
    SingularMatrixError,
)
from backsolve.pattern import DensePattern, Pattern
from backsolve.types import Options
from backsolve_service.engine.base import FactorSpec
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.options import validate
from backsolve_service.engine.registry import PRECONDITIONERS, ROWS, methods, preconditioners, solver
from backsolve_service.engine.select import choose
from backsolve_service.engine.structure import inspect, inspect_pattern, is_dominant, level_width
from engine.table import DTYPES, STRUCTURES, array, factor_of, matrix, poisson

ARROW = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 1]])


def structure_of(m):
    return inspect(inspect_pattern(m.pattern), Operand(m))


def pick(m, *, has_x0=False, device="cpu", **options):
    return choose(structure_of(m), Options(**options), has_x0=has_x0, device=device)


@pytest.mark.parametrize(
    ("stored", "full", "singular", "symmetric", "lower", "upper"),
    [
        (np.eye(4), True, False, True, 0, 0),
        (np.triu(np.ones((4, 4))), True, False, False, 0, 3),
        (ARROW, True, False, True, 2, 2),
        (np.eye(4, k=1) + np.eye(4, k=-3), False, False, False, 3, 1),
        (ARROW - np.eye(3), False, True, True, 2, 2),
        (np.eye(4) - np.diag([0, 1, 0, 0]), False, True, True, 0, 0),
        (np.zeros((3, 3)), False, True, True, 0, 0),
        (np.zeros((0, 0)), True, False, True, 0, 0),
    ],
)
def test_facts_of_a_pattern(stored, full, singular, symmetric, lower, upper):
    facts = inspect_pattern(matrix("csr", stored.astype(float)).pattern)
    assert (facts.full_diagonal, facts.structurally_singular, facts.symmetric_pattern) == (full, singular, symmetric)
    assert (facts.lower_bandwidth, facts.upper_bandwidth) == (lower, upper)
    assert facts.n == stored.shape[0]
    assert facts.nnz == np.count_nonzero(stored)
    assert facts.triangular == (min(lower, upper) == 0)


def test_a_dense_pattern_is_full():
    facts = inspect_pattern(DensePattern((300, 300)))
    assert (facts.nnz, facts.lower_bandwidth, facts.full_diagonal, facts.symmetric_pattern) == (90_000, 299, True, True)


@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [12, 600])
def test_hermitian_is_found_and_one_entry_breaks_it(layout, dtype, n):
    a = (
        array("definite", dtype, n=n)
        if n < 100
        else (np.eye(n) + np.eye(n, k=5) / 4 + np.eye(n, k=-5) / 4).astype(dtype)
    )
    good = structure_of(matrix(layout, a))
    assert good.hermitian
    assert good.real_positive_diagonal
    assert good.definite_candidate
    i, j = np.argwhere(np.triu(a, 1))[-1]
    broken = a.copy()
    broken[i, j] *= 1 + 1e-4
    assert not structure_of(matrix(layout, broken)).hermitian
    # Rounding of single entries is no asymmetry.
    broken[i, j] = a[i, j] * (1 + 2 * np.finfo(dtype).eps)
    assert structure_of(matrix(layout, broken)).hermitian


def test_a_badly_scaled_corner_is_still_seen():
    a = np.diag([1e16, 1.0, 1.0])
    a[1, 2] = 0.5
    assert not structure_of(matrix("dense", a)).hermitian


def test_complex_symmetric_is_not_hermitian_and_a_complex_diagonal_not_positive():
    a = np.array([[2, 1j], [1j, 2]])
    assert not structure_of(matrix("dense", a)).hermitian
    b = np.array([[2 + 1e-3j, 0], [0, 2]])
    assert not structure_of(matrix("dense", b)).real_positive_diagonal
    assert not structure_of(matrix("dense", b)).hermitian


def test_of_a_batch_all_systems_count():
    a = np.stack([array("definite", "float64"), array("indefinite", "float64")])
    found = structure_of(matrix("dense", a))
    assert found.batch
    assert found.hermitian
    assert not found.real_positive_diagonal
    assert structure_of(matrix("csr", a[:1])).definite_candidate


# --- selection


@pytest.mark.parametrize(
    ("layout", "kind", "method", "reason"),
    [
        ("dense", "definite", "cholesky", "positive diagonal"),
        ("dense", "general", "lu", "not Hermitian"),
        ("dense", "indefinite", "ldl", "no positive diagonal"),
        ("csr", "definite", "superlu", "sparse"),
        ("csr", "general", "superlu", "sparse"),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_automatic_choice(layout, kind, method, reason, dtype):
    choice = pick(matrix(layout, array(kind, dtype)))
    assert choice.spec == FactorSpec(method, None, dtype, "cpu", ordering="auto" if layout == "csr" else None)
    assert reason in choice.reason


def test_automatic_cholesky_has_ldl_to_fall_back_on_and_nothing_behind_it():
    a = array("definite", "float64")
    a[3, 7] = a[7, 3] = 1e3
    m = matrix("dense", a)
    choice = pick(m)
    with pytest.raises(NotPositiveDefiniteError):
        factor_of(choice.spec.method, m)
    second = choice.fallback
    assert second.spec.method == "ldl"
    assert "not positive definite" in second.reason
    assert second.fallback is None
    assert pick(m, method="cholesky").fallback is None


@pytest.mark.parametrize("option", [{"maxiter": 5}, {"preconditioner": "none"}, {"has_x0": True}])
@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize(("kind", "method"), [("definite", "cg"), ("indefinite", "minres"), ("general", "gmres")])
def test_iterative_options_ask_for_an_iterative_method(option, layout, kind, method):
    choice = pick(matrix(layout, array(kind, "float32")), **option)
    assert choice.spec == FactorSpec(method, option.get("preconditioner", "jacobi"), "float64", "cpu")
    name = "x0" if "has_x0" in option else next(iter(option))
    assert f"{name} given" in choice.reason


def test_an_option_may_leave_one_method_only():
    assert pick(poisson(4), restart=5).spec.method == "gmres"
    assert pick(poisson(4), ordering="mmd").spec.method == "superlu"


@pytest.mark.parametrize("layout", ["csr", "dense"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_reuse_changes_nothing_of_the_choice(structure, layout):
    """Whether the older factor still serves is judged by what the best method costs, not by what another would."""
    m = matrix(layout, array(structure, "float64"))
    assert pick(m, reuse="precondition").spec == pick(m).spec


def test_iterative_and_direct_options_exclude_each_other():
    with pytest.raises(InvalidOptionError, match="maxiter and refine together"):
        pick(poisson(4), maxiter=3, refine=1)


def test_auto_and_its_own_choice_by_name_share_a_factor():
    for m in (poisson(4), matrix("dense", array("general", "float64")), matrix("dense", array("definite", "float64"))):
        auto = pick(m)
        assert pick(m, method=auto.spec.method, trans="T", rtol=1e-3, refine=1).spec == auto.spec


@pytest.mark.parametrize(
    ("method", "option"),
    [
        ("lu", {"maxiter": 3}),
        ("lu", {"preconditioner": "jacobi"}),
        ("lu", {"has_x0": True}),
        ("cholesky", {"maxiter": 3}),
        ("cg", {"refine": 1}),
    ],
)
def test_unused_options_are_refused(method, option):
    name = "x0" if "has_x0" in option else next(iter(option))
    with pytest.raises(InvalidOptionError, match=rf"method '{method}' does not use {name}") as caught:
        pick(matrix("dense", array("definite", "float64")), method=method, **option)
    assert caught.value.details["option"] == name


@pytest.mark.parametrize(("layout", "method", "cure"), [("csr", "lu", "'superlu'"), ("dense", "superlu", "'lu'")])
def test_a_method_for_the_other_layout_is_refused(layout, method, cure):
    with pytest.raises(InvalidOptionError, match=cure):
        pick(matrix(layout, array("definite", "float64")), method=method)


@pytest.mark.parametrize("method", ["cholesky", "cg"])
@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_a_named_definite_method_is_checked(method, layout):
    with pytest.raises(NotPositiveDefiniteError, match="is not Hermitian"):
        pick(matrix(layout, array("general", "float64")), method=method)
    # A diagonal entry that is not positive is found, and named, by the method.
    assert pick(matrix(layout, array("indefinite", "float64")), method=method).spec.method == method


def test_a_structurally_singular_matrix_has_no_method():
    with pytest.raises(SingularMatrixError, match="structurally singular") as caught:
        pick(matrix("csr", np.diag([1.0, 0.0])), method="auto")
    assert caught.value.details["kind"] == "structural"


@pytest.mark.parametrize("device", ["cuda:9999", "tpu", "cuda:x", ""])
def test_a_device_that_is_not_there(device):
    with pytest.raises(NotSupportedError, match="device"):
        pick(poisson(3), device=device)


# --- options


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": "choleski"}, "did you mean 'cholesky'"),
        ({"method": "SuperLU"}, "did you mean 'superlu'"),
        ({"method": "zzz"}, "there are auto, lu, cholesky, "),
        ({"method": None}, "method is not known"),
        ({"preconditioner": "jacoby"}, "did you mean 'jacobi'"),
        ({"trans": "C"}, "trans is not known"),
        ({"trans": True}, "trans is not known"),
        ({"rtol": -1e-3}, "rtol must be"),
        ({"rtol": float("nan")}, "rtol must be"),
        ({"rtol": "1"}, "rtol must be"),
        ({"atol": float("inf")}, "atol must be"),
        ({"maxiter": 0}, "maxiter must be an integer, 1"),
        ({"maxiter": 2.5}, "maxiter must be"),
        ({"maxiter": True}, "maxiter must be"),
        ({"refine": -1}, "refine must be an integer, 0"),
    ],
)
def test_options_are_checked(options, text):
    with pytest.raises(InvalidOptionError, match=text) as caught:
        validate(Options(**options))
    assert caught.value.details["option"] == next(iter(options))


def test_good_options_pass():
    validate(Options(rtol=0, atol=0.0, maxiter=1, refine=0, preconditioner="none", trans="H", method="cg"))


def test_the_names_are_those_of_the_tables():
    assert {"lu", "cholesky", "superlu", "cg"} <= set(methods()) <= set(ROWS)
    assert {"jacobi", "none"} <= set(preconditioners()) <= set(PRECONDITIONERS)
    assert solver("superlu") is solver("superlu")


def test_a_pattern_is_not_analysed_by_the_wrong_method():
    from backsolve.errors import InvalidPatternError

    with pytest.raises(InvalidPatternError, match="'superlu'"):
        solver("lu").analyze(Pattern([0, 1], [0], (1, 1)))
    with pytest.raises(InvalidPatternError, match="'lu'"):
        solver("superlu").analyze(DensePattern((1, 1)))


@pytest.mark.parametrize(("sides", "widest"), [((40, 40), 40), ((12, 12, 12), 108), ((200, 4), 4), ((1, 500), 1)])
def test_width_of_the_widest_level(sides, widest):
    """From a corner of a grid, levels are diagonals: of a square as long as its side, of a cube 3/4 of a face."""
    cell = np.arange(np.prod(sides)).reshape(sides)
    pairs = [
        np.stack([np.take(cell, range(s - 1), axis).ravel(), np.take(cell, range(1, s), axis).ravel()])
        for axis, s in enumerate(sides)
    ]
    i, j = np.concatenate(pairs, axis=1)
    n = cell.size
    graph = csr_array((np.ones(2 * i.size + n), (np.r_[i, j, :n], np.r_[j, i, :n])), shape=(n, n))
    assert level_width(graph) == widest


def test_width_is_searched_for_in_large_patterns_only():
    assert inspect_pattern(poisson(20).pattern).width is None
    assert inspect_pattern(poisson(150).pattern).width == 150


def dominance(layout, a):
    m = matrix(layout, a)
    return inspect(inspect_pattern(m.pattern), Operand(m)).dominant, is_dominant(Operand(m))


def test_dominance():
    a = np.array([[2.0, -1.0, -1.0], [-1.0, 3.0, 2.0], [-1.0, 2.0, 3.0]])
    assert dominance("csr", a) == (True, True)
    a[0, 0] = 1.99
    assert dominance("csr", a) == (False, False)


@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_dominance_of_each_row(layout):
    a = np.array([[2.0, -1.0, -1.0], [0.5, 3.0, 2.5], [0.0, 1.0, -1.0]])
    assert is_dominant(Operand(matrix(layout, a)))
    a[2, 2] = -0.99
    assert not is_dominant(Operand(matrix(layout, a)))


def test_dominance_is_not_looked_for_where_nothing_can_come_of_it():
    unsymmetric = np.array([[2.0, -1.0, -1.0], [0.5, 3.0, 2.5], [0.0, 1.0, 1.0]])
    assert dominance("csr", unsymmetric) == (False, True)
    assert dominance("dense", np.diag([1.0, 2.0])) == (False, True)
