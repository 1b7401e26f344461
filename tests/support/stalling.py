"""A tiny web server that stalls once, and callers of it: something whose latencies are known beforehand."""

import http.client
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from backsolve import Client
from loadtests.served.workload import Caller, Workload


class _Handler(BaseHTTPRequestHandler):
    server: "StallingServer"

    def do_GET(self) -> None:
        if self.path == "/stall":
            self.server.stall_once()
        body = b"{}"
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """The tests' output is not for this."""


class StallingServer(ThreadingHTTPServer):
    """Answers at once, but for one time: from the first `/stall` on, nothing is answered for a while.

    Args:
        after: the first `/stall` that many seconds after `arm` stalls.
        seconds: how long.
    """

    daemon_threads = True

    def __init__(self, after: float, seconds: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._after, self._seconds = after, seconds
        self._lock = threading.Lock()
        self._armed = 0.0
        self.stalled: tuple[float, float] | None = None
        """When it began and ended to stall, by `time.monotonic`."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def arm(self) -> None:
        self._armed = time.monotonic()

    def stall_once(self) -> None:
        with self._lock:  # whoever comes meanwhile waits here
            if self.stalled is None and self._armed and time.monotonic() > self._armed + self._after:
                began = time.monotonic()
                time.sleep(self._seconds)
                self.stalled = began, time.monotonic()

    def __enter__(self) -> "StallingServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Asker(Caller):
    """Asks the server once a step."""

    def __init__(self, url: str, right: bool) -> None:
        self._right = right
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)

    def prepare(self, k: int) -> None:
        pass

    def step(self) -> None:
        self._connection.request("GET", "/stall")
        self._connection.getresponse().read()

    def check(self) -> bool:
        return self._right

    def end(self) -> None:
        self._connection.close()


@dataclass(frozen=True)
class Asking(Workload):
    """Callers of a `StallingServer`.

    Attributes:
        right: what they say of the answers.
    """

    url: str
    right: bool = True

    def callers(self, clients: list[Client], first: int) -> list[Caller]:
        return [Asker(self.url, self.right) for _ in clients]
