"""Sparse least squares by factorization where that is quick, by LSMR where it is not, and what LSMR does not see."""

import warnings

import numpy as np
import pytest
from scipy import sparse

from backsolve import Client
from backsolve.errors import IllConditionedWarning
from backsolve.types import Status
from engine.table import numbers


def differences(k):
    """The edges of a grid and a weak anchor at every node: tall, and its factor stays small."""
    step = sparse.diags_array([-1.0, 1.0], offsets=[0, 1], shape=(k - 1, k))
    one = sparse.eye_array(k)
    edges = [sparse.kron(step, one), sparse.kron(one, step), 0.05 * sparse.eye_array(k * k)]
    return sparse.csr_array(sparse.vstack(edges))


def scattered(m, n, seed=88_240_173):
    """No locality: factors fill in."""
    a = sparse.random(m, n, density=3 / n, random_state=np.random.default_rng(seed), format="csr")
    return sparse.csr_array(a + sparse.csr_array((np.full(n, 3.0), (np.arange(n), np.arange(n))), shape=(m, n)))


def with_singular_values(sigma, m, seed):
    n = len(sigma)
    u = np.linalg.qr(numbers((m, n), "float64", seed))[0]
    v = np.linalg.qr(numbers((n, n), "float64", seed + 1))[0]
    return (u * np.asarray(sigma)) @ v.T


def test_a_local_matrix_is_factorized_and_a_scattered_one_is_not(embedded: Client):
    local, wild = differences(20), scattered(900, 300)
    for a, method, words in ((local, "lstsq_superlu", "little fill"), (wild, "lstsq_lsmr", "LSMR")):
        b = numbers((a.shape[0],), "float64", 2_016_553)
        got = embedded.lstsq(a, b)
        assert (got.stats.method, got.status) == (method, Status.OK)
        assert words in got.stats.reason
        np.testing.assert_allclose(got.x, np.linalg.lstsq(a.toarray(), b)[0], rtol=1e-6, atol=1e-7)
        g = numbers((a.shape[1],), "float64", 2_016_554)
        lam = np.linalg.solve((a.T @ a).toarray(), g)
        np.testing.assert_allclose(embedded.lstsq_vjp(a, b, got.x, g).b, a @ lam, rtol=1e-6, atol=1e-6)
    assert embedded.lstsq(local, numbers((1160,), "float64", 2_016_555)).stats.factor_hit


def test_dependent_columns_go_to_lsmr_which_says_so(embedded: Client):
    a = differences(12).toarray()
    a[:, 9] = 2 * a[:, 10]
    b = numbers((a.shape[0],), "float64", 2_016_556)
    got = embedded.lstsq(sparse.csr_array(a), b)
    assert (got.stats.method, got.status) == ("lstsq_lsmr", Status.OK)
    assert "columns are dependent: LSMR" in got.stats.reason
    assert "dependent to rounding: x is the shortest of the minimisers" in got.stats.reason
    np.testing.assert_allclose(got.x, np.linalg.lstsq(a, b)[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("options", [{"maxiter": 500}, {"rcond": 1e-9}, {"rtol": 1e-14}])
def test_what_only_lsmr_uses_asks_for_it(embedded: Client, options):
    a = differences(8)
    got = embedded.lstsq(a, np.ones(a.shape[0]), **options)
    assert got.stats.method == "lstsq_lsmr"


def test_a_wide_matrix_is_factorized_only_with_damping(embedded: Client):
    a = sparse.csr_array(differences(6).T)
    assert embedded.lstsq(a, np.ones(a.shape[0])).stats.method == "lstsq_lsmr"
    assert embedded.lstsq(a, np.ones(a.shape[0]), damp=0.5).stats.method == "lstsq_superlu"


@pytest.mark.parametrize("shape", ["tall", "wide", "square"])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_lsmr_tells_what_it_does_not_see(embedded: Client, shape, dtype):
    m = 30 if shape == "square" else 90
    sigma = [*np.linspace(1, 2, 20), *[1e-12] * 10]
    a = with_singular_values(sigma, m, 77_120_554)
    a = (a.T if shape == "wide" else a).astype(dtype)
    if dtype == "complex128":
        a = a * np.exp(0.4j)
    b = numbers((a.shape[0],), dtype, 77_120_556)
    with pytest.warns(IllConditionedWarning):
        got = embedded.lstsq(sparse.csr_array(a), b, method="lstsq_lsmr")
    assert got.status is Status.ILL_CONDITIONED
    assert "x lacks directions whose singular values are below 1e-10 of the largest" in got.stats.reason
    assert 1e11 < got.stats.condition_estimate < 1e13
    # The directions are indeed not there, and are in the answer of QR.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditionedWarning)
        whole = embedded.lstsq(a, b, method="lstsq_qr")
    assert np.linalg.norm(whole.x) > 1e9 * np.linalg.norm(got.x)
    # To say that they do not count makes it certain.
    sure = embedded.lstsq(a, b, method="lstsq_lsmr", rcond=1e-6)
    assert sure.status is Status.OK
    np.testing.assert_allclose(sure.x, got.x, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("least", [1e-2, 1e-5, 0.0])
def test_what_lsmr_does_see_is_not_doubted(embedded: Client, least):
    a = with_singular_values([*np.linspace(1, 2, 20), *[least] * 10], 90, 77_120_557)
    b = numbers((90,), "float64", 77_120_558)
    got = embedded.lstsq(sparse.csr_array(a), b, method="lstsq_lsmr")
    assert got.status is Status.OK
    whole = embedded.lstsq(a, b, method="lstsq_qr").x
    np.testing.assert_allclose(got.x, whole, rtol=1e-4, atol=1e-4 * np.linalg.norm(whole))
    assert ("dependent to rounding" in got.stats.reason) is (least == 0)
