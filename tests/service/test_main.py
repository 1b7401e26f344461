"""The console script as a real process: how it starts, answers, tells, drains and ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from scipy import sparse

from backsolve import Client
from backsolve.errors import DrainingError, SingularMatrixError, UnauthenticatedError, UnreachableError
from support.servers import ServerProcess, free_port
from support.systems import convection, laplacian

PATIENCE = 90.0
TLS = Path(__file__).parents[1] / "transports" / "tls"
SOLVER = "backsolve.v1.Solver"
NAMES = {
    "requests",
    "request_duration_seconds",
    "queue_wait_seconds",
    "phase_duration_seconds",
    "inflight_requests",
    "queue_depth",
    "request_bytes",
    "response_bytes",
    "batch_rhs",
    "solver_iterations",
    "relative_residual",
    "not_converged",
    "cache_lookups",
    "cache_bytes",
    "cache_entries",
    "cache_evictions",
    "factorizations",
    "bytes_not_sent",
    "device_memory_bytes",
    "shared_regions",
    "shared_bytes",
    "build_info",
}


def run(*arguments, **variables):
    """The console script to its end."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BACKSOLVE_")}
    command = [sys.executable, "-m", "backsolve_service.main", *arguments]
    return subprocess.run(
        command, env=inherited | variables, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd="/"
    )


def get(server, path):
    """Status and body of a GET."""
    try:
        with urllib.request.urlopen(server.http_url + path, timeout=PATIENCE) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as err:
        return err.code, err.read()


def samples(server):
    """Every sample of /metrics: (name, labels) → value."""
    status, body = get(server, "/metrics")
    assert status == 200
    families = text_string_to_metric_families(body.decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def requests(server, transport, op="solve", code="OK"):
    labels = (("code", code), ("op", op), ("transport", transport))
    return samples(server).get(("backsolve_requests_total", labels), 0.0)


def health(server, service):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=PATIENCE)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


