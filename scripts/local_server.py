"""A `backsolve-service` of one's own on 127.0.0.1, for as long as a `with` block lasts."""

import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 120.0
STOP_SECONDS = 30.0


@dataclass(frozen=True)
class Server:
    """A running service.

    Attributes:
        http: its REST URL.
        grpc: its gRPC URL.
        pid: its process.
    """

    http: str
    grpc: str
    pid: int


@contextmanager
def local_server(**settings: str) -> Iterator[Server]:
    """Start a service on free ports, wait until it is ready, and stop it by its pid.

    Args:
        settings: further `BACKSOLVE_*` variables, e.g. `BACKSOLVE_WORKERS="1"`.

    Raises:
        RuntimeError: it ended, or was not ready in time; the text holds its log.
    """
    http_port, grpc_port = _free_port(), _free_port()
    # The caller's own BACKSOLVE_* variables are for its client, or for another server.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BACKSOLVE_")}
    environment |= {"BACKSOLVE_HTTP_PORT": str(http_port), "BACKSOLVE_GRPC_PORT": str(grpc_port), **settings}
    command = [str(Path(sys.executable).parent / "backsolve-service")]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_ready(process, http_port)
            yield Server(f"http://127.0.0.1:{http_port}", f"grpc://127.0.0.1:{grpc_port}", process.pid)
        except _NotReadyError as err:
            _stop(process)
            log.seek(0)
            raise RuntimeError(f"{err}; its log:\n{log.read()[-4000:]}") from None
        finally:
            _stop(process)


class _NotReadyError(Exception):
    """The service did not come up."""


def _wait_until_ready(process: "subprocess.Popen[bytes] | subprocess.Popen[str]", port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise _NotReadyError(f"the service ended with exit status {process.returncode}")
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", "/readyz")
                if connection.getresponse().status == http.HTTPStatus.OK:
                    return
            finally:
                connection.close()
        time.sleep(0.05)
    raise _NotReadyError(f"the service was not ready within {START_SECONDS:.0f} s")


def _stop(process: "subprocess.Popen[bytes] | subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
