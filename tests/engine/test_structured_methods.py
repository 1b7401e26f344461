"""Diagonal, triangular, banded and block diagonal matrices: what each method finds, keeps and refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backsolve.errors import InvalidOptionError, InvalidPatternError, SingularMatrixError
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import TRANS, Options, Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls
from backsolve_service.engine.direct.banded import BandCholesky, BandLu, TridiagonalLu
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import solver
from backsolve_service.engine.select import choose
from backsolve_service.engine.structure import common_triangle, inspect, inspect_pattern, triangle
from engine.table import TOLERANCE, Row, array, factor, factor_of, matrix, numbers, op

STRUCTURED = {"diagonal": "diagonal", "triangular": "upper", "banded": "band", "block_diagonal": "blocks"}


def on_pattern(stored, values):
    """Values on a pattern that stores zeros as well."""
    m = matrix("csr", stored.astype(values.dtype))
    return Matrix(m.pattern, values[m.pattern.rows, m.pattern.indices])


@pytest.mark.parametrize(("method", "structure"), STRUCTURED.items())
@pytest.mark.parametrize("column", [0, 17, 39])
def test_a_zero_pivot_names_its_column(method, structure, column):
    a = np.eye(40) if method == "block_diagonal" else array(structure, "float64")
    stored = (a != 0) | np.eye(40, dtype=bool)
    if method in ("banded", "block_diagonal"):
        a = np.diag(np.arange(1.0, 41))
        stored = np.eye(40, dtype=bool) | (np.eye(40, k=1, dtype=bool) & (np.arange(40)[:, None] % 2 == 0))
    a[column, column] = 0.0
    with pytest.raises(SingularMatrixError, match=f"column {column}") as caught:
        factor_of(method, on_pattern(stored, a))
    assert caught.value.details["column"] == str(column)
    assert caught.value.details["kind"] == "numeric"


@pytest.mark.parametrize("side", ["lower", "upper"])
def test_dense_triangular_names_its_zero_pivot(side):
    a = array("triangular" if side == "lower" else "upper", "float64")
    a[23, 23] = 0
    with pytest.raises(SingularMatrixError, match="column 23"):
        factor(Row("triangular", None, "dense", side), a)


@pytest.mark.parametrize("method", STRUCTURED)
def test_a_pattern_that_no_values_make_invertible_is_refused(method):
    a = np.diag([1.0, 0.0, 2.0])
    with pytest.raises(SingularMatrixError, match="structurally singular"):
        solver(method).analyze(matrix("csr", a).pattern)


@pytest.mark.parametrize(("method", "text"), [("diagonal", "a diagonal and nothing else"), ("triangular", "one side")])
def test_another_pattern_is_refused(method, text):
    m = matrix("csr", array("general", "float64"))
    with pytest.raises(InvalidPatternError, match=text):
        solver(method).analyze(m.pattern)
    with pytest.raises(InvalidOptionError, match=f"needs a matrix that is {method}"):
        choose(inspect(inspect_pattern(m.pattern), Operand(m)), Options(method), has_x0=False, device="cpu")


@pytest.mark.parametrize("method", ["diagonal", "banded", "block_diagonal"])
def test_dense_patterns_are_refused(method):
    with pytest.raises(InvalidPatternError, match="sparse"):
        solver(method).analyze(matrix("dense", np.eye(3)).pattern)


def test_a_dense_matrix_shows_its_triangle_by_its_values():
    a = array("general", "float64", n=300)
    full = matrix("dense", a)
    assert not inspect(inspect_pattern(full.pattern), Operand(full)).triangular
    with pytest.raises(InvalidPatternError, match="one side of the diagonal"):
        factor_of("triangular", full)
    late = np.eye(300)
    late[290, 280] = 1.0
    assert triangle(late) == "lower"
    late[280, 290] = 1.0
    assert triangle(late) is None
    assert triangle(np.eye(3)) == "diagonal"
    assert triangle(np.triu(np.ones((5, 5)))) == "upper"
    for structure in ("triangular", "upper", "diagonal"):
        m = matrix("dense", array(structure, "complex64"))
        assert inspect(inspect_pattern(m.pattern), Operand(m)).triangular


def test_a_batch_has_the_side_of_all_its_systems_and_a_status_of_each_zero_pivot():
    lower, upper, flat, full = (array(name, "float64") for name in ("triangular", "upper", "diagonal", "general"))

    def side(*systems):
        return common_triangle(Operand(matrix("dense", np.stack(systems))))

    assert side(lower, flat, lower) == "lower"
    assert side(flat, upper) == "upper"
    assert side(flat, flat) == "diagonal"
    assert side(flat, lower, upper) is None
    assert side(lower, full) is None
    assert side(full, lower) is None
    for n in (0, 3):
        none = factor_of("triangular", matrix("dense", np.zeros((0, n, n))))
        assert answer(none, np.zeros((0, n, 1)), "N", Controls()).x.shape == (0, n, 1)
    pivotless, b = lower.copy(), numbers((3, 40, 1), "float64", 301_774_118)
    pivotless[[4, 9], [4, 9]] = 0
    got = answer(factor_of("triangular", matrix("dense", np.stack([flat, pivotless, lower]))), b, "N", Controls())
    assert got.statuses == ((Status.OK,), (Status.SINGULAR_NUMERIC,), (Status.OK,))
    np.testing.assert_allclose(lower @ got.x[2], b[2], atol=1e-12)


def test_a_batch_must_be_triangular_on_one_side():
    a = np.stack([array("triangular", "float64"), array("upper", "float64")])
    m = matrix("dense", a)
    assert not inspect(inspect_pattern(m.pattern), Operand(m)).triangular
    with pytest.raises(InvalidPatternError, match="one side"):
        factor_of("triangular", m)
    assert inspect(inspect_pattern(m.pattern), Operand(matrix("dense", a[[1, 1]]))).triangular


def test_a_sparse_triangle_is_kept_as_it_is():
    """No fill, and no pivot that leaves the diagonal, however small it is."""
    a = array("triangular", "float64")
    a[np.arange(40), np.arange(40)] = 1e-7
    m = matrix("csr", np.tril(a))
    made = factor_of("triangular", m)
    assert made.handles[0].nnz <= m.pattern.nnz + 2 * 40
    assert made.ordering.predicted_nbytes("float64") == pytest.approx(made.nbytes, rel=0.1)


@pytest.mark.parametrize("side", ["lower", "upper"])
@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_triangles_of_extreme_scale(layout, side, trans):
    """An entry over the pivot of its column would overflow: nothing is divided before the solve."""
    wanted = np.diag([1e-160, 1e150, 1e-160, 1e150])
    wanted[1, 0] = wanted[3, 0] = wanted[3, 2] = 1e150
    wanted[2, 1] = 1e-160
    if side == "upper":
        wanted = wanted[::-1, ::-1]
    made = factor(Row("triangular", None, layout, side), np.ascontiguousarray(op(wanted, trans)))
    got = made.solve(wanted @ np.ones((4, 1)), trans, Controls())
    np.testing.assert_allclose(got.x, np.ones((4, 1)), rtol=1e-12)


@pytest.mark.parametrize(
    ("structure", "kind"),
    [("definite_band", BandCholesky), ("band", BandLu), ("tridiagonal", TridiagonalLu), ("diagonal", TridiagonalLu)],
)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_the_cheapest_band_method_that_fits(structure, kind, dtype):
    made = factor(Row("banded", None, "csr", structure), array(structure, dtype))
    assert isinstance(made.sweeps[0], kind)


def test_a_hermitian_band_that_is_not_definite_falls_to_lu():
    a = array("definite_band", "complex128")
    b = numbers((40, 2), "complex128", 19_660_213)
    inner = a.copy()
    inner[:3, :3] = [[1, 3, 0], [3, 1, 0], [0, 0, 5]]
    for shifted in (a - 30 * np.eye(40), inner):
        made = factor(Row("banded", None, "csr", "definite_band"), shifted)
        assert isinstance(made.sweeps[0], BandLu)
        np.testing.assert_allclose(answer(made, b, "T", Controls()).x, np.linalg.solve(shifted.T, b), atol=1e-8)


@given(
    n=st.integers(0, 12),
    below=st.integers(0, 12),
    above=st.integers(0, 12),
    k=st.integers(0, 3),
    dtype=st.sampled_from(["float32", "float64", "complex64", "complex128"]),
    trans=st.sampled_from(TRANS),
    method=st.sampled_from(["banded", "block_diagonal", "triangular", "diagonal"]),
)
@settings(deadline=None, max_examples=200)
def test_every_shape(n, below, above, k, dtype, trans, method):
    if method == "triangular":
        below = 0
    if method == "diagonal":
        below = above = 0
    a = np.triu(np.tril(numbers((n, n), dtype, 73_110), above), -below) + (8 * np.eye(n)).astype(dtype)
    b = numbers((n, k), dtype, 73_111)
    made = factor_of(method, matrix("csr", a))
    got = answer(made, b, trans, Controls())
    assert got.statuses == ((Status.OK,) * k,)
    expected = np.linalg.solve(op(a, trans), b)
    np.testing.assert_allclose(got.x, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max(initial=0))
    predicted = solver(method).analyze(made.operand.pattern).predicted_nbytes(dtype)
    assert predicted is not None
    assert predicted >= 0


def test_band_memory_is_foretold():
    for structure in ("band", "tridiagonal"):
        made = factor(Row("banded", None, "csr", structure), array(structure, "float64"))
        symbolic = solver("banded").analyze(made.operand.pattern)
        assert made.nbytes == pytest.approx(symbolic.predicted_nbytes("float64"), rel=0.1)


def test_many_blocks_are_two_groups():
    """1200 blocks of two sizes with their rows dealt out: two calls of the batched LU."""
    rng = np.random.default_rng(556_201)
    sizes = np.repeat([2, 5], 600)
    n = int(sizes.sum())
    part = rng.permutation(np.repeat(np.arange(1200), sizes))
    order = np.argsort(part, kind="stable")
    rows, columns = [], []
    for members in np.split(order, np.cumsum(sizes)[:-1]):
        rows.append(np.repeat(members, members.size))
        columns.append(np.tile(members, members.size))
    rows, columns = np.concatenate(rows), np.concatenate(columns)
    by_row = np.lexsort((columns, rows))
    rows, columns = rows[by_row], columns[by_row]
    values = rng.standard_normal(rows.size) + 6.0 * (rows == columns)
    pattern = Pattern(np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))]), columns, (n, n))
    made = factor_of("block_diagonal", Matrix(pattern, values))
    assert [group.rows.shape for group in made.groups] == [(600, 2), (600, 5)]
    assert made.nbytes == solver("block_diagonal").analyze(pattern).predicted_nbytes("float64")
    b = rng.standard_normal((n, 2))
    for trans in TRANS:
        got = answer(made, b, trans, Controls())
        assert got.backward_error.max() < 1e-15
        assert got.statuses == ((Status.OK,) * 2,)


def test_one_way_links_join_blocks():
    """A link in one direction makes one block of two: the pattern need not be symmetric."""
    a = np.diag([2.0, 3.0, 4.0])
    a[0, 2] = 5.0
    made = factor_of("block_diagonal", matrix("csr", a))
    assert [group.rows.tolist() for group in made.groups] == [[[1]], [[0, 2]]]
    b = np.array([[1.0], [2.0], [3.0]])
    np.testing.assert_allclose(answer(made, b, "N", Controls()).x, np.linalg.solve(a, b))


def test_the_condition_of_a_diagonal_is_exact():
    got = answer(factor_of("diagonal", matrix("csr", np.diag([1e-3, -8.0, 2.0]))), np.ones((3, 1)), "N", Controls())
    assert got.condition == pytest.approx(8e3)
    huge = answer(factor_of("diagonal", matrix("csr", np.diag([1e-200, 1e200]))), np.ones((2, 1)), "N", Controls())
    assert huge.statuses == ((Status.ILL_CONDITIONED,),)
