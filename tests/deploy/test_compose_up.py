"""The stack as a user runs it: `docker compose up` with the built image, on a real engine.

`make test-containers` prepares the engine and runs this file; elsewhere it is skipped.
"""

import json
import os
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.sparse import csr_array, diags_array

import backsolve
from support.containers import MARKS, PATIENCE_SECONDS, Stack, run

HTTP, GRPC, PROMETHEUS = "127.0.0.1:8080", "127.0.0.1:50051", "127.0.0.1:9090"

pytestmark = MARKS

STACK = Stack(["compose.yaml"])
compose, container, inspect = STACK.compose, STACK.container, STACK.inspect
eventually, healthy = STACK.eventually, STACK.healthy


def get(url: str) -> dict[str, object]:
    with urllib.request.urlopen(url, timeout=30) as reply:
        return json.load(reply)


def ask_prometheus(query: str) -> list[dict[str, object]]:
    """The current samples of a PromQL query."""
    reply = get(f"http://{PROMETHEUS}/api/v1/query?" + urllib.parse.urlencode({"query": query}))
    return reply["data"]["result"]


def metric(name: str) -> float:
    """One sample of the service's own metrics page; 0 if it is not there."""
    with urllib.request.urlopen(f"http://{HTTP}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def poisson(n: int) -> csr_array:
    return csr_array(diags_array([2.0, -1.0, -1.0], offsets=[0, 1, -1], shape=(n, n)))


@pytest.fixture(scope="module", autouse=True)
def stack() -> Iterator[None]:
    """Solver and Prometheus up; Grafana's image cannot be had everywhere, its files have static checks."""
    try:
        STACK.up("solver", "prometheus")
        yield
    finally:
        STACK.down()


def test_curl_solves_through_the_published_port() -> None:
    body = json.dumps({"matrix": {"values": [[4.0, 1.0], [1.0, 3.0]]}, "b": [1.0, 2.0]})
    url, header = f"http://{HTTP}/v1/solve", "Content-Type: application/json"
    reply = json.loads(run("curl", "--silent", "--show-error", "--fail", "-H", header, "-d", body, url))
    np.testing.assert_allclose(reply["x"], [1 / 11, 7 / 11], rtol=1e-14)
    assert reply["certificate"]["status"] == "OK"


@pytest.mark.parametrize("url", [f"http://{HTTP}", f"grpc://{GRPC}"])
def test_the_client_solves_over_both_ports(url: str) -> None:
    a = poisson(5_003)
    b = np.random.default_rng(839_113_207).standard_normal(5_003)
    with backsolve.Client(url) as client:
        x = np.asarray(client.solve(a, b))
    assert np.linalg.norm(a @ x - b) <= 1e-9 * np.linalg.norm(b)


def test_the_process_has_no_rights() -> None:
    lines = run("podman", "exec", container(), "cat", "/proc/1/status").splitlines()
    status = dict(line.split(":\t", 1) for line in lines)
    assert status["Uid"].split() == ["10001"] * 4
    assert status["Gid"].split() == ["10001"] * 4
    assert int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert run("podman", "exec", container(), "cat", "/proc/1/comm").strip() == "backsolve-servi"  # no shell in between


def test_only_tmp_can_be_written() -> None:
    mounts = [line.split() for line in run("podman", "exec", container(), "cat", "/proc/1/mounts").splitlines()]
    options = {point: flags.split(",") for _, point, _, flags, *_ in mounts}
    assert "ro" in options["/"]
    run("podman", "exec", container(), "touch", "/tmp/probe")
    command = ["podman", "exec", "--user", "0", container(), "touch", "/opt/probe"]
    refused = subprocess.run(command, capture_output=True, check=False)
    assert b"Read-only file system" in refused.stderr


def test_the_image_tells_what_it_is_and_nothing_of_its_build() -> None:
    image = json.loads(run("podman", "image", "inspect", os.environ["SOLVER_IMAGE"]))[0]
    labels = image["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.version"] == backsolve.__version__
    assert image["Config"]["StopSignal"] in {"SIGTERM", "15"}
    told = json.dumps([image["Config"], image["History"]])
    assert "PIP_" not in told.replace("PIP_DISABLE_PIP_VERSION_CHECK", "")
    assert "BACKSOLVE_ALLOW_ANONYMOUS" not in json.dumps(image["Config"]["Env"])
    leftovers = run("podman", "exec", container(), "find", "/etc/pip.conf", "/run/build", "/src", check=False)
    assert leftovers == ""


def test_the_image_alone_refuses_an_open_network() -> None:
    command = ["podman", "run", "--rm", "--network", "none", os.environ["SOLVER_IMAGE"]]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert refused.returncode == 2
    assert "BACKSOLVE_ALLOW_ANONYMOUS" in refused.stderr


def test_ports_are_published_on_loopback_only() -> None:
    bindings = json.loads(inspect("{{json .HostConfig.PortBindings}}"))
    assert {(port, bind["HostIp"]) for port, binds in bindings.items() for bind in binds} == {
        ("8080/tcp", "127.0.0.1"),
        ("50051/tcp", "127.0.0.1"),
    }


def test_prometheus_scrapes_and_evaluates() -> None:
    with backsolve.Client(f"http://{HTTP}") as client:
        client.solve(poisson(101), np.ones(101))
    eventually(lambda: bool(ask_prometheus('up{job="backsolve"} == 1')), "the solver is scraped")
    eventually(lambda: bool(ask_prometheus('backsolve_requests_total{op="solve",code="OK"} > 0')), "a solve is counted")
    eventually(lambda: bool(ask_prometheus("backsolve:request_errors:ratio_rate5m")), "a rule is evaluated")
    rules = get(f"http://{PROMETHEUS}/api/v1/rules")["data"]["groups"]
    assert {rule["health"] for group in rules for rule in group["rules"]} <= {"ok", "unknown"}
    assert "BacksolveDown" in {rule["name"] for group in rules for rule in group["rules"]}


def test_sigterm_answers_what_runs_and_exits_cleanly() -> None:
    """The call is under way when the signal comes, so a service that just dies cannot answer it."""
    a, b = poisson(20_011), np.ones(20_011)
    answers: list[np.ndarray] = []

    def slow(maxiter: int) -> None:
        # No convergence is asked for, only iterations that last until the signal has arrived.
        with backsolve.Client(f"http://{HTTP}", timeout=PATIENCE_SECONDS) as client:
            answer = client.solve(a, b, method="cg", rtol=1e-15, maxiter=maxiter, on_failure="nan")
            answers.append(np.asarray(answer))

    slow(1)  # from now on the matrix is known, and the slow solve is one call
    caller = threading.Thread(target=slow, args=(15_000,))
    caller.start()
    eventually(lambda: metric("backsolve_inflight_requests") >= 1, "the slow solve runs")
    compose("stop", "--timeout", "60", "solver")
    caller.join(PATIENCE_SECONDS)
    assert [answer.shape for answer in answers] == [b.shape] * 2
    assert inspect("{{.State.ExitCode}}") == "0"
    lines = compose("logs", "--no-log-prefix", "solver").splitlines()
    messages = [json.loads(line)["message"] for line in lines if line.startswith("{")]
    assert [text for text in messages if text in {"draining", "stopped"}] == ["draining", "stopped"]
    compose("start", "solver")
    eventually(healthy, "the solver is healthy again")
    slow(1)
