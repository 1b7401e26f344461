"""Singular matrices whose null space is the constants on each connected component."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from backsolve import Client
from backsolve.errors import InconsistentError, InvalidOptionError, NotPositiveDefiniteError, SingularMatrixError
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern, Pattern
from backsolve.types import TRANS, Options, Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.nullspace import check_constants
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import ROWS
from backsolve_service.engine.restricted import solver_for
from engine.table import DTYPES, absent, matrix, numbers, op

WAYS = [
    (name, layout)
    for name, row in ROWS.items()
    if "nullspace" in row.options and absent(name) is None
    for layout in sorted(row.layouts)
]
each_way = pytest.mark.parametrize(("method", "layout"), WAYS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)

EDGES = [(0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (4, 5), (5, 6), (6, 7), (7, 2), (1, 5), (3, 6)]
"""Of a connected graph of 8 nodes."""


def laplacian(weights, edges=EDGES, n=8):
    """The weighted Laplacian as a full array."""
    a = np.zeros((n, n), dtype=np.asarray(weights).dtype)
    for weight, (i, j) in zip(weights, edges, strict=True):
        a[[i, j], [i, j]] += weight
        a[[i, j], [j, i]] -= weight
    return a


def circulation(dtype, n=9, seed=771_903_452):
    """Not symmetric (complex where the type is), rows and columns sum to zero, rank n - 1."""
    rng = np.random.default_rng(seed)
    a = np.zeros((n, n), dtype="complex128" if np.dtype(dtype).kind == "c" else "float64")
    for _ in range(2 * n):
        cycle = rng.permutation(n)[:4]
        weight = numbers((1,), a.dtype, int(rng.integers(1 << 30)))[0] + 3
        a[cycle, cycle] += weight
        a[cycle, np.roll(cycle, -1)] -= weight
    return a.astype(dtype)


def of(layout, a):
    if layout == "dense":
        return Matrix(DensePattern(a.shape[-2:]), a)
    stored = csr_array(np.any(a != 0, axis=0) if a.ndim == 3 else a != 0)
    rows = np.repeat(np.arange(a.shape[-1]), np.diff(stored.indptr))
    pattern = Pattern(stored.indptr, stored.indices, a.shape[-2:])
    return Matrix(pattern, np.ascontiguousarray(a[..., rows, stored.indices]))


def factor(method, m):
    wide = "complex128" if m.dtype.kind == "c" else "float64"
    precision = wide if ROWS[method].wide else m.dtype.name
    preconditioner = "jacobi" if "preconditioner" in ROWS[method].options else None
    spec = FactorSpec(method, preconditioner, precision, "cpu", nullspace="constant")
    chosen = solver_for(spec)
    return chosen.factorize(chosen.analyze(m.pattern, spec), Operand(m), spec)


def example(method, dtype):
    """A matrix of the kind the method takes, several components and an isolated node apart."""
    if ROWS[method].needs in ("definite", "symmetric", "hermitian"):
        return laplacian(np.random.default_rng(30_551_874).uniform(0.5, 2.0, len(EDGES))).astype(dtype)
    return circulation(dtype)


def consistent(shape, dtype, seed):
    b = numbers(shape, dtype, seed)
    return b - b.mean(axis=-2, keepdims=True).astype(dtype)


@each_way
@each_dtype
@pytest.mark.parametrize("trans", TRANS)
def test_gives_the_minimum_norm_solution(method, layout, dtype, trans):
    a = example(method, dtype)
    b = consistent((len(a), 3), dtype, 118_204_773)
    got = answer(factor(method, of(layout, a)), b, trans, Controls())
    expected = np.linalg.pinv(op(a, trans), rcond=1e-5) @ b
    assert got.statuses == ((Status.OK,) * 3,)
    assert got.x.dtype == np.dtype(dtype)
    tolerance = 1e-4 if np.dtype(dtype).itemsize <= 8 and dtype != "float64" else 1e-8
    np.testing.assert_allclose(got.x, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@each_way
def test_an_inconsistent_column_is_told_and_spoils_no_other(method, layout):
    a = example(method, "float64")
    b = consistent((len(a), 3), "float64", 64_120_937)
    b[:, 1] += 0.25
    f = factor(method, of(layout, a))
    got = answer(f, b, "N", Controls())
    assert got.statuses == ((Status.OK, Status.INCONSISTENT, Status.OK),)
    np.testing.assert_allclose(got.x, np.linalg.pinv(a, rcond=1e-10) @ b, rtol=0, atol=1e-8)
    residual = np.linalg.norm(b - a @ got.x, axis=0) / np.linalg.norm(b, axis=0)
    assert got.relative_residual[0, 1] == pytest.approx(residual[1], rel=1e-9)
    # A⁺ᴴ is defined for every cotangent.
    pulled = answer(f, b, "H", Controls(cotangent=True))
    assert pulled.statuses == ((Status.OK,) * 3,)
    np.testing.assert_allclose(pulled.x, np.linalg.pinv(a.T, rcond=1e-10) @ b, rtol=0, atol=1e-8)


@each_way
def test_what_counts_as_consistent(method, layout):
    """|sum(b)| <= 1e-12 ||b|| in double precision, 1e-5 in single."""
    for dtype, limit in (("float64", 1e-12), ("float32", 1e-5)):
        f = factor(method, of(layout, example(method, dtype)))
        n = f.operand.n
        b = consistent((n, 1), "float64", 9_551_203)
        b[0] += 0.4 * limit * np.linalg.norm(b)
        assert answer(f, b.astype(dtype), "N", Controls()).statuses == ((Status.OK,),)
        b[0] += 4 * limit * np.linalg.norm(b)
        assert answer(f, b.astype(dtype), "N", Controls()).statuses == ((Status.INCONSISTENT,),)


@pytest.mark.parametrize("method", sorted({name for name, layout in WAYS if layout == "csr"}))
def test_several_components_and_isolated_nodes(method):
    a = np.zeros((14, 14))
    a[:8, :8] = laplacian(np.linspace(0.5, 2.5, len(EDGES)))
    a[9:13, 9:13] = laplacian(np.array([1.0, 2.0, 3.0]), [(0, 1), (1, 2), (2, 3)], 4)
    order = np.random.default_rng(417_723).permutation(14)
    a = a[order][:, order]
    b = a @ numbers((14, 2), "float64", 9_120_048)
    f = factor(method, of("csr", a))
    assert sorted(f.nullspace.sizes) == [1, 1, 4, 8]
    got = answer(f, b, "N", Controls())
    assert got.statuses == ((Status.OK,) * 2,)
    np.testing.assert_allclose(got.x, np.linalg.pinv(a, rcond=1e-10) @ b, rtol=0, atol=1e-9)
    alone = np.flatnonzero(~a.any(axis=0))
    b[alone[0], 0] = 1.0  # nothing in A reaches it
    assert answer(f, b, "N", Controls()).statuses == ((Status.INCONSISTENT, Status.OK),)


@each_way
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_scales_do_not_matter(method, layout, scale):
    a = example(method, "float64")
    b = consistent((len(a), 2), "float64", 40_118_223)
    expected = np.linalg.pinv(a, rcond=1e-10) @ b
    for matrix_scale, b_scale in ((scale, 1.0), (1.0, scale), (scale, scale)):
        got = answer(factor(method, of(layout, matrix_scale * a)), b_scale * b, "N", Controls())
        assert got.statuses == ((Status.OK,) * 2,)
        np.testing.assert_allclose(got.x * (matrix_scale / b_scale), expected, rtol=0, atol=1e-7)


@each_way
def test_a_batch_has_a_status_a_system(method, layout):
    a = np.stack([example(method, "complex128")] * 3)
    a[1] = a[1] * 2
    a[2] = np.where(a[2] != 0, np.nan, 0)
    b = consistent((3, a.shape[1], 2), "complex128", 77_023_114)
    b[1, :, 0] += 1
    got = answer(factor(method, of(layout, a)), b, "T", Controls())
    assert got.statuses[:2] == ((Status.OK, Status.OK), (Status.INCONSISTENT, Status.OK))
    assert got.statuses[2] == (Status.NONFINITE_INPUT,) * 2
    for s in (0, 1):
        np.testing.assert_allclose(got.x[s], np.linalg.pinv(a[s].T, rcond=1e-10) @ b[s], rtol=0, atol=1e-8)
    assert np.isnan(got.x[2]).all()


@each_way
@pytest.mark.parametrize(("n", "k"), [(0, 1), (0, 0), (1, 1), (1, 2), (8, 0)])
def test_sizes_nobody_thinks_of(method, layout, n, k):
    a = laplacian(np.ones(len(EDGES)))[:n, :n] * (n == 8)
    f = factor(method, of(layout, np.ascontiguousarray(a)))
    got = answer(f, np.zeros((n, k)), "N", Controls())
    assert got.statuses == ((Status.OK,) * k,)
    np.testing.assert_array_equal(got.x, np.zeros((n, k)))


@each_way
def test_what_is_not_of_the_family_is_refused(method, layout):
    a = example(method, "float64")
    symmetric = a.copy()
    symmetric[2, 2] *= 1 + 1e-9
    with pytest.raises(InvalidOptionError, match="row 2 does not"):
        factor(method, of(layout, symmetric))
    if ROWS[method].needs == "square":
        columns = a.copy()
        columns[3] = 2 * columns[3]
        with pytest.raises(InvalidOptionError, match="needs rows and columns that sum to zero, and column"):
            factor(method, of(layout, columns))


def test_a_larger_null_space_is_told():
    weights = np.ones(len(EDGES))
    for edge in ((7, 2), (6, 7)):
        weights[EDGES.index(edge)] = 0.0  # stored, so that the pattern is still connected
    a = laplacian(weights)
    pattern = of("csr", laplacian(np.ones(len(EDGES)))).pattern
    m = Matrix(pattern, a[pattern.rows, pattern.indices])
    with pytest.raises(SingularMatrixError, match="larger than the constants on each connected component"):
        factor("superlu", m)


def test_an_indefinite_member_is_named_by_the_callers_column():
    weights = np.ones(len(EDGES))
    weights[EDGES.index((4, 5))] = -3.0
    with pytest.raises(NotPositiveDefiniteError, match="column 4"):
        factor("cholesky", of("dense", laplacian(weights)))


@each_dtype
@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize("trans", TRANS)
def test_an_indefinite_member_has_its_minimum_norm_solution(layout, dtype, trans):
    weights = np.random.default_rng(518_330_927).uniform(0.5, 2.0, len(EDGES))
    weights[::3] *= -1
    a = laplacian(weights).astype(dtype)
    assert np.sum(np.linalg.eigvalsh(a) < -0.1) >= 2
    b = consistent((8, 2), dtype, 92_417_338)
    f = factor("minres", of(layout, a))
    got = answer(f, b, trans, Controls())
    assert got.statuses == ((Status.OK,) * 2,)
    expected = np.linalg.pinv(op(a, trans), rcond=1e-5) @ b
    tolerance = 1e-4 if np.dtype(dtype).itemsize <= 8 and dtype != "float64" else 1e-8
    np.testing.assert_allclose(got.x, expected, rtol=0, atol=tolerance * np.abs(expected).max())
    b[:, 0] += 0.5
    assert answer(f, b, trans, Controls()).statuses == ((Status.INCONSISTENT, Status.OK),)


@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize("method", ["auto", "cg", "minres"])
def test_every_edge_weight_has_the_gradient_of_the_pseudoinverse(layout, method):
    rng = np.random.default_rng(286_411_905)
    weights = rng.uniform(0.5, 2.0, len(EDGES))
    b = consistent((8, 2), "float64", 51_204_117)
    g = rng.standard_normal((8, 2))  # not consistent
    a = laplacian(weights)
    given = a if layout == "dense" else csr_array(a)
    options = {"nullspace": "constant", "method": method} | ({} if method == "auto" else {"rtol": 1e-14})
    with Client() as client:
        x = client.solve(given, b, **options).x
        gradient = client.vjp(given, x, g, **options).values
        tangent = csr_array(laplacian(np.eye(len(EDGES))[3]))
        if layout == "dense":
            pushed = client.jvp(given, x, A_tangent=tangent.toarray(), **options).x
    full = gradient if layout == "dense" else gradient.toarray()
    for e, (i, j) in enumerate(EDGES):
        step = np.zeros(len(EDGES))
        step[e] = 1e-4
        ahead, behind = (np.linalg.pinv(laplacian(weights + s * step), rcond=1e-10) @ b for s in (1, -1))
        expected = np.sum(g * (ahead - behind)) / 2e-4
        assert full[i, i] + full[j, j] - full[i, j] - full[j, i] == pytest.approx(expected, rel=1e-6, abs=1e-8)
        if layout == "dense" and e == 3:
            np.testing.assert_allclose(pushed, (ahead - behind) / 2e-4, rtol=0, atol=1e-7)


def test_through_the_client_inconsistency_is_an_error_or_what_the_caller_chose():
    a = csr_array(laplacian(np.ones(len(EDGES))))
    b = np.arange(8.0)
    with Client() as client:
        with pytest.raises(InconsistentError, match="project it first") as caught:
            client.solve(a, b, nullspace="constant")
        np.testing.assert_allclose(caught.value.solution.x, np.linalg.pinv(a.toarray()) @ b, atol=1e-12)
        assert client.solve(a, b, nullspace="constant", on_failure="nan").status is Status.INCONSISTENT
        good = client.solve(a, b - b.mean(), nullspace="constant", preconditioner="jacobi")
        assert good.stats.method == "cg"
        with pytest.raises(InvalidOptionError, match="does not"):
            client.solve(a + csr_array(np.eye(8)), b, nullspace="constant")


def test_the_null_space_is_part_of_the_factors_identity():
    assert Options(nullspace="constant") != Options()
    plain = FactorSpec("superlu", None, "float64", "cpu")
    assert plain.analysis != FactorSpec("superlu", None, "float64", "cpu", nullspace="constant").analysis


@pytest.mark.parametrize("layout", ["csr", "dense"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_diagonal_entry_may_carry_the_rounding_of_its_row_or_of_its_column(layout, turned):
    """It is the sum of either; here one has numbers of a million, and the other of one."""
    below = np.array([2.0**20, -(2.0**20), 2.0**20 + 3, -(2.0**20) - 2])
    a = np.diag(np.r_[-1.0, -below])
    a[1:, 0], a[0, 1] = below, 1.0
    a[1, 1:] += np.r_[below[0] - 1, below[1:]]
    assert not a.sum(axis=0).any()
    assert not a.sum(axis=1).any()
    a = a.T.copy() if turned else a
    a[0, 0] += 2.0**-31
    check_constants(Operand(matrix(layout, a)))
    a[0, 0] += 2.0**-20
    with pytest.raises(InvalidOptionError, match="sum to zero"):
        check_constants(Operand(matrix(layout, a)))
