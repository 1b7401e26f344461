"""The ordering that is kept, and the hard matrices on which keeping it must not cost digits."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.linalg import splu

from backsolve.errors import NotPositiveDefiniteError
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import TRANS, Status
from backsolve_service.engine.answer import answer, answer_each
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.direct import graph
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import solver
from backsolve_service.engine.structure import inspect, inspect_pattern
from engine.table import array, factor_of, matrix, numbers, op, poisson

SPEC = FactorSpec("superlu", None, "float64", "cpu")


def canonical(a):
    a = csr_array(a)
    a.sum_duplicates()
    return Matrix(Pattern.from_csr(a), a.data)


def unsymmetric(n, seed):
    rng = np.random.default_rng(seed)
    rows = np.repeat(np.arange(n), 4)
    a = csr_array((rng.standard_normal(4 * n), (rows, rng.integers(0, n, 4 * n))), shape=(n, n))
    return (a + csr_array((np.full(n, 9.0), (np.arange(n), np.arange(n))), shape=(n, n))).tocsr()


@pytest.mark.parametrize("structure", ["symmetric", "indefinite", "general"])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("trans", TRANS)
def test_a_matrix_that_is_known_to_be_symmetric_is_solved_in_every_direction(structure, dtype, trans):
    """Complex symmetric is not Hermitian, nor the other way round."""
    a = array(structure, dtype)
    m = matrix("csr", a)
    operand = Operand(m)
    inspect(inspect_pattern(m.pattern), operand)
    chosen = solver("superlu")
    spec = FactorSpec("superlu", None, dtype, "cpu")
    got = answer(
        chosen.factorize(chosen.analyze(m.pattern, spec), operand, spec), np.ones((40, 1), dtype), trans, Controls()
    )
    assert got.statuses == ((Status.OK,),)
    np.testing.assert_allclose(op(a, trans) @ got.x, 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_columns_of_several_callers_are_solved_apart_and_measured_apart(dtype, trans):
    m = matrix("csr", array("general", dtype, n=40))
    f = factor_of("superlu", m)
    columns = [numbers((40, 1), dtype, 38_116_207 + i) for i in range(3)]
    for found, b in zip(f.solve_each([b[:, 0] for b in columns], trans), columns, strict=True):
        np.testing.assert_allclose(
            found, f.solve(b, trans, Controls()).x[:, 0], rtol=1e-3 if dtype == "float32" else 1e-12
        )
    for found, b in zip(answer_each(f, columns, trans, Controls()), columns, strict=True):
        single = answer(f, b, trans, Controls())
        assert (found.statuses, found.x.shape) == (single.statuses, single.x.shape)
        assert found.backward_error[0, 0] == pytest.approx(single.backward_error[0, 0], rel=10, abs=1e-6)
    assert answer_each(f, [*columns, np.full((40, 1), np.nan, dtype)], trans, Controls()) is None
    assert answer_each(f, columns, trans, Controls(condition=True)) is None
    assert answer_each(f, [columns[0], np.ones((40, 2), dtype)], trans, Controls()) is None


def test_the_ordering_is_the_one_superlu_would_compute():
    m = poisson(40)
    symbolic = solver("superlu").analyze(m.pattern)
    a = Operand(m).systems[0].tocsc()
    own = splu(a, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    np.testing.assert_array_equal(symbolic.inverse, own.perm_c)
    np.testing.assert_array_equal(symbolic.order[symbolic.inverse], np.arange(m.n))


def test_the_ordering_keeps_the_fill_small():
    m = poisson(40)
    kept = factor_of("superlu", m).handles[0].nnz
    assert kept < 0.7 * splu(Operand(m).systems[0].tocsc()).nnz


@pytest.mark.parametrize("m", [poisson(12), canonical(unsymmetric(150, 601_928))], ids=["symmetric", "unsymmetric"])
def test_the_gather_permutes_values(m):
    symbolic = solver("superlu").analyze(m.pattern)
    a = Operand(m).systems[0].toarray()
    b = symbolic.permuted(m.values).toarray()
    np.testing.assert_array_equal(b, a[symbolic.order][:, symbolic.order])


def test_new_values_reuse_the_analysis(monkeypatch):
    m = canonical(unsymmetric(200, 55_810_224))
    symbolic = solver("superlu").analyze(m.pattern)
    monkeypatch.setattr(graph, "spilu", None)  # a second ordering would fail
    for factor_ in (1.0, -3.0, 0.25):
        changed = Matrix(m.pattern, factor_ * m.values * (1 + 0.3 * np.sin(np.arange(m.values.size))))
        f = solver("superlu").factorize(symbolic, Operand(changed), SPEC)
        b = numbers((200, 2), "float64", 9_182_733)
        got = answer(f, b, "N", Controls())
        np.testing.assert_allclose(got.x, np.linalg.solve(f.operand.systems[0].toarray(), b), rtol=1e-9, atol=1e-11)


def test_analysing_does_not_depend_on_hash_or_history():
    m = poisson(15)
    first, second = (solver("superlu").analyze(m.pattern) for _ in range(2))
    np.testing.assert_array_equal(first.order, second.order)
    assert first.nbytes == second.nbytes >= 3 * m.n * 4


def kkt(n, seed):
    """A saddle point: definite block, constraints, and no stored diagonal below them."""
    rng = np.random.default_rng(seed)
    c = np.where(rng.random((n // 3, n)) < 0.2, rng.standard_normal((n // 3, n)), 0)
    c[:, : n // 3] += 3 * np.eye(n // 3)
    return np.block([[np.diag(rng.uniform(1, 2, n)), c.T], [c, np.zeros((n // 3, n // 3))]])


def scaled_rows(n, seed):
    rng = np.random.default_rng(seed)
    return 10.0 ** rng.uniform(-8, 8, (n, 1)) * unsymmetric(n, seed + 1).toarray()


def permuted(n, seed):
    return unsymmetric(n, seed).toarray()[np.random.default_rng(seed).permutation(n)]


@pytest.mark.parametrize("make", [kkt, scaled_rows, permuted])
@pytest.mark.parametrize("trans", TRANS)
def test_hard_matrices_stay_accurate_after_new_values(make, trans):
    """Measured on this kind: some direct codes lose eight digits when a factor's pivots are reused."""
    a = make(90, 20_417_655)
    m = matrix("csr", a)
    symbolic = solver("superlu").analyze(m.pattern)
    rng = np.random.default_rng(4_410_098)
    for _ in range(3):
        changed = Matrix(m.pattern, m.values * 10.0 ** rng.uniform(-2, 2, m.values.size))
        f = solver("superlu").factorize(symbolic, Operand(changed), SPEC)
        b = rng.standard_normal((m.n, 2))
        got = answer(f, b, trans, Controls(refine=0))
        assert got.backward_error.max() <= 1e-14
        assert set(got.statuses[0]) <= {Status.OK, Status.ILL_CONDITIONED}


