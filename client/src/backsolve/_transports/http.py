"""The REST transport: safetensors bodies over pooled HTTP/1.1 connections.

Bodies above 1 MiB that name a matrix this server has not accepted yet go after a HEAD, so that
bulk is not sent only to learn that the matrix must come first.
"""

import json
import math
import ssl
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, final

import numpy as np

from .. import __version__
from .._rest.body import MEDIA_TYPE, Body, Message, decode, parse_json
from .._rest.documents import info_from_json, ref_from_key
from .._rest.messages import (
    jvp_body,
    put_body,
    read_solve_reply,
    read_vjp_reply,
    solve_body,
    vjp_body,
)
from .._shared.spans import SHARED_HEADER
from ..config import resolve
from ..errors import (
    BacksolveError,
    DeadlineError,
    InternalError,
    InvalidOptionError,
    MalformedError,
    NeedMatrixError,
    NeedValuesError,
    NotFoundError,
    NotSupportedError,
    PayloadTooLargeError,
    PermissionDeniedError,
    RateLimitedError,
    UnauthenticatedError,
    UnreachableError,
    from_wire,
)
from ..types import Array, ErrorCode, Holding, MatrixRef, ServerInfo
from .base import JvpCall, PutCall, SolveCall, SolveReply, Transport, VjpCall, VjpReply
from .connection import ConnectionPool
from .reply import HttpReply
from .shared import SharedMemory

ASK_FIRST_BYTES = 1 << 20
"""Larger bodies of a matrix that the server has not accepted yet are preceded by a HEAD."""

_REMEMBERED = 1024
_ELEMENT_BYTES = 28
"""Status, iterations and two figures (`elements_to_tensors`)."""
_EMPTY = Body((), 0)
_NO_BODY = "the server refused to say whether it holds the matrix"
_JSON, _PROBLEM = "application/json", "application/problem+json"

T = TypeVar("T")


