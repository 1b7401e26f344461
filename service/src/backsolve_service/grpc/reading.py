"""Requests that are no protobuf at all: refused like any other malformed call, not as a fault of the server."""

from collections.abc import Callable
from typing import Any, final

import grpc

from backsolve.errors import MalformedError


@final
class Unreadable:
    """Stands for bytes that could not be parsed, until the method that they were sent to refuses them."""

    def WhichOneof(self, _: str) -> str:  # noqa: N802  (as a frame it is of a kind that fits nowhere)
        """What `Frame` answers."""
        return "unreadable"


def check_readable(request: Any) -> None:
    """Refuse a request that could not be parsed.

    Raises:
        MalformedError: it is none of ours.
    """
    if isinstance(request, Unreadable):
        raise MalformedError("the request is not the protobuf message that this method takes: see backsolve/v1")


@final
class ReadableRequests(grpc.ServerInterceptor):  # type: ignore[misc]  # gRPC has no types
    """Hands unparsable requests of our own methods on as `Unreadable`.

    Args:
        services: full names of the services whose methods know what to do with it.
    """

    def __init__(self, services: tuple[str, ...]) -> None:
        self._prefixes = tuple(f"/{service}/" for service in services)
        self._handlers: dict[str, Any] = {}

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """The method's handler, its parser made lenient."""
        if not details.method.startswith(self._prefixes):
            return continuation(details)
        if details.method not in self._handlers:
            handler = continuation(details)
            if handler is None:
                return None
            self._handlers[details.method] = _lenient(handler)
        return self._handlers[details.method]


def _lenient(handler: Any) -> Any:
    def deserialize(data: bytes) -> Any:
        try:
            return handler.request_deserializer(data)
        except Exception:  # protobuf's own class differs between its implementations
            return Unreadable()

    kinds = {
        (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
        (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
        (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
    }
    make, behaviour = kinds[(handler.request_streaming, handler.response_streaming)]
    return make(behaviour, deserialize, handler.response_serializer)
