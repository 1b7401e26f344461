"""Several servers as replicas of one service: matrices have a home, and a server that is killed moves its own alone."""

import asyncio
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest

from backsolve import AsyncClient, Client, ReplicaState
from backsolve._fleet import rendezvous
from backsolve.canonical import canonicalise
from backsolve.errors import UnreachableError
from support.servers import ServerProcess, free_port
from support.systems import random_like

COUNT = 16
"""Matrices, each with a pattern of its own."""


@pytest.fixture(scope="module")
def pool() -> Iterator[list[ServerProcess]]:
    """Three servers, started at the same time; a test that kills one starts it again."""
    with ExitStack() as opened:
        servers = [ServerProcess() for _ in range(3)]
        for server in servers:
            opened.callback(server.__exit__, None, None, None)
            server.start(wait=False)
        for server in servers:
            server.wait_ready()
        yield servers


def systems(seed: int) -> list[np.ndarray]:
    """Dense matrices of sizes that are theirs alone, so that their patterns differ."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, n)) + n * np.eye(n) for n in range(20, 20 + COUNT)]


def home(a: np.ndarray, urls: list[str]) -> int:
    key = canonicalise(a).matrix.ref.route_key.encode()
    return rendezvous(key, [url.partition("://")[2] for url in urls])[0]


def check(client: Client, matrices: list[np.ndarray], seed: int) -> None:
    for a in matrices:
        b = random_like((len(a),), "float64", seed)
        x = client.solve(a, b).x
        np.testing.assert_allclose(a @ x, b, atol=1e-10)
        np.testing.assert_allclose(a.T @ client.vjp(a, x, b).b, b, atol=1e-10)


def factorizations(states: tuple[ReplicaState, ...]) -> list[float | None]:
    return [None if state.stats is None else state.stats["factorizations"] for state in states]


@pytest.mark.parametrize(
    ("way", "count", "seed"), [("http", 2, 710_300_241), ("http", 3, 145_982_007), ("grpc", 3, 938_611_452)]
)
def test_a_server_that_is_killed_moves_its_own_matrices_alone(
    way: str, count: int, seed: int, pool: list[ServerProcess]
) -> None:
    servers = pool[:count]
    urls = [server.url(way) for server in servers]
    matrices = systems(seed)
    homes = [home(a, urls) for a in matrices]
    victim = max(range(count), key=homes.count)
    own = homes.count(victim)
    assert 0 < own < COUNT
    with Client(urls, timeout=60.0) as client:
        before = factorizations(client.replicas())
        check(client, matrices, 5_501)
        states = client.replicas()
        spread = [after - at for after, at in zip(factorizations(states), before, strict=True)]
        assert spread == [homes.count(place) for place in range(count)]
        assert [state.uploads for state in states] == spread
        assert [state.url for state in states] == urls
        assert sum(state.spilled for state in states) == 0

        servers[victim].kill()
        try:
            check(client, matrices, 5_502)
            check(client, matrices, 5_503)
            states = client.replicas()
        finally:
            servers[victim].start()
        after = factorizations(states)
        assert after[victim] is None
        gained = [after[place] - before[place] - spread[place] for place in range(count) if place != victim]
        assert sum(gained) == own, "each of the victim's matrices is factorized once more, no other is"
        assert client.stats()["uploads"] == COUNT + own, "and is sent once more"


def test_calls_under_way_survive_the_end_of_their_server(pool: list[ServerProcess]) -> None:
    """Threads and tasks at once: no answer is wrong, no call fails."""
    urls = [server.http_url for server in pool]
    matrices = systems(822_417_003)
    victim = home(matrices[0], urls)

    def threads(client: Client) -> None:
        with ThreadPoolExecutor(6) as executor:
            list(executor.map(lambda seed: check(client, matrices[seed % 4 :], seed), range(6_600, 6_612)))

    async def tasks() -> float:
        async def one(client: AsyncClient, seed: int) -> float:
            a = matrices[seed % COUNT]
            b = random_like((len(a),), "float64", seed)
            return float(np.abs(a @ (await client.solve(a, b)).x - b).max())

        async with AsyncClient(urls) as client:
            await asyncio.gather(*(one(client, seed) for seed in range(COUNT)))
            killed = asyncio.create_task(asyncio.to_thread(pool[victim].kill))
            errors = await asyncio.gather(*(one(client, seed) for seed in range(7_700, 7_900)))
            await killed
            states = await client.replicas()
            assert states[victim].stats is None
            assert all(state.in_flight == 0 for state in states)
            return max(errors)

    try:
        assert asyncio.run(tasks()) < 1e-10
        with Client(urls) as client:
            threads(client)
    finally:
        pool[victim].start()


def test_a_server_that_comes_back_is_given_its_matrices_again(pool: list[ServerProcess]) -> None:
    urls = [server.http_url for server in pool[:2]]
    a = next(a for a in systems(355_120_918) if home(a, urls) == 0)
    with Client(urls) as client:
        check(client, [a], 8_801)
        pool[0].kill()
        try:
            check(client, [a], 8_802)
            assert client.replicas()[1].spilled > 0
        finally:
            pool[0].start()
        while not client.replicas()[0].calls > 3:  # its rest ends within a second or two
            check(client, [a], 8_803)
        assert client.replicas()[0].stats["factorizations"] == 1


def test_one_pattern_that_all_ask_for_is_shared(pool: list[ServerProcess]) -> None:
    urls = [server.http_url for server in pool]
    (a,) = systems(601_443_872)[:1]

    async def main() -> tuple[ReplicaState, ...]:
        async with AsyncClient(urls) as client:
            await client.solve(a, np.ones(len(a)))
            b = random_like((len(a), 40), "float64", 9_901)
            answers = await asyncio.gather(*(client.solve(a, column) for column in b.T for _ in range(3)))
            for place, answer in enumerate(answers):
                np.testing.assert_allclose(a @ answer.x, b[:, place // 3], atol=1e-10)
            return await client.replicas()

    states = asyncio.run(main())
    assert all(state.calls > 0 for state in states)
    assert states[home(a, urls)].spilled == 0
    assert all(state.spilled == state.calls for place, state in enumerate(states) if place != home(a, urls))


def test_sums_and_information_come_from_those_that_answer(pool: list[ServerProcess]) -> None:
    urls = [f"http://127.0.0.1:{free_port()}", *(server.http_url for server in pool[:2])]
    with Client(urls) as client:
        assert client.info().http_port == pool[0].http_port
        states = client.replicas()
        assert [state.stats is None for state in states] == [True, False, False]
        counted = factorizations(states[1:])
        assert client.stats()["factorizations"] == sum(counted)
    with Client([urls[0], f"http://127.0.0.1:{free_port()}"], timeout=2.0) as client:
        with pytest.raises(UnreachableError, match="none of the replicas"):
            client.stats()
        with pytest.raises(UnreachableError):
            client.solve(np.eye(2), np.ones(2))


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_a_name_is_looked_up(way: str, server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    port = server.http_port if way == "http" else server.grpc_port
    url = f"dns+{way}://localhost:{port}"
    with Client(url) as client:
        assert client.empty(3).shape == (3,)
        assert client.solve(np.eye(2), np.ones(2)).x.tolist() == [1.0, 1.0]
        assert client.empty(3).shape == (3,)
        assert [state.url for state in client.replicas()] == [f"{way}://127.0.0.1:{port}"]

    async def main() -> list[float]:
        async with AsyncClient(url) as client:
            return (await client.solve(np.eye(2), np.ones(2))).x.tolist()

    assert asyncio.run(main()) == [1.0, 1.0]

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror("unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with Client(url, timeout=0.5) as client, pytest.raises(UnreachableError, match="has no address"):
        client.solve(np.eye(2), np.ones(2))
