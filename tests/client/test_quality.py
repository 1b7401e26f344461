"""What is said of a value and a gradient, against exact ones."""

import numpy as np
import pytest
from scipy.sparse import csr_array, diags_array, eye_array, kron
from scipy.sparse.linalg import splu

import backsolve
from backsolve.errors import InvalidOptionError
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern
from backsolve.quality import quality
from backsolve.types import TRANS


def _poisson(side):
    line = diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(side, side))
    return csr_array(kron(line, eye_array(side)) + kron(eye_array(side), line))


def _op(a, trans):
    return {"N": a, "T": a.T, "H": a.conj().T}[trans]


@pytest.fixture(scope="module")
def client():
    with backsolve.Client("embedded") as client:
        yield client


@pytest.mark.parametrize(
    ("forward", "backward"), [(1e-2, 1e-2), (1e-4, 1e-4), (1e-6, 1e-6), (1e-8, 1e-2), (1e-2, 1e-8)]
)
def test_the_bound_holds_and_the_corrected_value_is_of_second_order(client, forward, backward):
    A = _poisson(60)
    rng = np.random.default_rng(530_117_846)
    b, g = rng.random((2, A.shape[0]))  # of one sign: no luck of cancelling errors
    exact = splu(A.tocsc())
    x = client.solve(A, b, method="cg", rtol=forward).x
    got = client.vjp(A, x, g, b=b, method="cg", rtol=backward)
    assert got.error_bound is None
    true_x, true_lam = exact.solve(b), exact.solve(g)
    value = g @ true_x
    plain, corrected = abs(g @ x - value), abs(got.corrected_value - value)
    # ||A^-1||_2 of this matrix in closed form.
    inverse = 1 / (8 * np.sin(np.pi / (2 * 61)) ** 2)
    r, r_lam = np.linalg.norm(b - A @ x), np.linalg.norm(g - A @ got.b)
    assert corrected <= inverse * r * r_lam * (1 + 1e-6)
    if max(forward, backward) <= 1e-4:
        assert corrected <= 1e-2 * plain
    error = np.linalg.norm(np.outer(true_lam, true_x) - np.outer(got.b, x))
    assert error <= inverse * (r_lam * np.linalg.norm(x) + r * np.linalg.norm(got.b)) + inverse**2 * r * r_lam


@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("columns", [(), (3,)])
def test_the_bound_of_a_spoilt_answer(client, trans, dtype, columns):
    rng = np.random.default_rng(98_440_215)
    n = 12
    a = rng.standard_normal((n, n)) + 4 * np.eye(n)
    b, g = rng.standard_normal((2, n, *columns))
    if dtype == "complex128":
        a, b, g = a + 1j * rng.standard_normal((n, n)), b + 1j * g, g - 2j * b
    true_x = np.linalg.solve(_op(a, trans), b)
    x = true_x + 1e-3 * rng.standard_normal(b.shape)
    got = client.vjp(a, x, g, b=b, trans=trans, condition=True)
    value = np.vdot(g, true_x).real
    # The adjoint is exact, so the correction is too.
    assert got.corrected_value == pytest.approx(value, rel=1e-12)
    exact = client.vjp(a, true_x, g, trans=trans).values
    assert np.linalg.norm(got.values - exact) <= 3 * got.error_bound
    assert got.error_bound <= 1e3 * np.linalg.norm(got.values - exact)
    assert got.stats.inverse_norm >= np.linalg.norm(np.linalg.inv(a), 2) / 3


def test_the_bound_is_the_formula_where_both_residuals_are_large():
    a = np.array([[2.0, 1.0], [0.0, 4.0]])
    b, x, g, lam = np.array([[1.0, 2.0], [3.0, -1.0], [2.0, 2.0], [1.0, 5.0]])
    r, other, s = b - a @ x, g - a.T @ lam, 0.7
    found = quality(Matrix(DensePattern((2, 2)), a), "N", b, x, g, lam, s)
    size = np.linalg.norm
    expected = s * (size(other) * size(x) + size(r) * size(lam)) + s**2 * size(other) * size(r)
    assert found.error_bound == pytest.approx(expected, rel=1e-14)
    assert found.corrected_value == pytest.approx(g @ x + lam @ r, rel=1e-14)


def test_judging_does_not_change_what_is_returned(client):
    rng = np.random.default_rng(61_770_923)
    a = rng.standard_normal((2, 6, 6)) + 4 * np.eye(6)
    b, g = rng.standard_normal((2, 2, 6))
    x = client.solve(a, b).x
    plain = client.vjp(a, x, g)
    for where in ("client", "server"):
        judged = client.vjp(a, x, g, b=b, values_on=where)
        np.testing.assert_array_equal(judged.b, plain.b)
        np.testing.assert_allclose(judged.values, plain.values, rtol=1e-14)
        assert judged.corrected_value == pytest.approx(float(np.sum(g * x)), rel=1e-12)
    only = client.vjp(a, x, g, b=b, want=("values",), values_on="server")
    assert only.b is None
    assert only.corrected_value is not None
    assert plain.corrected_value is None


def test_judging_needs_the_answer(client):
    with pytest.raises(InvalidOptionError, match="x beside b"):
        client.vjp(np.eye(3), None, np.ones(3), b=np.ones(3), want=("b",))
