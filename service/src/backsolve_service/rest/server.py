"""The REST server: uvicorn on a thread of its own, without signal handlers, on sockets bound beforehand."""

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import uvicorn

from ..callers import Callers
from ..sharing.registry import Registry
from ..unixsocket import SocketFile
from .app import create_app
from .bulk import BulkProtocol
from .handlers import Handlers

if TYPE_CHECKING:
    from ..dataplane.plane import DataPlane

KEEP_ALIVE_SECONDS = 120
"""Longer than load balancers and clients keep idle connections, so that they close first."""

_START_SECONDS = 30.0
_BACKLOG = 1024
_MOST_DRAINED = 1 << 30


@final
@dataclass(frozen=True, slots=True)
class RestConfig:
    """Settings of the REST server.

    Attributes:
        host: address to listen on.
        port: 0 picks a free one.
        token: bearer token of the public tenant; None, and no tenants, lets everybody in.
        tenants: further tokens, and whose they are.
        tls_cert, tls_key: PEM files; both or neither.
        tls_client_ca: authorities of which callers must show a certificate.
        max_threads: calls that are worked on or queue; more than the data plane queues, so that a
            full queue is answered at once and not waited for.
        unix: a socket to listen on as well, always without TLS: its permissions say who may call.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = None
    tenants: Mapping[str, str] = field(default_factory=dict)
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    max_threads: int = 320
    unix: SocketFile | None = None


@final
class RestServer:
    """REST over one data plane.

    Args:
        plane: what answers.
        config: where and how to listen.
        metrics_text: the page for Prometheus and its media type.
        registry: the memory that callers share, or None where that is not offered.
    """

    def __init__(
        self,
        plane: "DataPlane",
        config: RestConfig,
        metrics_text: Callable[[], tuple[bytes, str]],
        registry: Registry | None = None,
    ) -> None:
        self._config = config
        self._pool = ThreadPoolExecutor(config.max_threads, thread_name_prefix="rest")
        self._handlers = Handlers(plane, self._pool, metrics_text, registry)
        drain_bytes = min(plane.limits.max_payload_bytes, _MOST_DRAINED)
        app = create_app(
            self._handlers,
            Callers(config.token, config.tenants),
            drain_bytes,
            lambda error, request_id: plane.refused(error, "rest", request_id),
        )
        tls = {
            "ssl_certfile": config.tls_cert,
            "ssl_keyfile": config.tls_key,
            "ssl_ca_certs": config.tls_client_ca,
            "ssl_cert_reqs": ssl.CERT_REQUIRED if config.tls_client_ca else ssl.CERT_NONE,
        }
        self._servers = [_uvicorn(app, tls)]
        if config.unix is not None:
            self._servers.append(_uvicorn(app, {}))
        self._sockets: list[socket.socket] = []
        self._thread: threading.Thread | None = None
        self._port = config.port

    @property
    def port(self) -> int:
        """Where it listens, once started."""
        return self._port

    def start(self) -> None:
        """Bind, and return when requests are answered.

        Raises:
            OSError: an address cannot be listened on.
            RuntimeError: the server did not come up, for example because a TLS file cannot be read.
        """
        for server in self._servers:
            server.config.load()  # reads the TLS files here, where failing is the caller's to see
        family, kind, protocol, _, address = socket.getaddrinfo(
            self._config.host, self._config.port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            self._sockets = [listener]
            if self._config.unix is not None:
                self._sockets.append(self._config.unix.listen(backlog=_BACKLOG))
        except OSError:
            listener.close()
            raise
        self._port = int(listener.getsockname()[1])
        self._thread = threading.Thread(target=self._run, name="rest-loop", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not all(server.started for server in self._servers):
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self.stop(0.0)
                raise RuntimeError("the REST server did not start; its log has the cause")
            time.sleep(0.005)

    def drain(self) -> None:
        """Say not ready and refuse new work; calls under way end."""
        self._handlers.draining = True

    def stop(self, timeout: float = 5.0) -> None:
        """Close the port and idle connections, let replies finish for `timeout` seconds, then close everything."""
        self.drain()
        if self._config.unix is not None:
            self._config.unix.remove()
        for server in self._servers:
            server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                for server in self._servers:
                    server.force_exit = True
                self._thread.join(1.0)
        for listener in self._sockets:
            with contextlib.suppress(OSError):
                listener.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        """All listeners on one event loop, which the handlers count on."""
        with asyncio.Runner(loop_factory=self._servers[0].config.get_loop_factory()) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        await asyncio.gather(
            *(server.serve([listener]) for server, listener in zip(self._servers, self._sockets, strict=True))
        )


def _uvicorn(app: Any, tls: dict[str, Any]) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http=BulkProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            **tls,
        )
    )
