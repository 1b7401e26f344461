"""What SciPy's own tests ask of `spsolve`, `splu` and `factorized`, and what a service adds."""

import threading

import numpy as np
import pytest
import scipy.sparse.linalg
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.sparse.linalg import MatrixRankWarning

from backsolve import scipy_linalg
from backsolve.errors import (
    IllConditionedWarning,
    InvalidDtypeError,
    InvalidOptionError,
    InvalidShapeError,
    NonfiniteInputError,
    NotSupportedError,
)
from backsolve.matrix import Matrix
from backsolve.options import make_options
from backsolve.pattern import Pattern
from backsolve.scipy_linalg._direct import _options
from backsolve.types import Options
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import ROWS
from backsolve_service.engine.select import choose
from backsolve_service.engine.structure import inspect, inspect_pattern
from loadtests.engine.problems import grid
from support.systems import convection, op, random_like

DTYPES = ("float32", "float64", "complex64", "complex128")
FORMATS = ("csr", "csc", "coo", "lil", "dok", "dia", "bsr")
B_COLUMNS = np.array([[1.0, 2.0, 3.0], [6.0, 8.0, 10.0]])
RIGHT_HAND_SIDES = {
    "list": [1, 6],
    "vector": np.array([1, 6]),
    "list of rows": [[1], [6]],
    "column": np.array([[1], [6]]),
    "csc column": sparse.csc_array([[1], [6]]),
    "csr matrix column": sparse.csr_matrix([[1], [6]]),
    "dok column": sparse.dok_array([[1], [6]]),
    "sparse vector": sparse.coo_array([1.0, 6.0]),
    "columns": B_COLUMNS,
    "csc columns": sparse.csc_array(B_COLUMNS),
    "csr matrix columns": sparse.csr_matrix(B_COLUMNS),
    "dok columns": sparse.dok_array(B_COLUMNS),
    "bsr columns": sparse.bsr_array(B_COLUMNS),
    "array that is not contiguous": np.asfortranarray(B_COLUMNS)[:, ::-1][:, ::-1],
}


def far_diagonals(n: int, dtype: str = "float64") -> sparse.csc_array:
    """Three diagonals, two of them far from the main one; the main one is never small."""
    d = np.arange(n) + 1.0
    a = sparse.csc_array(sparse.dia_array((np.array([d, 2 * d, d[::-1]]), [-3, 0, 5]), shape=(n, n)))
    if np.dtype(dtype).kind == "c":
        a = a + 1j * a.T
    return sparse.csc_array(a.astype(dtype))


def dense_of(x: object) -> np.ndarray:
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


# -- spsolve -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RIGHT_HAND_SIDES)
@pytest.mark.parametrize("form", FORMATS)
def test_every_right_hand_side_and_format_gives_scipys_shape_and_type(local, form, kind):
    a, b = sparse.csc_matrix([[1.0, 0.0], [0.0, 2.0]]).asformat(form), RIGHT_HAND_SIDES[kind]
    x = local.spsolve(a, b)
    expected = np.linalg.solve(a.toarray(), dense_of(b))
    if expected.ndim == 2 and expected.shape[1] == 1:
        expected = expected[:, 0]  # one column is a vector
    assert x.shape == expected.shape
    assert_allclose(dense_of(x), expected, rtol=1e-14)
    if sparse.issparse(b) and expected.ndim == 2:
        assert type(x) is (type(a) if form in ("csr", "csc") else sparse.csc_array)
    else:
        assert type(x) is np.ndarray


def test_a_dense_matrix_is_solved_too(spla):
    a, b = np.array([[1.0, 2.0], [2.0, 0.0]]), np.array([[2.0, 0.0], [2.0, 2.0]])
    assert_allclose(spla.spsolve(a, b), [[1.0, 1.0], [0.5, -0.5]], rtol=1e-14)


@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_two_diagonals_in_every_element_type(spla, dtype, form):
    a = sparse.dia_array((np.array([[1.0, 2, 3, 4, 5], [6, 5, 8, 9, 10]]), [0, 1]), shape=(5, 5))
    a, b = a.astype(dtype).asformat(form), np.arange(1, 6).astype(dtype)
    x = spla.spsolve(a, b)
    assert x.dtype == dtype
    assert np.linalg.norm(b - a @ x) < 10 * np.linalg.cond(a.toarray()) * np.finfo(dtype).eps


def test_sparse_columns_are_solved_as_dense_ones_are(spla):
    a = sparse.csr_array((np.array([1.0, 2, 3, -4, 5, 6]), ([0, 0, 1, 2, 2, 2], [0, 2, 2, 0, 1, 2])), shape=(3, 3))
    b = sparse.csr_array((np.ones(6), ([0, 0, 1, 1, 0, 0], [0, 2, 1, 1, 0, 0])), shape=(3, 3))  # with duplicates
    assert_allclose(spla.spsolve(a, b).toarray(), np.linalg.solve(a.toarray(), b.toarray()), atol=1e-14)


