"""Structured matrices agree with their dense entries: products, norms, solves and derivatives of each kind."""

import tracemalloc
from functools import reduce

import numpy as np
import pytest

from backsolve.errors import (
    InvalidOptionError,
    InvalidPatternError,
    InvalidShapeError,
    NonfiniteInputError,
    NotSupportedError,
    SingularMatrixError,
)
from backsolve.gradient import tangent_rhs, values_gradient
from backsolve.kinds import kind, names
from backsolve.kinds.base import NUMPY, apply, join
from backsolve.matrix import Matrix
from backsolve.pattern import StructuredPattern
from backsolve.types import TRANS, Options, Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import solver
from backsolve_service.engine.select import choose, method_of
from backsolve_service.engine.structure import inspect, inspect_pattern
from backsolve_service.engine.structured import toeplitz as engine_toeplitz
from engine.table import DTYPES, TOLERANCE, numbers, op

DIMS = {
    "low_rank": [(24, 3), (1, 1), (5, 0), (3, 3)],
    "kronecker": [(4, 6), (1,), (7,), (2, 3, 4)],
    "circulant": [(24,), (1,), (2,), (23,)],
    "toeplitz": [(24,), (1,), (2,), (23,)],
}
"""Of each kind; the first is the usual one."""

EACH = [(name, dims) for name in names() for dims in DIMS[name]]
each = pytest.mark.parametrize(("name", "dims"), EACH, ids=str)
each_kind = pytest.mark.parametrize("name", names())
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_trans = pytest.mark.parametrize("trans", TRANS)


def make(name, dims, dtype, *, batch=None, seed=740_119_835):
    """A well-conditioned matrix of a kind."""
    pattern = StructuredPattern(name, dims)
    lead = () if batch is None else (batch,)
    values = numbers((*lead, *pattern.entries), dtype, seed)
    if name == "low_rank":
        values[..., : dims[0]] += 4
    if name == "kronecker":
        start = 0
        for size in dims:
            values[..., start : start + size * size : size + 1] += 4
            start += size * size
    if name == "circulant":
        values[..., 0] += 3 * dims[0]
    if name == "toeplitz":
        values[..., dims[0] - 1] += 3 * dims[0]
    return Matrix(pattern, values)


def entries(m, values=None):
    """All entries in double precision, written down from the definition of the kind."""
    wide = np.complex128 if m.dtype.kind == "c" else np.float64
    parts = m.pattern.split((m.values if values is None else values).astype(wide))
    if m.pattern.kind.name == "low_rank":
        return np.diag(parts["d"]) + np.einsum("ip,jp->ij", parts["U"], parts["V"].conj())
    i, j = np.indices((m.n, m.n))
    if m.pattern.kind.name == "circulant":
        return parts["c"][(i - j) % m.n]
    if m.pattern.kind.name == "toeplitz":
        return parts["t"][i - j + m.n - 1]
    return reduce(np.kron, parts.values())


def factorize(m):
    method = solver(method_of(m.pattern.kind.name))
    spec = FactorSpec(method.name, None, "float64", "cpu")
    return method.factorize(method.analyze(m.pattern), Operand(m), spec)


def solved(m, b, trans="N"):
    return answer(factorize(m), b, trans, Controls())


@each
@each_dtype
@each_trans
@pytest.mark.parametrize("k", [1, 7])
def test_agrees_with_lapack(name, dims, dtype, trans, k):
    m = make(name, dims, dtype)
    a, b = entries(m), numbers((m.n, k), dtype, 66_104_293)
    got = solved(m, b, trans)
    expected = np.linalg.solve(op(a, trans), b)
    assert got.statuses == ((Status.OK,) * k,)
    assert got.x.dtype == np.dtype(dtype)
    np.testing.assert_allclose(got.x, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())
    residual = np.linalg.norm(b - op(a, trans) @ got.x, axis=0) / np.linalg.norm(b, axis=0)
    np.testing.assert_allclose(got.relative_residual[0], residual, rtol=0.5, atol=1e-14)


