"""A pickled client connects anew where it is unpickled, and carries no secret."""

import asyncio
import pickle

import numpy as np
import pytest

from backsolve import AsyncClient, Client
from backsolve.errors import NotSupportedError, UnauthenticatedError
from backsolve_service.embedded import EmbeddedTransport
from support.servers import ServerProcess

A, B, X = np.diag([4.0, 2.0]), np.array([2.0, 6.0]), [0.5, 3.0]
SECRET = "word-5512"


@pytest.mark.parametrize("way", ["embedded", "http", "grpc", "unix"])
def test_both_kinds_of_client_come_back_and_solve(way: str, request: pytest.FixtureRequest) -> None:
    url = way if way == "embedded" else request.getfixturevalue("server").url(way)
    with Client(url, timeout=17.0) as client:
        assert client.solve(A, B).x.tolist() == X
        with pickle.loads(pickle.dumps(client)) as again:
            assert again.solve(A, B).x.tolist() == X
            assert again._session.exchange.timeout == 17.0

    async def main() -> list[float]:
        async with pickle.loads(pickle.dumps(AsyncClient(url))) as again:
            return (await again.solve(A, B)).x.tolist()

    assert asyncio.run(main()) == X


def test_several_replicas_stay_several(server: ServerProcess) -> None:
    urls = [server.http_url, server.url("unix")]
    with pickle.loads(pickle.dumps(Client(urls))) as again:
        assert [state.url for state in again.replicas()] == urls


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_token_that_was_given_is_left_out_and_missed(
    kind: type, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    pickled = pickle.dumps(kind(server.http_url, token=SECRET))
    assert SECRET.encode() not in pickled
    with pytest.raises(UnauthenticatedError, match="BACKSOLVE_TOKEN"):
        pickle.loads(pickled)
    monkeypatch.setenv("BACKSOLVE_TOKEN", "another")
    again = pickle.loads(pickled)
    assert again._opening.endpoints[0].token == "another"


def test_a_token_of_the_environment_stays_there(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKSOLVE_TOKEN", SECRET)
    pickled = pickle.dumps(Client(server.http_url))
    assert SECRET.encode() not in pickled
    monkeypatch.delenv("BACKSOLVE_TOKEN")
    with pickle.loads(pickled) as again:
        assert again.solve(A, B).x.tolist() == X


def test_a_transport_of_ones_own_cannot_be_opened_again() -> None:
    with Client(transport=EmbeddedTransport()) as client, pytest.raises(NotSupportedError, match="pickle its URL"):
        pickle.dumps(client)
