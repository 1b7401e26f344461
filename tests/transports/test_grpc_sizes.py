"""Calls of 3, 5 and 300 MB, calls beyond every limit, and which way each of them takes."""

import threading
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest

from backsolve._rpc import framing, replies
from backsolve._transports.base import JvpCall, PutCall, SolveCall, VjpCall
from backsolve._transports.grpc import GrpcTransport
from backsolve.errors import PayloadTooLargeError
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern
from backsolve.types import Limits, MatrixRef, Options, ServerInfo
from backsolve.v1 import solver_pb2_grpc as stubs
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.grpc.server import GrpcConfig, GrpcServer

REF = MatrixRef(b"\x3e" * 32, b"\x77" * 32)
TIMEOUT = 120
GIB = 1 << 30


@pytest.fixture(scope="module")
def plane() -> Iterator[DataPlane]:
    plane = DataPlane(PlaneConfig(workers=1))
    yield plane
    plane.close()


@pytest.fixture(scope="module")
def port(plane: DataPlane) -> Iterator[int]:
    server = GrpcServer(plane, GrpcConfig())
    server.start()
    yield server.port
    server.stop()


@pytest.fixture
def transport(port: int) -> Iterator[GrpcTransport]:
    opened = GrpcTransport(f"127.0.0.1:{port}")
    yield opened
    opened.close()


def counted(transport: GrpcTransport, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the methods that are called, in their order; on which channel says the prefix."""
    seen: list[str] = []
    connection = transport._connection()
    for channel in ("stub", "bulk"):
        stub = getattr(connection, channel)
        for name in [name for name in vars(stub) if not name.startswith("_")]:
            method = getattr(stub, name)

            def noted(*given: Any, method: Any = method, name: str = f"{channel}.{name}", **named: Any) -> Any:
                seen.append(name)
                return method(*given, **named)

            monkeypatch.setattr(stub, name, noted)
    return seen


@pytest.mark.parametrize(
    ("megabytes", "way"),
    [(0.1, ["stub.Solve"]), (3, ["stub.GetServerInfo", "stub.Solve"]), (5, ["stub.GetServerInfo", "bulk.SolveStream"])],
)
def test_small_calls_are_unary_and_large_ones_streamed_on_a_channel_of_their_own(
    transport: GrpcTransport, monkeypatch: pytest.MonkeyPatch, megabytes: float, way: list[str]
) -> None:
    matrix = Matrix(DensePattern((8, 8)), np.eye(8) * 2.5)
    transport.put(PutCall(matrix.ref, matrix), TIMEOUT)
    rhs = np.random.default_rng(277_301_845).standard_normal((8, int(megabytes * 1e6 / 64)))
    seen = counted(transport, monkeypatch)
    for _ in range(2):
        reply = transport.solve(SolveCall(matrix.ref, Options(), rhs), TIMEOUT)
        np.testing.assert_allclose(2.5 * reply.x, rhs, rtol=1e-13)
    assert seen == [*way, way[-1]]


def test_300_megabytes_go_both_ways(transport: GrpcTransport, plane: DataPlane) -> None:
    matrix = Matrix(DensePattern((8, 8)), np.eye(8) * 0.5)
    transport.put(PutCall(matrix.ref, matrix), TIMEOUT)
    rhs = np.random.default_rng(518_602_937).standard_normal((8, 300_000_000 // 64))
    assert rhs.nbytes == 300_000_000
    reply = transport.solve(SolveCall(matrix.ref, Options(), rhs), TIMEOUT)
    np.testing.assert_array_equal(reply.x, 2 * rhs)
    assert (transport.sent, transport.received) == (rhs.nbytes + 512, rhs.nbytes)


def test_calls_above_2_gib_fail_with_the_limit_and_send_nothing(transport: GrpcTransport) -> None:
    """The arrays are one number, repeated: whoever took a byte of them would have to allocate them all."""
    n = 2 * GIB // 8 + 1
    huge = np.broadcast_to(np.float64(1.5), (1, n))
    square = np.broadcast_to(np.float64(1.5), (16_500, 16_500))
    stored = Matrix(DensePattern((1, 1)), np.ones((1, 1)))
    stored.values, stored.pattern = square, DensePattern(square.shape)  # as a caller's array that is not copied
    for call in (
        lambda: transport.solve(SolveCall(REF, Options(), huge), TIMEOUT),
        lambda: transport.vjp(VjpCall(REF, Options(), huge), TIMEOUT),
        lambda: transport.jvp(JvpCall(REF, Options(), None, huge, None), TIMEOUT),
        lambda: transport.put(PutCall(REF, stored), TIMEOUT),
    ):
        with pytest.raises(PayloadTooLargeError, match=f"the limit is {GIB}") as caught:
            call()
        assert caught.value.details["limit"] == str(GIB)
        assert int(caught.value.details["size"]) > 2 * GIB
    assert transport.sent == 0


class Told(stubs.SolverServicer):  # type: ignore[misc]
    """A server that tells limits of its own, and answers nothing else."""

    def __init__(self) -> None:
        self.limits: Limits | None = None
        self.asked = threading.Semaphore(0)

    def GetServerInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.release()
        if self.limits is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")
        return replies.encode_info(ServerInfo("9", ("v1",), 1, "told", "cpu", (), (), (), self.limits))


@pytest.fixture
def told() -> Iterator[tuple[Told, GrpcTransport]]:
    server, servicer = grpc.server(futures.ThreadPoolExecutor(4)), Told()
    stubs.add_SolverServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    transport = GrpcTransport(f"127.0.0.1:{port}")
    yield servicer, transport
    transport.close()
    server.stop(0)


@pytest.mark.parametrize(
    ("limits", "fits"),
    [
        (Limits(8 << 20, GIB), True),
        (Limits(4 << 20, GIB), False),
        (Limits(0, 0), True),
        (None, True),
    ],
)
def test_the_way_follows_the_limits_that_the_server_tells(
    told: tuple[Told, GrpcTransport], limits: Limits | None, fits: bool
) -> None:
    servicer, transport = told
    servicer.limits = limits
    array = {"rhs": np.zeros(3 << 17)}  # 3 MiB
    for _ in range(3):
        assert transport._fits(array, array["rhs"], TIMEOUT) is fits
        assert transport._fits({}, array["rhs"], TIMEOUT) is fits
    assert not transport._fits({"rhs": np.zeros(framing.UNARY_BYTES // 8 + 1)}, None, TIMEOUT)
    assert servicer.asked.acquire(timeout=0)
    assert not servicer.asked.acquire(timeout=0)  # once for the connection


def test_a_limit_that_was_raised_meanwhile_is_asked_for_again(told: tuple[Told, GrpcTransport]) -> None:
    servicer, transport = told
    array = {"rhs": np.zeros(3 << 17)}
    servicer.limits = Limits(8 << 20, 1 << 20)
    with pytest.raises(PayloadTooLargeError, match="the limit is 1048576"):
        transport._fits(array, None, TIMEOUT)
    servicer.limits = Limits(8 << 20, 4 << 20)
    assert transport._fits(array, None, TIMEOUT)