@final
class HttpTransport(Transport):
    """Calls over REST. Thread-safe; usable after a fork.

    Args:
        url: `http://host:port`, `https://host:port`, or `unix:/path` for a Unix socket.
        ca_file: certificate authorities to trust instead of the system's.
        token: bearer token sent with every request.
        shared: memory that the server can be told to look into, for large bodies.

    Attributes:
        sent: bytes of request bodies sent so far.
        received: bytes of reply bodies received so far.

    Raises:
        InvalidOptionError: the URL is not one of these, or the CA file cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        ca_file: str | None = None,
        token: str | None = None,
        shared: SharedMemory | None = None,
    ) -> None:
        endpoint = resolve(url, token, ca_file, environment={})
        if endpoint.scheme not in ("http", "https", "unix"):
            raise InvalidOptionError("this transport speaks http://, https:// and unix: only")
        self._fixed = _fixed_headers("localhost" if endpoint.path else endpoint.address, token)
        self._pool = ConnectionPool(endpoint, _tls(endpoint.scheme, ca_file))
        self._shared = shared
        self._accepted: OrderedDict[MatrixRef, None] = OrderedDict()
        self._count = threading.Lock()
        self.sent = 0
        self.received = 0

    def solve(self, call: SolveCall, timeout: float | None) -> SolveReply:
        """POST /v1/solve."""
        shape = call.rhs.shape if call.answer_shape is None else call.answer_shape
        return self._call(
            "/v1/solve",
            call.ref,
            solve_body(call),
            read_solve_reply,
            timeout,
            _room(shape, call.rhs.dtype),
            brought=call.values is not None,
        )

    def vjp(self, call: VjpCall, timeout: float | None) -> VjpReply:
        """POST /v1/vjp."""
        # How many values A has only the server knows here: such a reply goes over the connection.
        room = _room(call.cotangent.shape, call.cotangent.dtype) if "values" not in call.want else 0
        return self._call("/v1/vjp", call.ref, vjp_body(call), read_vjp_reply, timeout, room)

    def jvp(self, call: JvpCall, timeout: float | None) -> SolveReply:
        """POST /v1/jvp."""
        like = call.b_tangent if call.b_tangent is not None else call.x
        room = 0 if like is None else _room(like.shape, like.dtype)
        return self._call("/v1/jvp", call.ref, jvp_body(call), read_solve_reply, timeout, room)

    def put(self, call: PutCall, timeout: float | None) -> MatrixRef:
        """PUT /v1/matrices/{ref}."""
        reply = self._request("PUT", _matrix_path(call.ref), put_body(call), timeout, _JSON, call.ref)
        document = _json_object(reply)
        return ref_from_key(document.get("ref"))

    def find(self, refs: Sequence[MatrixRef], timeout: float | None) -> list[Holding]:
        """HEAD /v1/matrices/{ref}, one request each."""
        return [self._holding(ref, timeout) for ref in refs]

    def release(self, ref: MatrixRef, timeout: float | None) -> None:
        """DELETE /v1/matrices/{ref}."""
        self._accepted.pop(ref, None)
        self._request("DELETE", _matrix_path(ref), _EMPTY, timeout, _JSON, ref)

    def info(self, timeout: float | None) -> ServerInfo:
        """GET /v1/info."""
        return info_from_json(_json_object(self._request("GET", "/v1/info", _EMPTY, timeout, _JSON)))

    def stats(self, timeout: float | None) -> Mapping[str, float]:
        """GET /v1/stats."""
        document = _json_object(self._request("GET", "/v1/stats", _EMPTY, timeout, _JSON))
        try:
            return {str(name): float(value) for name, value in document.items()}
        except (TypeError, ValueError):
            raise MalformedError("the server's statistics cannot be read: is this a v1 server?") from None

    def empty(self, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> Array:
        """An array in shared memory, if there is any; else an ordinary one."""
        array = None if self._shared is None else self._shared.empty(shape, dtype)
        return super().empty(shape, dtype) if array is None else array

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()
        if self._shared is not None:
            self._shared.close()

    def _call(
        self,
        path: str,
        ref: MatrixRef,
        body: Body,
        read: Callable[[Message], T],
        timeout: float | None,
        room: int,
        *,
        brought: bool = False,
    ) -> T:
        """POST a call; `room` bytes of tensors may come back; `brought`: the values of the matrix come with it."""
        if body.nbytes > ASK_FIRST_BYTES and ref not in self._accepted:
            _require(self._holding(ref, timeout), brought=brought)
        try:
            reply = self._request("POST", path, body, timeout, MEDIA_TYPE, ref, room, brought=brought)
        except (NeedMatrixError, NeedValuesError):
            self._accepted.pop(ref, None)
            raise
        if _media_type(reply) != MEDIA_TYPE:
            raise MalformedError(f"the reply is not {MEDIA_TYPE}: is this a backsolve server?")
        answer = read(decode(reply.body, reply.tensors))
        self._remember(ref)
        return answer

    def _holding(self, ref: MatrixRef, timeout: float | None) -> Holding:
        reply = self._exchange("HEAD", _matrix_path(ref), _EMPTY, timeout, _JSON, ref)
        word = reply.headers.get("backsolve-holding", "").upper()
        if word not in Holding.__members__:
            raise _error_of(reply)
        return Holding[word]

    def _request(
        self,
        method: str,
        path: str,
        body: Body,
        timeout: float | None,
        accept: str,
        ref: MatrixRef | None = None,
        room: int = 0,
        *,
        brought: bool = False,
    ) -> HttpReply:
        """One request whose failure is raised as the error it stands for; `room` bytes of tensors may come back."""
        more = "backsolve-brings: values\r\n" if brought else ""
        reply = self._shared_exchange(method, path, body, timeout, accept, ref, room, more)
        if reply is None:
            reply = self._exchange(method, path, body, timeout, accept, ref, more)
        if 200 <= reply.status < 300:
            return reply
        raise _error_of(reply)

    def _shared_exchange(
        self,
        method: str,
        path: str,
        body: Body,
        timeout: float | None,
        accept: str,
        ref: MatrixRef | None,
        room: int,
        more: str,
    ) -> HttpReply | None:
        """The same with the tensors in shared memory; None if that cannot be done now."""
        if self._shared is None:
            return None
        lease = self._shared.lease(body, room)
        if lease is None:
            return None
        with lease:
            reply = self._exchange(method, path, lease.body, timeout, accept, ref, more + lease.headers)
            if _media_type(reply) not in (MEDIA_TYPE, _JSON, _PROBLEM):
                return reply  # not the server's own: it may still be at work
            tensors = lease.answered(reply.headers.get(SHARED_HEADER))
        if reply.status >= 400 and self._shared.refused(_error_of(reply)):
            return None
        with self._count:
            self.sent += body.nbytes - lease.body.nbytes
            self.received += 0 if tensors is None else int(tensors.size)
        return replace(reply, tensors=tensors)

    def _exchange(
        self,
        method: str,
        path: str,
        body: Body,
        timeout: float | None,
        accept: str,
        ref: MatrixRef | None,
        more: str = "",
    ) -> HttpReply:
        lines = [f"{method} {path} HTTP/1.1\r\n{self._fixed}accept: {accept}, {_PROBLEM}\r\n"]
        if method in ("POST", "PUT"):
            lines.append(f"content-type: {MEDIA_TYPE}\r\ncontent-length: {body.nbytes}\r\n")
        if timeout is not None:
            lines.append(f"backsolve-timeout: {max(timeout, 0.0):.3f}\r\n")
        if ref is not None:
            # The pattern alone routes: its symbolic work is what lasts when values change.
            lines.append(f"backsolve-matrix: {ref.key}\r\nbacksolve-route-key: {ref.pattern.hex()[:16]}\r\n")
        lines.append(f"{more}\r\n")
        reply = self._pool.exchange(method, "".join(lines).encode("latin-1"), body, timeout)
        with self._count:
            self.sent += body.nbytes
            self.received += int(reply.body.size)
        return reply

    def _remember(self, ref: MatrixRef) -> None:
        """Note that the server has accepted this matrix; dict operations are atomic, so no lock is held."""
        self._accepted[ref] = None
        while len(self._accepted) > _REMEMBERED:
            self._accepted.popitem(last=False)


def _fixed_headers(host: str, token: str | None) -> str:
    """The headers that every request carries."""
    text = f"host: {host}\r\nuser-agent: backsolve-python/{__version__}\r\nbacksolve-client: python/{__version__}\r\n"
    if token is None:
        return text
    if not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidOptionError("token= must be printable ASCII without blanks")
    return f"{text}authorization: Bearer {token}\r\n"


def _tls(scheme: str, ca_file: str | None) -> ssl.SSLContext | None:
    if scheme != "https":
        return None
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as err:
        raise InvalidOptionError("the CA file cannot be read: it must be PEM, with BEGIN CERTIFICATE lines") from err


def _room(shape: tuple[int, ...], dtype: "np.dtype[Any]") -> int:
    """Bytes of a reply's tensors: an array, and if its first axis may be a batch, what is told of each system."""
    return math.prod(shape) * dtype.itemsize + (_ELEMENT_BYTES * shape[0] if len(shape) > 1 else 0)