def test_zeros_of_a_sparse_solution_are_not_stored(spla):
    b = sparse.csc_array([[0, 1], [1, 0], [0, 0]])
    x = spla.spsolve(sparse.csc_array(np.eye(3)), b)
    assert x.nnz == 2
    assert_array_equal(x.toarray(), b.toarray())


def test_more_sparse_columns_than_are_dense_at_a_time(local):
    a, b = convection(6), sparse.random_array((36, 150), density=0.05, rng=np.random.default_rng(318_846_207))
    x = local.spsolve(a, b)
    assert x.shape == (36, 150)
    assert_allclose((a @ x).toarray(), b.toarray(), atol=1e-12)
    assert local.spsolve(a, b[:, :0]).shape == (36, 0)


def test_the_answer_has_the_common_type(spla):
    real = sparse.csr_array([[1, 2, 0], [0, 0, 3], [4, 0, 5]])
    complex_ = sparse.csr_array([[1, 2, 0], [0, 0, 3], [4, 0, 5 + 1j]])
    for a, b, kind in [
        (real, np.ones(3, dtype=int), "float64"),
        (real, np.ones(3) * (1 + 1j), "complex128"),
        (complex_, np.ones(3), "complex128"),
        (real.astype(np.float32), np.ones(3), "float64"),
        (real.astype(np.float32), np.ones(3, dtype=np.float16), "float64"),
        (real, sparse.csc_array(np.eye(3) * (1 + 1j)), "complex128"),
    ]:
        x = spla.spsolve(a, b)
        assert x.dtype == kind
        assert_allclose(dense_of(a @ x), dense_of(b), atol=1e-14)


@pytest.mark.parametrize("permc_spec", [None, "COLAMD", "MMD_AT_PLUS_A"])
@pytest.mark.parametrize("use_umfpack", [True, False])
def test_orderings_and_libraries_do_not_change_the_answer(spla, permc_spec, use_umfpack):
    a, b = convection(7), np.arange(49.0)
    x = spla.spsolve(a, b, permc_spec, use_umfpack)
    assert_allclose(x, scipy.sparse.linalg.spsolve(a, b), rtol=1e-11)
    assert_allclose(spla.splu(a, permc_spec=permc_spec).solve(b), x, rtol=1e-11)


@pytest.mark.parametrize("shape", [(5,), (5, 2)])
def test_a_singular_matrix_gives_nan_and_scipys_warning(spla, shape):
    for a in (sparse.csc_array((5, 5)), sparse.csr_array(np.ones((5, 5))), np.diag([1.0, 2, 0, 3, 4])):
        with pytest.warns(MatrixRankWarning, match="Matrix is exactly singular") as seen:
            x = spla.spsolve(a, np.ones(shape))
        assert seen[0].filename == __file__
        assert x.shape == shape
        assert np.isnan(x).all()


def test_few_entries_that_admit_no_pivots_are_singular(spla):
    values, rows, columns = [0.284, 0.949, 0.158, 0.388], [17, 17, 17, 10], [0, 6, 12, 13]
    a = sparse.csc_array((values, (rows, columns)), shape=(20, 20))
    with pytest.warns(MatrixRankWarning):
        assert np.isnan(spla.spsolve(a, np.arange(20.0))).all()


def test_a_singular_matrix_with_sparse_columns_is_an_error_as_in_scipy(spla):
    a, b = sparse.csc_array(np.diag([1.0, 0.0])), sparse.csc_array(np.eye(2))
    with pytest.raises(RuntimeError, match="exactly singular"):
        scipy.sparse.linalg.spsolve(a, b)
    with pytest.raises(RuntimeError, match="exactly singular"):
        spla.spsolve(a, b)


def test_a_matrix_that_is_singular_but_for_rounding_warns(spla):
    a = sparse.csr_array(np.array([[1.0, 1.0], [1.0, 1.0 + 4e-16]]))
    for solve in (lambda b: spla.spsolve(a, b), lambda b: spla.splu(a).solve(b)):
        with pytest.warns(IllConditionedWarning):
            assert solve(np.ones(2)).shape == (2,)


