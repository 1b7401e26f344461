"""Clients as jobs use them: many threads, a host without a scheme, a closed one."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from backsolve import Client
from backsolve._transports import discover
from backsolve._transports.discover import DiscoveringTransport
from backsolve._transports.grpc import GrpcTransport
from backsolve._transports.http import HttpTransport
from backsolve.errors import BacksolveError, UnreachableError
from support.fresh import new_rng
from support.servers import ServerProcess, free_port
from support.systems import convection, random_like

pytestmark = [pytest.mark.same_host, pytest.mark.awaited]


def test_threads_share_a_client_and_a_factorization(client: Client) -> None:
    a = convection(12, seed=830_441_907)
    a.data += new_rng().standard_normal() * 1e-3
    exact = np.linalg.inv(a.toarray())
    before = client.stats()["factorizations"]

    def work(seed: int) -> float:
        b = random_like((144,), "float64", seed)
        return float(np.abs(client.solve(a, b).x - exact @ b).max())

    with ThreadPoolExecutor(8) as pool:
        errors = list(pool.map(work, range(700_100, 700_140)))
    assert max(errors) < 1e-10
    assert client.stats()["factorizations"] - before == 1


def test_threads_with_different_matrices_get_their_own_answers(client: Client) -> None:
    def work(seed: int) -> float:
        a = convection(6, seed=seed)
        b = random_like((36,), "float64", seed)
        x = client.solve(a, b).x
        g = client.vjp(a, x, b)
        assert g.b is not None
        return float(max(np.abs(a @ x - b).max(), np.abs(a.T @ g.b - b).max()))

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(work, range(910_300, 910_332))) < 1e-11


def test_a_host_is_asked_what_it_offers(server: ServerProcess) -> None:
    with Client(f"backsolve://127.0.0.1:{server.http_port}") as client:
        assert client.solve(np.eye(2) * 4, np.ones(2)).x.tolist() == [0.25, 0.25]
        transport = client.transport
        assert isinstance(transport, DiscoveringTransport)
        assert isinstance(transport.chosen(1.0), HttpTransport)


def test_a_host_without_http_is_asked_over_grpc(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discover, "GRPC_PORT", server.grpc_port)
    a, b = convection(6, seed=274_093_518), random_like((36,), "float64", 640_155_927)
    with Client(f"backsolve://127.0.0.1:{free_port()}") as client:
        solution = client.solve(a, b)
        pulled = client.vjp(a, solution.x, b)
        transport = client.transport
        assert isinstance(transport, DiscoveringTransport)
        chosen = transport.chosen(1.0)
        assert isinstance(chosen, GrpcTransport)
        assert client.info().grpc_port == server.grpc_port
        assert client.stats()["solves"] > 0
        assert transport.chosen(1.0) is chosen
    np.testing.assert_allclose(a @ solution.x, b, atol=1e-12)
    np.testing.assert_allclose(a.T @ pulled.b, b, atol=1e-12)


def test_a_host_that_offers_nothing_is_named() -> None:
    with (
        Client(f"backsolve://127.0.0.1:{free_port()}", timeout=2.0) as client,
        pytest.raises(UnreachableError, match="neither HTTP"),
    ):
        client.info()


def test_a_closed_client_says_so(server: ServerProcess) -> None:
    for url in ("embedded", server.http_url, server.grpc_url):
        client = Client(url, timeout=5.0)
        client.solve(np.eye(2), np.ones(2))
        client.close()
        client.close()
        with pytest.raises(BacksolveError, match="closed"):
            client.solve(np.eye(2), np.ones(2))
