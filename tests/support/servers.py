"""A real `backsolve-service` process on free ports of the loopback interface."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType


def free_port() -> int:
    """A TCP port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """One service process; killed and started again on the same ports as often as a test likes.

    It runs under the interpreter of the tests, or, where these have the client alone, under the one that
    BACKSOLVE_SERVER_PYTHON names.

    Args:
        environment: further BACKSOLVE_* variables.
    """

    def __init__(self, **environment: str) -> None:
        self.http_port, self.grpc_port = free_port(), free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="backsolve-"))
        self._environment = environment
        self._log = Path(tempfile.mkstemp(prefix="backsolve-", suffix=".log")[1])
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://127.0.0.1:{self.grpc_port}"

    def url(self, transport: str) -> str:
        """How a client reaches it by "http", "grpc", "unix" or "grpc+unix"."""
        return {
            "http": self.http_url,
            "grpc": self.grpc_url,
            "unix": f"unix:{self.folder}/http",
            "grpc+unix": f"grpc+unix:{self.folder}/grpc",
        }[transport]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def ended(self) -> int | None:
        """Its exit code, or None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def log(self) -> str:
        """Everything the process has written."""
        return self._log.read_text()

    def log_records(self) -> list[dict[str, object]]:
        """Its JSON log lines."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def start(self, wait: bool = True) -> "ServerProcess":
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("BACKSOLVE_")}
        environment = {
            **inherited,
            "OMP_NUM_THREADS": "1",
            "BACKSOLVE_HTTP_PORT": str(self.http_port),
            "BACKSOLVE_GRPC_PORT": str(self.grpc_port),
            "BACKSOLVE_UNIX_HTTP": f"{self.folder}/http",
            "BACKSOLVE_UNIX_GRPC": f"{self.folder}/grpc",
            "BACKSOLVE_UNIX_SHARED": f"{self.folder}/shared",
            **self._environment,
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [os.environ.get("BACKSOLVE_SERVER_PYTHON") or sys.executable, "-m", "backsolve_service.main"],
                env=environment,
                stdout=log,
                stderr=log,
                cwd=tempfile.gettempdir(),
            )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, patience: float = 60.0) -> None:
        """Return once the service reports ready; fail with its output if it ends before that."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"the service ended with code {self._process.returncode}:\n{self.log()}")
            try:
                with urllib.request.urlopen(f"{self.http_url}/readyz", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise RuntimeError(f"the service was not ready within {patience:g} s:\n{self.log()}")

    def kill(self) -> None:
        """kill -9: no goodbye."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(how)
        try:
            return process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RuntimeError(f"the service did not end on {how.name}:\n{self.log()}") from None

    def __enter__(self) -> "ServerProcess":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._log.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
