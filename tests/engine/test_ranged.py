"""Numbers near the ends of the range of their type: answers as in ordinary units, or a status that says why."""

import numpy as np
import pytest
from scipy import sparse

import backsolve
from backsolve import Client
from backsolve.errors import IllConditionedWarning, NotConvergedError, SingularMatrixError
from backsolve.types import Status
from backsolve_service.engine.registry import ROWS, methods
from engine.table import array, numbers

N = 24
TINY = {"float32": 2.0**-134, "float64": 2.0**-1030, "complex128": 2.0**-1030}
HUGE = {"float32": 2.0**122, "float64": 2.0**1018}


def general(dtype):
    """Well conditioned, and so that tiny multiples of its entries lose few digits."""
    return numbers((N, N), dtype, 419_020_355) + np.diag(np.full(N, 3 * N)).astype(dtype)


def definite(dtype):
    a = general(dtype)
    return a + a.conj().T


def solved_by():
    """Every method of square and of rectangular matrices on the CPU, with a layout that it takes."""
    for method in methods():
        row = ROWS[method]
        if row.needs in ("square", "definite", "hermitian", "symmetric", "transpose", "rectangular"):
            for layout in sorted(row.layouts):
                yield method, layout


def layout_of(a, layout):
    return a if layout == "dense" else sparse.csr_array(a)


@pytest.mark.parametrize(("method", "layout"), list(solved_by()), ids=str)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_denormal_matrices_are_solved(embedded: Client, method, layout, dtype):
    a = definite(dtype) * TINY[dtype]
    assert np.abs(a).max() < np.finfo(dtype).tiny
    assert np.count_nonzero(a) == N * N
    x = numbers((N, 2), dtype, 604_118_273)
    # In wide numbers, and rounded to what the type has there.
    b = (a.astype(np.longdouble) @ x.astype(np.longdouble)).astype(dtype)
    got = embedded.solve(layout_of(a, layout), b, method=method)
    assert got.status is Status.OK
    assert "divided by a power of two" in got.stats.reason
    wide, of = ((part.astype(np.longdouble) / np.longdouble(TINY[dtype])).astype(float) for part in (a, b))
    want = np.linalg.solve(wide, of)
    np.testing.assert_allclose(got.x, want, rtol=2e-4 if dtype == "float32" else 1e-8)


