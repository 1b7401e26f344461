"""PARDISO by our own binding: which factorization each matrix gets, slots, replaced pivots, and its error codes."""

import gc

import numpy as np
import pytest

from backsolve.errors import InternalError, MemoryBudgetError, NotSupportedError, SingularMatrixError
from backsolve.matrix import Matrix
from backsolve.types import Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.direct.pardiso import library
from backsolve_service.engine.direct.pardiso.handles import SLOTS, Handle
from backsolve_service.engine.direct.pardiso.library import MatrixType
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import solver
from engine.table import TOLERANCE, array, factor_of, matrix, numbers, op, poisson

needs_mkl = pytest.mark.skipif(
    not library.installed(), reason=f"the package {library.PACKAGE!r} of the extra 'pardiso' is not installed"
)
EPS = np.finfo(np.float64).eps


def solved(f, a, trans="N"):
    """The status of a random right-hand side, whose answer is checked if it is good."""
    b = numbers((a.shape[0], 2), a.dtype.name, 640_118_375)
    got = answer(f, b, trans, Controls())
    if got.statuses[0][0] is Status.OK:
        np.testing.assert_allclose(op(a, trans) @ got.x, b, atol=TOLERANCE[a.dtype.name] * np.abs(b).max())
    return got.statuses[0][0]


def kind(f):
    return f.slots[0].handle.kind


@needs_mkl
@pytest.mark.parametrize(
    ("structure", "dtype", "expected"),
    [
        ("general", "float64", MatrixType.REAL_GENERAL),
        ("general", "complex64", MatrixType.COMPLEX_GENERAL),
        ("definite", "float32", MatrixType.REAL_DEFINITE),
        ("definite", "complex128", MatrixType.HERMITIAN_DEFINITE),
        ("indefinite", "float64", MatrixType.REAL_SYMMETRIC),
        # PARDISO's own type for these overwrites foreign memory where it replaces a pivot.
        ("indefinite", "complex128", MatrixType.COMPLEX_GENERAL),
        ("symmetric", "complex128", MatrixType.COMPLEX_SYMMETRIC),
        ("zero_diagonal", "float64", MatrixType.REAL_GENERAL),
    ],
)
def test_each_matrix_gets_the_cheapest_factorization_that_it_is_fit_for(structure, dtype, expected):
    a = array(structure, dtype)
    f = factor_of("pardiso", matrix("csr", a))
    assert kind(f) is expected
    assert all(solved(f, a, trans) is Status.OK for trans in "NTH")
    # One triangle is factorized of a mirrored matrix, both of another one.
    assert (f.slots[0].values.size < f.operand.values.size) == expected.mirrored


@needs_mkl
@pytest.mark.parametrize("dtype", ["float64", "complex64"])
def test_what_only_looks_definite_is_factorized_as_indefinite(dtype):
    a = array("definite", dtype)
    a[3, 5] = a[5, 3] = 500.0  # the diagonal is positive still
    f = factor_of("pardiso", matrix("csr", a))
    assert not kind(f).definite
    assert solved(f, a) is Status.OK


@needs_mkl
def test_factors_of_a_pattern_share_an_analysis_and_none_is_overwritten():
    method, m = solver("pardiso"), poisson(7)
    symbolic = method.analyze(m.pattern)
    spec = FactorSpec("pardiso", None, "float64", "cpu")

    def made(scale):
        return method.factorize(symbolic, Operand(Matrix(m.pattern, m.values * scale)), spec)

    scales = 1.0 + np.arange(SLOTS + 2)
    factors = [made(scale) for scale in scales]
    handles = {id(f.slots[0].handle): f.slots[0].handle for f in factors}
    assert len(handles) == 2, "the first is full"
    b = numbers((49, 1), "float64", 202_775_091)
    x = answer(factors[0], b, "N", Controls()).x
    for scale, f in zip(scales, factors, strict=True):
        np.testing.assert_allclose(scale * answer(f, b, "N", Controls()).x, x, rtol=1e-12)
    # A factor's slot is free when it is gone, and its neighbours do not notice.
    last = factors[-1].slots[0].handle
    before = len(last.free)
    del factors[-1], f
    gc.collect()
    assert len(last.free) == before + 1
    again = made(0.5)
    assert again.slots[0].handle is last
    assert len(last.free) == before
    np.testing.assert_allclose(0.5 * answer(again, b, "N", Controls()).x, x, rtol=1e-12)
    np.testing.assert_allclose(scales[-2] * answer(factors[-1], b, "N", Controls()).x, x, rtol=1e-12)


def twins(dtype="float64"):
    """Singular: rows 4 and 11 are the same, small integers, so that a pivot is zero without rounding."""
    a = array("definite" if dtype == "float64" else "indefinite", dtype)
    pair = [4, 11]
    a[pair] = a[:, pair] = 0
    a[np.ix_(pair, pair)] = 1
    return a


