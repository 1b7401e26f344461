"""The bases of GMRES stay within a budget, however many columns there are."""

import tracemalloc

import numpy as np
import pytest
from scipy.sparse import csr_array, diags_array

from backsolve.errors import MemoryBudgetError
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls
from backsolve_service.engine.krylov.base import MAX_COLUMNS
from backsolve_service.engine.krylov.basis import BASIS_BYTES, RESTART, VECTORS, largest_restart, work_bytes
from backsolve_service.engine.registry import ROWS
from engine.table import factor_of, numbers

WAYS = [("gmres", False, 1), ("fgmres", False, 2), ("gmres", True, 1)]
each_way = pytest.mark.parametrize(("method", "on_device", "bases"), WAYS)


def made(method, n, *, on_device=False):
    a = csr_array(diags_array([-1.6, 4.0, -0.4], offsets=[-1, 0, 1], shape=(n, n)))
    a.sort_indices()
    return factor_of(method, Matrix(Pattern.from_csr(a), a.data), "none", on_device=on_device), a


@each_way
def test_many_columns_are_solved_in_groups_that_fit(method, on_device, bases):
    restart, n = 400, 4000
    column = bases * restart * n * 8
    k = 3 * BASIS_BYTES // column
    f, a = made(method, n, on_device=on_device)
    b, x0 = numbers((n, k), "float64", 330_917_248), numbers((n, k), "float64", 61_184_027)
    tracemalloc.start()  # NumPy reports what it allocates, and torch does not
    try:
        whole = answer(f, b, "T", Controls(restart=restart, x0=x0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert whole.statuses == ((Status.OK,) * k,)
    assert on_device or peak < 2 * BASIS_BYTES < k * column
    np.testing.assert_allclose(a.T @ whole.x, b, rtol=0, atol=1e-6 * np.abs(b).max())
    # Each column as if it were alone, the first, those around the edge of a group, and the last.
    edge = BASIS_BYTES // column
    for j in (0, edge - 2, edge - 1, edge, k - 1):
        alone = answer(f, b[:, j : j + 1], "T", Controls(restart=restart, x0=x0[:, j : j + 1]))
        np.testing.assert_allclose(whole.x[:, j], alone.x[:, 0], rtol=1e-12, atol=1e-14)
        assert max(whole.iterations) >= max(alone.iterations)


@each_way
def test_what_one_group_misses_is_the_status_of_its_columns_alone(method, on_device, bases):
    restart, n = 400, 4000
    edge = BASIS_BYTES // (bases * restart * n * 8)
    f, _ = made(method, n, on_device=on_device)
    b = np.zeros((n, 3 * edge))
    b[:, edge] = numbers((n,), "float64", 7_330_415)
    got = answer(f, b, "N", Controls(restart=restart, maxiter=2))
    assert got.statuses[0][edge] is Status.MAX_ITER
    assert got.statuses[0].count(Status.OK) == b.shape[1] - 1
    assert got.iterations == (2,)


@each_way
def test_callers_are_put_together_only_as_far_as_their_bases_fit(method, on_device, bases):
    few, many = made(method, 150_000, on_device=on_device)[0], made(method, 50, on_device=on_device)[0]
    assert 1 <= few.max_columns < MAX_COLUMNS <= many.max_columns
    assert few.max_columns * bases * RESTART * 150_000 * 8 <= BASIS_BYTES
    assert made("bicgstab", 150_000)[0].max_columns == MAX_COLUMNS


def test_one_column_may_have_more_than_the_budget():
    f, a = made("gmres", 150_000)
    b = numbers((150_000, 1), "float64", 5_530_018)
    got = answer(f, b, "N", Controls(restart=300))
    assert got.statuses == ((Status.OK,),)
    np.testing.assert_allclose(a @ got.x, b, rtol=0, atol=1e-6 * np.abs(b).max())


def test_a_basis_that_no_memory_holds_is_refused_with_a_cure():
    """200 TB: more than a process can address."""
    f, _ = made("gmres", 5_000_000)
    with pytest.raises(MemoryBudgetError, match="shorter restart"):
        answer(f, np.ones((5_000_000, 1)), "N", Controls(restart=5_000_000))


def test_every_iterative_method_is_counted():
    assert set(VECTORS) == {name for name, row in ROWS.items() if not row.direct}
    assert work_bytes("superlu", 1000, 4, 8, None) == 0


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("method", sorted(VECTORS))
def test_what_is_counted_is_what_a_solve_takes(method, dtype, k):
    n, restart = 50_000, 12 if "gmres" in method else None
    a = csr_array(diags_array([-1.0, 2.01, -1.0], offsets=[-1, 0, 1], shape=(n, n)), dtype=dtype)
    a.sort_indices()
    f = factor_of(method, Matrix(Pattern.from_csr(a), a.data), None if "lsmr" in method else "none")
    b = numbers((n, k), dtype, 11_803_342)
    answer(f, b, "N", Controls(maxiter=1, restart=restart))  # what is kept of the matrix itself is made here
    tracemalloc.start()
    try:
        answer(f, b, "N", Controls(maxiter=14, restart=restart))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    counted = work_bytes(method, n, k, b.itemsize, restart)
    assert 0.7 * counted <= peak <= 1.1 * counted


def test_the_longest_basis_is_what_just_fits():
    for method in ("gmres", "fgmres"):
        longest = largest_restart(method, 10_000, 8, 1 << 27)
        assert work_bytes(method, 10_000, 1, 8, longest) <= 1 << 27
        assert work_bytes(method, 10_000, 1, 8, longest + 10) > 1 << 27
    assert largest_restart("cg", 10_000, 8, 1 << 27) == 0
    assert largest_restart("gmres", 10_000_000, 8, 1 << 20) == 0