def test_stored_zeros_on_the_diagonal_are_pivoted_around():
    a = csr_array((np.array([0.0, 2.0, 3.0, 0.0]), np.array([0, 1, 0, 1]), np.array([0, 2, 4])), shape=(2, 2))
    f = factor_of("superlu", Matrix(Pattern.from_csr(a), a.data))
    np.testing.assert_allclose(answer(f, np.array([[4.0], [9.0]]), "N", Controls()).x, [[3.0], [2.0]])


def test_sparse_cholesky_pivots_are_read_in_the_right_place():
    """Every column in turn is the one that fails, under an ordering that is not the natural one."""
    m = poisson(6)
    diagonal = np.flatnonzero(m.pattern.rows == m.pattern.indices)
    symbolic = solver("cholesky").analyze(m.pattern)
    assert not np.array_equal(symbolic.order, np.arange(36))
    for last in range(36):
        # All but one row are made so heavy that elimination cannot fail there.
        values = m.values.copy()
        values[diagonal] = 1e3
        values[diagonal[last]] = 1e-3 if symbolic.inverse[last] else -1.0
        changed = Operand(Matrix(m.pattern, values))
        with np.errstate(all="raise"):
            eigenvalues = np.linalg.eigvalsh(changed.systems[0].toarray())
        if eigenvalues[0] > 0:
            solver("cholesky").factorize(symbolic, changed, SPEC)
            continue
        with pytest.raises(NotPositiveDefiniteError) as caught:
            solver("cholesky").factorize(symbolic, changed, SPEC)
        # Only neighbours eliminated earlier can push its pivot below zero; else a neighbour's own.
        near = m.pattern.indices[m.pattern.indptr[last] : m.pattern.indptr[last + 1]]
        assert int(caught.value.details["column"]) in near


@pytest.mark.parametrize(
    ("m", "copies"),
    [(poisson(20), 1), (matrix("csr", array("definite", "complex128")), 2)],
    ids=["dominant", "other"],
)
def test_a_sparse_cholesky_is_counted_with_the_copy_that_reading_its_pivots_leaves(m, copies):
    """A diagonally dominant matrix is definite, and its pivots need not be read."""
    operand = Operand(m)
    chosen = solver("cholesky")
    spec = FactorSpec("cholesky", None, m.dtype.name, "cpu")
    made = chosen.factorize(chosen.analyze(m.pattern, spec), operand, spec)
    held = made.handles[0].nnz * (m.dtype.itemsize + 4)
    assert made.nbytes == copies * held
    assert copies * held / 2 <= made.ordering.predicted_nbytes(m.dtype.name) <= 2.1 * held


def test_dominance_does_not_make_a_matrix_definite_by_itself():
    """Weakly dominant and singular: the Laplacian of a closed surface, whose rows sum to zero."""
    with pytest.raises(NotPositiveDefiniteError):
        factor_of("cholesky", matrix("csr", np.array([[1.0, -1.0], [-1.0, 1.0]])))
    closed = Operand(poisson(6)).systems[0].toarray()
    closed -= np.diag(closed.sum(axis=1))
    try:
        made = factor_of("cholesky", matrix("csr", closed))
    except NotPositiveDefiniteError:
        return
    got = answer(made, numbers((36, 1), "float64", 10_663), "N", Controls())
    assert got.statuses[0][0] is not Status.OK


def test_a_negative_diagonal_is_dominant_too():
    with pytest.raises(NotPositiveDefiniteError, match="column 0"):
        factor_of("cholesky", matrix("csr", -Operand(poisson(5)).systems[0].toarray()))


def test_a_batch_is_probed_together_and_repaired_one_by_one():
    """The diagonal of the second system is just above the threshold, and elimination on it grows 500-fold a step."""
    n = 12
    good = numbers((n, n), "float64", 71_553) + 12 * np.eye(n)
    weak = 2e-3 * np.eye(n) - np.eye(n, k=-1)
    weak[:, -1] = 1
    full = Pattern(np.arange(0, n * n + 1, n), np.tile(np.arange(n), n), (n, n))
    batch = np.stack([good, weak, 2 * good])
    b = numbers((3, n, 1), "float64", 71_554)
    x = factor_of("superlu", Matrix(full, batch.reshape(3, -1))).solve(b, "N", Controls()).x
    np.testing.assert_allclose(x, np.linalg.solve(batch, b), rtol=1e-9)
    alone = factor_of("superlu", Matrix(full, weak.reshape(-1))).solve(b[1], "N", Controls()).x
    np.testing.assert_allclose(alone, x[1], rtol=1e-9)
