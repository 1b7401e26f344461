"""Builds and runs the gRPC server: both services, health, reflection, limits, TLS."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from backsolve._rpc.framing import channel_options
from backsolve.v1 import solver_pb2
from backsolve.v1.solver_pb2_grpc import add_MatricesServicer_to_server, add_SolverServicer_to_server

from ..callers import Callers
from ..unixsocket import SocketFile
from .admission import Admission
from .reading import ReadableRequests
from .servicer import MatricesServicer, SolverServicer
from .stall import Stalls

if TYPE_CHECKING:
    from ..dataplane.plane import DataPlane

SOLVER = solver_pb2.DESCRIPTOR.services_by_name["Solver"].full_name
MATRICES = solver_pb2.DESCRIPTOR.services_by_name["Matrices"].full_name

_SPARE_HANDLERS = 32
"""Handlers beyond those that may wait in the queue: for uploads under way, and so that the data
plane, which knows why, is the one that refuses calls."""

_HEALTH_THREADS = 2

STALL_SECONDS = 60.0
"""A call of which nothing arrives for this long, while it is being read, is given up."""

_OPTIONS = [
    *channel_options(),
    # Two servers on one port would share its connections at random.
    ("grpc.so_reuseport", 0),
    # Callers ask every 30 s whether the server still lives while they wait for a long solve.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]


@dataclass(frozen=True, slots=True)
class GrpcConfig:
    """How the gRPC server listens.

    Attributes:
        host: address to listen on.
        port: 0 picks a free one.
        queue_depth: calls that may wait in the data plane; there are more handlers than that.
        token: bearer token of the public tenant; health checks and reflection need none.
        tenants: further tokens, and whose they are.
        tls_cert, tls_key: PEM files; both or neither.
        tls_client_ca: PEM file; callers must show a certificate of one of these authorities.
        unix: a socket to listen on as well, always without TLS: its permissions say who may call.
    """

    host: str = "127.0.0.1"
    port: int = 0
    queue_depth: int = 128
    token: str | None = None
    tenants: Mapping[str, str] = field(default_factory=dict)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    unix: SocketFile | None = None


@final
class GrpcServer:
    """One gRPC server over a data plane.

    Health checks of the process ("") hear that it lives; those of the services by name, that they
    are ready: from `start` to `drain`.

    Args:
        plane: what answers.
        config: how to listen.
    """

    def __init__(self, plane: "DataPlane", config: GrpcConfig) -> None:
        self._config = config
        self._handlers = ThreadPoolExecutor(config.queue_depth + _SPARE_HANDLERS, "backsolve-grpc")
        self._health_handlers = ThreadPoolExecutor(_HEALTH_THREADS, "backsolve-grpc-health")
        lenient = ReadableRequests((SOLVER, MATRICES))
        self._server = grpc.server(self._handlers, interceptors=[lenient], options=_OPTIONS)
        self._admission = admission = Admission(
            Callers(config.token, config.tenants), lambda error, request_id: plane.refused(error, "grpc", request_id)
        )
        self._stalls = Stalls(STALL_SECONDS)
        add_SolverServicer_to_server(SolverServicer(plane, admission, self._stalls), self._server)  # type: ignore[no-untyped-call]
        add_MatricesServicer_to_server(MatricesServicer(plane, admission, self._stalls), self._server)  # type: ignore[no-untyped-call]
        self._health = _add_health(self._server, self._health_handlers)
        names = (SOLVER, MATRICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), self._server)
        self.port = config.port

    def start(self) -> None:
        """Listen, and answer calls; `port` is then the real one.

        Raises:
            OSError: the port or the socket is taken, or a TLS file cannot be read.
        """
        self.port = _listen(self._server, self._config)
        if self._config.unix is not None:
            _listen_unix(self._server, self._config.unix)
        self._server.start()
        self._set_ready(True)

    def drain(self) -> None:
        """Tell health checks to send callers elsewhere; the data plane decides what is still answered."""
        self._set_ready(False)

    def stop(self, grace: float | None = None) -> None:
        """Take no new calls, let running ones end for up to `grace` seconds, cancel the rest."""
        self._set_ready(False)
        if self._config.unix is not None:
            self._config.unix.remove()
        self._server.stop(grace).wait()
        self._stalls.close()
        self._health_handlers.shutdown(wait=False)
        self._handlers.shutdown(wait=False)

    def _set_ready(self, ready: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in (SOLVER, MATRICES):
            self._health.set(name, status)


def _add_health(server: Any, pool: ThreadPoolExecutor) -> Any:
    """Health checks on threads of their own, so that no number of waiting solves delays them."""
    servicer = health.HealthServicer(experimental_thread_pool=pool)
    for name in ("Check", "List"):
        if hasattr(servicer, name):
            setattr(servicer, name, _on_pool(getattr(servicer, name), pool))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    for name in (SOLVER, MATRICES):
        servicer.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
    return servicer


def _on_pool(method: Callable[[Any, Any], Any], pool: ThreadPoolExecutor) -> Callable[[Any, Any], Any]:
    """The method as a behaviour that gRPC runs on `pool`; it looks for the pool on the function."""

    def behaviour(request: Any, context: Any) -> Any:
        return method(request, context)

    behaviour.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return behaviour


def _listen(server: Any, config: GrpcConfig) -> int:
    """Bind the port.

    Raises:
        OSError: it is taken, or a TLS file cannot be read.
    """
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"{host}:{config.port}"
    try:
        if config.tls_cert is None or config.tls_key is None:
            return int(server.add_insecure_port(address))
        roots = None if config.tls_client_ca is None else config.tls_client_ca.read_bytes()
        pairs = [(config.tls_key.read_bytes(), config.tls_cert.read_bytes())]
        credentials = grpc.ssl_server_credentials(pairs, roots, require_client_auth=roots is not None)
        return int(server.add_secure_port(address, credentials))
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address} for gRPC: is the port taken?") from error


def _listen_unix(server: Any, file: SocketFile) -> None:
    """Bind a Unix socket.

    Raises:
        OSError: it is taken, or cannot be made.
    """
    with file.claimed() as place:
        try:
            server.add_insecure_port(f"unix:{place}")
        except RuntimeError as error:
            raise OSError(f"cannot listen on {file.path} for gRPC") from error
