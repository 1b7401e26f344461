"""From settings to a service that answers, and back down without losing a call.

Up: data plane, self-test, both transports, and only then ready. Down: not ready at once, new calls
are sent elsewhere, running ones end, then everything closes. Signals are `main`'s business.
"""

import errno
import logging
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import final

from prometheus_client import ProcessCollector, disable_created_metrics

from . import selftest
from .callers import Callers, read_tenants
from .dataplane.plane import DataPlane, PlaneConfig
from .grpc.server import GrpcConfig, GrpcServer
from .logs import AccessLog
from .metrics import Metrics
from .rest.server import RestConfig, RestServer
from .settings import Settings
from .sharing.control import ControlServer
from .sharing.registry import Quotas, Registry
from .unixsocket import SocketFile

_log = logging.getLogger(__name__)

POLL_SECONDS = 0.02
CLOSE_SECONDS = 3.0
"""Time to close with nothing running; streams that only watch the service's health hold gRPC that long."""

_SPARE_THREADS = 64
"""Handlers beyond those that may wait in the queue, so that a full queue is told at once."""


class StartError(Exception):
    """The service cannot start; the text says what to change."""


@final
class Service:
    """One replica: a data plane and the two ways in.

    Args:
        settings: everything that can be set.

    Raises:
        StartError: a port is taken, a TLS file cannot be used, or a method answers wrongly on
            this machine.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        http_port, grpc_port = _claim(settings.host, settings.http_port, settings.grpc_port)
        _check_tls(settings)
        _check_sockets(settings)
        config = _plane_config(settings, http_port, grpc_port)
        config = replace(config, unfit=_self_test(config))
        # The creation time of every series would double the page.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        metrics = Metrics()
        ProcessCollector(registry=metrics.registry)
        self._plane = DataPlane(config, AccessLog(metrics))
        self._grpc = GrpcServer(self._plane, _grpc_config(settings, grpc_port))
        self._control = _control(settings, metrics)
        registry = None if self._control is None else self._control.registry
        self._rest = RestServer(self._plane, _rest_config(settings, http_port), metrics.text, registry)

    def start(self) -> None:
        """Answer on both ports and the Unix sockets; each says ready when it is.

        Raises:
            StartError: somebody took a port in the meantime, or a Unix socket cannot be made.
        """
        try:
            self._grpc.start()
            if self._control is not None:
                self._control.start()
            self._rest.start()
        except (OSError, RuntimeError) as err:
            self._grpc.stop()
            self._end_rest(0.0)
            raise StartError(str(err)) from err

    def addresses(self) -> dict[str, str | int]:
        """Where it listens."""
        settings = self._settings
        ports: dict[str, str | int] = {"http_port": self._rest.port, "grpc_port": self._grpc.port}
        paths = {"unix_http": settings.unix_http, "unix_grpc": settings.unix_grpc, "unix_shared": settings.unix_shared}
        return {"host": settings.host, **ports, **{name: str(path) for name, path in paths.items() if path}}

    def stop(self) -> int:
        """Answer what runs, refuse what comes, and close.

        Returns:
            Calls that were still running when the time was over.
        """
        deadline = time.monotonic() + self._settings.drain_seconds
        self._plane.drain()
        self._rest.drain()
        self._grpc.drain()
        while self._plane.inflight and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        abandoned = self._plane.inflight
        if abandoned:
            self._grpc.stop()
            self._end_rest(0.0)
            return abandoned
        # What has been computed may still be on its way out.
        self._grpc.stop(CLOSE_SECONDS)
        self._end_rest(max(CLOSE_SECONDS, deadline - time.monotonic()))
        self._plane.close(CLOSE_SECONDS)
        return 0

    def _end_rest(self, timeout: float) -> None:
        """The memory goes last: replies under way may be written there."""
        self._rest.stop(timeout)
        if self._control is not None:
            self._control.stop()


def _plane_config(settings: Settings, http_port: int, grpc_port: int) -> PlaneConfig:
    return PlaneConfig(
        device=settings.device,
        workers=settings.workers,
        processes=settings.processes,
        stuck_seconds=settings.stuck_seconds,
        cache_bytes=settings.cache_bytes,
        device_cache_bytes=settings.device_cache_bytes,
        max_payload_bytes=settings.max_payload_bytes,
        queue_depth=settings.queue_depth,
        queue_bytes=settings.queue_bytes,
        block_columns=settings.block_columns,
        instance=settings.instance,
        http_port=http_port,
        grpc_port=grpc_port,
        unix_http=_text(settings.unix_http),
        unix_grpc=_text(settings.unix_grpc),
        unix_shared=_text(settings.unix_shared),
    )


def _grpc_config(settings: Settings, port: int) -> GrpcConfig:
    return GrpcConfig(
        host=settings.host,
        port=port,
        queue_depth=settings.queue_depth,
        token=_secret(settings),
        tenants=_tenants(settings),
        tls_cert=settings.tls_cert,
        tls_key=settings.tls_key,
        tls_client_ca=settings.tls_client_ca,
        unix=_socket_file(settings, settings.unix_grpc),
    )


def _rest_config(settings: Settings, port: int) -> RestConfig:
    return RestConfig(
        host=settings.host,
        port=port,
        token=_secret(settings),
        tenants=_tenants(settings),
        tls_cert=_text(settings.tls_cert),
        tls_key=_text(settings.tls_key),
        tls_client_ca=_text(settings.tls_client_ca),
        max_threads=settings.queue_depth + _SPARE_THREADS,
        unix=_socket_file(settings, settings.unix_http),
    )


def _tenants(settings: Settings) -> dict[str, str]:
    return {} if settings.tenants is None else read_tenants(settings.tenants)


def _socket_file(settings: Settings, path: Path | None) -> SocketFile | None:
    return None if path is None else SocketFile(path, settings.unix_mode)


def _control(settings: Settings, metrics: Metrics) -> ControlServer | None:
    """The server of the control socket, or None where no memory is shared."""
    file = _socket_file(settings, settings.unix_shared)
    if file is None:
        return None
    registry = Registry(
        Quotas(
            total_bytes=settings.shared_bytes,
            caller_bytes=settings.shared_client_bytes,
            total_regions=settings.shared_regions,
            caller_regions=settings.shared_client_regions,
        )
    )
    metrics.bind("shared_regions", lambda: float(registry.regions))
    metrics.bind("shared_bytes", lambda: float(registry.nbytes))
    return ControlServer(file, registry, Callers(_secret(settings), _tenants(settings)), settings.instance)


def _secret(settings: Settings) -> str | None:
    return None if settings.token is None else settings.token.get_secret_value()


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _check_tls(settings: Settings) -> None:
    """Read the TLS files once, so that what is wrong with them is told by their names.

    Raises:
        StartError: one is no PEM file, or the key is not the certificate's.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    names = "BACKSOLVE_TLS_CERT and BACKSOLVE_TLS_KEY"
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: b"")  # never ask a terminal
        if settings.tls_client_ca is not None:
            names = "BACKSOLVE_TLS_CLIENT_CA"
            context.load_verify_locations(settings.tls_client_ca)
    except OSError as err:
        raise StartError(f"{names} cannot be used: {err.strerror or err}; give PEM files that belong together") from err