@each
@each_dtype
def test_adjoint_identity(name, dims, dtype):
    m = make(name, dims, dtype)
    b, g = numbers((2, m.n, 2), dtype, 19_552_048)
    forward = np.vdot(g, solved(m, b).x)
    backward = np.vdot(solved(m, g, "H").x, b)
    scale = float(np.linalg.norm(g) * np.linalg.norm(b))
    assert forward == pytest.approx(backward, rel=0, abs=TOLERANCE[dtype] * scale)


@each
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_products_and_norms(name, dims, dtype):
    m = make(name, dims, dtype)
    a, operand = entries(m), Operand(m)
    x = numbers((m.n, 3), dtype, 80_441_956)
    for trans in TRANS:
        np.testing.assert_allclose(operand.product(0, x, trans), op(a, trans) @ x, rtol=0, atol=1e-12 * m.n)
        np.testing.assert_array_equal(operand.product(0, x[:, 0], trans).shape, (m.n,))
    np.testing.assert_allclose(operand.norms[0], (np.abs(a).sum(0).max(), np.abs(a).sum(1).max()), rtol=1e-12)
    conjugate = apply(m.pattern.kind, NUMPY, m.pattern.split(m.values), x, "C")
    np.testing.assert_allclose(conjugate, a.conj() @ x, rtol=0, atol=1e-12 * m.n)


@each
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@each_trans
@pytest.mark.parametrize("columns", [(), (2,)], ids=["vector", "columns"])
def test_the_gradient_is_that_of_central_differences(name, dims, dtype, trans, columns):
    """L = Re(gᴴ x): every parameter moved by itself, both ways, and by i where it is complex."""
    m = make(name, dims, dtype)
    b, g = numbers((2, m.n, *columns), dtype, 35_209_771)
    a = entries(m)
    x, lam = np.linalg.solve(op(a, trans), b), np.linalg.solve(op(a, trans).conj().T, g)
    got = values_gradient(m.pattern, lam, x, trans, batched=False, values=m.values)
    expected = np.zeros_like(m.values)
    h = 1e-6
    for index in range(m.values.size):
        for unit in (1, 1j) if np.dtype(dtype).kind == "c" else (1,):
            moved = []
            for sign in (1, -1):
                values = m.values.copy()
                values[index] += sign * h * unit
                moved.append(np.vdot(g, np.linalg.solve(op(entries(m, values), trans), b)).real)
            expected[index] += unit * (moved[0] - moved[1]) / (2 * h)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * max(np.abs(expected).max(initial=0), 1))


@each
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@each_trans
def test_the_tangent_and_the_gradient_are_adjoint(name, dims, dtype, trans):
    """Re⟨gradient, dθ⟩ = Re⟨λ, -op(dA) x⟩, and op(dA) x is what differences of A show."""
    m = make(name, dims, dtype)
    lam, x = numbers((2, m.n, 2), dtype, 47_720_018)
    moved = numbers(m.values.shape, dtype, 47_720_019)
    rhs = tangent_rhs(m.pattern, moved, x, None, trans, values=m.values)
    h = 1e-6
    difference = (entries(m, m.values + h * moved) - entries(m, m.values - h * moved)) / (2 * h)
    np.testing.assert_allclose(rhs, -op(difference, trans) @ x, rtol=0, atol=1e-8 * m.n)
    gradient = values_gradient(m.pattern, lam, x, trans, batched=False, values=m.values)
    assert np.vdot(gradient, moved).real == pytest.approx(np.vdot(lam, rhs).real, rel=1e-10, abs=1e-10)


