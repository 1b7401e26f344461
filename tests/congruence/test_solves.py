"""The same call gives the same answer, certificate and gradient on every way in."""

import numpy as np
import pytest
from scipy import sparse

from backsolve import Client, Status
from backsolve.types import DTYPES
from support.systems import convection, dense, laplacian, op, random_like

pytestmark = pytest.mark.same_host

TOLERANCE = {"float32": 2e-5, "complex64": 2e-5, "float64": 1e-11, "complex128": 1e-11}

each_dtype = pytest.mark.parametrize("dtype", [d.name for d in DTYPES])
each_trans = pytest.mark.parametrize("trans", ["N", "T", "H"])
each_width = pytest.mark.parametrize("columns", [(), (3,)], ids=["vector", "columns"])
each_layout = pytest.mark.parametrize("layout", ["dense", "csr"])


def matrix(layout: str, dtype: str) -> object:
    return dense(30, dtype) if layout == "dense" else convection(6, dtype)


@each_layout
@each_dtype
@each_trans
@each_width
def test_solve(client: Client, layout: str, dtype: str, trans: str, columns: tuple[int, ...]) -> None:
    a = matrix(layout, dtype)
    n = a.shape[0]
    b = random_like((n, *columns), dtype, 337_190_442)
    solution = client.solve(a, b, trans=trans)
    assert solution.x.dtype == np.dtype(dtype)
    assert solution.x.shape == b.shape
    np.testing.assert_allclose(solution.x, np.linalg.solve(op(a, trans), b), rtol=0, atol=TOLERANCE[dtype] * 10)
    assert solution.status is Status.OK
    assert solution.stats.method == ("lu" if layout == "dense" else "banded")
    assert solution.stats.reason
    assert 0 <= solution.stats.relative_residual < TOLERANCE[dtype]
    assert 0 <= solution.stats.backward_error < TOLERANCE[dtype]


@each_layout
@each_dtype
@each_trans
@each_width
def test_vjp(client: Client, layout: str, dtype: str, trans: str, columns: tuple[int, ...]) -> None:
    """Client-formed and server-formed gradients agree, and both equal the dense rule."""
    a = matrix(layout, dtype)
    n = a.shape[0]
    b, g = (random_like((n, *columns), dtype, seed) for seed in (553_201_907, 118_204_335))
    operator = op(a, trans)
    x = client.solve(a, b, trans=trans).x
    lam = np.linalg.solve(operator.conj().T, g)
    outer = -(lam.reshape(n, -1) @ np.linalg.solve(operator, b).reshape(n, -1).conj().T)
    expected = {"N": outer, "T": outer.T, "H": outer.conj().T}[trans]
    here = client.vjp(a, x, g, trans=trans)
    there = client.vjp(a, x, g, trans=trans, values_on="server")
    scale = 100 * TOLERANCE[dtype]
    assert here.b is not None
    assert there.b is not None
    np.testing.assert_allclose(here.b, lam, rtol=0, atol=scale)
    if layout == "csr":
        np.testing.assert_array_equal(here.values.indices, a.indices)
        mask = a.toarray() != 0
        np.testing.assert_allclose(here.values.toarray(), expected * mask, rtol=0, atol=scale)
        formed_here, formed_there = here.values.data, there.values.data
    else:
        np.testing.assert_allclose(here.values, expected, rtol=0, atol=scale)
        formed_here, formed_there = here.values, there.values
    epsilon = 1e-14 if np.finfo(np.dtype(dtype)).eps < 1e-10 else 1e-6
    np.testing.assert_allclose(formed_here, formed_there, rtol=epsilon, atol=epsilon * np.abs(formed_here).max())


