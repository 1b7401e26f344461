"""The gradient formed from λ and x against finite differences and dense algebra."""

import tracemalloc

import numpy as np
import pytest

from backsolve.errors import InvalidOptionError, InvalidShapeError
from backsolve.gradient import adjoint, tangent_rhs, values_gradient
from backsolve.pattern import DensePattern
from backsolve.types import TRANS
from engine.table import DTYPES, array, matrix, numbers, op, poisson

each_trans = pytest.mark.parametrize("trans", TRANS)
each_layout = pytest.mark.parametrize("layout", ["dense", "csr"])
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
BATCH, COLUMNS = [None, 3], [None, 1, 4]


def shape(batch, n, k):
    return (*(() if batch is None else (batch,)), n, *(() if k is None else (k,)))


def solve(a, b, trans):
    vector = b.ndim == a.ndim - 1
    x = np.linalg.solve(op(a, trans), b[..., None] if vector else b)
    return x[..., 0] if vector else x


def adjoint_of(a, g, trans):
    to, conjugate = adjoint(trans)
    return np.conj(solve(a, np.conj(g), to)) if conjugate else solve(a, g, to)


def systems(layout, dtype, batch, n=9):
    a = array("general", dtype, n=n)
    if batch is not None:
        # One pattern, different numbers.
        a = a * numbers((batch, 1, 1), "float64", 71_002) + 12 * np.eye(n)
        a = a.astype(dtype)
    return matrix(layout, a), a


def full(m, values):
    """Values on the pattern of `m` as full arrays."""
    if isinstance(m.pattern, DensePattern):
        return values
    out = np.zeros((*values.shape[:-1], m.n, m.n), dtype=values.dtype)
    out[..., m.pattern.rows, m.pattern.indices] = values
    return out


@each_layout
@each_trans
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("batch", BATCH)
@pytest.mark.parametrize("k", COLUMNS)
def test_gradient_is_the_directional_derivative(layout, trans, dtype, batch, k):
    """L = Re(gᴴ x): dL along dA is Re(gradientᴴ dA), which central differences measure."""
    m, a = systems(layout, dtype, batch)
    b, g = numbers((2, *shape(batch, 9, k)), dtype, 66_281_903)
    x, lam = solve(a, b, trans), adjoint_of(a, g, trans)
    gradient = values_gradient(m.pattern, lam, x, trans, batched=batch is not None)
    assert gradient.shape == m.values.shape
    direction = numbers(m.values.shape, dtype, 15_098_272)
    step = 1e-5
    ahead, behind = (np.vdot(g, solve(a + sign * step * full(m, direction), b, trans)).real for sign in (1, -1))
    assert np.vdot(gradient, direction).real == pytest.approx((ahead - behind) / (2 * step), rel=1e-7)


@each_trans
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_lambda_is_the_gradient_of_b(trans, dtype):
    _, a = systems("dense", dtype, None)
    b, g, db = numbers((3, 9), dtype, 40_113_877)
    lam = adjoint_of(a, g, trans)
    assert np.vdot(lam, db) == pytest.approx(np.vdot(g, solve(a, db, trans)), rel=1e-12)
    assert np.isfinite(solve(a, b, trans)).all()


@each_trans
@each_dtype
@pytest.mark.parametrize("batch", BATCH)
@pytest.mark.parametrize("k", COLUMNS)
@pytest.mark.parametrize("piece", [None, 13], ids=["in one", "in pieces"])
def test_sparse_gradient_is_the_dense_one_on_the_pattern(trans, dtype, batch, k, piece, monkeypatch):
    if piece is not None:
        monkeypatch.setattr("backsolve.gradient._CHUNK", piece)
    sparse, _ = systems("csr", dtype, batch)
    lam, x = numbers((2, *shape(batch, 9, k)), dtype, 8_814_450)
    on_pattern = values_gradient(sparse.pattern, lam, x, trans, batched=batch is not None)
    dense = values_gradient(DensePattern((9, 9)), lam, x, trans, batched=batch is not None)
    assert on_pattern.dtype == dense.dtype == np.dtype(dtype)
    expected = dense[..., sparse.pattern.rows, sparse.pattern.indices]
    np.testing.assert_allclose(on_pattern, expected, rtol=1e-4 if np.finfo(dtype).eps > 1e-10 else 1e-12, atol=1e-6)


