"""The proxy's configuration: it routes by what clients send, and three real servers behind it keep their matrices."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from backsolve import Client
from backsolve._transports.base import SolveCall
from backsolve._transports.grpc import GrpcTransport
from backsolve._transports.http import RestCalls
from backsolve.config import Endpoint
from backsolve.types import MatrixRef, Options
from support.servers import ServerProcess, free_port

CONFIG = Path(__file__).parents[2] / "deploy/haproxy/haproxy.cfg"
COUNT = 12


def test_both_backends_route_by_the_header_that_clients_send() -> None:
    headers = re.findall(r"balance hdr\((.*)\)", CONFIG.read_text())
    ref = MatrixRef(b"\x12" * 32, b"\x34" * 32)
    request = next(RestCalls(Endpoint("http", "h", 1)).solve(SolveCall(ref, Options(), np.ones(3)), None))
    over_rest = dict(line.split(": ", 1) for line in request.head.decode().split("\r\n")[1:] if line)
    over_grpc = dict(GrpcTransport("h:1")._headers(ref))
    assert len(headers) == 2
    for header in headers:
        assert over_rest[header] == over_grpc[header] == ref.route_key == "12" * 8


def test_both_backends_have_the_same_servers_in_the_same_order() -> None:
    servers = re.findall(r"^    server (\S+) \"(\$\{SOLVER\d-[^}]+\})", CONFIG.read_text(), re.MULTILINE)
    assert len(servers) == 6
    assert servers[:3] == servers[3:]


@pytest.fixture(scope="module")
def haproxy() -> str:
    found = shutil.which("haproxy")
    if found is None and "CONTAINER_TESTS" not in os.environ:
        pytest.skip("haproxy is not installed")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def behind(haproxy: str) -> Iterator[tuple[list[ServerProcess], dict[str, str]]]:
    """Three servers, and the URLs of the proxy before them."""
    with ExitStack() as opened:
        servers = [ServerProcess() for _ in range(3)]
        for server in servers:
            opened.callback(server.__exit__, None, None, None)
            server.start(wait=False)
        ports = {"REST_PORT": free_port(), "GRPC_PORT": free_port()}
        for number, server in enumerate(servers, 1):
            server.wait_ready()
            ports |= {f"SOLVER{number}_REST": server.http_port, f"SOLVER{number}_GRPC": server.grpc_port}
        environment = os.environ | {name: str(port) for name, port in ports.items()}
        proxy = subprocess.Popen([haproxy, "-f", CONFIG], env=environment, stdout=subprocess.DEVNULL)
        opened.callback(proxy.wait, 60)
        opened.callback(proxy.terminate)
        yield servers, {way: f"{way}://127.0.0.1:{ports[f'{name}_PORT']}" for way, name in NAMES.items()}


NAMES = {"http": "REST", "grpc": "GRPC"}


def factorizations(servers: list[ServerProcess]) -> list[float]:
    counts = []
    for server in servers:
        with Client(server.http_url) as direct:
            counts.append(direct.stats()["factorizations"])
    return counts


def test_the_configuration_is_valid(haproxy: str) -> None:
    done = subprocess.run([haproxy, "-c", "-f", CONFIG], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    spoiled = CONFIG.read_text().replace("balance hdr", "balance headers")
    done = subprocess.run(
        [haproxy, "-c", "-f", "/dev/stdin"], input=spoiled, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0


def test_matrices_keep_their_server_over_rest_and_grpc_alike(
    behind: tuple[list[ServerProcess], dict[str, str]],
) -> None:
    servers, urls = behind
    rng = np.random.default_rng(288_610_533)
    matrices = [rng.standard_normal((n, n)) + n * np.eye(n) for n in range(30, 30 + COUNT)]
    with Client(urls["http"]) as rest, Client(urls["grpc"]) as grpc:
        for _ in range(3):
            for client in (rest, grpc):
                for a in matrices:
                    np.testing.assert_allclose(a @ client.solve(a, np.ones(len(a))).x, np.ones(len(a)), atol=1e-10)
        spread = factorizations(servers)
        assert sum(spread) == COUNT
        assert rest.stats()["uploads"] == COUNT
        assert grpc.stats()["uploads"] == 0

        victim = spread.index(max(spread))
        servers[victim].kill()
        try:
            for a in matrices:
                np.testing.assert_allclose(a @ rest.solve(a, np.ones(len(a))).x, np.ones(len(a)), atol=1e-10)
            others = [server for server in servers if server is not servers[victim]]
            assert sum(factorizations(others)) == COUNT
            assert rest.stats()["uploads"] == COUNT + spread[victim]
        finally:
            servers[victim].start()
