"""A `backsolve-service` of one's own on 127.0.0.1, for as long as a `with` block lasts."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import final

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
    with LocalServer(settings) as running:
        yield Server(running.http, running.grpc, running.pid)


@final
class LocalServer:
    """One service that may be killed and started again on the same ports as often as its owner likes.

    Args:
        settings: further `BACKSOLVE_*` variables.
        command: what is started; by default the installed `backsolve-service`.

    Attributes:
        http: its REST URL.
        grpc: its gRPC URL.
    """

    def __init__(self, settings: dict[str, str], command: Sequence[str] | None = None) -> None:
        self._http_port, self._grpc_port = _free_port(), _free_port()
        self.http = f"http://127.0.0.1:{self._http_port}"
        self.grpc = f"grpc://127.0.0.1:{self._grpc_port}"
        self._settings = settings
        self._command = [str(Path(sys.executable).parent / "backsolve-service")] if command is None else list(command)
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by __exit__)
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """The process that runs now, or ran last.

        Raises:
            RuntimeError: none was started yet.
        """
        if self._process is None:
            raise RuntimeError("the service was not started yet: use it in a `with` block")
        return self._process.pid

    def start(self, *, wait: bool = True) -> None:
        """Start the service; with `wait`, return once it is ready.

        Raises:
            RuntimeError: it ended, or was not ready in time; the text holds its log.
        """
        # The caller's own BACKSOLVE_* variables are for its client, or for another server.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BACKSOLVE_")}
        environment |= {"BACKSOLVE_HTTP_PORT": str(self._http_port), "BACKSOLVE_GRPC_PORT": str(self._grpc_port)}
        self._process = subprocess.Popen(
            self._command, env=environment | self._settings, stdout=self._log, stderr=subprocess.STDOUT, text=True
        )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Return once the service takes calls.

        Raises:
            RuntimeError: it ended, or was not ready in time; the text holds its log.
        """
        assert self._process is not None
        try:
            _wait_until_ready(self._process, self._http_port)
        except _NotReadyError as err:
            self.stop()
            raise RuntimeError(f"{err}; its log:\n{self.log()[-4000:]}") from None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the service, if it still runs."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it without a word (kill -9)."""
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def stop(self) -> None:
        """End it as an operator would, with SIGTERM."""
        if self._process is not None:
            _stop(self._process)

    def log(self) -> str:
        """Everything that it has written so far."""
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).decode(errors="replace")

    def __enter__(self) -> "LocalServer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._log.close()


class _NotReadyError(Exception):
    """The service did not come up."""


def _wait_until_ready(process: "subprocess.Popen[str]", port: int) -> None:
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


def _stop(process: "subprocess.Popen[str]") -> None:
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