@pytest.mark.parametrize("k", [None, 64])
def test_no_large_temporary_is_formed(k):
    m = poisson(200)
    lam, x = numbers((2, *shape(None, m.n, k)), "float64", 4_077_215)
    expected = -(lam[m.pattern.rows[:50]] * x[m.pattern.indices[:50]])
    tracemalloc.start()
    try:
        gradient = values_gradient(m.pattern, lam, x, "N")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < gradient.nbytes + 16 * 2**20 < m.pattern.nnz * 64 * 8
    np.testing.assert_allclose(gradient[:50], expected if k is None else expected.sum(axis=1), rtol=1e-12)


@pytest.mark.parametrize("dims", [(9,), (9, 2), (3, 9), (3, 9, 2), (3, 9, 9)])
def test_the_batch_is_read_off_the_shape(dims):
    batch = dims[0] == 3
    lam, x = numbers((2, *dims), "float64", 2_208_634)
    pattern = DensePattern((9, 9))
    expected = values_gradient(pattern, lam, x, "N", batched=batch)
    np.testing.assert_array_equal(values_gradient(pattern, lam, x, "N"), expected)


def test_what_cannot_be_read_off_the_shape_must_be_said():
    lam, x = numbers((2, 9, 9), "float64", 2_208_635)
    with pytest.raises(InvalidShapeError, match="batched="):
        values_gradient(DensePattern((9, 9)), lam, x, "N")
    assert values_gradient(DensePattern((9, 9)), lam, x, "N", batched=True).shape == (9, 9, 9)
    assert values_gradient(DensePattern((9, 9)), lam, x, "N", batched=False).shape == (9, 9)


@each_layout
@each_trans
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("batch", BATCH)
@pytest.mark.parametrize("k", COLUMNS)
def test_tangent_is_the_derivative_of_x(layout, trans, dtype, batch, k):
    m, a = systems(layout, dtype, batch)
    b, db = numbers((2, *shape(batch, 9, k)), dtype, 31_906_128)
    da = numbers(m.values.shape, dtype, 77_421_001)
    x = solve(a, b, trans)
    dx = solve(a, tangent_rhs(m.pattern, da, x, db, trans), trans)
    step = 1e-5
    ahead, behind = (solve(a + s * step * full(m, da), b + s * step * db, trans) for s in (1, -1))
    np.testing.assert_allclose(dx, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)
    only_a = tangent_rhs(m.pattern, da, x, None, trans)
    np.testing.assert_allclose(db + only_a, tangent_rhs(m.pattern, da, x, db, trans), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(tangent_rhs(m.pattern, None, None, db, trans), db)


@each_layout
@each_trans
@pytest.mark.parametrize("batch", [None, 0, 2])
@pytest.mark.parametrize(("n", "k"), [(0, None), (0, 2), (4, 0), (1, None), (1, 1)])
def test_empty_and_tiny(layout, trans, batch, n, k):
    a = np.ones(shape(batch, n, n))
    m = matrix(layout, a if batch != 0 else np.ones((1, n, n)))
    values = m.values if batch != 0 else m.values[:0]
    x = np.ones(shape(batch, n, k))
    gradient = values_gradient(m.pattern, x, 3 * x, trans, batched=batch is not None)
    np.testing.assert_array_equal(gradient, np.full(values.shape, -3.0 if k != 0 else 0.0))
    rhs = tangent_rhs(m.pattern, values, x, None, trans)
    np.testing.assert_array_equal(rhs, -x)


def test_shapes_that_do_not_fit_are_refused():
    m = matrix("csr", array("general", "float64", n=9))
    x = np.ones((9, 2))
    with pytest.raises(InvalidShapeError, match="alike"):
        values_gradient(m.pattern, x, x[:, :1], "N")
    with pytest.raises(InvalidShapeError, match="fits no right-hand side"):
        values_gradient(m.pattern, np.ones(8), np.ones(8), "N")
    with pytest.raises(InvalidShapeError, match="both are missing"):
        tangent_rhs(m.pattern, None, x, None, "N")
    with pytest.raises(InvalidShapeError, match="needs x"):
        tangent_rhs(m.pattern, m.values, None, x, "N")
    with pytest.raises(InvalidShapeError, match="tangent of A has shape"):
        tangent_rhs(m.pattern, m.values[:-1], x, None, "N")
    with pytest.raises(InvalidShapeError, match="x has shape"):
        tangent_rhs(m.pattern, m.values, np.ones((8, 2)), None, "N")
    with pytest.raises(InvalidShapeError, match="alike"):
        tangent_rhs(m.pattern, m.values, x, x[:, :1], "N")
    for call in (lambda: adjoint("C"), lambda: values_gradient(m.pattern, x, x, "C")):
        with pytest.raises(InvalidOptionError, match="trans"):
            call()