@each_kind
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@each_trans
def test_a_batch_is_its_systems(name, dtype, trans):
    m = make(name, DIMS[name][0], dtype, batch=3)
    m.values[1] = 0
    b = numbers((3, m.n, 2), dtype, 21_046_377)
    got = solved(m, b, trans)
    assert got.statuses == ((Status.OK,) * 2, (Status.SINGULAR_NUMERIC,) * 2, (Status.OK,) * 2)
    lam, x = numbers((2, 3, m.n, 2), dtype, 5_918_274)
    gradient = values_gradient(m.pattern, lam, x, trans, batched=True, values=m.values)
    rhs = tangent_rhs(m.pattern, m.values, x, None, trans, values=m.values)
    for s in range(3):
        one = Matrix(m.pattern, m.values[s])
        if s != 1:
            np.testing.assert_array_equal(got.x[s], solved(one, b[s], trans).x)
        alone = values_gradient(one.pattern, lam[s], x[s], trans, batched=False, values=one.values)
        np.testing.assert_allclose(gradient[s], alone, rtol=1e-4, atol=1e-4)
        alone = tangent_rhs(one.pattern, one.values, x[s], None, trans, values=one.values)
        np.testing.assert_allclose(rhs[s], alone, rtol=1e-4, atol=1e-4)


@each_kind
def test_nothing_is_silently_dropped_or_taken(name):
    m = make(name, DIMS[name][0], "float64")
    operand = Operand(m)
    structure = inspect(inspect_pattern(m.pattern), operand)
    choice = choose(structure, Options(), has_x0=False, device="cpu")
    assert choice.spec.method == method_of(name)
    for options in (Options(maxiter=3), Options(ordering="nd"), Options(method="lu"), Options(damp=0.5)):
        with pytest.raises(InvalidOptionError):
            choose(structure, options, has_x0=False, device="cpu")
    with pytest.raises(InvalidOptionError):
        choose(structure, Options(), has_x0=True, device="cpu")
    with pytest.raises(InvalidShapeError, match="values="):
        values_gradient(m.pattern, np.ones(m.n), np.ones(m.n), "N", batched=False)
    m.values[0] = np.nan
    with pytest.raises(NonfiniteInputError):
        factorize(m)


def test_sizes_that_no_kind_has():
    with pytest.raises(InvalidPatternError, match="there are low_rank, kronecker"):
        StructuredPattern("vandermonde", (3,))
    for name, dims in (
        ("circulant", (3, 3)),
        ("toeplitz", ()),
        ("kronecker", ()),
        ("kronecker", (2**16, 2**16)),
        ("low_rank", (3,)),
        ("low_rank", (3, 4)),
        ("low_rank", (-3, 1)),
        ("low_rank", (2**31, 1)),
    ):
        with pytest.raises(InvalidPatternError):
            StructuredPattern(name, dims)


@each
def test_join_undoes_split(name, dims):
    m = make(name, dims, "float64")
    assert join(NUMPY, m.pattern.parts, m.pattern.split(m.values)).tolist() == m.values.tolist()
    assert kind(name).name == name


# -- low rank ------------------------------------------------------------------------------


def low_rank(d, u, v):
    n, r = u.shape
    return Matrix(StructuredPattern("low_rank", (n, r)), np.concatenate([d, u.ravel(), v.ravel()]))


@each_trans
@pytest.mark.parametrize("zeros", [1, 3])
@pytest.mark.parametrize("tiny", [0.0, 1e-300, 1e-17, 1e-9])
def test_a_diagonal_that_cannot_be_inverted(trans, zeros, tiny):
    """Up to r entries may vanish; A is well conditioned all the same, and so must the answer be."""
    rng = np.random.default_rng(96_201_447)
    d, u, v = rng.standard_normal(30) + 5, rng.standard_normal((30, 3)), rng.standard_normal((30, 3))
    d[[4, 17, 29][:zeros]] = tiny
    m = low_rank(d, u, v)
    b = rng.standard_normal((30, 2))
    a = op(entries(m), trans)
    got = solved(m, b, trans)
    assert got.statuses == ((Status.OK,) * 2,)
    np.testing.assert_allclose(got.x, np.linalg.solve(a, b), rtol=0, atol=1e-11 * np.linalg.cond(a))


def test_more_zeros_than_the_rank_mends_are_singular():
    d = np.ones(9)
    d[2:6] = 0
    with pytest.raises(SingularMatrixError, match=r"4 zeros.*rank 3.*shift") as caught:
        factorize(low_rank(d, np.ones((9, 3)), np.ones((9, 3))))
    assert caught.value.details["kind"] == "numeric"


