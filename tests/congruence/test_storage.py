"""Matrices stored as Hermitian ones: the same answers, gradients, errors and bytes on every way in."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from backsolve import Client, Pattern
from backsolve.errors import InvalidOptionError, NotHermitianError, SingularMatrixError
from backsolve.matrix import Matrix
from backsolve.types import Options, Status, Storage
from support.fresh import new_rng
from support.rest import ask_json
from support.servers import ServerProcess
from support.systems import laplacian, op, random_like

each_storage = pytest.mark.parametrize("storage", ["hermitian", "lower"])
each_dtype = pytest.mark.parametrize("dtype", ["float64", "complex128"])
N = 12


def system(dtype: str, seed: int = 402_881_931) -> np.ndarray:
    """A Hermitian positive definite matrix with zeros in it."""
    a = random_like((N, N), dtype, seed)
    a[np.abs(a) < 0.8] = 0.0
    a = a + a.conj().T
    return a + np.diag(2 + np.abs(a).sum(axis=1))


def stored(a: np.ndarray, storage: Storage, form: Any) -> Any:
    return form(np.tril(a)) if storage == "lower" else form(a)


def array(a: Any) -> np.ndarray:
    return a.toarray() if sparse.issparse(a) else np.asarray(a)


FORMS = {"dense": np.array, "csr": sparse.csr_array, "csc": sparse.csc_array, "coo": sparse.coo_array}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@each_storage
@each_dtype
@each_form
@pytest.mark.parametrize("trans", ["N", "T", "H"])
def test_solves_and_derivatives(client: Client, storage: Storage, dtype: str, form: Any, trans: str) -> None:
    """Directional derivatives, of the gradient formed here and there and of the tangent, agree with central ones."""
    a, da = system(dtype), random_like((N, N), dtype, 91_204)
    da = (da + da.conj().T) * (a != 0)
    b, g, db = (random_like((N, 2), dtype, seed) for seed in (81_203, 81_204, 81_205))

    def solve(moved: float) -> np.ndarray:
        given = stored(a + moved * da, storage, form)
        return client.solve(given, b + moved * db, storage=storage, trans=trans).x

    given, tangent = stored(a, storage, form), stored(da, storage, form)
    x = solve(0.0)
    np.testing.assert_allclose(op(a, trans) @ x, b, atol=1e-12)
    here = client.vjp(given, x, g, storage=storage, trans=trans)
    there = client.vjp(given, x, g, storage=storage, trans=trans, values_on="server")
    np.testing.assert_allclose(array(here.values), array(there.values), rtol=1e-12, atol=1e-14)
    dx = client.jvp(given, x, A_tangent=tangent, b_tangent=db, storage=storage, trans=trans).x
    h = 1e-4
    central = (8 * (solve(h) - solve(-h)) - (solve(2 * h) - solve(-2 * h))) / (12 * h)
    np.testing.assert_allclose(dx, central, rtol=0, atol=1e-8 * np.abs(central).max())
    pulled = np.vdot(array(here.values), array(tangent)).real + np.vdot(here.b, db).real
    assert pulled == pytest.approx(np.vdot(g, dx).real, rel=1e-10)


@each_form
@each_dtype
def test_each_storage_has_its_own_convention(client: Client, form: Any, dtype: str) -> None:
    a, b, g = system(dtype), random_like((N,), dtype, 55_102), random_like((N,), dtype, 55_103)
    x = client.solve(form(a), b).x
    gradient = {
        storage: array(client.vjp(stored(a, storage, form), x, g, storage=storage).values)
        for storage in ("general", "hermitian", "lower")
    }
    every = gradient["general"]
    both = np.where(a != 0, every + every.conj().T, 0) if form is not np.array else every + every.conj().T
    np.testing.assert_allclose(gradient["hermitian"], both / 2, rtol=1e-12, atol=1e-15)
    folded = np.tril(both, -1) + np.diag(np.diag(both) / 2)
    np.testing.assert_allclose(gradient["lower"], folded, rtol=1e-12, atol=1e-15)
    rounding = np.finfo(np.float64).eps * np.abs(gradient["lower"]).max()
    assert np.abs(np.diag(gradient["lower"]).imag).max() <= rounding


def test_the_bound_on_the_error_of_a_gradient_is_of_what_is_stored(client: Client) -> None:
    """Both places of an entry in one may err by the square root of 2 more; half of each by no more than G."""
    a, b, g = system("float64"), np.ones(N), np.arange(1.0, N + 1)
    x = client.solve(a, b).x + 1e-9
    bounds = {
        storage: client.vjp(stored(a, storage, np.array), x, g, b=b, storage=storage, condition=True).error_bound
        for storage in ("general", "hermitian", "lower")
    }
    assert bounds["hermitian"] == pytest.approx(bounds["general"], rel=1e-6)
    assert bounds["lower"] == pytest.approx(2**0.5 * bounds["general"], rel=1e-6)


@each_storage
@pytest.mark.parametrize("form", [np.array, sparse.csr_array], ids=["dense", "csr"])
def test_auto_chooses_as_for_the_whole_matrix_and_handles_keep_the_storage(
    client: Client, storage: Storage, form: Any
) -> None:
    a = laplacian(20).toarray()
    given = stored(a, storage, form)
    b = np.random.default_rng(40_551).standard_normal(400)
    whole, half = client.solve(form(a), b), client.solve(given, b, storage=storage)
    assert half.stats.method == whole.stats.method
    if form is np.array:
        assert half.stats.method == "cholesky"
    np.testing.assert_array_equal(half.x, whole.x)
    handle = client.factorized(given, storage=storage)
    assert handle.last.factor_hit
    np.testing.assert_array_equal(handle.solve(b), whole.x)
    forced = client.solve(given, b, storage=storage, method="cholesky")
    np.testing.assert_allclose(forced.x, whole.x, rtol=1e-10)


@each_storage
@pytest.mark.parametrize("sparsely", [False, True])
def test_batches(client: Client, storage: Storage, sparsely: bool) -> None:
    systems = np.stack([system("complex128"), 3 * system("complex128")])
    b, g = random_like((2, N, 3), "complex128", 18_290), random_like((2, N, 3), "complex128", 18_291)
    if not sparsely:
        given = np.tril(systems) if storage == "lower" else systems
        x = client.solve(given, b, storage=storage).x
        values = client.vjp(given, x, g, storage=storage).values
        one = client.vjp(given[1], x[1], g[1], storage=storage).values
        np.testing.assert_allclose(values[1], one, rtol=1e-12, atol=1e-15)
    else:
        csr = stored(systems[0], storage, sparse.csr_array)
        pattern = Pattern.from_csr(csr, storage=storage)
        x = client.solve_matrix(Matrix(pattern, np.stack([csr.data, 3 * csr.data])), b, Options()).x
    np.testing.assert_allclose(systems @ x, b, atol=1e-11)


def test_a_matrix_that_breaks_the_promise_is_refused(client: Client) -> None:
    a, b = system("complex128"), np.ones(N, complex)
    wrong = a.copy()
    wrong[3, 7] += 0.5
    for form in FORMS.values():
        with pytest.raises(NotHermitianError, match="differs from its conjugate transpose"):
            client.solve(form(wrong), b, storage="hermitian")
    with pytest.raises(NotHermitianError, match="differs"):  # a pattern that is not symmetric
        client.solve(sparse.csr_array(np.tril(a)), b, storage="hermitian")
    with pytest.raises(NotHermitianError, match="differs"):
        client.solve(np.stack([a, wrong]), np.stack([b, b]), storage="hermitian")
    symmetric = np.real(a) + 1j * np.diag(np.ones(N))
    with pytest.raises(NotHermitianError, match="not real"):
        client.solve(symmetric, b, storage="lower")
    np.testing.assert_allclose(wrong @ client.solve(wrong, b).x, b, atol=1e-12)


def test_a_batch_is_not_refused_for_what_is_not_finite(client: Client) -> None:
    for storage in ("hermitian", "lower"):
        systems = np.stack([system("float64"), system("float64")])
        systems[1, 4, 2] = np.nan
        solution = client.solve(systems, np.ones((2, N)), storage=storage, on_failure="nan")
        assert [element.status for element in solution.stats.elements] == [Status.OK, Status.NONFINITE_INPUT]


def test_least_squares_takes_no_storage(client: Client) -> None:
    a, b = system("float64"), np.ones(N)
    with pytest.raises(InvalidOptionError, match="least squares takes no storage"):
        client.lstsq(a, b, storage="hermitian")
    with pytest.raises(InvalidOptionError, match="general storage alone"):
        client.lstsq_matrix(Matrix(Pattern.from_csr(sparse.csr_array(a), "hermitian"), a[a != 0]), b, Options())


def test_singular_and_empty_matrices(client: Client) -> None:
    for storage in ("hermitian", "lower"):
        with pytest.raises(SingularMatrixError):
            client.solve(sparse.csr_array((3, 3)), np.ones(3), storage=storage)
        assert client.solve(np.zeros((0, 0)), np.zeros(0), storage=storage).x.shape == (0,)


@pytest.fixture(params=["http", "grpc"])
def remote(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[Client]:
    with Client(server.url(request.param)) as opened:
        yield opened


@pytest.mark.parametrize("m", [60, 340])  # one message, and bulk, whose digests are taken as it arrives
def test_a_triangle_leaves_out_what_its_mirror_says(remote: Client, m: int) -> None:
    # One more pair of entries, somewhere: a pattern that no other transport has brought.
    far = sparse.coo_array(([-0.01], ([m * m - 1], [new_rng().integers(m * m - m - 1)])), shape=(m * m, m * m))
    a = sparse.csr_array(laplacian(m) + far + far.T)
    sent = {}
    for storage in ("general", "lower"):
        given = sparse.csr_array(sparse.tril(a) if storage == "lower" else a)
        before = remote.transport.sent  # type: ignore[attr-defined]
        remote.solve(given, np.ones(m * m), storage=storage, method="superlu")
        sent[storage] = remote.transport.sent - before  # type: ignore[attr-defined]
    pair = np.dtype(np.float64).itemsize + np.dtype(np.int32).itemsize
    assert sent["general"] - sent["lower"] == pytest.approx((a.nnz - m * m) // 2 * pair, abs=2048)


def test_a_dense_triangle_is_half_the_bytes(remote: Client) -> None:
    n = 700
    a = random_like((n, n), "float64", 5_291) + new_rng().random()
    a = a + a.T + 200 * np.eye(n)
    before = remote.transport.sent  # type: ignore[attr-defined]
    x = remote.solve(a, np.ones(n), storage="lower").x
    sent = remote.transport.sent - before  # type: ignore[attr-defined]
    np.testing.assert_allclose(a @ x, np.ones(n), atol=1e-9)
    assert n * (n + 1) // 2 * 8 <= sent <= n * (n + 1) // 2 * 8 + 16 * n + 8192
    a = a + np.eye(n)
    before = remote.transport.sent  # type: ignore[attr-defined]
    remote.solve(a, np.ones(n), storage="lower")  # new values on a pattern that is held
    assert remote.transport.sent - before <= n * (n + 1) // 2 * 8 + 16 * n + 8192  # type: ignore[attr-defined]


@pytest.mark.parametrize("sparsely", [False, True])
def test_json(server: ServerProcess, sparsely: bool) -> None:
    a = system("float64")
    lower = sparse.csr_array(np.tril(a))
    b = np.arange(1.0, N + 1)
    matrix: dict[str, Any] = {"values": a.tolist(), "storage": "lower"}
    if sparsely:
        matrix = {"shape": [N, N], "storage": "lower", "values": lower.data.tolist()}
        matrix |= {"indptr": lower.indptr.tolist(), "indices": lower.indices.tolist()}
    port = int(server.http_url.rpartition(":")[2])
    reply = ask_json(port, "/v1/solve", {"matrix": matrix, "b": b.tolist()})
    assert reply.status == 200, reply.body
    x = np.array(reply.json()["x"])
    np.testing.assert_allclose(a @ x, b, atol=1e-12)
    ref = {"ref": reply.json()["ref"]}
    document = {"matrix": ref, "cotangent": b.tolist(), "x": x.tolist(), "want": ["values"]}
    values = np.array(ask_json(port, "/v1/vjp", document).json()["values"])
    every = -np.outer(np.linalg.solve(a, b), x)
    folded = np.tril(every + every.T) - np.diag(np.diag(every))
    rows, columns = lower.nonzero() if sparsely else np.tril_indices(N)
    np.testing.assert_allclose(values, folded[rows, columns], rtol=1e-10)
    accepted = ask_json(port, "/v1/matrices", matrix)
    assert accepted.json()["storage"] == "lower"
    for bad, reason in (("upper", "INVALID_OPTION"), (7, "MALFORMED")):
        assert ask_json(port, "/v1/matrices", matrix | {"storage": bad}).json()["reason"] == reason
    if not sparsely:
        a[0, 1] += 1
        refused = ask_json(port, "/v1/matrices", {"values": a.tolist(), "storage": "hermitian"})
        assert (refused.status, refused.json()["reason"]) == (422, "NOT_HERMITIAN")
