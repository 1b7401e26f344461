"""The three ways in, for tests that must hold on each of them."""

from collections.abc import Iterator

import pytest

from backsolve import Client
from support.servers import ServerProcess

TRANSPORTS = ("embedded", "http", "grpc")


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """One service process for all tests that only talk to it."""
    with ServerProcess() as process:
        yield process


@pytest.fixture(params=TRANSPORTS)
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of the embedded engine, then of the server over HTTP, then over gRPC."""
    if request.param == "embedded":
        url = "embedded"
    else:
        running: ServerProcess = request.getfixturevalue("server")
        url = running.http_url if request.param == "http" else running.grpc_url
    with Client(url) as opened:
        yield opened


@pytest.fixture(scope="module")
def kept() -> Iterator[None]:
    """Keep the embedded engine from one test to the next, so that its worker processes start once."""
    with Client("embedded") as opened:
        opened.info()
        yield


@pytest.fixture
def embedded() -> Iterator[Client]:
    """A client of the embedded engine alone."""
    with Client("embedded") as opened:
        yield opened
