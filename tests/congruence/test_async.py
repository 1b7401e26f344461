"""`AsyncClient` as programs use it: many tasks, several event loops, cancelled calls, a server started again."""

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import uvloop

from backsolve import AsyncClient, Client
from backsolve._aio.connection import MOST_CONNECTIONS
from backsolve._transports.base import SolveCall, SolveReply
from backsolve._transports.http import HttpTransport
from backsolve.errors import CancelledError, DeadlineError, NotConvergedWarning
from backsolve_service.context import CallContext
from backsolve_service.embedded import EmbeddedTransport
from backsolve_service.grpc.server import GrpcConfig, GrpcServer
from support.fresh import new_rng
from support.rest import CERTIFICATE, ToldPlane, echo, serving
from support.servers import ServerProcess
from support.systems import convection, laplacian, random_like

WAYS = ("embedded", "http", "grpc", "unix")
PATIENCE = 60.0
A, B = np.diag([4.0, 2.0]), np.array([2.0, 6.0])


@pytest.fixture(params=WAYS)
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "embedded":
        return "embedded"
    running: ServerProcess = request.getfixturevalue("server")
    return running.url(request.param)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_two_hundred_callers_get_their_own_answers(url: str, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    a = convection(9, seed=318_604_275)
    a.data += new_rng().standard_normal() * 1e-3
    exact = np.linalg.inv(a.toarray())

    async def call(client: AsyncClient, seed: int) -> float:
        b = random_like((81,), "float64", seed)
        if seed % 2:
            return float(np.abs((await client.solve(a, b)).x - exact @ b).max())
        pulled = await client.vjp(a, None, b, want=("b",))
        return float(np.abs(pulled.b - exact.T @ b).max())

    async def main() -> tuple[list[float], float]:
        async with AsyncClient(url) as client:
            before = await client.stats()
            errors = await asyncio.gather(*(call(client, seed) for seed in range(540_300, 540_500)))
            return errors, (await client.stats())["factorizations"] - before["factorizations"]

    with asyncio.Runner(loop_factory=loop) as runner:
        errors, factorizations = runner.run(main())
    assert max(errors) < 1e-10
    assert factorizations == 1


def test_one_client_serves_one_loop_after_the_other_and_two_at_once(url: str) -> None:
    client = AsyncClient(url)

    async def calls(seed: int) -> float:
        a, b = convection(6, seed=seed), random_like((36,), "float64", seed)
        answers = await asyncio.gather(*(client.solve(a, b) for _ in range(80)))
        return max(float(np.abs(a @ answer.x - b).max()) for answer in answers)

    errors = [asyncio.run(calls(seed)) for seed in (720_551, 720_552)]
    threads = [
        threading.Thread(target=lambda s=seed: errors.append(asyncio.run(calls(s)))) for seed in (720_553, 720_554)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    asyncio.run(client.close())
    assert len(errors) == 4
    assert max(errors) < 1e-11


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_awaits_with_the_parents_client(url: str) -> None:
    client = AsyncClient(url)
    assert asyncio.run(client.solve(A, B)).x.tolist() == [0.5, 3.0]
    child = os.fork()
    if child == 0:
        right = False
        try:
            right = asyncio.run(client.solve(A, B)).x.tolist() == [0.5, 3.0]
        finally:
            os._exit(0 if right else 1)
    assert asyncio.run(client.solve(A, 2 * B)).x.tolist() == [1.0, 6.0]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    asyncio.run(client.close())


@pytest.mark.parametrize("n", [8, 200])
def test_a_warning_points_at_the_line_that_awaits(n: int) -> None:
    """Of a small system, whose call is prepared on the loop, and of a large one, which a thread prepares."""

    async def main() -> int:
        async with AsyncClient("embedded") as client:
            a, b = laplacian(n), np.ones(n * n)
            await client.solve(a, b, method="cg", maxiter=2, on_failure="warn")
            return sys._getframe().f_lineno - 1

    with pytest.warns(NotConvergedWarning) as caught:
        line = asyncio.run(main())
    assert [(warning.filename, warning.lineno) for warning in caught] == [(__file__, line)]


def test_a_server_that_is_started_again_is_sent_the_matrix_once_more() -> None:
    a, b = convection(7, seed=164_882_309), random_like((49,), "float64", 275_330_918)
    exact = np.linalg.solve(a.toarray(), b)

    async def main(server: ServerProcess) -> list[float]:
        async with AsyncExitStack() as opened:
            clients = [await opened.enter_async_context(AsyncClient(server.url(way))) for way in WAYS[1:]]
            for client in clients:
                await client.solve(a, b)
            server.kill()
            starting = asyncio.create_task(asyncio.to_thread(server.start))
            answers = await asyncio.gather(*(client.solve(a, b) for client in clients for _ in range(20)))
            await starting
            for answer in answers:
                np.testing.assert_allclose(answer.x, exact, rtol=1e-10)
            assert (await clients[0].stats())["factorizations"] == 1
            return [(await client.stats())["uploads"] for client in clients]

    with ServerProcess() as server:
        # The first client has sent it before. Calls that find it missing at the same time may each send it.
        uploads = asyncio.run(main(server))
    assert sum(uploads) >= 2
    assert max(uploads) <= 21


# -- one that never answers -------------------------------------------------------------------


class Hanging:
    """A data plane whose solves of more than two numbers end when the caller has gone, or the test."""

    def __init__(self) -> None:
        self.begun, self.gone = threading.Semaphore(0), threading.Semaphore(0)
        self.over = threading.Event()
        self.plane = ToldPlane(self._answer)

    def _answer(self, call: SolveCall, context: CallContext) -> SolveReply:
        if call.rhs.size <= 2:
            return echo(call, context)
        context.on_cancel(self.gone.release)
        self.begun.release()
        while not (context.cancelled.wait(0.01) or self.over.is_set()):
            pass
        return SolveReply(call.rhs, CERTIFICATE)


Opening = Callable[..., AsyncClient]


@contextmanager
def hanging(way: str) -> Iterator[tuple[Hanging, Opening]]:
    """Such a plane, and what makes clients of it."""
    told = Hanging()
    if way == "embedded":
        yield told, lambda **more: AsyncClient(transport=EmbeddedTransport(told.plane), **more)
    elif way == "grpc":
        server = GrpcServer(told.plane, GrpcConfig())
        server.start()
        try:
            yield told, lambda **more: AsyncClient(f"grpc://127.0.0.1:{server.port}", **more)
        finally:
            told.over.set()
            server.stop()
    else:
        with serving(told.plane, max_threads=96) as rest:
            url = f"http://127.0.0.1:{rest.port}"
            if way == "http":
                yield told, lambda **more: AsyncClient(url, **more)
            else:
                yield told, lambda **more: AsyncClient(transport=HttpTransport(url), **more)
            told.over.set()


async def until(found: threading.Semaphore) -> None:
    assert await asyncio.to_thread(found.acquire, timeout=PATIENCE)


LONG, SHORT = (np.eye(3), np.ones(3)), (np.eye(2), np.ones(2))


@pytest.mark.parametrize("way", ["embedded", "http", "grpc", "http on threads"])
def test_a_cancelled_call_is_taken_back_and_the_next_ones_are_served(way: str) -> None:
    async def main(told: Hanging, opening: Opening) -> None:
        async with opening() as client:
            for _ in range(3):
                task = asyncio.create_task(client.solve(*LONG))
                await until(told.begun)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await until(told.gone)
                assert (await client.solve(*SHORT)).x.tolist() == [1.0, 1.0]

    with hanging(way) as (told, opening):
        asyncio.run(main(told, opening))


def test_cancelled_calls_give_their_connections_back() -> None:
    """More than there are connections, so that some are cancelled while they wait for one."""

    async def main(told: Hanging, opening: Opening) -> None:
        async with opening() as client:
            tasks = [asyncio.create_task(client.solve(*LONG)) for _ in range(MOST_CONNECTIONS + 10)]
            for _ in range(MOST_CONNECTIONS):
                await until(told.begun)
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(each) for each in ended} == {asyncio.CancelledError}
            answers = await asyncio.gather(*(client.solve(*SHORT) for _ in range(2 * MOST_CONNECTIONS)))
            assert all(answer.x.tolist() == [1.0, 1.0] for answer in answers)

    with hanging("http") as (told, opening):
        asyncio.run(main(told, opening))


@pytest.mark.parametrize("way", ["embedded", "http", "grpc", "http on threads"])
def test_other_tasks_run_while_a_solve_does(way: str) -> None:
    """The solve ends because a task of the same loop lets it end."""

    async def main(told: Hanging, opening: Opening) -> Any:
        async with opening() as client:
            task = asyncio.create_task(client.solve(*LONG))
            await until(told.begun)
            told.over.set()
            return await task

    with hanging(way) as (told, opening):
        assert asyncio.run(main(told, opening)).x.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_a_call_ends_at_its_time(way: str) -> None:
    async def main(told: Hanging, opening: Opening) -> None:
        async with opening(timeout=0.2) as client:
            with pytest.raises(DeadlineError, match="timeout="):
                await client.solve(*LONG)
            assert (await client.solve(*SHORT, timeout=PATIENCE)).x.tolist() == [1.0, 1.0]

    with hanging(way) as (told, opening):
        asyncio.run(main(told, opening))


def test_waiting_for_a_connection_counts() -> None:
    async def main(told: Hanging, opening: Opening) -> None:
        async with opening() as client:
            tasks = [asyncio.create_task(client.solve(*LONG)) for _ in range(MOST_CONNECTIONS)]
            for _ in tasks:
                await until(told.begun)
            with pytest.raises(DeadlineError):
                await client.solve(*SHORT, timeout=0.2)
            told.over.set()
            await asyncio.gather(*tasks)

    with hanging("http") as (told, opening):
        asyncio.run(main(told, opening))


# -- what stays off the loop ------------------------------------------------------------------


class Noting:
    """An array that notes which thread looks into it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.threads = array, set[int]()

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self.threads.add(threading.get_ident())
        return np.asarray(self.array, dtype)


def test_large_operands_are_prepared_on_a_thread(url: str) -> None:
    noting = Noting(B)

    async def main() -> None:
        async with AsyncClient(url) as client:
            assert (await client.solve(A, noting)).x.tolist() == [0.5, 3.0]

    asyncio.run(main())
    assert noting.threads
    assert threading.get_ident() not in noting.threads


def test_a_closed_client_says_so(url: str) -> None:
    async def main(work: Callable[[AsyncClient], Awaitable[Any]]) -> None:
        client = AsyncClient(url, timeout=5.0)
        await client.solve(A, B)
        await client.close()
        await client.close()
        await work(client)

    for work in (lambda client: client.solve(A, B), lambda client: client.solve(A, Noting(B))):
        with pytest.raises(CancelledError, match="closed"):
            asyncio.run(main(work))


def test_the_same_numbers_come_as_to_a_client_that_blocks(url: str) -> None:
    a, b = convection(8, seed=951_470_226), random_like((64, 3), "float64", 480_027_713)
    calls: dict[str, Callable[[Any], Any]] = {
        "solve": lambda c: c.solve(a, b, rtol=1e-9),
        "vjp": lambda c: c.vjp(a, b, b),
        "served vjp": lambda c: c.vjp(a, b, b, values_on="server"),
        "jvp": lambda c: c.jvp(a, b, A_tangent=a, b_tangent=b),
        "lstsq": lambda c: c.lstsq(a, b, damp=0.5),
        "lstsq_vjp": lambda c: c.lstsq_vjp(a, b, b, b),
        "lstsq_jvp": lambda c: c.lstsq_jvp(a, b, b, b_tangent=b),
        "info": lambda c: c.info(),
    }

    async def awaited() -> dict[str, Any]:
        async with AsyncClient(url) as client:
            found = {name: await call(client) for name, call in calls.items()}
            handle = await client.factorized(a)
            found["factorized"] = await handle.solve(b, "H")
            assert handle.last.factor_hit
            return found | {"uploads": (await client.stats())["uploads"]}

    with Client(url) as client:
        client.solve(a, b, rtol=1e-9)
        expected = {name: call(client) for name, call in calls.items()} | {
            "factorized": client.factorized(a).solve(b, "H")
        }
        found = asyncio.run(awaited())
    assert found.pop("uploads") == 0
    assert found.keys() == expected.keys()
    for name, of_this in expected.items():
        of_that = found[name]
        for field in ("x", "b"):
            if hasattr(of_this, field):
                np.testing.assert_allclose(getattr(of_that, field), getattr(of_this, field), rtol=1e-12, atol=1e-13)
        if hasattr(of_this, "values"):
            np.testing.assert_allclose(of_that.values.toarray(), of_this.values.toarray(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found["factorized"], expected["factorized"], rtol=1e-12, atol=1e-13)
    assert found["info"] == expected["info"]