def _matrix_path(ref: MatrixRef) -> str:
    return f"/v1/matrices/{ref.key}"


def _require(holding: Holding, *, brought: bool) -> None:
    if holding is Holding.ABSENT:
        raise NeedMatrixError("the server does not hold this matrix")
    if holding is Holding.PATTERN and not brought:
        raise NeedValuesError("the server holds the pattern, not these values")


def _media_type(reply: HttpReply) -> str:
    return reply.headers.get("content-type", "").partition(";")[0].strip().lower()


def _json_object(reply: HttpReply) -> dict[str, Any]:
    document = parse_json(reply.body.tobytes(), "the reply")
    if not isinstance(document, dict):
        raise MalformedError("the reply is not a JSON object: is this a backsolve server?")
    return document


def _error_of(reply: HttpReply) -> BacksolveError:
    """The error that a reply stands for: the server's own if it wrote one, else what its status suggests."""
    try:
        if reply.body.size == 0:  # the answer to a HEAD
            return from_wire(ErrorCode[reply.headers["backsolve-reason"]], _NO_BODY, _waiting_time(reply))
        if _media_type(reply) == _PROBLEM:
            problem = json.loads(reply.body.tobytes())
            details = {str(name): str(value) for name, value in problem.get("details", {}).items()}
            return from_wire(ErrorCode[problem["reason"]], str(problem["detail"]), details)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # not a problem document of this version
    return _foreign_error(reply)


def _waiting_time(reply: HttpReply) -> dict[str, str]:
    wait = reply.headers.get("retry-after", "")
    return {"retry_after": wait} if wait.isdigit() else {}


_FOREIGN: Mapping[int, tuple[type[BacksolveError], str]] = {
    401: (UnauthenticatedError, "the token is missing or wrong: pass token="),
    403: (PermissionDeniedError, "access is denied"),
    404: (NotFoundError, "there is no such address: does the URL name a backsolve server?"),
    408: (DeadlineError, "the request took too long to arrive"),
    413: (PayloadTooLargeError, "the request is larger than a proxy on the way allows: raise its limit"),
    429: (RateLimitedError, "too many requests"),
    502: (UnreachableError, "the proxy reaches no server"),
    503: (UnreachableError, "no server is ready"),
    504: (DeadlineError, "the proxy waited too long for the server: raise its timeout"),
}


def _foreign_error(reply: HttpReply) -> BacksolveError:
    """What a reply without a problem document means: mostly a proxy's, sometimes another program's."""
    status = reply.status
    details = {**_waiting_time(reply), "http_status": str(status)}
    if status in _FOREIGN:
        cls, text = _FOREIGN[status]
    elif status < 400:
        cls, text = NotSupportedError, "the address redirects or answers something else: give the server's own URL"
    elif status < 500:
        cls, text = MalformedError, "the request was refused before it reached the server"
    else:
        cls, text = InternalError, "the server, or a proxy before it, failed"
    return cls(f"{text} (HTTP {status})", **details)