def test_nothing_to_solve(local):
    nothing = sparse.csr_array((0, 0))
    assert local.spsolve(nothing, np.zeros(0)).shape == (0,)
    assert local.splu(nothing).solve(np.zeros((0, 3))).shape == (0, 3)
    assert local.spsolve(sparse.csr_array(np.eye(2)), np.zeros((2, 0))).shape == (2, 0)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.ones((3, 4)), np.ones((4, 1))),
        (sparse.csc_array(np.eye(3)), np.array([1.0, 2.0])),
        (sparse.csc_array(np.eye(3)), np.ones((2, 3))),
        (sparse.csc_array(np.eye(3)), sparse.csc_array((1, 3))),
        (sparse.csc_array(np.eye(3)), np.ones((3, 2, 2))),
        (np.ones((2, 3, 3)), np.ones(3)),
    ],
)
def test_shapes_that_do_not_fit_are_value_errors(spla, a, b):
    with pytest.raises(ValueError, match=r"shape|dimensions") as caught:
        spla.spsolve(a, b)
    assert isinstance(caught.value, InvalidShapeError)


def test_nothing_of_the_callers_is_modified(local):
    a = sparse.csr_array((np.array([1.0, 1, 3]), np.array([1, 0, 0]), np.array([0, 2, 3])), shape=(2, 2))
    a.indices, b = np.array([1, 1, 0]), np.array([[2.0, 3]])  # a duplicate, which SciPy would sum in place
    local.spsolve(a, b.T)
    local.splu(a)
    assert_array_equal(a.indices, [1, 1, 0])
    assert_array_equal(a.data, [1, 1, 3])
    assert_array_equal(b, [[2, 3]])


def test_a_number_that_is_none_is_refused(spla):
    with pytest.raises(NonfiniteInputError):
        spla.spsolve(sparse.csr_array(np.diag([1.0, np.nan])), np.ones(2))


def test_iterative_methods_are_left_out_of_the_services_choice():
    """For a cube it would be conjugate gradients, whose answers are less exact than SciPy's."""
    problem = grid((36, 36, 36))
    a = problem.draw(np.random.default_rng(88_620_143))
    matrix = Matrix(Pattern.from_csr(a), a.data)
    structure = inspect(inspect_pattern(matrix.pattern), Operand(matrix))
    assert not ROWS[choose(structure, Options(), has_x0=False, device="cpu").spec.method].direct
    sent = make_options(**_options(None, "spsolve"))
    assert ROWS[choose(structure, sent, has_x0=False, device="cpu").spec.method].direct


# -- splu and factorized -------------------------------------------------------------------


@pytest.mark.parametrize("k", [None, 1, 2, 40, 42])
@pytest.mark.parametrize("dtype", DTYPES)
def test_splu_solves_in_every_direction(spla, dtype, k):
    a = far_diagonals(40, dtype)
    lu = spla.splu(a)
    assert (lu.shape, lu.nnz) == (a.shape, a.nnz)
    b = random_like((40,) if k is None else (40, k), dtype, 904_177_263)
    for trans in "NTH":
        x = lu.solve(b, trans)
        assert (x.shape, x.dtype) == (b.shape, b.dtype)
        assert np.abs(op(a, trans) @ x - b).max() < 1e3 * np.finfo(dtype).eps
        assert_array_equal(lu.solve(b, trans=trans.lower()), x)


def test_splu_of_a_random_matrix(spla):
    a = np.random.default_rng(118_224_905).random((30, 30))
    a[a < 0.95] = 0
    a[:, 0] = 0
    with pytest.raises(RuntimeError, match="Factor is exactly singular"):
        spla.splu(sparse.csc_array(a))
    a += 4 * np.eye(30)
    assert_allclose(a @ spla.splu(sparse.csc_array(a)).solve(np.ones(30)), np.ones(30), rtol=1e-12)


@pytest.mark.parametrize("function", ["splu", "factorized"])
def test_a_matrix_without_entries_is_a_runtime_error(spla, function):
    with pytest.raises(RuntimeError, match="Factor is exactly singular"):
        getattr(spla, function)(sparse.csc_array((5, 5)))
    with pytest.raises(np.linalg.LinAlgError):
        getattr(spla, function)(sparse.csc_array((5, 5)))


def test_factorized_is_the_solve_of_splu(spla):
    a = far_diagonals(5)
    solve = spla.factorized(a)
    assert_allclose(solve(np.ones(5)), spla.splu(a).solve(np.ones(5)), rtol=1e-14)
    assert_allclose(solve(np.ones(5)), scipy.sparse.linalg.splu(a).solve(np.ones(5)), rtol=1e-12)


@pytest.mark.parametrize("function", ["splu", "factorized"])
def test_only_square_matrices_are_factorized(spla, function):
    with pytest.raises(ValueError, match="square"):
        getattr(spla, function)(far_diagonals(5)[:, :4])


@pytest.mark.parametrize("shape", [(4,), (4, 3), (5, 3, 9), ()])
def test_right_hand_sides_of_a_wrong_shape_are_value_errors(spla, shape):
    with pytest.raises(ValueError, match=r"shape|dimension"):
        spla.splu(far_diagonals(5)).solve(np.ones(shape))


