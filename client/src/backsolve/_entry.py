"""From an endpoint to the transport that reaches it; the embedded one is found by its entry point."""

from importlib.metadata import entry_points

from ._transports.base import Transport
from .config import Endpoint
from .errors import NotSupportedError

ENTRY_POINT_GROUP = "backsolve.transports"


def connect(endpoint: Endpoint) -> Transport:
    """Open the transport of an endpoint; no bytes are sent yet.

    Raises:
        NotSupportedError: the embedded engine was asked for and is not installed.
    """
    if endpoint.scheme == "embedded":
        return _embedded()
    if endpoint.scheme in ("grpc", "grpcs", "grpc+unix"):
        from ._transports.grpc import GrpcTransport  # noqa: PLC0415  (gRPC is loaded only by its users)

        secure = endpoint.scheme == "grpcs"
        target = f"unix:{endpoint.path}" if endpoint.path else endpoint.address
        return GrpcTransport(target, secure=secure, ca_file=endpoint.ca_file, token=endpoint.token)
    if endpoint.scheme in ("backsolve", "backsolve+unix"):
        from ._transports.discover import DiscoveringTransport  # noqa: PLC0415

        return DiscoveringTransport(endpoint)
    from ._transports.http import HttpTransport  # noqa: PLC0415

    return HttpTransport(f"{endpoint.scheme}://{endpoint.address}", ca_file=endpoint.ca_file, token=endpoint.token)


def _embedded() -> Transport:
    found = entry_points(group=ENTRY_POINT_GROUP, name="embedded")
    if not found:
        raise NotSupportedError(
            "no server is named and the engine is not installed here: install the package 'backsolve-service' to "
            "solve in this process, or set BACKSOLVE_URL=http://host:8080 to use a server"
        )
    transport: Transport = next(iter(found)).load()()
    return transport
