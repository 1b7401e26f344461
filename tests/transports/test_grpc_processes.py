"""What other processes do to a connection: a server that is killed and comes back, a client that forks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from backsolve._transports.base import PutCall, SolveCall
from backsolve._transports.grpc import GrpcTransport
from backsolve.errors import NeedMatrixError, UnreachableError
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern
from backsolve.types import Options
from support.servers import free_port

TIMEOUT = 60

SERVER = """
import signal, sys
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.grpc.server import GrpcConfig, GrpcServer

server = GrpcServer(DataPlane(PlaneConfig(workers=1)), GrpcConfig(port=int(sys.argv[1])))
server.start()
print("ready", flush=True)
signal.pause()
"""


class Killable:
    """A gRPC server in a process of its own, on a port that it keeps."""

    def __init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "-c", SERVER, str(self.port)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def freeze(self) -> None:
        """Let it accept connections and answer nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.communicate()


@pytest.fixture
def server() -> Iterator[Killable]:
    process = Killable()
    process.start()
    yield process
    process.kill()


def system() -> Matrix:
    rng = np.random.default_rng(691_470_382)
    return Matrix(DensePattern((8, 8)), rng.standard_normal((8, 8)) + 8 * np.eye(8))


def test_the_same_transport_meets_a_restarted_server(server):
    transport = GrpcTransport(f"127.0.0.1:{server.port}")
    matrix = system()
    small = SolveCall(matrix.ref, Options(), np.ones(8))
    large = SolveCall(matrix.ref, Options(), np.ones((8, 90_000)))
    transport.put(PutCall(matrix.ref, matrix), TIMEOUT)
    for call in (small, large):
        np.testing.assert_allclose(matrix.values @ transport.solve(call, TIMEOUT).x, call.rhs, atol=1e-9)
    server.kill()
    # Many failures in a row: with gRPC's own pauses the channel would now sleep for long.
    for _ in range(30):
        for call in (small, large):
            with pytest.raises(UnreachableError):
                transport.solve(call, TIMEOUT)
        time.sleep(0.1)
    server.start()
    for call in (small, large):
        with pytest.raises(NeedMatrixError):
            _once_reachable(lambda call=call: transport.solve(call, TIMEOUT))
    transport.close()


def _once_reachable(call) -> None:
    """Make the call until a server answers it."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        try:
            call()
        except UnreachableError:
            time.sleep(0.02)


def test_a_server_killed_in_mid_call_is_unreachable(server):
    transport = GrpcTransport(f"127.0.0.1:{server.port}")
    matrix = system()
    transport.put(PutCall(matrix.ref, matrix), TIMEOUT)
    calls = [SolveCall(matrix.ref, Options(), np.ones(8)), SolveCall(matrix.ref, Options(), np.ones((8, 90_000)))]
    for call in calls:  # both connections are up
        transport.solve(call, TIMEOUT)
    server.freeze()
    with ThreadPoolExecutor(2) as pool:
        pending = [pool.submit(transport.solve, call, None) for call in calls]
        time.sleep(0.3)
        assert not any(call.done() for call in pending)
        server.kill()
        assert [type(call.exception(TIMEOUT)) for call in pending] == [UnreachableError] * 2
    transport.close()


FORKING = """
import os, sys, threading
import numpy as np
from backsolve._transports.base import PutCall, SolveCall
from backsolve._transports.grpc import GrpcTransport
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern
from backsolve.types import Options

transport = GrpcTransport(sys.argv[1])
matrix = Matrix(DensePattern((8, 8)), 3 * np.eye(8))
transport.put(PutCall(matrix.ref, matrix), 30)
small, large = np.ones(8), np.ones((8, 90_000))

def solve(b):
    x = transport.solve(SolveCall(matrix.ref, Options(), b), 30).x
    assert abs(3 * x - b).max() < 1e-12

solve(small), solve(large)
busy = threading.Event()
def keep_busy():
    while not busy.is_set():
        solve(small)
thread = threading.Thread(target=keep_busy)
thread.start()
children = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            assert transport.sent == 0
            solve(small), solve(large), solve(small)
            assert transport.sent == small.nbytes * 2 + large.nbytes
            transport.close()
            code = 0
        finally:
            os._exit(code)
    children.append(pid)
    solve(large)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
busy.set()
thread.join()
solve(small), solve(large)
transport.close()
print(codes)
"""


def test_forked_children_and_their_parent_both_go_on(server):
    command = [sys.executable, "-c", FORKING, f"127.0.0.1:{server.port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0]", done.stderr
