"""Properties that every method must have, whichever library computes it."""

import threading

import numpy as np
import pytest

from backsolve.errors import (
    InvalidDtypeError,
    InvalidPatternError,
    InvalidShapeError,
    NonfiniteInputError,
    NotPositiveDefiniteError,
    SingularMatrixError,
)
from backsolve.types import TRANS, ErrorCode, Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.precond.parameters import split
from backsolve_service.engine.registry import PRECONDITIONERS, ROWS, solver
from engine.table import (
    DTYPES,
    EVERY,
    TABLE,
    TOLERANCE,
    Row,
    absent,
    array,
    factor,
    factor_of,
    matrix,
    numbers,
    op,
    solver_of,
)
from support.cudss_model import Model


@pytest.fixture(autouse=True)
def cudss(request, monkeypatch):
    """A model of the library in the place of cuDSS, which needs a CUDA device."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and "cudss" in str(callspec.params.get("row", "")):
        from backsolve_service.engine.direct.cudss import handles

        model = Model()
        monkeypatch.setattr(handles, "load", lambda: model.library)
        monkeypatch.setattr(handles, "_own", threading.local())


each_row = pytest.mark.parametrize("row", TABLE, ids=str)
each_direct = pytest.mark.parametrize("row", [row for row in TABLE if ROWS[row.method].direct], ids=str)
each_definite = pytest.mark.parametrize("row", [row for row in TABLE if row.definite], ids=str)
GENERAL = [row for row in TABLE if row.structure == "general"]
each_general = pytest.mark.parametrize("row", GENERAL, ids=str)
each_general_direct = pytest.mark.parametrize("row", [row for row in GENERAL if ROWS[row.method].direct], ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_trans = pytest.mark.parametrize("trans", TRANS)


def test_the_table_covers_the_registry():
    # Least squares has tests of its own.
    solving = {name: r for name, r in ROWS.items() if not r.least_squares}
    assert {(row.method, row.layout) for row in EVERY} == {
        (name, at) for name, r in solving.items() for at in r.layouts
    }
    assert {row.preconditioner and split(row.preconditioner)[0] for row in TABLE} == {None, *PRECONDITIONERS}


@pytest.mark.parametrize("name", ROWS)
def test_the_registry_agrees_with_the_class(name):
    why = absent(name)
    if why is not None:
        pytest.skip(why)
    assert solver(name).name == name


@each_row
@each_dtype
@each_trans
def test_agrees_with_lapack(row, dtype, trans):
    a = array(row.structure, dtype)
    f = factor(row, a)
    for k in (1, 3):
        b = numbers((40, k), dtype, 55_120_983)
        got = answer(f, b, trans, Controls())
        expected = np.linalg.solve(op(a, trans), b)
        assert got.statuses == ((Status.OK,) * k,)
        assert got.x.dtype == np.dtype(dtype)
        np.testing.assert_allclose(got.x, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())


@each_row
@each_trans
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_the_certificate_is_what_the_answer_shows(row, trans, dtype):
    a = array(row.structure, dtype)
    b = numbers((40, 3), dtype, 17_449_210)
    got = answer(factor(row, a), b, trans, Controls())
    residual = b - op(a, trans) @ got.x
    # The residual itself is rounding noise: only its size is reproducible.
    expected = np.linalg.norm(residual, axis=0) / np.linalg.norm(b, axis=0)
    np.testing.assert_allclose(got.relative_residual, expected[None], rtol=0.5, atol=1e-15)
    norm = np.abs(op(a, trans)).sum(axis=1).max()
    worst = np.abs(residual).max(axis=0) / (norm * np.abs(got.x).max(axis=0) + np.abs(b).max(axis=0))
    np.testing.assert_allclose(got.backward_error, worst[None], rtol=0.5, atol=1e-16)


@each_row
@each_dtype
def test_adjoint_identity(row, dtype):
    """⟨g, A⁻¹b⟩ = ⟨A⁻ᴴg, b⟩: a wrong `trans` cannot pass."""
    f = factor(row, array(row.structure, dtype))
    b, g = numbers((2, 40, 3), dtype, 706_143_918)
    forward = np.vdot(g, answer(f, b, "N", Controls()).x)
    backward = np.vdot(answer(f, g, "H", Controls()).x, b)
    scale = float(np.linalg.norm(g) * np.linalg.norm(b))
    assert forward == pytest.approx(backward, rel=0, abs=TOLERANCE[dtype] * scale)


@each_row
@each_dtype
@pytest.mark.parametrize("shape", [(0, 1), (0, 0), (1, 1), (1, 3), (1, 0), (40, 0)])
def test_sizes_nobody_thinks_of(row, dtype, shape):
    n, k = shape
    a = np.full((1, 1), 2, dtype=dtype) if n == 1 else array(row.structure, dtype)[:n, :n]
    f = factor(row, np.ascontiguousarray(a))
    b = numbers(shape, dtype, 90_177_341)
    for trans in TRANS:
        got = answer(f, b, trans, Controls())
        assert got.x.shape == shape
        assert got.statuses == ((Status.OK,) * k,)
        if n == 1:
            np.testing.assert_allclose(got.x, b / 2, rtol=1e-6)


@each_row
@each_trans
def test_a_batch_with_one_bad_system_solves_the_others(row, trans):
    a = np.stack([array(row.structure, "complex128", n=12, seed=seed) for seed in (411_920, 411_921, 411_922)])
    a[1] = 0 * a[1]  # singular, and not definite
    b = numbers((3, 12, 2), "complex128", 66_120_475)
    got = answer(factor(row, a), b, trans, Controls())
    if row.definite or row.preconditioner in ("ic", "chebyshev"):
        bad = Status.NOT_POSITIVE_DEFINITE
    else:
        # A strong preconditioner cannot be built; without one an iteration finds out that b is
        # not in the range, and has x = 0 to show.
        found_out = not ROWS[row.method].direct and row.preconditioner in (None, "none", "jacobi")
        bad = Status.INCONSISTENT if found_out else Status.SINGULAR_NUMERIC
    assert got.statuses == ((Status.OK,) * 2, (bad,) * 2, (Status.OK,) * 2)
    if bad is not Status.INCONSISTENT:
        assert np.isnan(got.x[1]).all()
        assert np.isinf(got.relative_residual[1]).all()
    for s in (0, 2):
        np.testing.assert_allclose(got.x[s], np.linalg.solve(op(a[s], trans), b[s]), rtol=1e-7, atol=1e-9)
        assert got.relative_residual[s].max() < 1e-9


@each_row
def test_nan_in_one_system_of_a_batch(row):
    a = np.stack([array(row.structure, "float64", n=9, seed=52_003)] * 2)
    a[1, 0, np.flatnonzero(a[1, 0])[0]] = np.nan
    got = answer(factor(row, a), np.ones((2, 9, 1)), "N", Controls())
    assert got.statuses == ((Status.OK,), (Status.NONFINITE_INPUT,))
    assert np.isfinite(got.x[0]).all()
    assert np.isnan(got.x[1]).all()
    assert np.isinf(got.relative_residual[1]).all()


@each_row
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_matrix_that_is_not_finite_is_refused(row, number):
    a = array(row.structure, "float64")
    a[2, np.flatnonzero(a[2])[0]] = number
    with pytest.raises(NonfiniteInputError, match="A holds NaN or infinity"):
        factor(row, a)


@each_row
@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("k", [1, 3])
def test_a_column_that_is_not_finite_spoils_no_other(row, number, k):
    a = array(row.structure, "float64")
    b = numbers((40, k), "float64", 30_018_876)
    b[7, 0] = number
    got = answer(factor(row, a), b, "N", Controls())
    assert got.statuses[0] == (Status.NONFINITE_INPUT,) + (Status.OK,) * (k - 1)
    assert np.isnan(got.x[:, 0]).all()
    np.testing.assert_allclose(got.x[:, 1:], np.linalg.solve(a, b[:, 1:]), rtol=1e-7, atol=1e-9)


@each_general_direct
@each_dtype
def test_singular_by_numbers(row, dtype):
    a = (8 * np.eye(6) + np.eye(6, k=1)).astype(dtype)
    a[2:4] = [0, 0, 1, 1, 0, 0]
    with pytest.raises(SingularMatrixError, match=r"exactly singular.*shift") as caught:
        factor(row, a)
    assert caught.value.code is ErrorCode.SINGULAR_MATRIX
    assert caught.value.details["kind"] == "numeric"


@each_general
@each_dtype
def test_singular_but_for_rounding_is_never_ok(row, dtype):
    a = array("general", dtype, n=20)
    a[3] = (a[2] + a[4] + a[5]) / 3
    try:
        got = answer(factor(row, a), numbers((20, 2), dtype, 11_508_236), "N", Controls())
    except SingularMatrixError:
        return
    assert Status.OK not in got.statuses[0]


def test_dense_singular_names_the_column():
    a = np.diag([1.0, 2.0, 0.0, 3.0])
    with pytest.raises(SingularMatrixError, match="column 2") as caught:
        factor(Row("lu", None, "dense", "general"), a)
    assert caught.value.details["column"] == "2"


@pytest.mark.parametrize("method", ["superlu", "cholesky"])
@pytest.mark.parametrize(
    "stored",
    [
        np.array([[1, 0, 0], [0, 0, 0], [0, 0, 1]]),  # an empty row
        np.array([[1, 1, 1], [1, 0, 0], [1, 0, 0]]),  # two rows share their only column
        np.zeros((2, 2)),
    ],
    ids=["empty_row", "no_matching", "nothing_stored"],
)
def test_singular_by_pattern(method, stored):
    with pytest.raises(SingularMatrixError, match="structurally singular") as caught:
        solver(method).analyze(matrix("csr", stored.astype(float)).pattern)
    assert caught.value.details["kind"] == "structural"


@each_definite
@each_dtype
def test_indefinite_is_refused(row, dtype):
    with pytest.raises(NotPositiveDefiniteError, match="positive definite"):
        factor(row, array("indefinite", dtype))


@each_definite
def test_unsymmetric_is_refused(row):
    with pytest.raises(NotPositiveDefiniteError, match="Hermitian"):
        factor(row, array("general", "float64"))


@each_definite
def test_complex_symmetric_is_not_hermitian(row):
    a = array("definite", "complex128").real + 1j * (np.ones((40, 40)) * (array("definite", "complex128") != 0))
    with pytest.raises(NotPositiveDefiniteError, match="Hermitian"):
        factor(row, a)


@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize("column", [0, 7, 19])
def test_cholesky_names_the_failing_column(layout, column):
    """A decoupled 2x2 block [[1, 2], [2, 1]] with a positive diagonal: only elimination can find it."""
    a = array("definite", "float64", n=20)
    other = 11
    for i in (column, other):
        a[i], a[:, i] = 0, 0
        a[i, i] = 1
    a[column, other] = a[other, column] = 2
    with pytest.raises(NotPositiveDefiniteError, match="column") as caught:
        factor(Row("cholesky", None, layout, "definite"), a)
    # Whichever of the two is eliminated last shows the negative pivot.
    assert int(caught.value.details["column"]) in (column, other)
    if layout == "dense":
        assert int(caught.value.details["column"]) == max(column, other)


@each_definite
def test_a_diagonal_entry_names_its_column(row):
    a = array("definite", "float64")
    a[13, 13] = -1.0
    with pytest.raises(NotPositiveDefiniteError) as caught:
        factor(row, a)
    assert caught.value.details["column"] == "13"


@each_row
def test_values_of_another_pattern_are_refused(row):
    chosen = solver_of(row)
    spec = FactorSpec(row.method, None, "float64", "cpu")
    symbolic = chosen.analyze(matrix(row.layout, array(row.structure, "float64", n=40), row.method).pattern, spec)
    other = matrix(row.layout, array(row.structure, "float64", n=40, seed=99_812), row.method)
    if symbolic.pattern.same_as(other.pattern):
        other = matrix(row.layout, array(row.structure, "float64", n=39, seed=99_812), row.method)
    with pytest.raises(InvalidPatternError, match="analysed"):
        chosen.factorize(symbolic, Operand(other), spec)


@each_row
def test_right_hand_sides_must_fit(row):
    f = factor(row, array(row.structure, "float64"))
    with pytest.raises(InvalidShapeError, match="b has shape"):
        answer(f, np.ones((39, 1)), "N", Controls())
    with pytest.raises(InvalidShapeError, match="b has shape"):
        answer(f, np.ones(40), "N", Controls())
    with pytest.raises(InvalidDtypeError, match="convert b"):
        answer(f, np.ones((40, 1), dtype=np.float32), "N", Controls())
    with pytest.raises(InvalidShapeError, match="x0"):
        answer(f, np.ones((40, 1)), "N", Controls(x0=np.ones((40, 2))))


@each_row
@pytest.mark.parametrize("scale", [1e-200, 1e-120, 1e-6, 1e150, 1e290])
def test_answers_scale_with_the_right_hand_side(row, scale):
    f = factor(row, array(row.structure, "float64"))
    b = numbers((40, 2), "float64", 27_610_553)
    plain = answer(f, b, "N", Controls())
    scaled = answer(f, scale * b, "N", Controls())
    assert scaled.statuses == plain.statuses
    np.testing.assert_allclose(scaled.x / scale, plain.x, rtol=1e-8, atol=1e-10)
    assert scaled.relative_residual.max() <= 2 * plain.relative_residual.max() + 1e-15
    assert scaled.relative_residual.max() > 0


@each_row
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_answers_scale_with_the_matrix(row, scale):
    a = array(row.structure, "float64")
    b = numbers((40, 1), "float64", 27_610_554)
    got = answer(factor(row, scale * a), b, "N", Controls())
    assert got.statuses == ((Status.OK,),)
    np.testing.assert_allclose(got.x * scale, np.linalg.solve(a, b), rtol=1e-7, atol=1e-9)


@each_row
def test_zero_right_hand_side(row):
    a = array(row.structure, "float64")
    b = numbers((40, 2), "float64", 61_900_411)
    b[:, 1] = 0
    for rhs in (b, b[:, 1:]):
        got = answer(factor(row, a), np.ascontiguousarray(rhs), "N", Controls())
        assert got.statuses == ((Status.OK,) * rhs.shape[1],)
        assert not got.x[:, -1].any()
        assert got.relative_residual[0, -1] == 0
        assert got.backward_error[0, -1] == 0


@each_row
def test_inputs_are_left_alone_and_may_be_read_only(row):
    a = array(row.structure, "float64")
    b = numbers((40, 3), "float64", 7_711_280)
    m = matrix(row.layout, a, row.method)
    m.values.flags.writeable = b.flags.writeable = False
    values, rhs = m.values.copy(), b.copy()
    f = factor_of(row.method, m, row.preconditioner, on_device=row.on_device)
    got = answer(f, b, "T", Controls())
    got.x[:] = 0
    np.testing.assert_array_equal(m.values, values)
    np.testing.assert_array_equal(b, rhs)


@each_row
def test_a_factor_outlives_the_thread_that_made_it_and_serves_several(row):
    if ROWS[row.method].home == "process":
        pytest.skip("its library is not made for that, so it runs in a process of one thread")
    a = array(row.structure, "float64")
    b = numbers((40, 2), "float64", 818_273)
    made = []
    maker = threading.Thread(target=lambda: made.append(factor(row, a)))
    maker.start()
    maker.join()
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(answer(made[0], b, "N", Controls()).x)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    for x in answers:
        np.testing.assert_allclose(x, np.linalg.solve(a, b), rtol=1e-7, atol=1e-9)


@each_row
def test_memory_is_accounted(row):
    f = factor(row, array(row.structure, "float64"))
    if row.method == "cudss":
        assert f.nbytes > 40 * 8 * 6
    elif row.on_device:
        # The matrix lies there as well: values, and the pattern of a sparse one.
        stored, sparse = f.operand.values.size, row.layout == "csr"
        # Twice where a sparse transpose is stored beside it.
        matrices = 2 if sparse and row.method == "gmres" else 1
        held = matrices * (stored * 8 + (stored + 41) * 4 * sparse)
        beside = {"none": 0, "jacobi": 40 * 8, "chebyshev": 40 * 8 + held // matrices, "block_jacobi": 6 * 7 * 7 * 8}
        # Nothing to coarsen at this size: two halves of an inverse, or it and its adjoint.
        beside["amg"] = 40 * 8 + 2 * 40 * 40 * 8
        assert f.nbytes == held + beside[row.preconditioner.partition("(")[0]]
    elif (row.preconditioner in ("none", None) and not f.direct) or row.method == "diagonal":
        assert f.nbytes == 0
    elif row.preconditioner == "jacobi":
        assert f.nbytes == 40 * 8
    elif row.method == "pardiso":
        # Without an order of the pattern, the factor holds an analysis of its own.
        assert 40 * 8 <= f.nbytes < 40 * 40 * 30 + 2**18
    elif row.method == "woodbury":
        # Here the rank is n: K has at most 2 r rows, Z and W as many columns.
        assert 40 * 8 <= f.nbytes < 40 * 40 * 8 * 10
    else:
        assert 40 * 8 <= f.nbytes < 40 * 40 * 30


@each_direct
@each_dtype
def test_condition_is_estimated_from_below(row, dtype):
    a = array(row.structure, dtype)
    got = answer(factor(row, a), numbers((40, 1), dtype, 410_662), "N", Controls())
    exact = max(np.linalg.cond(op(a, "N"), 1), np.linalg.cond(op(a, "N"), np.inf))
    assert 1 <= got.condition <= 1.001 * exact
    if row.layout == "dense":
        assert got.condition >= np.linalg.cond(op(a, "N"), 1) / 3
