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


@pytest.mark.parametrize(("method", "layout"), [("lu", "dense"), ("superlu", "csr"), ("gmres", "csr"), ("cg", "dense")])
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_an_answer_that_vanishes_is_no_fault_of_the_matrix(embedded: Client, method, layout, dtype):
    """Neither A nor b is near an end of the range; x is below its smallest normal number."""
    far = 2.0**97 if dtype == "float32" else 2.0**960
    for small in (2.0**-40, 2.0**-60) if dtype == "float32" else (2.0**-80, 2.0**-120):
        a, b = definite(dtype) * far, np.full(N, small, dtype=dtype)
        with pytest.raises(NotConvergedError) as caught:
            embedded.solve(layout_of(a.astype(dtype), layout), b, method=method)
        assert caught.value.solution.status is Status.OUT_OF_RANGE


@pytest.mark.parametrize("method", ["triangular", "superlu"])
def test_a_growth_beyond_the_range_is_no_zero_pivot(embedded: Client, method):
    # x_i = 2^i: nothing about the matrix is singular.
    n = 1100
    a = sparse.diags_array([np.ones(n), np.full(n - 1, -2.0)], offsets=[0, -1], format="csr")
    with pytest.raises(NotConvergedError) as caught:
        embedded.solve(a, np.ones(n), method=method)
    assert caught.value.solution.status is Status.OUT_OF_RANGE


GRADED = 10.0 ** np.array([0, -170, 0, -170, 0, -170.0])
TRIDIAGONAL = 2 * np.eye(6) + np.eye(6, k=1) + np.eye(6, k=-1)
ELIMINATE = [("banded", "csr"), ("block_diagonal", "csr"), ("superlu", "csr"), ("lu", "dense")]


@pytest.mark.parametrize(("method", "layout"), ELIMINATE)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_a_pivot_that_underflows_is_no_zero_pivot(embedded: Client, method, layout, dtype):
    """Rows and columns are so small that their products are none, and the matrix is as regular as any tridiagonal."""
    a = (GRADED[:, None] * TRIDIAGONAL * GRADED[::-1]).astype(dtype)
    x = (1 / GRADED[::-1]).astype(dtype)
    if dtype == "complex128":
        a, x = a * (1 + 2j), x * 1j
    with pytest.warns(IllConditionedWarning):
        got = embedded.solve(layout_of(a, layout), a @ x, method=method)
    np.testing.assert_allclose(got.x, x, rtol=1e-13)
    assert "a pivot of A underflows" in got.stats.reason


@pytest.mark.parametrize("trans", ["T", "H"])
@pytest.mark.parametrize(("method", "layout"), ELIMINATE)
def test_a_pivot_that_underflows_in_the_other_directions(embedded: Client, method, layout, trans):
    a = (GRADED[:, None] * TRIDIAGONAL * GRADED[::-1]) * (1 + 2j)
    full = a.T if trans == "T" else a.conj().T
    x = (1 / GRADED).astype(complex)
    with pytest.warns(IllConditionedWarning):
        got = embedded.solve(layout_of(a, layout), full @ x, method=method, trans=trans)
    np.testing.assert_allclose(got.x, x, rtol=1e-13)


@pytest.mark.parametrize(("method", "layout"), [("banded", "csr"), ("lu", "dense")])
def test_a_pivot_that_halves_with_every_row_is_no_zero_pivot(embedded: Client, method, layout):
    """Entries are 1 and 2, and the last pivot is 2^-1199."""
    n = 1200
    a = 2 * np.eye(n) + np.eye(n, k=-1)
    a[0, -1], a[-1, -1] = 1, 0
    with pytest.warns(IllConditionedWarning):
        got = embedded.solve(layout_of(a, layout), a @ np.ones(n), method=method)
    assert np.abs(a @ got.x - a @ np.ones(n)).max() <= 1e-12


@pytest.mark.parametrize("trans", ["N", "T", "H"])
def test_reflections_tell_rows_of_other_sizes_from_dependent_columns(embedded: Client, trans):
    a = (GRADED[:, None] * TRIDIAGONAL * GRADED[::-1]) * (1 + 2j)
    full, x = {"N": (a, GRADED[::-1]), "T": (a.T, GRADED), "H": (a.conj().T, GRADED)}[trans]
    with pytest.warns(IllConditionedWarning):
        got = embedded.solve(a, full @ (1j / x), method="qr", trans=trans)
    np.testing.assert_allclose(got.x, 1j / x, rtol=1e-13)
    assert "rows and columns of A differ so much in size" in got.stats.reason


@pytest.mark.parametrize("power", [0, -300, 300])
def test_reflections_find_a_dependent_column_whatever_its_size(embedded: Client, power):
    a = general("float64") * 2.0 ** (np.arange(N) * 13.0)[:, None]
    a[:, 7] = np.ldexp(a[:, 3], power)
    with pytest.raises(SingularMatrixError, match="column 7 depends") as caught:
        embedded.solve(a, np.ones(N), method="qr")
    assert caught.value.details["column"] == "7"