@pytest.mark.parametrize(
    ("of", "given"), [("float64", "complex64"), ("float64", "complex128"), ("float32", "float64"), ("float32", "int64")]
)
def test_right_hand_sides_that_would_lose_digits_are_type_errors(spla, of, given):
    with pytest.raises(TypeError):
        scipy.sparse.linalg.splu(far_diagonals(5, of)).solve(np.ones(5, given))
    with pytest.raises(TypeError) as caught:
        spla.splu(far_diagonals(5, of)).solve(np.ones(5, given))
    assert isinstance(caught.value, InvalidDtypeError)


@pytest.mark.parametrize("given", ["float16", "float32", "int64", "bool"])
def test_right_hand_sides_that_lose_nothing_are_converted(spla, given):
    x = spla.splu(far_diagonals(5)).solve(np.ones(5, given))
    assert x.dtype == np.float64
    assert_allclose(far_diagonals(5) @ x, np.ones(5), rtol=1e-13)


def test_an_unknown_direction_is_a_value_error(spla):
    with pytest.raises(ValueError, match="'N', 'T' or 'H'"):
        spla.splu(far_diagonals(5)).solve(np.ones(5), "X")


@pytest.mark.parametrize("name", ["L", "U", "perm_r", "perm_c"])
def test_the_factors_themselves_are_told_where_to_find(local, name):
    lu = local.splu(far_diagonals(5))
    with pytest.raises(AttributeError, match=rf"scipy\.sparse\.linalg\.splu\(A\)\.{name}") as caught:
        getattr(lu, name)
    assert isinstance(caught.value, NotSupportedError)
    assert not hasattr(lu, name)
    with pytest.raises(AttributeError, match="perm_x"):
        lu.perm_x  # noqa: B018


def test_an_object_of_splu_is_the_modules_superlu(local):
    assert isinstance(local.splu(far_diagonals(5)), scipy_linalg.SuperLU)


@pytest.mark.parametrize(
    "setting", [{"diag_pivot_thresh": 0.1}, {"relax": 1}, {"panel_size": 10}, {"options": {"SymmetricMode": True}}]
)
def test_settings_of_superlu_are_refused(local, setting):
    with pytest.raises(NotSupportedError, match=f"{next(iter(setting))} is a setting of SuperLU"):
        local.splu(far_diagonals(5), **setting)
    assert local.splu(far_diagonals(5), None, None, None, None, {}).shape == (5, 5)


@pytest.mark.parametrize("function", ["spsolve", "splu"])
def test_orderings_that_are_not_offered_are_refused(local, function):
    more = (np.ones(5),) if function == "spsolve" else ()
    for name, error in (("NATURAL", NotSupportedError), ("MMD_ATA", NotSupportedError), ("AMD", InvalidOptionError)):
        with pytest.raises(error, match="COLAMD"):
            getattr(local, function)(far_diagonals(5), *more, permc_spec=name)


@pytest.mark.parametrize("function", ["spsolve", "splu", "factorized"])
def test_a_linear_operator_is_refused_unless_it_wraps_a_matrix(local, function):
    a, more = far_diagonals(5), ((np.ones(5),) if function == "spsolve" else ())
    unknown = local.LinearOperator(a.shape, matvec=lambda v: a @ v, dtype=float)
    with pytest.raises(NotSupportedError, match=rf"scipy\.sparse\.linalg\.{function}"):
        getattr(local, function)(unknown, *more)
    getattr(local, function)(local.aslinearoperator(a), *more)


def test_a_factor_is_reused_by_content(spla, client):
    a = convection(8) * 1.0625
    spla.splu(a)
    before = client.stats()["factorizations"]
    for again in (a, a.tocsc(), a.tocoo()):
        spla.spsolve(again, np.ones(64))
        spla.splu(again).solve(np.ones(64), "T")
    assert client.stats()["factorizations"] == before


def test_later_changes_of_the_matrix_do_not_reach_the_factor(local):
    a = far_diagonals(5)
    lu, x = local.splu(a), scipy.sparse.linalg.splu(a).solve(np.ones(5))
    a.data[:] = 7.0
    assert_allclose(lu.solve(np.ones(5)), x, rtol=1e-12)


def test_threads_solve_with_one_factor(local):
    a = convection(9)
    lu, failed = local.splu(a), []

    def work(seed: int) -> None:
        b = random_like((81,), "float64", seed)
        for trans in "NTH":
            if not np.allclose(op(a, trans) @ lu.solve(b, trans), b):
                failed.append((seed, trans))

    threads = [threading.Thread(target=work, args=(660_131 + k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