@each_layout
@each_trans
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_jvp_against_central_differences(client: Client, layout: str, dtype: str, trans: str) -> None:
    a = matrix(layout, dtype)
    b, db = (random_like((a.shape[0],), dtype, seed) for seed in (914_733_205, 606_128_554))
    da = a.copy()
    if layout == "csr":
        da.data = random_like(da.data.shape, dtype, 445_309_128)
    else:
        da = random_like(da.shape, dtype, 445_309_128)
    step = 1e-6
    x = client.solve(a, b, trans=trans).x
    tangent = client.jvp(a, x, A_tangent=da, b_tangent=db, trans=trans)
    ahead = np.linalg.solve(op(a + step * da, trans), b + step * db)
    behind = np.linalg.solve(op(a - step * da, trans), b - step * db)
    np.testing.assert_allclose(tangent.x, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.awaited
@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_a_batch_on_one_pattern(client: Client, layout: str) -> None:
    """Values with a leading axis: one digest, a status for each system."""
    a = np.stack([dense(12, seed=s) for s in (1201, 1202, 1203)])
    b = random_like((3, 12, 2), "float64", 721_934_008)
    if layout == "csr":
        pytest.importorskip("scipy")
        from backsolve.matrix import Matrix
        from backsolve.options import make_options
        from backsolve.pattern import Pattern

        pattern = Pattern.from_csr(sparse.csr_array(np.ones((12, 12))))
        solution = client.solve_matrix(Matrix(pattern, a.reshape(3, -1)), b, make_options())
    else:
        solution = client.solve(a, b)
    np.testing.assert_allclose(solution.x, np.linalg.solve(a, b), rtol=1e-12, atol=1e-12)
    assert [element.status for element in solution.stats.elements] == [Status.OK] * 3


@pytest.mark.awaited
def test_conjugate_gradients(client: Client) -> None:
    a = laplacian(12)
    b = random_like((144,), "float64", 370_551_246)
    loose = client.solve(a, b, method="cg", rtol=1e-3)
    tight = client.solve(a, b, method="cg", rtol=1e-10)
    assert 0 < loose.stats.iterations < tight.stats.iterations
    assert tight.stats.relative_residual <= 1e-10
    assert tight.stats.factor_hit
    started = client.solve(a, b, method="cg", rtol=1e-10, x0=tight.x)
    assert started.stats.iterations <= 2
    np.testing.assert_allclose(tight.x, np.linalg.solve(a.toarray(), b), rtol=1e-8)


@pytest.mark.awaited
@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_empty_and_tiny_systems(client: Client, layout: str) -> None:
    make = sparse.csr_array if layout == "csr" else np.asarray
    assert client.solve(make(np.zeros((0, 0))), np.zeros(0)).x.shape == (0,)
    assert client.solve(make(np.zeros((0, 0))), np.zeros((0, 2))).x.shape == (0, 2)
    assert client.solve(make(np.eye(3)), np.zeros((3, 0))).x.shape == (3, 0)
    assert client.solve(make(np.array([[4.0]])), np.array([2.0])).x.tolist() == [0.5]


@pytest.mark.awaited
def test_factorized_is_scipys_splu_in_one_handle(client: Client) -> None:
    a = convection(7)
    handle = client.factorized(a)
    b = random_like((49, 2), "float64", 118_844_276)
    for trans in ("N", "T", "H"):
        np.testing.assert_allclose(handle.solve(b, trans), np.linalg.solve(op(a, trans), b), atol=1e-12)
    assert handle.last.factor_hit
    assert handle.shape == (49, 49)
    a.data[:] = 0  # the handle has its own copy
    np.testing.assert_allclose(handle.solve(b), np.linalg.solve(op(convection(7), "N"), b), atol=1e-12)
    assert handle.solve(np.ones(49, dtype=np.float32)).dtype == np.float64


def test_a_solution_is_an_array_where_one_is_needed(client: Client) -> None:
    solution = client.solve(np.diag([1.0, 2.0]), [2.0, 2.0])
    np.testing.assert_allclose(np.asarray(solution), [2.0, 1.0], rtol=1e-15)
    assert float(np.sum(solution)) == pytest.approx(3.0)
    assert np.asarray(solution) is solution.x
    assert not np.shares_memory(np.array(solution), solution.x)
    assert not np.shares_memory(np.asarray(solution, np.float32), solution.x)
    assert solution.__array__(copy=False) is solution.x
    with pytest.raises(ValueError, match="copied"):
        solution.__array__(np.float32, copy=False)


@pytest.mark.awaited
def test_information(client: Client) -> None:
    info = client.info()
    assert {"lu", "cholesky", "superlu", "cg"} <= set(info.methods)
    assert set(info.dtypes) == {d.name for d in DTYPES}
    assert info.instance
    assert info.limits.max_payload_bytes > 0
    again = client.solve(np.eye(2), np.ones(2))
    assert again.stats.instance == info.instance
