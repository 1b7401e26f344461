"""`backsolve://host`: ask the host what it offers, and take the fastest way that works."""

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import final

from .._fork import renew_after_fork
from ..config import GRPC_PORT, Endpoint
from ..errors import UnreachableError
from ..types import Holding, MatrixRef, ServerInfo
from .base import JvpCall, PutCall, SolveCall, SolveReply, Transport, VjpCall, VjpReply
from .http import HttpTransport


@final
class DiscoveringTransport(Transport):
    """Raw HTTP bodies where the host answers HTTP (they are faster at every size), else gRPC.

    The host is asked once, by the first call.

    Args:
        endpoint: the host and its HTTP port.
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
        over_http: Transport = HttpTransport(f"http://{at.address}", ca_file=at.ca_file, token=at.token)
        try:
            over_http.info(timeout)
        except UnreachableError:
            over_http.close()
        else:
            return over_http
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

    def close(self) -> None:
        """Free connections."""
        with self._lock:
            if self._chosen is not None:
                self._chosen.close()
