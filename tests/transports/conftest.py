"""A gRPC server over a real data plane, on a free port of the loopback interface."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import numpy as np
import pytest

from backsolve._rpc.framing import channel_options
from backsolve._transports.base import PutCall
from backsolve._transports.grpc import GrpcTransport
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.grpc.server import GrpcConfig, GrpcServer
from backsolve_service.metrics import Metrics

PAYLOAD_LIMIT = 64 << 20


@dataclass(frozen=True)
class Running:
    """A server with all that stands behind it."""

    plane: DataPlane
    metrics: Metrics
    server: GrpcServer

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.server.port}"


@contextmanager
def run(config: GrpcConfig, **plane: object) -> Iterator[Running]:
    metrics = Metrics()
    data = DataPlane(PlaneConfig(workers=1, max_payload_bytes=PAYLOAD_LIMIT, **plane), metrics)
    server = GrpcServer(data, config)
    server.start()
    try:
        yield Running(data, metrics, server)
    finally:
        server.stop()
        data.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with run(GrpcConfig()) as started:
        yield started


@pytest.fixture
def transport(running: Running) -> Iterator[GrpcTransport]:
    opened = GrpcTransport(running.target)
    yield opened
    opened.close()


@pytest.fixture
def channel(running: Running) -> Iterator[grpc.Channel]:
    """What a client that is not ours would use."""
    with grpc.insecure_channel(running.target, channel_options()) as opened:
        yield opened


@pytest.fixture
def held(transport: GrpcTransport) -> Matrix:
    """A small matrix that the server has."""
    rng = np.random.default_rng(520_816_394)
    matrix = Matrix(DensePattern((8, 8)), rng.standard_normal((8, 8)) + 8 * np.eye(8))
    assert transport.put(PutCall(matrix.ref, matrix), 30) == matrix.ref
    return matrix