def test_a_low_rank_part_that_takes_the_diagonal_away_is_singular():
    """I - e₁e₁ᵀ."""
    u = np.zeros((6, 1))
    u[0] = 1
    with pytest.raises(SingularMatrixError, match="exactly singular"):
        factorize(low_rank(np.ones(6), u, -u))


@pytest.mark.parametrize("spread", [1e-6, 1e-12, 1e-16])
def test_an_ill_conditioned_one_is_solved_backward_stably_or_told(spread):
    """A dominant low-rank part over a tiny diagonal: cond(A) is 1/spread, and b excites all of it."""
    rng = np.random.default_rng(30_774_159)
    u, v = rng.standard_normal((2, 40, 3))
    m = low_rank(spread * (1 + rng.random(40)), u, v)
    got = solved(m, u[:, :1] + rng.standard_normal((40, 1)))
    if got.statuses[0][0] is Status.OK:
        assert got.backward_error.max() <= 1e-12
        assert got.condition < 1 / np.finfo(np.float64).eps
    else:
        assert got.statuses[0][0] in (Status.ILL_CONDITIONED, Status.STAGNATION)


def test_badly_scaled_rows_are_solved():
    rng = np.random.default_rng(77_310_246)
    scale = 10.0 ** rng.uniform(-12, 12, 40)
    u, v = rng.standard_normal((2, 40, 3))
    m = low_rank(scale * 4, scale[:, None] * u, v)
    a = entries(m)
    x = rng.standard_normal((40, 1))
    got = solved(m, a @ x)
    assert got.backward_error.max() <= 1e-12
    np.testing.assert_allclose(got.x, x, rtol=1e-8, atol=1e-8)


