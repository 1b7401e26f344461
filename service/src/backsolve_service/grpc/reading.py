"""How requests are read: after their call was let in, and leniently.

A message is asked for by whoever handles its call, as those of a stream are. So a call that there is no room for is
refused on its header, its message neither parsed nor waited for. What is no protobuf at all is refused like any other
malformed call, not as a fault of the server.
"""

from collections.abc import Callable, Iterator
from typing import Any, final

import grpc

from backsolve._rpc import pieces
from backsolve.errors import MalformedError


@final
class Unreadable:
    """Stands for bytes that could not be parsed, until the method that they were sent to refuses them."""

    def WhichOneof(self, _: str) -> str:  # noqa: N802  (as a frame it is of a kind that fits nowhere)
        """What `Frame` answers."""
        return "unreadable"


def only_message(requests: Iterator[Any]) -> Any:
    """The one message of a unary call.

    Raises:
        MalformedError: there is none, or it is none of ours.
    """
    request = next(requests, None)
    if request is None:
        raise MalformedError("the call brings no message: see backsolve/v1")
    if isinstance(request, Unreadable):
        raise MalformedError("the request is not the protobuf message that this method takes: see backsolve/v1")
    return request


@final
class ReadableRequests(grpc.ServerInterceptor):  # type: ignore[misc]  # gRPC has no types
    """Hands the requests of our own methods on as iterators, and unparsable ones as `Unreadable`.

    Args:
        services: full names of the services whose methods know what to do with that.
    """

    def __init__(self, services: tuple[str, ...]) -> None:
        self._prefixes = tuple(f"/{service}/" for service in services)
        self._handlers: dict[str, Any] = {}

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """The method's handler, which reads for itself, its parser made lenient."""
        if not details.method.startswith(self._prefixes):
            return continuation(details)
        if details.method not in self._handlers:
            handler = continuation(details)
            if handler is None:
                return None
            self._handlers[details.method] = _lenient(handler)
        return self._handlers[details.method]


def _lenient(handler: Any) -> Any:
    # All messages of streams are frames.
    parse = pieces.read if handler.request_streaming else handler.request_deserializer
    serialize = pieces.write if handler.response_streaming else handler.response_serializer

    def deserialize(data: bytes) -> Any:
        try:
            return parse(data)
        except Exception:  # protobuf's own class differs between its implementations
            return Unreadable()

    kinds = {
        # On the wire a unary call is a stream of one message.
        (False, False): (grpc.stream_unary_rpc_method_handler, handler.unary_unary),
        (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
        (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
    }
    make, behaviour = kinds[(handler.request_streaming, handler.response_streaming)]
    return make(behaviour, deserialize, serialize)