@pytest.mark.parametrize(("method", "layout"), [("superlu", "csr"), ("qr", "dense")])
def test_what_only_rounding_makes_singular_is_not_called_exactly_so(embedded: Client, method, layout):
    n = 1200  # the determinant is 1
    a = 2 * np.eye(n) + np.eye(n, k=-1)
    a[0, -1], a[-1, -1] = 1, 0
    with pytest.raises(SingularMatrixError, match="or so near it that rounding hides the difference"):
        embedded.solve(layout_of(a, layout), np.ones(n), method=method)


@pytest.mark.parametrize("method_layout", ELIMINATE)
@pytest.mark.parametrize("power", [0, -300, 300])
def test_a_zero_pivot_is_one_however_columns_are_scaled(embedded: Client, method_layout, power):
    a = np.eye(8) + np.eye(8, k=1) / 4
    a[4] = a[3]  # from the diagonal of one on, so that the other is left with nothing
    a[3, 3] = a[4, 3] = 2.0**power
    method, layout = method_layout
    with pytest.raises(SingularMatrixError):
        embedded.solve(layout_of(a, layout), np.ones(8), method=method)


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


D, U, V = np.arange(2.0, N + 2), *numbers((2, N, 2), "float64", 5_113_214)
S = np.diag(np.arange(40.0, 40 + N)) + numbers((N, N), "float64", 5_113_215)
A1, A2 = (np.eye(n) * 3 + numbers((n, n), "float64", 5_113_216 + n) / 4 for n in (4, 6))
KRON, LOW, UPDATED = np.kron(A1, A2), np.diag(D) + U @ V.T, S + U @ V.T


def times(a, exponent):
    """Exact, but for what denormal numbers cannot hold."""
    return np.ldexp(a, exponent)


def against(exponent):
    """The largest double is below 2^1024."""
    return min(-exponent, 1000)


PARTS = {
    "A2": lambda e: (backsolve.Kronecker(times(A1, 20), times(A2, e)), KRON, e + 20),
    "A1 against A2": lambda e: (backsolve.Kronecker(times(A1, against(e)), times(A2, e)), KRON, e + against(e)),
    "d and V": lambda e: (backsolve.LowRankPlusDiagonal(times(D, e), U, times(V, e)), LOW, e),
    "d and U": lambda e: (backsolve.LowRankPlusDiagonal(times(D, e), times(U, e), V), LOW, e),
    "U against V": lambda e: (
        backsolve.LowRankPlusDiagonal(times(D, e + against(e)), times(U, against(e)), times(V, e)),
        LOW,
        e + against(e),
    ),
    "S and U": lambda e: (backsolve.LowRankUpdate(times(S, e), times(U, e), V), UPDATED, e),
    "S and V": lambda e: (backsolve.LowRankUpdate(sparse.csr_array(times(S, e)), U, times(V, e)), UPDATED, e),
    "U against V, on S": lambda e: (
        backsolve.LowRankUpdate(times(S, e + against(e)), times(U, against(e)), times(V, e)),
        UPDATED,
        e + against(e),
    ),
}


@pytest.mark.parametrize("trans", ["N", "H"])
@pytest.mark.parametrize("exponent", [-1032, 1000])
@pytest.mark.parametrize("which", PARTS)
def test_parameters_near_the_ends_of_the_range(embedded: Client, which, exponent, trans):
    """Wherever they stand, and whatever the size of the matrix that they make."""
    a, plain, whole = PARTS[which](exponent)
    b = numbers((N,), "float64", 5_113_217)
    got = embedded.solve(a, times(b, min(whole, 1000)), trans=trans)
    assert got.status is Status.OK
    expected = np.linalg.solve(plain if trans == "N" else plain.T, times(b, min(whole, 1000) - whole))
    np.testing.assert_allclose(got.x, expected, rtol=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("method", ["lu", "gmres"])
def test_updates_of_denormal_matrices_in_single_precision(embedded: Client, method, dtype):
    s, u, v = (part.astype(dtype) for part in (S, U, V))
    if np.dtype(dtype).kind == "c":
        s, u = s + 1j * np.eye(N, dtype=dtype), u * (1 + 1j)
    tiny = 2.0**-134
    b = numbers((N, 2), dtype, 5_113_218)
    got = embedded.solve(
        backsolve.LowRankUpdate(s * s.dtype.type(tiny), u * u.dtype.type(tiny), v),
        b * b.dtype.type(tiny),
        method=method,
    )
    assert got.status is Status.OK
    wide = [part.astype(np.complex128) for part in (s, u, v, b)]
    expected = np.linalg.solve(wide[0] + wide[1] @ wide[2].conj().T, wide[3])
    np.testing.assert_allclose(got.x, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


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