@pytest.mark.parametrize("trans", ["N", "T", "H"])
@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_denormal_complex_matrices_in_every_direction(embedded: Client, trans, layout):
    a = general("complex128") * TINY["complex128"]
    b = numbers((N,), "complex128", 77_340_912) * TINY["complex128"]
    got = embedded.solve(layout_of(a, layout), b, trans=trans)
    wide = a * 2.0**1000 * 2.0**30
    full = {"N": wide, "T": wide.T, "H": wide.conj().T}[trans]
    np.testing.assert_allclose(got.x, np.linalg.solve(full, b * 2.0**1000 * 2.0**30), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_huge_matrices_are_solved(embedded: Client, layout, dtype):
    a = (general(dtype) / 16).astype(dtype) * HUGE[dtype]
    x = numbers((N,), dtype, 604_118_274) / 64
    b = (a.astype(np.longdouble) @ x.astype(np.longdouble)).astype(dtype)
    assert np.isfinite(b).all()
    got = embedded.solve(layout_of(a, layout), b)
    assert got.status is Status.OK
    np.testing.assert_allclose(got.x, x, rtol=1e-4 if dtype == "float32" else 1e-12)


def test_a_huge_entry_does_not_sink_a_tiny_one(embedded: Client):
    a = np.array([[1e300, 1.0], [0.0, 1e-290]])
    with pytest.warns(IllConditionedWarning):
        got = embedded.solve(sparse.csr_array(a), a @ np.array([1e-150, 1e145]))
    np.testing.assert_allclose(got.x, [1e-150, 1e145], rtol=1e-14)


@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize("method", ["auto", "gmres"])
def test_an_answer_beyond_the_range_is_told_from_a_singular_matrix(embedded: Client, layout, method):
    a = layout_of(general("float64") * TINY["float64"], layout)
    with pytest.raises(NotConvergedError, match="too large or too small for its element type") as caught:
        embedded.solve(a, np.full(N, 1e4), method=method)
    assert caught.value.solution.status is Status.OUT_OF_RANGE
    assert not np.isfinite(caught.value.solution.x).all()


def test_an_answer_that_loses_digits_below_the_range_is_flagged(embedded: Client):
    a, b = general("float64") / 16 * HUGE["float64"], np.full(N, 1e-12)
    with pytest.raises(NotConvergedError) as caught:
        embedded.solve(a, b)
    found = caught.value.solution
    assert found.status is Status.OUT_OF_RANGE
    assert 1e-12 < found.stats.backward_error < np.inf


@pytest.mark.parametrize("method", ["triangular", "superlu"])
def test_a_growth_beyond_the_range_is_no_zero_pivot(embedded: Client, method):
    # x_i = 2^i: nothing about the matrix is singular.
    n = 1100
    a = sparse.diags_array([np.ones(n), np.full(n - 1, -2.0)], offsets=[0, -1], format="csr")
    with pytest.raises(NotConvergedError) as caught:
        embedded.solve(a, np.ones(n), method=method)
    assert caught.value.solution.status is Status.OUT_OF_RANGE


def test_a_zero_pivot_is_still_one(embedded: Client):
    a = general("float64")
    a[:, 3] = 0
    for scale in (1.0, TINY["float64"]):
        for layout in ("dense", "csr"):
            with pytest.raises(SingularMatrixError):
                embedded.solve(layout_of(a * scale, layout), np.ones(N) * scale)


def test_a_batch_has_a_scale_for_each_system(embedded: Client):
    a = np.stack([general("float64"), general("float64") * TINY["float64"], general("float64")])
    b = np.ones((3, N))
    b[1] *= TINY["float64"]
    got = embedded.solve(a, b)
    assert got.status is Status.OK
    for one, of in zip(got.x, (1.0, 1.0, 1.0), strict=True):
        np.testing.assert_allclose(one, np.linalg.solve(general("float64"), np.full(N, of)), rtol=1e-12)
    b[1] = 1e4
    with pytest.raises(NotConvergedError) as caught:
        embedded.solve(a, b)
    statuses = [element.status for element in caught.value.solution.stats.elements]
    assert statuses == [Status.OK, Status.OUT_OF_RANGE, Status.OK]


@pytest.mark.parametrize("kind", ["low_rank", "kronecker", "circulant", "toeplitz"])
def test_denormal_parameters(embedded: Client, kind):
    tiny, v = TINY["float64"], numbers((N,), "float64", 5_113_209) / N
    v[0] += 3
    low, small = numbers((N, 2), "float64", 5_113_210), np.eye(4) * 3 + numbers((4, 4), "float64", 5_113_211) / 4
    made = {
        "low_rank": lambda s: backsolve.LowRankPlusDiagonal(s * np.arange(2.0, N + 2), s * low, low),
        "kronecker": lambda s: backsolve.Kronecker(s * small, np.eye(6) + 0.1),
        "circulant": lambda s: backsolve.Circulant(s * v),
        "toeplitz": lambda s: backsolve.Toeplitz(s * v, s * v / 2),
    }[kind]
    b = numbers((N,), "float64", 5_113_212)
    got = embedded.solve(made(tiny), b * tiny)
    assert got.status is Status.OK
    np.testing.assert_allclose(got.x, np.linalg.solve(made(1.0).toarray(), b), rtol=1e-9)


def test_gradients_of_denormal_matrices(embedded: Client):
    a = general("float64") * TINY["float64"]
    b, g = np.ones(N) * TINY["float64"], np.ones(N) * TINY["float64"]
    x = embedded.solve(a, b).x
    got = embedded.vjp(a, x, g)
    lam = np.linalg.solve(general("float64").T, np.ones(N))
    np.testing.assert_allclose(got.b, lam, rtol=1e-12)
    np.testing.assert_allclose(got.values, -np.outer(lam, x), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize("method", ["cg", "fcg", "minres", "gmres", "fgmres", "bicgstab", "lsmr"])
def test_a_first_iterate_that_hides_b_is_left_out(embedded: Client, method, layout, dtype):
    a, b = array("definite", dtype), numbers((40, 2), dtype, 93_310_775)
    far, near = np.zeros_like(b), np.linalg.solve(a, b).astype(dtype)
    far[:, 1] = 1e38 if dtype == "float32" else 1e300
    plain = embedded.solve(layout_of(a, layout), b, method=method)
    got = embedded.solve(layout_of(a, layout), b, method=method, x0=far)
    assert got.status is Status.OK
    np.testing.assert_array_equal(got.x, plain.x)
    assert "x0 was left out: it is so large beside b" in got.stats.reason
    warm = embedded.solve(layout_of(a, layout), b, method=method, x0=near)
    assert "x0" not in warm.stats.reason.replace("x0 given", "")
    assert warm.stats.iterations < plain.stats.iterations
