"""Updates of a factorized matrix agree with the dense sum, keep what they must, and tell where digits are lost."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array

from backsolve.errors import (
    InvalidOptionError,
    InvalidPatternError,
    InvalidShapeError,
    NonfiniteInputError,
    SingularMatrixError,
)
from backsolve.gradient import parameters_gradient, parameters_tangent_rhs
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern, Pattern, StructuredPattern
from backsolve.types import TRANS, Options, Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import ROWS, solver
from backsolve_service.engine.select import choose_for_update
from backsolve_service.engine.structure import inspect, inspect_pattern
from backsolve_service.engine.structured.update import factorize_update, predicted_nbytes, update_spec
from engine.table import DTYPES, TOLERANCE, numbers, op
from support.systems import convection, dense, laplacian

N = 36
LAYOUTS = ["csr", "dense"]
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_trans = pytest.mark.parametrize("trans", TRANS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def below(layout, dtype):
    if layout == "dense":
        return Matrix(DensePattern((N, N)), dense(N, dtype))
    a = convection(6, dtype)
    return Matrix(Pattern.from_csr(a), a.data)


def full(m):
    wide = np.complex128 if m.dtype.kind == "c" else np.float64
    if isinstance(m.pattern, DensePattern):
        return m.values.astype(wide)
    a = np.zeros(m.pattern.shape, wide)
    a[m.pattern.rows, m.pattern.indices] = m.values
    return a


def update(s, k, seed=551_093_827):
    """A matrix `S + U Vᴴ`, and all its entries."""
    u, v = (numbers((s.n, k), s.dtype.name, seed + i) for i in (0, 1))
    return on(s, u, v)


def on(s, u, v):
    pattern = StructuredPattern("update", u.shape, s.pattern)
    m = Matrix(pattern, np.concatenate([u.ravel(), v.ravel()]), s)
    return m, full(s) + u.astype(full(s).dtype) @ v.conj().T.astype(full(s).dtype)


def factorize(m, method, preconditioner=None):
    made, operand = solver(method), Operand(m)
    spec = FactorSpec(method, preconditioner, "float64", "cpu")
    inner = made.factorize(made.analyze(m.base.pattern, spec), operand.base, spec)
    return factorize_update(inner, operand)


def usual(layout):
    return "superlu" if layout == "csr" else "lu"


@each_layout
@each_dtype
@each_trans
@pytest.mark.parametrize("k", [0, 1, 4, N])
@pytest.mark.parametrize("columns", [1, 5])
def test_agrees_with_the_dense_sum(layout, dtype, trans, k, columns):
    m, a = update(below(layout, dtype), k)
    b = numbers((N, columns), dtype, 80_116_204)
    got = answer(factorize(m, usual(layout)), b, trans, Controls())
    expected = np.linalg.solve(op(a, trans), b)
    assert got.statuses == ((Status.OK,) * columns,)
    assert got.x.dtype == np.dtype(dtype)
    scale = np.abs(expected).max() * np.linalg.cond(a)
    np.testing.assert_allclose(got.x, expected, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize(
    "method",
    [
        name
        for name, row in ROWS.items()
        if row.layouts & {"csr"}
        and row.home == "thread"
        and not row.only_cuda
        and not row.least_squares
        and row.needs in ("square", "definite", "hermitian")
    ],
)
@each_trans
def test_stands_on_a_factor_of_every_method(method, trans):
    a = laplacian(6)
    m, full_ = update(Matrix(Pattern.from_csr(a), a.data), 3)
    preconditioner = "jacobi" if "preconditioner" in ROWS[method].options else None
    made = factorize(m, method, preconditioner)
    assert made.direct == ROWS[method].direct
    b = numbers((N, 2), "float64", 41_880_233)
    got = answer(made, b, trans, Controls())
    assert got.statuses == ((Status.OK,) * 2,)
    assert bool(got.iterations[0]) != made.direct
    np.testing.assert_array_less(np.abs(op(full_, trans) @ got.x - b).max(), 1e-8)


@each_layout
@each_dtype
def test_adjoint_identity(layout, dtype):
    """⟨A⁻ᴴ c, b⟩ = ⟨c, A⁻¹ b⟩."""
    m, _ = update(below(layout, dtype), 4)
    made = factorize(m, usual(layout))
    b, c = (numbers((N, 1), dtype, seed) for seed in (9_110_432, 9_110_433))
    left = np.vdot(answer(made, c, "H", Controls()).x, b)
    right = np.vdot(c, answer(made, b, "N", Controls()).x)
    np.testing.assert_allclose(left, right, rtol=50 * TOLERANCE[dtype])


@each_layout
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@each_trans
def test_gradient_and_tangent_are_adjoint(layout, dtype, trans):
    """Re⟨gradient, dp⟩ = Re⟨λ, op(dA) x⟩ (-1), over S, U and V, with the tangent written out."""
    m, _ = update(below(layout, dtype), 3)
    moved, _ = update(below(layout, dtype), 3, seed=77_003_116)
    flat = moved.parameters * 0.5
    lam, x = (numbers((N, 2), dtype, seed) for seed in (3_904_117, 3_904_118))
    h = 1e-7
    plus, minus = (full_sum(Matrix.of_parameters(m.pattern, m.parameters + s * flat)) for s in (h, -h))
    change = op((plus - minus) / (2 * h), trans) @ x
    np.testing.assert_allclose(parameters_tangent_rhs(m, flat, x, None, trans), -change, rtol=0, atol=1e-6)
    gradient = parameters_gradient(m, lam, x, trans)
    assert gradient.shape == m.parameters_shape
    assert np.vdot(gradient, flat).real == pytest.approx(-np.vdot(lam, change).real, rel=1e-6)


def full_sum(m):
    parts = m.pattern.split(m.values)
    return full(m.base) + parts["U"] @ parts["V"].conj().T


@each_layout
@pytest.mark.parametrize("n", [N, 400])
def test_norms_are_those_of_the_sum(layout, n):
    """Also where the update takes away what is largest in S; estimated beyond some size, never from above."""
    rng = np.random.default_rng(29_440_817)
    s = 3 * np.eye(n) + rng.standard_normal((n, n)) / np.sqrt(n)
    spike = np.zeros((n, 1))
    spike[5] = 1e6
    s[5] += 1e6
    stored = Matrix(DensePattern((n, n)), s) if layout == "dense" else Matrix(_everything(n), s.ravel())
    m, a = on(stored, spike, -np.ones((n, 1)))
    one, infinity = Operand(m).norms[0]
    size = np.abs(a)
    for found, exact in ((one, size.sum(axis=0).max()), (infinity, size.sum(axis=1).max())):
        assert exact / 3 <= found <= exact * (1 + 1e-6)


def _everything(n):
    return Pattern(np.arange(n + 1) * n, np.tile(np.arange(n), n), (n, n))


def test_bytes_are_those_of_what_is_kept_and_foretold():
    m, _ = update(below("csr", "float64"), 4)
    made = factorize(m, "superlu")
    assert made.nbytes == 8 * (N * 4 + 4 * 4) + 4 * 4
    assert predicted_nbytes(Operand(m)) == made.nbytes
    assert Operand(m).nbytes == m.values.nbytes


def test_an_exactly_singular_capacitance_matrix_is_named():
    s = Matrix(DensePattern((4, 4)), np.diag([2.0, 1.0, 1.0, 1.0]))
    unit = np.eye(4)[:, :1]
    m, _ = on(s, 2 * unit, -unit)
    with pytest.raises(SingularMatrixError, match="the update makes the matrix singular"):
        factorize(m, "lu")


@each_dtype
def test_a_capacitance_matrix_without_a_certain_digit_is_told(dtype):
    """Of rank 2, so that its own pivots look harmless."""
    s = below("dense", dtype)
    z = numbers((N, 2), dtype, 60_337_019)
    w = np.linalg.qr(numbers((N, 2), dtype, 60_337_020))[0]
    u = (full(s) @ (z @ np.linalg.inv(w.conj().T @ z))).astype(dtype)
    m, a = on(s, u, -w)
    made = factorize(m, "lu")
    # Of a moderate answer, so that its size tells nothing.
    b = (a @ numbers((N, 1), dtype, 7_713)).astype(dtype)
    got = answer(made, b, "N", Controls())
    assert got.statuses == ((Status.ILL_CONDITIONED,),)
    assert got.condition >= 1 / np.finfo(dtype).eps


@each_dtype
@each_layout
def test_an_update_that_takes_a_column_of_the_base_away_is_never_good(dtype, layout):
    """K is then no more than what Z is off by, which rises with the condition of S beyond the rounding of K itself."""
    rng = np.random.default_rng(88_301_476)
    for seed in range(60):
        n, j = int(rng.integers(2, 40)), int(rng.integers(2))
        a = numbers((n, n), dtype, seed + 7_130_455)
        v = np.zeros((n, 1), dtype=dtype)
        v[j] = 1
        base = Matrix(DensePattern((n, n)), a)
        if layout == "csr":
            base = Matrix(Pattern.from_csr(csr_array(np.ones((n, n)))), a.ravel())
        m, whole = on(base, np.ascontiguousarray(-a[:, j : j + 1]), v)
        assert not whole[:, j].any()
        try:
            factor = factorize(m, usual(layout))
        except SingularMatrixError:
            continue
        got = answer(factor, numbers((n, 2), dtype, seed), "N", Controls())
        assert Status.OK not in got.statuses[0]


@pytest.mark.parametrize("distance", [1e-4, 1e-8, 1e-11, 1e-14])
@each_trans
def test_what_a_nearly_singular_base_costs_is_refined_or_told(distance, trans):
    """A is harmless, S is not: an answer is good to 1e-12, or does not say OK."""
    rng = np.random.default_rng(88_612_040)
    left, right = (np.linalg.qr(rng.standard_normal((N, N)))[0] for _ in range(2))
    sizes = np.linspace(1, 3, N)
    sizes[0] = distance
    s = Matrix(DensePattern((N, N)), (left * sizes) @ right.T)
    m, a = on(s, left[:, :1].copy(), right[:, :1].copy())
    assert np.linalg.cond(a) < 10
    b = rng.standard_normal((N, 1))
    got = answer(factorize(m, "lu"), b, trans, Controls())
    residual = np.abs(op(a, trans) @ got.x - b).max()
    bound = np.abs(a).sum(axis=1 if trans == "N" else 0).max() * np.abs(got.x).max() + np.abs(b).max()
    good = residual <= 1.01e-12 * bound
    assert good or got.statuses != ((Status.OK,),)
    # While S has digits left refinement finds them.
    assert good or distance < 1e-10


@pytest.mark.parametrize("trans", ["T", "H"])
def test_iterations_are_continued_until_the_sum_is_solved(trans):
    """S is solved to its own tolerance; what that leaves is amplified by a V far from orthogonal to A's inverse."""
    a = laplacian(6)
    s = Matrix(Pattern.from_csr(a), a.data)
    u, v = (numbers((N, 2), "float64", seed) for seed in (3_118, 3_119))
    z = np.linalg.qr(np.linalg.solve(a.toarray(), u))[0]
    m, full_ = on(s, u, 1e3 * (v - z @ (z.T @ v)))
    made, b, asked = factorize(m, "cg", "jacobi"), numbers((N, 3), "float64", 3_120), Controls(rtol=1e-6)
    alone, got = made.solved(b, trans, asked), made.solve(b, trans, asked)
    before, after = (
        (np.linalg.norm(full_.T @ found.x - b, axis=0) / np.linalg.norm(b, axis=0)).max() for found in (alone, got)
    )
    assert after <= 1e-6 < before
    assert got.iterations[0] > alone.iterations[0]
    limit = alone.iterations[0] + 1
    assert made.solve(b, trans, replace(asked, maxiter=limit)).iterations[0] <= limit


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [3, -3])
def test_what_is_not_finite_is_refused(bad, place):
    m, _ = update(below("csr", "float64"), 2)
    m.values[place] = bad
    with pytest.raises(NonfiniteInputError):
        factorize(m, "superlu")