def until(condition):
    """Wait for something that must happen; fail if it does not."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def exit_code(server):
    """That of a server which was asked to end; another signal would cut its end short."""
    process = server._process
    assert process is not None
    return process.wait(PATIENCE)


def cube(m):
    """7-point Laplacian of an m x m x m grid, drifting: a few seconds of factorization from few bytes."""
    line = sparse.diags_array([-1.1, 2.0, -0.9], offsets=[-1, 0, 1], shape=(m, m))
    eye = sparse.eye_array(m)
    plane = sparse.kron(line, eye) + sparse.kron(eye, line)
    return sparse.csr_array(sparse.kron(plane, eye) + sparse.kron(sparse.eye_array(m * m), line))


@contextmanager
def long_solve(server, url):
    """A solve under way; yields a function that waits for its outcome."""
    a = cube(30)
    b = np.random.default_rng(671_240_953).standard_normal(a.shape[0])
    outcome = []
    before = factor_misses(server)

    def call():
        try:
            with Client(url, timeout=PATIENCE) as client:
                outcome.append(client.solve(a, b, method="superlu").x)
        except Exception as err:
            outcome.append(err)

    def result():
        thread.join(PATIENCE)
        (found,) = outcome
        if isinstance(found, Exception):
            raise found
        np.testing.assert_allclose(a @ found, b, rtol=0, atol=1e-8)

    thread = threading.Thread(target=call)
    thread.start()
    until(lambda: outcome or factor_misses(server) > before)
    assert not outcome, "the solve was too short to be watched"
    yield result
    thread.join(PATIENCE)


def factor_misses(server):
    """Factorizations that calls have asked for; the cache is asked inside a call that was taken."""
    return samples(server)[("backsolve_cache_lookups_total", (("level", "factor"), ("result", "miss")))]


@pytest.fixture(scope="module")
def server():
    """One service for the tests that leave it running."""
    with ServerProcess(BACKSOLVE_INSTANCE="replica-5") as process:
        yield process


@pytest.fixture
def mortal():
    """A service that a test may end."""
    with ServerProcess(BACKSOLVE_INSTANCE="replica-5", BACKSOLVE_DRAIN_SECONDS="60") as process:
        yield process


# -- before it serves --------------------------------------------------------------------------


def test_help_lists_every_variable():
    done = run("--help")
    assert done.returncode == 0
    assert "BACKSOLVE_HTTP_PORT" in done.stdout
    assert "[8080]" in done.stdout


def test_version():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, "backsolve-service 0.1.0\n")


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        (
            {"BACKSOLVE_HTPP_PORT": "1"},
            "BACKSOLVE_HTPP_PORT: there is no such setting; the nearest is BACKSOLVE_HTTP_PORT",
        ),
        ({"BACKSOLVE_HTTP_PORT": "high"}, "BACKSOLVE_HTTP_PORT='high': "),
        ({"BACKSOLVE_HOST": "0.0.0.0"}, "BACKSOLVE_HOST lies beyond loopback"),
    ],
)
def test_a_wrong_setting_is_one_line_and_code_2(variables, line):
    done = run(**variables)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"backsolve-service: {line}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("which", ["BACKSOLVE_HTTP_PORT", "BACKSOLVE_GRPC_PORT"])
def test_a_taken_port_is_one_line_and_code_1(which):
    ports = {"BACKSOLVE_HTTP_PORT": "0", "BACKSOLVE_GRPC_PORT": "0"}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(**ports | {which: str(port)})
    assert done.returncode == 1
    (line,) = map(json.loads, done.stderr.splitlines())
    assert line["level"] == "error"
    assert line["message"] == f"cannot listen on 127.0.0.1 port {port}: Address already in use; choose another {which}"


def test_one_port_for_both_is_refused():
    port = str(free_port())
    done = run(BACKSOLVE_HTTP_PORT=port, BACKSOLVE_GRPC_PORT=port)
    assert done.returncode == 1
    assert "are the same" in done.stderr


@pytest.mark.parametrize("broken", ["BACKSOLVE_TLS_CERT", "BACKSOLVE_TLS_KEY", "BACKSOLVE_TLS_CLIENT_CA"])
def test_a_broken_tls_file_is_told_by_its_name(broken, tmp_path):
    files = dict.fromkeys(("BACKSOLVE_TLS_CERT", "BACKSOLVE_TLS_CLIENT_CA"), TLS / "cert.pem")
    files |= {"BACKSOLVE_TLS_KEY": TLS / "key.pem", broken: tmp_path / "junk.pem"}
    (tmp_path / "junk.pem").write_text("junk")
    done = run(BACKSOLVE_HTTP_PORT="0", BACKSOLVE_GRPC_PORT="0", **{name: str(path) for name, path in files.items()})
    assert done.returncode == 1
    (line,) = map(json.loads, done.stderr.splitlines())
    assert broken in line["message"]
    assert "cannot be used" in line["message"]


def test_free_ports_are_announced_in_one_line_on_stdout():
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BACKSOLVE_")}
    variables = {"BACKSOLVE_HTTP_PORT": "0", "BACKSOLVE_GRPC_PORT": "0", "BACKSOLVE_INSTANCE": "r-1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "backsolve_service.main"], env=inherited | variables, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        assert {line["message"], line["instance"], line["host"]} == {"serving", "r-1", "127.0.0.1"}
        assert line["pid"] == process.pid
        with (
            Client(f"http://127.0.0.1:{line['http_port']}") as http,
            Client(f"grpc://127.0.0.1:{line['grpc_port']}") as rpc,
        ):
            assert http.info().instance == rpc.info().instance == "r-1"
            assert rpc.info().http_port == line["http_port"]
            assert http.info().grpc_port == line["grpc_port"]
    finally:
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(PATIENCE) == 0
        process.stdout.close()
    assert rest == ""


def test_variables_of_kubernetes_do_not_stop_it():
    with ServerProcess(
        BACKSOLVE_PORT="tcp://10.96.0.12:8080",
        BACKSOLVE_SERVICE_HOST="10.96.0.12",
        BACKSOLVE_SERVICE_PORT="8080",
        BACKSOLVE_SERVICE_PORT_HTTP="8080",
        BACKSOLVE_PORT_8080_TCP_ADDR="10.96.0.12",
        BACKSOLVE_URL="http://elsewhere:8080",
    ) as server:
        assert get(server, "/readyz")[0] == 200


# -- while it serves ---------------------------------------------------------------------------


def test_both_ways_in_answer_and_are_counted_apart(server):
    a, b = laplacian(6), np.ones(36)
    for transport, url in (("rest", server.http_url), ("grpc", server.grpc_url)):
        before = requests(server, transport)
        with Client(url) as client:
            solution = client.solve(a, b)
        np.testing.assert_allclose(a @ solution.x, b, rtol=1e-10)
        assert solution.stats.instance == "replica-5"
        assert requests(server, transport) == before + 1
    assert requests(server, "embedded", op="put") == 0  # the self-test is nobody's request
    assert health(server, SOLVER) == health(server, "") == "SERVING"


def test_every_metric_has_its_name(server):
    with Client(server.http_url) as client:
        client.solve(laplacian(5), np.ones(25))
    status, body = get(server, "/metrics")
    assert status == 200
    found = {family.name for family in text_string_to_metric_families(body.decode())}
    assert {f"backsolve_{name}" for name in NAMES} <= found
    assert "process_resident_memory_bytes" in found
    assert not any(name.endswith("_created") for name in found)


def test_an_error_is_counted_under_its_code(server):
    before = requests(server, "grpc", code="SINGULAR_MATRIX")
    with Client(server.grpc_url) as client, pytest.raises(SingularMatrixError):
        client.solve(np.zeros((3, 3)), np.ones(3))
    assert requests(server, "grpc", code="SINGULAR_MATRIX") == before + 1


def test_log_lines_are_json_with_the_request_id_and_without_the_numbers(server):
    secret = 8765.4321234
    a = np.diag([secret, 2.0, 3.0])
    with Client(server.http_url) as client:
        client.solve(a, np.array([1.0, secret, 1.0]))
    body = json.dumps({"matrix": {"values": [[secret]]}, "b": [secret, "x"]}).encode()
    headers = {"content-type": "application/json", "x-request-id": "trace-me-17"}
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(f"{server.http_url}/v1/solve", body, headers), timeout=PATIENCE)
    caught.value.close()
    lines = [json.loads(line) for line in server.log().splitlines()]
    assert all(line["instance"] == "replica-5" for line in lines)
    calls = [line for line in lines if line["message"] == "call" and line["op"] == "solve"]
    assert calls
    for line in calls:
        assert line["request_id"]
        assert line["seconds"] >= 0
        assert {"code", "request_bytes", "response_bytes"} <= set(line)
    assert "8765" not in server.log()


def test_a_callers_request_id_is_in_the_access_line(server):
    body = json.dumps({"matrix": {"values": [[2.0, 0.0], [0.0, 4.0]]}, "b": [2.0, 4.0]}).encode()
    headers = {"content-type": "application/json", "x-request-id": "trace-me-18"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{server.http_url}/v1/solve", body, headers), timeout=PATIENCE
    ) as reply:
        assert reply.headers["x-request-id"] == "trace-me-18"
    calls = [line for line in server.log_records() if line["message"] == "call" and line["op"] == "solve"]
    assert calls[-1]["request_id"] == "trace-me-18"


def test_health_answers_while_a_solve_runs(server):
    with long_solve(server, server.http_url) as result:
        for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready"):
            assert get(server, path)[0] == 200
        assert health(server, "") == health(server, SOLVER) == "SERVING"
        assert samples(server)[("backsolve_inflight_requests", ())] == 1  # it was running all the while
        result()


def test_a_token_is_asked_for_and_never_logged():
    with ServerProcess(BACKSOLVE_TOKEN="s3cr3t-51d0") as server:
        a, b = convection(4), np.ones(16)
        for url in (server.http_url, server.grpc_url):
            with Client(url, token="s3cr3t-51d0") as client:
                np.testing.assert_allclose(a @ client.solve(a, b).x, b, rtol=1e-10)
            with Client(url, token="wrong") as client, pytest.raises(UnauthenticatedError):
                client.solve(a, b)
        assert "s3cr3t" not in server.log()


def test_over_tls_both_ways_in_and_the_health_check_answer():
    variables = {"BACKSOLVE_TLS_CERT": str(TLS / "cert.pem"), "BACKSOLVE_TLS_KEY": str(TLS / "key.pem")}
    server = ServerProcess(**variables)
    try:
        server.start(wait=False)
        probe = [sys.executable, "-c", "from backsolve_service.healthcheck import main; main()"]
        environment = os.environ | variables | {"BACKSOLVE_HTTP_PORT": str(server.http_port)}

        def healthy():
            assert server._process.poll() is None, server.log()
            return subprocess.run(probe, env=environment, check=False, capture_output=True).returncode == 0

        until(healthy)
        a, b = convection(4), np.ones(16)
        for url in (f"https://127.0.0.1:{server.http_port}", f"grpcs://127.0.0.1:{server.grpc_port}"):
            with Client(url, ca_file=variables["BACKSOLVE_TLS_CERT"]) as client:
                np.testing.assert_allclose(a @ client.solve(a, b).x, b, rtol=1e-10)
        with Client(server.http_url, timeout=0.5) as client, pytest.raises((UnreachableError, TimeoutError)):
            client.solve(a, b)
        assert server.stop() == 0
        assert all(line.startswith("{") for line in server.log().splitlines())
    finally:
        server.stop()


# -- its end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_it_ends_with_code_0(number):
    server = ServerProcess()
    with server:
        with Client(server.http_url) as http, Client(server.grpc_url) as rpc:
            for client in (http, rpc):  # open connections do not keep it
                client.info()
            os.kill(server.pid, number)
            assert exit_code(server) == 0
        messages = [line["message"] for line in server.log_records()]
        assert messages[-2:] == ["draining", "stopped"]


def test_a_caller_who_watches_its_health_does_not_keep_it(mortal):
    with grpc.insecure_channel(f"127.0.0.1:{mortal.grpc_port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SOLVER))
        heard = [health_pb2.HealthCheckResponse.ServingStatus.Name(next(watch).status)]
        os.kill(mortal.pid, signal.SIGTERM)
        heard.append(health_pb2.HealthCheckResponse.ServingStatus.Name(next(watch).status))
        assert exit_code(mortal) == 0
        watch.cancel()
    assert heard == ["SERVING", "NOT_SERVING"]


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_a_running_solve_is_answered_before_it_ends(mortal, transport):
    url = mortal.http_url if transport == "rest" else mortal.grpc_url
    with long_solve(mortal, url) as result:
        os.kill(mortal.pid, signal.SIGTERM)
        until(lambda: get(mortal, "/readyz")[0] == 503)
        assert get(mortal, "/livez")[0] == 200
        assert health(mortal, SOLVER) == "NOT_SERVING"
        for other in (mortal.http_url, mortal.grpc_url):
            with Client(other, timeout=0.5) as client, pytest.raises((DrainingError, UnreachableError, TimeoutError)):
                client.solve(laplacian(5), np.ones(25))
        result()
    assert exit_code(mortal) == 0


def test_calls_that_outlast_the_drain_are_told_and_counted():
    server = ServerProcess(BACKSOLVE_DRAIN_SECONDS="0")
    with server:
        with long_solve(server, server.http_url) as result:
            assert server.stop() == 1
            with pytest.raises((UnreachableError, TimeoutError, DrainingError)):
                result()
        (line,) = [line for line in server.log_records() if "calls" in line]
        assert (line["level"], line["calls"]) == ("error", 1)
        assert "BACKSOLVE_DRAIN_SECONDS" in str(line["message"])


def test_the_second_signal_ends_it_at_once(mortal):
    with long_solve(mortal, mortal.grpc_url) as result:
        os.kill(mortal.pid, signal.SIGTERM)
        until(lambda: get(mortal, "/readyz")[0] == 503)
        assert mortal.stop() == 128 + signal.SIGTERM
        with pytest.raises((UnreachableError, TimeoutError)):
            result()


def test_a_second_service_on_its_ports_fails_and_harms_nothing(server):
    other = run(BACKSOLVE_HTTP_PORT=str(server.http_port), BACKSOLVE_GRPC_PORT=str(server.grpc_port))
    assert other.returncode == 1
    assert "Address already in use" in other.stderr
    assert get(server, "/readyz")[0] == 200
