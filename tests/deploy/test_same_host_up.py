"""The stack with Unix sockets and shared memory, and a caller in a container of its own."""

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator

import pytest

from support.containers import MARKS, PATIENCE_SECONDS, Stack

pytestmark = MARKS

STACK = Stack(["compose.yaml", "compose.same-host.yaml"])

CALL = """
import json
import numpy as np
from scipy.sparse import diags_array
import backsolve

n = 200_000
a = diags_array([2.5, -1.0, -1.2], offsets=[0, 1, -1], shape=(n, n)).tocsr()
b = np.random.default_rng(662_190_437).standard_normal(n)
with backsolve.Client() as client:
    residual = float(np.linalg.norm(a @ client.solve(a, b).x - b) / np.linalg.norm(b))
    hit = client.solve(a, b).stats.factor_hit
    counts = client.stats()
    print(json.dumps([residual, hit, counts["uploads"]]), flush=True)
    input()
"""


@pytest.fixture(scope="module", autouse=True)
def stack() -> Iterator[None]:
    try:
        STACK.up("solver")
        yield
    finally:
        STACK.down()


def shared_bytes() -> float:
    with urllib.request.urlopen("http://127.0.0.1:8080/metrics", timeout=30) as page:
        lines = page.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("backsolve_shared_bytes "))


def test_a_caller_in_another_container_solves_in_shared_memory() -> None:
    volume = STACK.inspect('{{range .Mounts}}{{if eq .Destination "/run/backsolve"}}{{.Name}}{{end}}{{end}}')
    assert volume
    url = "BACKSOLVE_URL=backsolve+unix:/run/backsolve/http"
    command = ["podman", "run", "--rm", "--interactive", "--network", "none", "--user", "10001:10001", "--env", url]
    command += [
        "--volume",
        f"{volume}:/run/backsolve",
        "--entrypoint",
        "python",
        os.environ["SOLVER_IMAGE"],
        "-c",
        CALL,
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdin is not None
        assert caller.stdout is not None
        line = caller.stdout.readline()
        during = shared_bytes() if line else 0.0
        caller.communicate("\n", timeout=PATIENCE_SECONDS)
    assert caller.returncode == 0
    residual, hit, uploads = json.loads(line)
    assert residual <= 1e-12
    assert hit is True
    assert uploads == 1
    assert during >= 200_000 * 8
    STACK.eventually(lambda: shared_bytes() == 0, "what a caller shared goes with it")
