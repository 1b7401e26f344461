"""The ways in, for tests that must hold on each of them."""

import os
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec

import pytest

from backsolve import Client
from backsolve._transports.http import HttpTransport
from backsolve._transports.shared import SharedMemory
from support.awaiting import AwaitedClient
from support.servers import ServerProcess

# Programs that run once are not worth optimising: of the time of the tests of JAX half would be LLVM's, and half of the
# rest goes into emitters whose loops are faster, and slow to make. What is computed is the same; the examples of the
# README run without either flag. Read when JAX first computes something, in this process or one of its own; jaxlib 0.7
# to 0.12 know the first, and 0.12 not the second: a process that meets an unknown one ends with its name.
_FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false"]
if find_spec("jaxlib") is not None:
    _known = 2 if tuple(map(int, version("jaxlib").split(".")[:2])) <= (0, 10) else 1
    os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS[:_known]))

TRANSPORTS = ("embedded", "http", "grpc")
"""What every test of `client` runs on."""

SAME_HOST = ("unix", "grpc+unix", "shared")
"""What tests marked `same_host` run on as well: Unix sockets, and HTTP with every array in shared memory."""

AWAITED = ("embedded", "http", "grpc", "unix")
"""What tests marked `awaited` run on as well, through `AsyncClient`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options that run every test of `client` on what is else left to the tests marked for it."""
    parser.addoption(
        "--same-host", action="store_true", help="every test of `client` over Unix sockets and in shared memory too"
    )
    parser.addoption("--awaited", action="store_true", help="every test of `client` through AsyncClient too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the other sockets, shared memory, and the awaited calls, of tests that did not ask for them."""
    dropped = set()
    for only, asked, option in (
        ("other_socket", "same_host", "--same-host"),
        ("through_async", "awaited", "--awaited"),
    ):
        if not config.getoption(option):
            dropped |= {item for item in items if item.get_closest_marker(only) and not item.get_closest_marker(asked)}
    if dropped:
        config.hook.pytest_deselected(items=[*dropped])
        items[:] = [item for item in items if item not in dropped]


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """One service process for all tests that only talk to it."""
    with ServerProcess() as process:
        yield process


@pytest.fixture(
    params=[
        *TRANSPORTS,
        *(pytest.param(name, marks=pytest.mark.other_socket) for name in SAME_HOST),
        *(pytest.param(f"async {name}", marks=pytest.mark.through_async) for name in AWAITED),
    ]
)
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of the embedded engine, then of the server over HTTP, then over gRPC, over Unix sockets, and so on."""
    kind, _, transport = request.param.rpartition(" ")
    if transport == "embedded":
        made = AwaitedClient("embedded") if kind else Client("embedded")
    else:
        running: ServerProcess = request.getfixturevalue("server")
        if transport == "shared":
            memory = SharedMemory(f"{running.folder}/shared", least_bytes=1)
            made = Client(transport=HttpTransport(running.url("unix"), shared=memory))
        else:
            made = AwaitedClient(running.url(transport)) if kind else Client(running.url(transport))
    with made as opened:
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