def test_the_method_is_that_of_the_base():
    s = below("csr", "float64")
    structure = inspect(inspect_pattern(s.pattern), Operand(s))
    for asked, found in (("auto", "banded"), ("update(gmres)", "gmres"), ("superlu", "superlu")):
        choice = choose_for_update(structure, Options(method=asked), has_x0=False)
        assert choice.spec.method == found
        assert update_spec(choice.spec).method == f"update({found})"


@pytest.mark.parametrize(
    ("options", "has_x0", "says"),
    [
        (Options(), True, "x0"),
        (Options(nullspace="constant"), False, "nullspace"),
        (Options(method="cg", recycle=3), False, "recycle"),
        (Options(reuse="precondition"), False, "reuse"),
        (Options(method="lstsq"), False, "least squares"),
        (Options(method="update(update(lu))"), False, "method"),
        (Options(method="update(lu)"), False, "does not take a sparse matrix"),
        (Options(method="superlu", maxiter=4), False, "maxiter"),
        (Options(method="woodbury"), False, "does not take"),
    ],
)
def test_what_an_update_does_not_use_is_refused(options, has_x0, says):
    s = below("csr", "float64")
    with pytest.raises(InvalidOptionError, match=says):
        choose_for_update(inspect(inspect_pattern(s.pattern), Operand(s)), options, has_x0=has_x0)


def test_shapes_and_bases_that_do_not_fit_are_refused():
    s = below("csr", "float64")
    with pytest.raises(InvalidPatternError, match="stands on another matrix"):
        StructuredPattern("update", (N, 2))
    with pytest.raises(InvalidPatternError, match="no other kind"):
        StructuredPattern("circulant", (N,), s.pattern)
    with pytest.raises(InvalidShapeError, match="S must be square"):
        StructuredPattern("update", (N + 1, 2), s.pattern)
    with pytest.raises(InvalidPatternError, match="at most n"):
        StructuredPattern("update", (N, N + 1), s.pattern)
    pattern = StructuredPattern("update", (N, 2), s.pattern)
    with pytest.raises(InvalidPatternError, match="needs the matrix"):
        Matrix(pattern, np.zeros(4 * N))
    with pytest.raises(InvalidPatternError, match="nothing else does"):
        Matrix(s.pattern, s.values, s)
    with pytest.raises(InvalidShapeError, match="one by one"):
        Matrix(pattern, np.zeros((3, 4 * N)), s)
    with pytest.raises(InvalidShapeError, match="one by one"):
        Matrix.of_parameters(pattern, np.zeros((3, s.values.size + 4 * N)))
