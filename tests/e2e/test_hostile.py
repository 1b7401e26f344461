"""Whatever is sent to it, the server lives on, its memory returns, and every failure is counted."""

import http.client
import os
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from backsolve import Client
from backsolve.errors import BacksolveError, MemoryBudgetError, PayloadTooLargeError
from support.servers import ServerProcess
from support.systems import convection, laplacian

MIB = 1 << 20


@pytest.fixture(scope="module")
def small() -> Iterator[ServerProcess]:
    with ServerProcess(BACKSOLVE_CACHE_BYTES="48MiB", BACKSOLVE_MAX_PAYLOAD_BYTES="40MiB") as process:
        yield process


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def failures(server: ServerProcess) -> dict[tuple[str, str], float]:
    """`requests_total` by transport and code."""
    with urllib.request.urlopen(f"{server.http_url}/metrics") as page:
        text = page.read().decode()
    counts: dict[tuple[str, str], float] = {}
    for line in text.splitlines():
        if line.startswith("backsolve_requests_total{"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            key = labels["transport"], labels["code"]
            counts[key] = counts.get(key, 0.0) + float(line.rsplit(" ", 1)[1])
    return counts


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_memory_returns_after_many_matrices(small: ServerProcess, scheme: str) -> None:
    """60 matrices and factors of 8 MiB each pass through a cache of 48 MiB."""
    with Client(small.http_url if scheme == "http" else small.grpc_url) as client:
        n = 1024
        rng = np.random.default_rng(533_190_276)

        def pass_through(count: int) -> None:
            for _ in range(count):
                a = rng.standard_normal((n, n)) + n * np.eye(n)
                x = client.solve(a, np.ones(n), method="lu").x
                np.testing.assert_allclose(a @ x, 1.0, atol=1e-9)

        pass_through(8)
        settled = resident_bytes(small.pid)
        pass_through(30)
        grown = resident_bytes(small.pid) - settled
        assert client.stats()["cache_bytes"] <= 48 * MIB
        # 30 leaked matrices with their factors would be 480 MiB.
        assert grown < 64 * MIB


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_what_does_not_fit_is_refused_with_both_figures(small: ServerProcess, scheme: str) -> None:
    with Client(small.http_url if scheme == "http" else small.grpc_url) as client:
        with pytest.raises(PayloadTooLargeError, match=str(40 * MIB)) as caught:
            client.solve(np.eye(2400), np.ones(2400))
        assert int(caught.value.details["size"]) > 40 * MIB
        with pytest.raises(MemoryBudgetError, match="bytes"):
            client.solve(laplacian(300), np.ones(90_000), method="superlu")
        a = convection(5)
        np.testing.assert_allclose(a @ client.solve(a, np.ones(25)).x, 1.0, atol=1e-12)


def test_garbage_is_answered_and_counted(small: ServerProcess) -> None:
    before = failures(small)
    rng = np.random.default_rng(846_190_223)
    paths = ("/v1/solve", "/v1/vjp", "/v1/jvp", "/v1/matrices")
    types = ("application/json", "application/x-safetensors", "text/plain", "application/x-npz", "image/png")
    for round_ in range(40):
        connection = http.client.HTTPConnection("127.0.0.1", small.http_port, timeout=30)
        body = rng.bytes(int(rng.integers(0, 3000)))
        connection.request("POST", paths[round_ % 4], body, {"content-type": types[round_ % 5]})
        reply = connection.getresponse()
        text = reply.read()
        assert 400 <= reply.status < 500, (reply.status, text)
        assert b"reason" in text
        connection.close()
    after = failures(small)
    grown = {key: after[key] - before.get(key, 0.0) for key in after}
    assert sum(count for (transport, code), count in grown.items() if transport == "rest" and code != "OK") == 40
    assert not any(code == "INTERNAL" for (_, code), count in grown.items() if count)
    with Client(small.http_url) as client:
        assert client.solve(np.eye(2) * 4, np.ones(2)).x.tolist() == [0.25, 0.25]


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_each_refused_call_is_counted_once(small: ServerProcess, scheme: str) -> None:
    transport = "rest" if scheme == "http" else "grpc"
    with Client(small.http_url if scheme == "http" else small.grpc_url) as client:
        client.solve(np.eye(3), np.ones(3))
        before = failures(small)
        with pytest.raises(BacksolveError):
            client.solve(np.eye(3), np.ones(3), method="no such method")
        after = failures(small)
    assert after[transport, "INVALID_OPTION"] - before.get((transport, "INVALID_OPTION"), 0.0) == 1
