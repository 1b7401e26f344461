"""Calls that wait for a block hold no thread: the event loop takes them up again when it has been solved."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from scipy.sparse import csr_array

from backsolve._rest.body import MEDIA_TYPE
from backsolve._rest.messages import solve_body
from backsolve._transports.base import PutCall, SolveCall, VjpCall
from backsolve._transports.http import HttpTransport
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import Options, Status
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.observer import Silent
from backsolve_service.rest.parking import Parking
from backsolve_service.scheduling.steps import Steps
from backsolve_service.scheduling.ticket import Ticket
from support.factors import caller, held_up, until
from support.rest import serving
from support.systems import convection, laplacian

TIMEOUT = 60.0
CALLERS = 12
HELD = 2
"""Jobs that hold the two threads of a worker still."""


class Bench:
    """A server with one worker, and a cached matrix that has been solved with in both directions."""

    def __init__(self, plane: DataPlane, transport: HttpTransport, port: int) -> None:
        self.plane, self.transport, self.port = plane, transport, port

    def cached(self, a: csr_array) -> Matrix:
        matrix = Matrix(Pattern.from_csr(a), a.data)
        self.transport.put(PutCall(matrix.ref, matrix), TIMEOUT)
        self.solve(matrix, np.ones(matrix.n))
        self.pull(matrix, np.ones(matrix.n))
        until(lambda: all(worker.asleep for worker in self.plane._scheduler._threads))
        return matrix

    def solve(self, matrix: Matrix, b: np.ndarray, timeout: float = TIMEOUT) -> np.ndarray:
        reply = self.transport.solve(SolveCall(matrix.ref, Options(), b), timeout)
        assert reply.certificate.status is Status.OK
        return reply.x

    def pull(self, matrix: Matrix, g: np.ndarray) -> np.ndarray:
        found = self.transport.vjp(VjpCall(matrix.ref, Options(), g, ("b",), None), TIMEOUT).b
        assert found is not None
        return found

    @property
    def waiting(self) -> int:
        return self.plane._scheduler.stats.depth


@pytest.fixture
def bench() -> Iterator[Bench]:
    plane = DataPlane(PlaneConfig(workers=1))
    with serving(plane) as server:
        transport = HttpTransport(f"http://127.0.0.1:{server.port}")
        yield Bench(plane, transport, server.port)
        transport.close()
    plane.close()


def pool_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("rest_")}


def test_calls_wait_without_threads_and_are_answered_together(bench: Bench) -> None:
    a = convection(20)
    matrix = bench.cached(a)
    sides = np.random.default_rng(40_771).standard_normal((CALLERS, matrix.n))
    before, threads = bench.plane.stats(), pool_threads()
    with ThreadPoolExecutor(CALLERS) as callers:
        with held_up(bench.plane._scheduler):
            waiting: list[Future[np.ndarray]] = [callers.submit(bench.solve, matrix, b) for b in sides]
            until(lambda: bench.waiting == CALLERS)
            assert pool_threads() == threads
        for b, found in zip(sides, waiting, strict=True):
            np.testing.assert_allclose(a @ found.result(TIMEOUT), b, atol=1e-10)
    after = bench.plane.stats()
    assert after["solves"] == before["solves"] + CALLERS
    assert after["columns"] == before["columns"] + CALLERS
    assert after["blocks"] < before["blocks"] + CALLERS
    assert (bench.plane.inflight, bench.waiting) == (0, 0)


def request(matrix: Matrix, *headers: str) -> bytes:
    """A solve as it goes over the wire."""
    body = b"".join(bytes(part) for part in solve_body(SolveCall(matrix.ref, Options(), np.ones(matrix.n))).parts)
    lines = [
        "POST /v1/solve HTTP/1.1",
        "host: a",
        f"content-type: {MEDIA_TYPE}",
        f"content-length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def test_the_deadline_ends_the_wait_and_frees_the_place(bench: Bench) -> None:
    matrix = bench.cached(convection(20))
    with held_up(bench.plane._scheduler), socket.create_connection(("127.0.0.1", bench.port), TIMEOUT) as waiting:
        waiting.sendall(request(matrix, "backsolve-timeout: 0.3"))
        answer = waiting.recv(4096)  # the caller stays: it is the server that gives up
        assert answer.startswith(b"HTTP/1.1 504")
        assert (bench.waiting, bench.plane._scheduler.stats.inflight) == (0, HELD)
    until(lambda: bench.plane.inflight == 0)
    np.testing.assert_allclose(convection(20) @ bench.solve(matrix, np.ones(matrix.n)), np.ones(matrix.n), atol=1e-10)


def test_a_caller_that_goes_away_frees_its_place(bench: Bench) -> None:
    matrix = bench.cached(convection(20))
    with held_up(bench.plane._scheduler):
        with socket.create_connection(("127.0.0.1", bench.port), TIMEOUT) as leaving:
            leaving.sendall(request(matrix))
            until(lambda: bench.waiting == 1)
        until(lambda: bench.waiting == 0)
        assert bench.plane._scheduler.stats.inflight == HELD, "the worker was let go"
    until(lambda: bench.plane.inflight == 0)


def test_what_settled_before_it_was_waited_for_is_taken() -> None:
    ticket: Ticket[int] = Ticket()
    ticket.set_result(3)

    def steps() -> Steps[int]:
        yield ticket
        return ticket.taken()

    async def never() -> None:
        await asyncio.Event().wait()

    async def main() -> int:
        return await asyncio.wait_for(Parking().finish(steps(), caller(), never), TIMEOUT)

    assert asyncio.run(main()) == 3


def test_a_call_that_is_given_up_midway_counts_as_cancelled() -> None:
    codes: list[str] = []

    class Listener(Silent):
        def request(self, op: str, transport: str, code: str, *_: object, **__: object) -> None:
            codes.append(code)

    plane = DataPlane(PlaneConfig(workers=1), Listener())
    matrix = Matrix(Pattern.from_csr(convection(6)), convection(6).data)
    plane.put(PutCall(matrix.ref, matrix), caller())
    call = SolveCall(matrix.ref, Options(), np.ones(matrix.n))
    plane.solve(call, caller())
    with held_up(plane._scheduler):
        steps = plane.solving(call, caller())
        next(steps)
        steps.close()
        assert (plane.inflight, plane._scheduler.stats.depth) == (0, 0)
    assert codes == ["OK", "OK", "CANCELLED"]
    plane.close()


def test_one_that_overflows_on_the_way_spoils_no_other(bench: Bench) -> None:
    a = convection(20)
    matrix = bench.cached(a)
    good, huge = np.ones(matrix.n), np.full(matrix.n, 1e308)
    with ThreadPoolExecutor(2) as callers:
        with held_up(bench.plane._scheduler):
            both = [
                callers.submit(bench.transport.solve, SolveCall(matrix.ref, Options(), b), TIMEOUT)
                for b in (good, huge)
            ]
            until(lambda: bench.waiting == 2)
        replies = [each.result(TIMEOUT) for each in both]
    np.testing.assert_allclose(a @ replies[0].x, good, atol=1e-10)
    assert replies[1].certificate.status in (Status.OK, Status.OUT_OF_RANGE)


@pytest.mark.parametrize(
    ("moved", "blocks"), [(0.0, 1), (2.0**-50, 2), (1.0, 2)], ids=["symmetric", "but for rounding", "nonsymmetric"]
)
def test_forward_and_adjoint_of_a_symmetric_matrix_share_a_block(bench: Bench, moved: float, blocks: int) -> None:
    a = laplacian(20)
    a.data[1] += moved  # its partner across the diagonal stays
    matrix = bench.cached(a)
    b, g = np.random.default_rng(61_008).standard_normal((2, matrix.n))
    before = bench.plane.stats()
    with ThreadPoolExecutor(2) as callers:
        with held_up(bench.plane._scheduler):
            x, lam = callers.submit(bench.solve, matrix, b), callers.submit(bench.pull, matrix, g)
            until(lambda: bench.waiting == 2)
        np.testing.assert_allclose(a @ x.result(TIMEOUT), b, atol=1e-11)
        np.testing.assert_allclose(a.T @ lam.result(TIMEOUT), g, atol=1e-11)
    assert bench.plane.stats()["blocks"] == before["blocks"] + blocks
