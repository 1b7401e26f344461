"""What is remembered, what is shared, and what never is."""

import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest

from backsolve import Client, fingerprint
from support.fresh import new_rng
from support.servers import ServerProcess
from support.systems import convection, laplacian, random_like

pytestmark = pytest.mark.same_host


def grown(client: Client, before: dict[str, float], name: str) -> float:
    return client.stats()[name] - before[name]


def fresh(m: int, seed: int) -> object:
    """A matrix that no other test and no other transport has used."""
    a = convection(m, seed=seed)
    a.data += new_rng().standard_normal() * 1e-3
    return a


def test_one_factorization_for_every_direction_and_tolerance(client: Client) -> None:
    a = fresh(9, 50_231)
    b = random_like((81,), "float64", 88_431_190)
    before = dict(client.stats())
    first = client.solve(a, b)
    assert not first.stats.factor_hit
    for trans in ("N", "T", "H"):
        assert client.solve(a, b, trans=trans).stats.factor_hit
    for rtol in (1e-3, 1e-9):
        assert client.solve(a, b, rtol=rtol).stats.factor_hit
    assert client.solve(a, b, method=first.stats.method).stats.factor_hit
    assert client.vjp(a, first.x, b).stats.factor_hit
    assert client.jvp(a, first.x, b_tangent=b).stats.factor_hit
    assert grown(client, before, "factorizations") == 1
    assert grown(client, before, "uploads") == 1


def test_a_handle_alone_skips_the_hash(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    original = fingerprint.values_digest

    def counting(pattern: Any, values: Any, *taken: Any) -> bytes:
        hashed.append(values.size)
        return original(pattern, values, *taken)

    a, b = fresh(9, 50_234), np.ones(81)
    x = client.solve(a, b).x
    monkeypatch.setattr(fingerprint, "values_digest", counting)
    for solves in (1, 2):
        client.solve(a, b)
        assert len(hashed) == solves
    client.vjp(a, x, b)
    assert len(hashed) == 3, "the caller may have written to A between the two calls"
    handle = client.factorized(a)
    assert len(hashed) == 4
    handle.solve(b)
    assert len(hashed) == 4


def test_new_values_reuse_the_analysis(client: Client) -> None:
    a = fresh(9, 50_232)
    b = np.ones(81)
    client.solve(a, b)
    before = dict(client.stats())
    a.data *= 1.25
    again = client.solve(a, b)
    assert again.stats.symbolic_hit
    assert not again.stats.factor_hit
    assert grown(client, before, "analyses") == 0
    assert grown(client, before, "factorizations") == 1


def test_values_are_hashed_on_every_call(client: Client) -> None:
    """A write that no version counter sees is seen by the hash."""
    a = np.diag([2.0, 2.0, 2.0]) + new_rng().standard_normal() * 1e-3 * np.eye(3)
    first = client.solve(a, np.ones(3)).x
    a[0, 0] *= 2
    second = client.solve(a, np.ones(3))
    assert not second.stats.factor_hit
    assert second.x[0] == pytest.approx(first[0] / 2)


def test_nearly_equal_matrices_are_never_confused(client: Client) -> None:
    a = fresh(6, 50_233)
    b = random_like((36,), "float64", 61_280_113)
    variants = [a.copy() for _ in range(4)]
    variants[1].data[[10, 11]] = a.data[[11, 10]]
    variants[2].data[17] = -a.data[17]
    variants[3].data = np.random.default_rng(5512).permutation(a.data)
    for variant in variants:
        solution = client.solve(variant, b)
        np.testing.assert_allclose(variant.toarray() @ solution.x, b, atol=1e-9)


def test_a_failed_cholesky_is_remembered_and_ldl_takes_its_place(client: Client) -> None:
    rng = new_rng()
    half = rng.standard_normal((20, 20))
    a = half + half.T + 3 * np.eye(20)
    a[np.diag_indices(20)] = np.abs(a.diagonal()) + 0.1
    assert np.linalg.eigvalsh(a).min() < 0
    first = client.solve(a, np.ones(20))
    assert first.stats.method == "ldl"
    assert "Cholesky found the matrix not positive definite" in first.stats.reason
    before = dict(client.stats())
    assert client.solve(a, np.ones(20)).stats.factor_hit
    assert client.solve(a, np.ones(20), method="ldl").stats.factor_hit
    assert grown(client, before, "factorizations") == 0


def test_positive_definite_matrices_get_cholesky(client: Client) -> None:
    rng = new_rng()
    half = rng.standard_normal((20, 20))
    solution = client.solve(half @ half.T + np.eye(20), np.ones(20))
    assert solution.stats.method == "cholesky"
    assert solution.stats.condition_estimate is not None


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_second_process_factors_nothing(server: ServerProcess, scheme: str) -> None:
    url = server.http_url if scheme == "http" else server.grpc_url
    script = textwrap.dedent(
        """
        import sys
        import numpy as np
        from backsolve import Client
        a = np.diag(np.arange(1.0, 40.0)) + float(sys.argv[2]) * np.eye(39, k=1)
        client = Client(sys.argv[1])
        before = client.stats()["factorizations"]
        client.solve(a, np.ones(39), method="lu")
        print(client.stats()["factorizations"] - before)
        """
    )
    shift = str(new_rng().random())
    counts = [
        float(
            subprocess.run(
                [sys.executable, "-c", script, url, shift], capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(2)
    ]
    assert counts == [1.0, 0.0]


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_an_evicted_matrix_is_sent_again_without_the_user_noticing(scheme: str) -> None:
    with ServerProcess(BACKSOLVE_CACHE_BYTES="6MiB") as small:
        client = Client(small.http_url if scheme == "http" else small.grpc_url)
        matrices = []
        for seed in range(30):
            a = laplacian(70)
            a.data = a.data * (1 + 0.01 * seed)
            matrices.append(a)
        b = np.ones(4900)
        for _ in range(2):
            for a in matrices:
                x = client.solve(a, b).x
                np.testing.assert_allclose(a @ x, b, atol=1e-8)
        stats = client.stats()
        assert stats["evictions"] > 0
        assert stats["uploads"] > len(matrices)
        assert stats["cache_bytes"] <= 6 * 2**20
        client.close()
