"""Updates through the whole data plane: where they are solved, what is built, and what a lost process costs."""

import os
import signal
import threading

import numpy as np
import pytest

import backsolve
from backsolve import LowRankUpdate
from backsolve.canonical import canonicalise
from backsolve.errors import SingularMatrixError
from backsolve.types import Options, Status
from backsolve_service.context import PUBLIC_TENANT
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.embedded import EmbeddedTransport
from backsolve_service.engine.select import choose_for_update
from support.factors import caller
from support.systems import convection, laplacian, op, random_like

M, N = 9, 81
ISOLATED = frozenset({"superlu", "lu", "gmres"})


def client_of(**config):
    return backsolve.Client(transport=EmbeddedTransport(DataPlane(PlaneConfig(**config))))


def ended(client):
    plane = client.transport.plane
    client.close()
    assert plane.close()


@pytest.fixture
def client():
    client = client_of(workers=3)
    yield client
    ended(client)


@pytest.fixture
def isolated():
    client = client_of(workers=1, processes=2, isolated=ISOLATED)
    yield client
    ended(client)


def thin(k=3, dtype="float64", seed=0):
    return tuple(random_like((N, k), dtype, 690_117 + 2 * seed + i) for i in (0, 1))


def factors(client):
    """Every factor that the plane holds, by method: worker and bytes."""
    shelf = client.transport.plane._cache._shelf
    return {
        spec.method: held.ref
        for pattern in shelf._patterns.values()
        for matrix in pattern.matrices.values()
        for spec, held in matrix.factors.items()
    }


@pytest.mark.parametrize("plane", ["client", "isolated"])
@pytest.mark.parametrize("method", ["superlu", "gmres", "lu"])
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_updates_are_solved_where_the_factor_of_s_is(plane, method, dtype, request):
    client = request.getfixturevalue(plane)
    s = convection(M, dtype)
    s = s.toarray() if method == "lu" else s
    b = random_like((N, 2), dtype, 50_881)
    for seed in range(4):
        a = LowRankUpdate(s, *thin(3, dtype, seed))
        for trans in ("N", "T", "H"):
            x = client.solve(a, b, method=method, trans=trans).x
            tolerance = 1e-4 if dtype == "float32" else 1e-8
            np.testing.assert_allclose(op(a.toarray(), trans) @ x, b, rtol=0, atol=tolerance)
        held = factors(client)
        assert held[f"update({method})"].worker is held[method].worker
        assert held[f"update({method})"].direct == held[method].direct
        assert held[method].worker.shares_memory == (plane == "client")
    assert client.stats()["factorizations"] == 1


def test_bytes_of_an_update_are_its_own(client, isolated):
    s, b, k = convection(M), np.ones(N), 3
    u, v = thin(k)
    for each in (client, isolated):
        each.solve(s, b, method="superlu")
        before = each.stats()["cache_bytes_factor"], each.stats()["cache_bytes_matrix"]
        each.solve(LowRankUpdate(s, u, v), b, method="superlu")
        mine = 8 * (N * k + k * k) + 4 * k
        copied = u.nbytes + v.nbytes if each is isolated else 0  # a process has its own copy of the values
        overhead = 1024
        assert each.stats()["cache_bytes_factor"] - before[0] == mine + copied + overhead
        assert each.stats()["cache_bytes_matrix"] - before[1] == u.nbytes + v.nbytes + overhead


def test_a_lost_process_is_made_up_for(isolated):
    """Both factors go with it; both are built again, and nobody need send anything."""
    s, b = convection(M), random_like((N,), "float64", 50_882)
    a = LowRankUpdate(s, *thin())
    x = isolated.solve(a, b, method="superlu").x
    uploads = isolated.stats()["uploads"]
    worker = factors(isolated)["superlu"].worker
    generation = worker._generation
    os.kill(worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    np.testing.assert_array_equal(isolated.solve(a, b, method="superlu").x, x)
    assert worker._generation == generation + 1
    assert isolated.stats()["factorizations"] == 2
    assert isolated.stats()["uploads"] == uploads
    assert isolated.stats()["cache_entries_factor"] == 2


def test_many_callers_at_once_build_one_of_each(client):
    s, b = convection(M), random_like((N, 8), "float64", 50_883)
    updates = [LowRankUpdate(s, *thin(seed=seed)) for seed in (0, 1)]
    gate, wrong = threading.Barrier(8), []

    def ask(number):
        a = updates[number % 2]
        gate.wait(60)
        x = client.solve(a, b[:, number]).x
        if not np.allclose(a @ x, b[:, number], rtol=0, atol=1e-10):
            wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert client.stats()["factorizations"] == 1
    assert client.stats()["cache_entries_factor"] == 3


def test_a_base_that_is_not_definite_goes_the_way_of_its_own_solves(client):
    """Cholesky finds that S is not; its substitute carries the update too."""
    rng = np.random.default_rng(50_884)
    half = rng.standard_normal((N, N))
    s = half + half.T + 3 * np.eye(N)
    s[np.diag_indices(N)] = np.abs(s.diagonal()) + 0.1
    a, b = LowRankUpdate(s, *thin()), rng.standard_normal(N)
    solution = client.solve(a, b)
    assert solution.stats.method == "update(ldl)"
    assert "rank 3" in solution.stats.reason
    assert "Cholesky found the matrix not positive definite" in solution.stats.reason
    np.testing.assert_allclose(a @ solution.x, b, rtol=0, atol=1e-9)


def test_an_iterative_method_that_fails_is_told(client):
    s, b = laplacian(M), np.ones(N)
    failed = client.solve(LowRankUpdate(s, *thin()), b, method="cg", maxiter=2, on_failure="nan")
    assert failed.status is Status.MAX_ITER
    assert np.isnan(failed.x).all()


def test_the_rest_goes_on_when_u_makes_a_singular(client):
    """What cannot be solved is remembered for these U and V alone."""
    s = np.eye(N)
    unit, b = np.eye(N)[:, :1], np.ones(N)
    with pytest.raises(SingularMatrixError):
        client.solve(LowRankUpdate(s, unit, -unit), b)
    np.testing.assert_allclose(client.solve(LowRankUpdate(s, unit, unit), b).x[:2], [0.5, 1.0])


def test_a_substitute_for_the_method_of_s_carries_the_update(client):
    a, b = LowRankUpdate(convection(M), *thin()), np.ones(N)
    client.solve(a, b, method="gmres")
    plane, matrix = client.transport.plane, canonicalise(a).matrix
    with plane._cache.pin(plane._cache.matrix(PUBLIC_TENANT, matrix.ref)) as entry:
        choice = choose_for_update(entry.pattern.base.structure, Options(method="superlu"), has_x0=False)
        found = plane._calls._answering._preparer.substitute(entry, choice, caller())
    assert found.choice.spec.method == "update(superlu)"
    assert found.ref.direct
    assert found.ref.worker is factors(client)["superlu"].worker