@needs_mkl
def test_pardiso_itself_replaces_a_pivot_and_calls_that_success():
    """Or nothing here would need a trial."""
    a = twins()
    m = matrix("csr", a)
    indptr, indices = m.pattern.indptr.astype(np.int32), m.pattern.indices.astype(np.int32)
    handle = Handle(MatrixType.REAL_GENERAL, False, indptr, indices, PIVOT_PERTURBATION=13)
    handle.analyze(m.values)
    assert handle.factorize(m.values, 1) == 1
    x = handle.solve(m.values, 1, numbers((1, 40), "float64", 93_164_020), "N")
    assert np.isfinite(x).all()


@needs_mkl
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_a_replaced_pivot_is_a_singular_matrix(dtype):
    with pytest.raises(SingularMatrixError) as caught:
        factor_of("pardiso", matrix("csr", twins(dtype)))
    assert caught.value.details["kind"] == "numeric"


@needs_mkl
def test_a_singular_system_of_a_batch_leaves_the_others_alone():
    a = np.stack([twins(), array("definite", "float64")])
    a[1][a[0] == 0] = 0
    a[1] += 80 * np.eye(40)
    f = factor_of("pardiso", matrix("csr", a))
    got = answer(f, np.ones((2, 40, 1)), "N", Controls())
    assert [system[0] for system in got.statuses] == [Status.SINGULAR_NUMERIC, Status.OK]
    np.testing.assert_allclose(a[1] @ got.x[1], 1.0, rtol=1e-10)


@needs_mkl
def test_what_is_singular_up_to_rounding_is_never_called_good():
    """With b in the range of A: x is small and its residual too, so both say nothing."""
    rng = np.random.default_rng(481_550_926)
    for _ in range(20):
        half = rng.standard_normal((30, 29))
        a = half @ rng.standard_normal((29, 30))
        b = (a @ rng.standard_normal((30, 1))).astype(np.float64)
        try:
            f = factor_of("pardiso", matrix("csr", a))
        except SingularMatrixError:
            continue
        got = answer(f, b, "N", Controls())
        assert got.condition > 0.01 / EPS
        assert got.statuses[0][0] is not Status.OK or got.condition < 1 / EPS


@needs_mkl
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_stored_zeros_on_the_diagonal_are_no_pivots(dtype):
    """The diagonal is full by the pattern, and worthless by the values."""
    a = array("zero_diagonal", dtype)
    stored = (a != 0) | np.eye(40, dtype=bool)
    m = matrix("csr", np.where(stored, 1.0, 0.0).astype(dtype))
    f = factor_of("pardiso", Matrix(m.pattern, a[stored]))
    assert f.slots[0].handle.slots == 1, "with an analysis of its own, in which rows are matched"
    assert all(solved(f, a, trans) is Status.OK for trans in "NTH")


@needs_mkl
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_bytes_are_foreseen(dtype):
    m = poisson(60, dtype=dtype)
    values = m.values.copy()
    general = Matrix(m.pattern, values)
    general.values[1] *= 2
    method = solver("pardiso")
    symbolic = method.analyze(m.pattern)
    spec = FactorSpec("pardiso", None, dtype, "cpu")
    whole = method.factorize(symbolic, Operand(general), spec)
    half = method.factorize(symbolic, Operand(m), spec)
    assert not kind(whole).mirrored
    assert kind(half).definite
    assert symbolic.predicted_nbytes(dtype) == pytest.approx(whole.nbytes, rel=0.15)
    assert half.nbytes < 0.8 * whole.nbytes
    # Never less than its numbers.
    assert whole.nbytes > whole.slots[0].handle.entries * np.dtype(dtype).itemsize > 0


@needs_mkl
@pytest.mark.parametrize("k", [1, 3, 8, 20])
@pytest.mark.parametrize("structure", ["general", "definite", "indefinite"])
def test_columns_are_solved_alike_alone_and_together(structure, k):
    """Which of both it is depends on the kind, the fill and k; here a dense matrix fills in, a band does not."""
    full = array(structure, "float64", n=120)
    band = np.where(np.abs(np.subtract.outer(np.arange(120), np.arange(120))) < 2, full, 0)
    for a in (full, band):
        f = factor_of("pardiso", matrix("csr", a))
        b = numbers((120, k), "float64", 771_630_254)
        for trans in "NTH":
            got = answer(f, b, trans, Controls())
            np.testing.assert_allclose(got.x, np.linalg.solve(op(a, trans), b), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        (-1, InternalError, "inconsistent input"),
        (-2, MemoryBudgetError, "do not fit in memory"),
        (-3, InternalError, "reordering"),
        (-4, SingularMatrixError, "zero pivot"),
        (-5, InternalError, "unclassified"),
        (-6, SingularMatrixError, "zero pivot"),
        (-7, SingularMatrixError, "zero pivot"),
        (-8, NotSupportedError, "32-bit"),
        (-9, InternalError, "outside the core"),
        (-10, InternalError, "opened"),
        (-11, InternalError, "read or written"),
        (-77, InternalError, "unknown error"),
    ],
)
def test_every_code_has_its_error(code, error, text):
    with pytest.raises(error, match=text):
        library.check(code, "the analysis")
    library.check(0, "the analysis")


@needs_mkl
def test_the_library_is_the_one_that_the_wheel_lists():
    found = library.find()
    assert found.name.startswith("libmkl_rt.so")
    assert library.load().MKL_Get_Max_Threads() == 1