def test_large_ones_never_form_their_entries():
    n, r = 100_000, 5
    rng = np.random.default_rng(54_410_663)
    m = low_rank(rng.random(n) + 1, rng.standard_normal((n, r)) / n**0.5, rng.standard_normal((n, r)) / n**0.5)
    x = rng.standard_normal((n, 2))
    parts = m.pattern.split(m.values)
    tracemalloc.start()
    got = solved(m, apply(m.pattern.kind, NUMPY, parts, x, "N"))
    solved(m, x[:, :1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 8 * n
    assert got.statuses == ((Status.OK,) * 2,)
    np.testing.assert_allclose(got.x, x, rtol=0, atol=1e-10)


def test_norms_of_large_ones_are_bounds():
    m = make("low_rank", (2500, 2), "float64")
    a = np.abs(entries(m))
    one, infinity = Operand(m).norms[0]
    assert a.sum(0).max() <= one <= 5 * a.sum(0).max()
    assert a.sum(1).max() <= infinity <= 5 * a.sum(1).max()


@each_trans
@pytest.mark.parametrize("zeros_of", [0, 40])
def test_tiny_diagonals_of_every_size_are_solved_without_refinement(trans, zeros_of):
    """The r smallest, relative to their rows, are replaced: whatever is left is as large as cond(A) has room for."""
    rng = np.random.default_rng(18_300_442)
    for _ in range(60):
        n = int(rng.integers(2, 30))
        r = int(rng.integers(1, min(n, 4) + 1))
        d = rng.standard_normal(n) * 10.0 ** rng.uniform(-rng.integers(0, 18), 0, n)
        u, v = rng.standard_normal((2, n, r))
        m = low_rank(d * (rng.random(n) * 100 >= zeros_of / n), u, v)
        if np.linalg.cond(entries(m)) < 1e13:
            got = solved(m, rng.standard_normal((n, 1)), trans)
            assert got.statuses == ((Status.OK,),)
            assert got.refinements == 0
            assert got.backward_error.max() < 1e-13


# -- circulant -----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 9, 1000])
@each_dtype
def test_a_circulant_with_a_zero_eigenvalue_is_told(n, dtype):
    """Second differences on a ring: constants are mapped to zero."""
    c = np.zeros(n, dtype=dtype)
    c[0], c[1], c[-1] = 2, c[1] - 1, c[-1] - 1
    c[1] = -c[0] - c[2:].sum()
    with pytest.raises(SingularMatrixError, match=r"coefficient 0.*shift") as caught:
        factorize(Matrix(StructuredPattern("circulant", (n,)), c))
    assert caught.value.details["kind"] == "numeric"


@pytest.mark.parametrize(("name", "n"), [("circulant", 100_003), ("toeplitz", 100_000)])
def test_large_ones_take_n_log_n(name, n):
    rng = np.random.default_rng(82_155_307)
    t = rng.standard_normal(StructuredPattern(name, (n,)).nnz)
    middle = 0 if name == "circulant" else n - 1
    t /= (1 + np.abs(np.arange(t.size) - middle)) ** 1.5
    t[middle] = 6
    m = Matrix(StructuredPattern(name, (n,)), t)
    x = rng.standard_normal((n, 2))
    tracemalloc.start()
    f = factorize(m)
    for trans in TRANS:
        got = answer(f, apply(m.pattern.kind, NUMPY, m.pattern.split(t), x, trans), trans, Controls())
        assert got.statuses == ((Status.OK,) * 2,)
        np.testing.assert_allclose(got.x, x, rtol=0, atol=1e-9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 * 8 * n


# -- Toeplitz ------------------------------------------------------------------------------


def toeplitz(t):
    return Matrix(StructuredPattern("toeplitz", ((t.size + 1) // 2,)), t)


@each_dtype
@each_trans
@pytest.mark.parametrize("way", ["_levinson", "_iterated"])
def test_the_formula_of_gohberg_and_semencul(monkeypatch, dtype, trans, way):
    """Either way to its two columns, at a size where dense algebra can check it."""
    monkeypatch.setattr(engine_toeplitz, "_LEVINSON_ROWS", 0 if way == "_iterated" else 10**6)
    n = 301
    t = numbers((2 * n - 1,), dtype, 61_557_020) / (1 + np.abs(np.arange(2 * n - 1) - n + 1))
    t[n - 1] = 5
    m = toeplitz(t.astype(dtype))
    f = factorize(m)
    assert isinstance(f.systems[0], engine_toeplitz.GohbergSemencul)
    b = numbers((n, 3), dtype, 61_557_021)
    got = answer(f, b, trans, Controls())
    expected = np.linalg.solve(op(entries(m), trans), b)
    assert got.statuses == ((Status.OK,) * 3,)
    np.testing.assert_allclose(got.x, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_formula_knows_no_units(scale):
    n = 300
    t = numbers((2 * n - 1,), "float64", 7_004_881) / (1 + np.abs(np.arange(2 * n - 1) - n + 1))
    t[n - 1] = 5
    b = numbers((n, 1), "float64", 7_004_882)
    got = solved(toeplitz(scale * t), b)
    assert got.statuses == ((Status.OK,),)
    np.testing.assert_allclose(got.x * scale, solved(toeplitz(t), b).x, rtol=1e-8)


def test_where_the_formula_fails_the_entries_are_factorized():
    """Its leading minor of order n - 1 vanishes: the inverse has a zero in its corner, and the recursion fails."""
    n = 250
    t = np.zeros(2 * n - 1)
    t[n - 2] = t[n] = 1.0  # zeros on the diagonal, ones beside it: singular for odd n only
    m = toeplitz(t)
    f = factorize(m)
    assert isinstance(f.systems[0], engine_toeplitz.DenseSystem)
    b = numbers((n, 1), "float64", 4_310_277)
    got = answer(f, b, "N", Controls())
    assert got.statuses == ((Status.OK,),)
    np.testing.assert_allclose(entries(m) @ got.x, b, rtol=0, atol=1e-9)
    with pytest.raises(SingularMatrixError):
        factorize(toeplitz(np.concatenate([[0.0], t, [0.0]])))


def test_a_large_singular_one_is_refused_with_a_cure(monkeypatch):
    monkeypatch.setattr(engine_toeplitz, "_MOST_DENSE_ROWS", 200)
    with pytest.raises(NotSupportedError, match=r"shift its diagonal.*method='lu'"):
        factorize(toeplitz(np.ones(2 * 260 - 1)))
