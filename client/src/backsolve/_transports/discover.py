"""`backsolve://host`: ask the host what it offers, and take the fastest way that works."""

import ipaddress
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, final

import numpy as np

from .._fork import renew_after_fork
from ..config import GRPC_PORT, Endpoint
from ..errors import BacksolveError, UnreachableError
from ..types import Array, Holding, MatrixRef, ServerInfo
from .base import JvpCall, PutCall, SolveCall, SolveReply, Transport, VjpCall, VjpReply
from .http import HttpTransport
from .shared import SharedMemory

_PATIENCE_SECONDS = 10.0


@final
class DiscoveringTransport(Transport):
    """Raw HTTP bodies where the host answers HTTP (they are faster at every size), else gRPC.

    The host is asked once, by the first call. On this machine, that is over a Unix socket or a loopback
    address, HTTP goes over the Unix socket that the server names, and large bodies through shared memory, if it
    offers that and it can be had; if not, the log says why.

    Args:
        endpoint: the host and its HTTP port, or the path of its Unix socket for HTTP.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._lock = Lock()
        self._chosen: Transport | None = None
        renew_after_fork(self, DiscoveringTransport._renew)

    def _renew(self) -> None:
        self._lock = Lock()

    def chosen(self, timeout: float | None) -> Transport:
        """The transport that is used.

        Raises:
            UnreachableError: the host answers neither way; a later call asks again.
        """
        with self._lock:
            if self._chosen is None:
                self._chosen = self._discover(timeout)
            return self._chosen

    def _discover(self, timeout: float | None) -> Transport:
        at = self._endpoint
        url = f"unix:{at.path}" if at.path else f"http://{at.address}"
        over_http = HttpTransport(url, token=at.token)
        try:
            info = over_http.info(timeout)
        except UnreachableError:
            over_http.close()
            if at.path:
                raise
        else:
            return self._nearer(info, url, over_http, timeout) if at.path or _is_loopback(at.host) else over_http
        from .grpc import GrpcTransport  # noqa: PLC0415  (gRPC is loaded only by its users)

        other = Endpoint("grpc", at.host, GRPC_PORT)
        over_grpc: Transport = GrpcTransport(other.address, secure=False, ca_file=at.ca_file, token=at.token)
        try:
            over_grpc.info(timeout)
        except UnreachableError as err:
            over_grpc.close()
            raise UnreachableError(
                f"{at.host} answers neither HTTP on port {at.port} nor gRPC on port {GRPC_PORT}: is it started?"
            ) from err
        return over_grpc

    def _nearer(self, info: ServerInfo, url: str, found: HttpTransport, timeout: float | None) -> HttpTransport:
        """The fastest way to a server on this machine; `found` reaches it in any case.

        What another machine says of paths is never followed: they would be names of sockets on this one.
        """
        if info.unix_http is not None and not self._endpoint.path:
            unix = f"unix:{info.unix_http}"
            nearer = HttpTransport(unix, token=self._endpoint.token)
            try:
                same = nearer.info(timeout).instance == info.instance
            except BacksolveError:  # in a container, or another user's
                same = False
            if same:
                found.close()
                found, url = nearer, unix
            else:
                nearer.close()
        if info.unix_shared is None:
            return found
        shared = SharedMemory(info.unix_shared, token=self._endpoint.token, instance=info.instance)
        if not shared.connect():
            shared.close()
            return found
        found.close()
        return HttpTransport(url, token=self._endpoint.token, shared=shared)

    @property
    def overlaps(self) -> bool:
        """As the transport that is used."""
        return self._chosen is not None and self._chosen.overlaps

    def solve(self, call: SolveCall, timeout: float | None) -> SolveReply:
        """Solve."""
        return self.chosen(timeout).solve(call, timeout)

    def vjp(self, call: VjpCall, timeout: float | None) -> VjpReply:
        """One adjoint solve."""
        return self.chosen(timeout).vjp(call, timeout)

    def jvp(self, call: JvpCall, timeout: float | None) -> SolveReply:
        """One tangent solve."""
        return self.chosen(timeout).jvp(call, timeout)

    def put(self, call: PutCall, timeout: float | None) -> MatrixRef:
        """Upload a matrix."""
        return self.chosen(timeout).put(call, timeout)

    def find(self, refs: Sequence[MatrixRef], timeout: float | None) -> list[Holding]:
        """How much of each matrix is held."""
        return self.chosen(timeout).find(refs, timeout)

    def release(self, ref: MatrixRef, timeout: float | None) -> None:
        """Hint that the matrix is needed no longer."""
        self.chosen(timeout).release(ref, timeout)

    def info(self, timeout: float | None) -> ServerInfo:
        """Versions, limits and methods."""
        return self.chosen(timeout).info(timeout)

    def stats(self, timeout: float | None) -> Mapping[str, float]:
        """Counters of the data plane."""
        return self.chosen(timeout).stats(timeout)

    def empty(self, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> Array:
        """An array in the memory of the transport that is used; an ordinary one while the host does not answer."""
        try:
            return self.chosen(_PATIENCE_SECONDS).empty(shape, dtype)
        except UnreachableError:
            return super().empty(shape, dtype)

    def close(self) -> None:
        """Free connections."""
        with self._lock:
            if self._chosen is not None:
                self._chosen.close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