def _check_sockets(settings: Settings) -> None:
    """See that the Unix sockets can be listened on.

    Raises:
        StartError: one cannot.
    """
    for variable, path in (
        ("BACKSOLVE_UNIX_HTTP", settings.unix_http),
        ("BACKSOLVE_UNIX_GRPC", settings.unix_grpc),
        ("BACKSOLVE_UNIX_SHARED", settings.unix_shared),
    ):
        if path is None:
            continue
        try:
            SocketFile(path, settings.unix_mode).check()
        except OSError as err:
            raise StartError(f"cannot listen on {path}: {err.strerror}; see {variable}") from err


def _claim(host: str, http_port: int, grpc_port: int) -> tuple[int, int]:
    """See that both ports can be listened on, before the slow part of starting; 0 becomes a free port.

    Raises:
        StartError: a port is taken, or the host is not this machine's.
    """
    if http_port == grpc_port != 0:
        raise StartError("BACKSOLVE_HTTP_PORT and BACKSOLVE_GRPC_PORT are the same: choose two")
    claimed: list[socket.socket] = []
    try:
        for variable, port in (("BACKSOLVE_HTTP_PORT", http_port), ("BACKSOLVE_GRPC_PORT", grpc_port)):
            try:
                claimed.append(_listen(host, port))
            except OSError as err:
                cure = "choose another" if err.errno == errno.EADDRINUSE else "see BACKSOLVE_HOST and"
                raise StartError(f"cannot listen on {host} port {port}: {err.strerror}; {cure} {variable}") from err
        http, grpc = (int(taken.getsockname()[1]) for taken in claimed)
        return http, grpc
    finally:
        for taken in claimed:
            taken.close()


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener


def _self_test(config: PlaneConfig) -> Mapping[str, str]:
    """Test the methods on a plane of their own, since what is counted and cached there is nobody's.

    Returns:
        The methods to do without, and why.
    """
    started = time.perf_counter()
    plane = DataPlane(config)
    try:
        verdict = selftest.run(plane, config.device)
    except selftest.SelfTestError as err:
        raise StartError(str(err)) from err
    finally:
        plane.close()
    _log.info("self-test passed", extra={"methods": verdict.fit, "seconds": round(time.perf_counter() - started, 3)})
    return verdict.unfit
