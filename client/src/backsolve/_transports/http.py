"""The REST transport: safetensors bodies over pooled HTTP/1.1 connections.

Bodies above 1 MiB that name a matrix this server has not accepted yet go after a HEAD, so that
bulk is not sent only to learn that the matrix must come first.
"""

import math
import ssl
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from .._steps import drive
from ..config import Endpoint, resolve
from ..errors import InvalidOptionError, MalformedError, NeedMatrixError, NeedValuesError
from ..types import Array, Holding, MatrixRef, ServerInfo
from .base import (
    REPEATED_HEADER,
    Call,
    InfoCall,
    JvpCall,
    Meanwhile,
    PutCall,
    SolveCall,
    SolveReply,
    StatsCall,
    Transport,
    VjpCall,
    VjpReply,
)
from .connection import ConnectionPool
from .problems import PROBLEM, error_of, media_type
from .reply import HttpReply
from .shared import SharedMemory

ASK_FIRST_BYTES = 1 << 20
"""Larger bodies of a matrix that the server has not accepted yet are preceded by a HEAD."""

BRING_UNASKED_BYTES = 8 << 20
"""Where the values come along, since they are new in each call, only larger ones are: asking takes as long as sending
some MB, and it would be in vain to have sent them only if the pattern had been evicted since the last call."""

_REMEMBERED = 1024
_ELEMENT_BYTES = 28
"""Status, iterations and two figures (`elements_to_tensors`)."""
_EMPTY = Body((), 0)
_JSON = "application/json"

T = TypeVar("T")


@final
@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request, complete: what it begins with, its body, and its time.

    Attributes:
        method: decides how the reply ends (HEAD has no body).
        head: request line and headers, with the empty line.
        body: may be empty.
        timeout: seconds for all of it, or None.
    """

    method: str
    head: bytes
    body: Body
    timeout: float | None


Trips = Generator[HttpRequest, HttpReply, T]
"""One call: yields each request and is given its reply."""


@final
class RestCalls:
    """The calls of a transport as requests and replies; who sends them, and whether it blocks, is not said here.

    Thread-safe.

    Args:
        endpoint: of the scheme http, https or unix.
        shared: memory that the server can be told to look into, for large bodies.

    Attributes:
        sent: bytes of request bodies sent so far.
        received: bytes of reply bodies received so far.
        received_arrays: those of the arrays in them.

    Raises:
        InvalidOptionError: the token cannot be a header.
    """

    def __init__(self, endpoint: Endpoint, shared: SharedMemory | None = None) -> None:
        self._fixed = _fixed_headers("localhost" if endpoint.path else endpoint.address, endpoint.token)
        self._shared = shared
        self._accepted: OrderedDict[MatrixRef, None] = OrderedDict()
        self._count = threading.Lock()
        self.sent = 0
        self.received = 0
        self.received_arrays = 0

    def carry(self, call: Call, timeout: float | None) -> Trips[Any]:
        """Whichever call it is."""
        match call:
            case SolveCall():
                return self.solve(call, timeout)
            case VjpCall():
                return self.vjp(call, timeout)
            case JvpCall():
                return self.jvp(call, timeout)
            case PutCall():
                return self.put(call, timeout)
            case InfoCall():
                return self.info(timeout)
            case StatsCall():
                return self.stats(timeout)

    def solve(self, call: SolveCall, timeout: float | None) -> Trips[SolveReply]:
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
            repeated=call.repeated,
        )

    def vjp(self, call: VjpCall, timeout: float | None) -> Trips[VjpReply]:
        """POST /v1/vjp."""
        # How many values A has only the server knows here: such a reply goes over the connection.
        room = _room(call.cotangent.shape, call.cotangent.dtype) if "values" not in call.want else 0
        return self._call("/v1/vjp", call.ref, vjp_body(call), read_vjp_reply, timeout, room, repeated=call.repeated)

    def jvp(self, call: JvpCall, timeout: float | None) -> Trips[SolveReply]:
        """POST /v1/jvp."""
        like = call.b_tangent if call.b_tangent is not None else call.x
        room = 0 if like is None else _room(like.shape, like.dtype)
        return self._call("/v1/jvp", call.ref, jvp_body(call), read_solve_reply, timeout, room, repeated=call.repeated)

    def put(self, call: PutCall, timeout: float | None) -> Trips[MatrixRef]:
        """PUT /v1/matrices/{ref}."""
        more = f"{REPEATED_HEADER}: 1\r\n" if call.repeated else ""
        reply = yield from self._request(
            "PUT", _matrix_path(call.ref), put_body(call), timeout, _JSON, call.ref, more=more
        )
        document = _json_object(reply)
        return ref_from_key(document.get("ref"))

    def find(self, refs: Sequence[MatrixRef], timeout: float | None) -> Trips[list[Holding]]:
        """HEAD /v1/matrices/{ref}, one request each."""
        holdings = []
        for ref in refs:
            holdings.append((yield from self._holding(ref, timeout)))
        return holdings

    def release(self, ref: MatrixRef, timeout: float | None) -> Trips[None]:
        """DELETE /v1/matrices/{ref}."""
        self._accepted.pop(ref, None)
        yield from self._request("DELETE", _matrix_path(ref), _EMPTY, timeout, _JSON, ref)

    def info(self, timeout: float | None) -> Trips[ServerInfo]:
        """GET /v1/info."""
        return info_from_json(_json_object((yield from self._request("GET", "/v1/info", _EMPTY, timeout, _JSON))))

    def stats(self, timeout: float | None) -> Trips[Mapping[str, float]]:
        """GET /v1/stats."""
        document = _json_object((yield from self._request("GET", "/v1/stats", _EMPTY, timeout, _JSON)))
        try:
            return {str(name): float(value) for name, value in document.items()}
        except (TypeError, ValueError):
            raise MalformedError("the server's statistics cannot be read: is this a v1 server?") from None

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
        repeated: bool = False,
    ) -> Trips[T]:
        """POST a call; `room` bytes of tensors may come back; `brought`: the values of the matrix come with it."""
        unasked = BRING_UNASKED_BYTES if brought else ASK_FIRST_BYTES
        if body.nbytes > unasked and ref not in self._accepted:
            _require((yield from self._holding(ref, timeout)), brought=brought)
        more = "backsolve-brings: values\r\n" if brought else ""
        if repeated:
            more += f"{REPEATED_HEADER}: 1\r\n"
        try:
            reply = yield from self._request("POST", path, body, timeout, MEDIA_TYPE, ref, room, more)
        except (NeedMatrixError, NeedValuesError):
            self._accepted.pop(ref, None)
            raise
        if media_type(reply) != MEDIA_TYPE:
            raise MalformedError(f"the reply is not {MEDIA_TYPE}: is this a backsolve server?")
        message = decode(reply.body, reply.tensors)
        answer = read(message)
        with self._count:
            self.received_arrays += sum(tensor.nbytes for tensor in message.tensors.values())
        self._remember(ref)
        return answer

    def _holding(self, ref: MatrixRef, timeout: float | None) -> Trips[Holding]:
        reply = yield from self._exchange("HEAD", _matrix_path(ref), _EMPTY, timeout, _JSON, ref)
        word = reply.headers.get("backsolve-holding", "").upper()
        if word not in Holding.__members__:
            raise error_of(reply)
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
        more: str = "",
    ) -> Trips[HttpReply]:
        """One request whose failure is raised as the error it stands for.

        With `more` header lines; `room` bytes of tensors may come back.
        """
        reply = yield from self._shared_exchange(method, path, body, timeout, accept, ref, room, more)
        if reply is None:
            reply = yield from self._exchange(method, path, body, timeout, accept, ref, more)
        if 200 <= reply.status < 300:
            return reply
        raise error_of(reply)

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
    ) -> Trips[HttpReply | None]:
        """The same with the tensors in shared memory; None if that cannot be done now."""
        if self._shared is None:
            return None
        lease = self._shared.lease(body, room)
        if lease is None:
            return None
        with lease:
            reply = yield from self._exchange(method, path, lease.body, timeout, accept, ref, more + lease.headers)
            if media_type(reply) not in (MEDIA_TYPE, _JSON, PROBLEM):
                return reply  # not the server's own: it may still be at work
            tensors = lease.answered(reply.headers.get(SHARED_HEADER))
        if reply.status >= 400 and self._shared.refused(error_of(reply)):
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
    ) -> Trips[HttpReply]:
        lines = [f"{method} {path} HTTP/1.1\r\n{self._fixed}accept: {accept}, {PROBLEM}\r\n"]
        if method in ("POST", "PUT"):
            lines.append(f"content-type: {MEDIA_TYPE}\r\ncontent-length: {body.nbytes}\r\n")
        if timeout is not None:
            lines.append(f"backsolve-timeout: {max(timeout, 0.0):.3f}\r\n")
        if ref is not None:
            lines.append(f"backsolve-matrix: {ref.key}\r\nbacksolve-route-key: {ref.route_key}\r\n")
        lines.append(f"{more}\r\n")
        reply = yield HttpRequest(method, "".join(lines).encode("latin-1"), body, timeout)
        with self._count:
            self.sent += body.nbytes
            self.received += int(reply.body.size)
        return reply

    def _remember(self, ref: MatrixRef) -> None:
        """Note that the server has accepted this matrix; dict operations are atomic, so no lock is held."""
        if ref.is_unnamed:
            return
        self._accepted[ref] = None
        while len(self._accepted) > _REMEMBERED:
            self._accepted.popitem(last=False)


@final
class HttpTransport(Transport):
    """Calls over REST. Thread-safe; usable after a fork.

    Args:
        url: `http://host:port`, `https://host:port`, or `unix:/path` for a Unix socket.
        ca_file: certificate authorities to trust instead of the system's.
        token: bearer token sent with every request.
        shared: memory that the server can be told to look into, for large bodies.

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
        self._shared = shared
        self._calls = RestCalls(endpoint, shared)
        self._pool = ConnectionPool(endpoint, tls_context(endpoint))

    @property
    def overlaps(self) -> bool:
        """It does."""
        return True

    @property
    def sent(self) -> int:
        """Bytes of request bodies sent so far."""
        return self._calls.sent

    @property
    def received(self) -> int:
        """Bytes of reply bodies received so far."""
        return self._calls.received

    @property
    def received_arrays(self) -> int:
        """Bytes of the arrays in them."""
        return self._calls.received_arrays

    def solve(self, call: SolveCall, timeout: float | None) -> SolveReply:
        """POST /v1/solve."""
        return drive(self._calls.solve(call, timeout), self._overlapping(call.meanwhile))

    def vjp(self, call: VjpCall, timeout: float | None) -> VjpReply:
        """POST /v1/vjp."""
        return drive(self._calls.vjp(call, timeout), self._overlapping(call.meanwhile))

    def jvp(self, call: JvpCall, timeout: float | None) -> SolveReply:
        """POST /v1/jvp."""
        return drive(self._calls.jvp(call, timeout), self._overlapping(call.meanwhile))

    def put(self, call: PutCall, timeout: float | None) -> MatrixRef:
        """PUT /v1/matrices/{ref}."""
        return drive(self._calls.put(call, timeout), self._send)

    def find(self, refs: Sequence[MatrixRef], timeout: float | None) -> list[Holding]:
        """HEAD /v1/matrices/{ref}, one request each."""
        return drive(self._calls.find(refs, timeout), self._send)

    def release(self, ref: MatrixRef, timeout: float | None) -> None:
        """DELETE /v1/matrices/{ref}."""
        drive(self._calls.release(ref, timeout), self._send)

    def info(self, timeout: float | None) -> ServerInfo:
        """GET /v1/info."""
        return drive(self._calls.info(timeout), self._send)

    def stats(self, timeout: float | None) -> Mapping[str, float]:
        """GET /v1/stats."""
        return drive(self._calls.stats(timeout), self._send)

    def empty(self, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> Array:
        """An array in shared memory, if there is any; else an ordinary one."""
        array = None if self._shared is None else self._shared.empty(shape, dtype)
        return super().empty(shape, dtype) if array is None else array

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()
        if self._shared is not None:
            self._shared.close()

    def _send(self, request: HttpRequest, meanwhile: Meanwhile | None = None) -> HttpReply:
        return self._pool.exchange(request.method, request.head, request.body, request.timeout, meanwhile)

    def _overlapping(self, meanwhile: Meanwhile | None) -> Callable[[HttpRequest], HttpReply]:
        return self._send if meanwhile is None else partial(self._send, meanwhile=meanwhile)


def _fixed_headers(host: str, token: str | None) -> str:
    """The headers that every request carries."""
    text = f"host: {host}\r\nuser-agent: backsolve-python/{__version__}\r\nbacksolve-client: python/{__version__}\r\n"
    if token is None:
        return text
    if not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidOptionError("token= must be printable ASCII without blanks")
    return f"{text}authorization: Bearer {token}\r\n"


def tls_context(endpoint: Endpoint) -> ssl.SSLContext | None:
    """How an https endpoint is spoken to; None for another.

    Raises:
        InvalidOptionError: its CA file cannot be read.
    """
    if endpoint.scheme != "https":
        return None
    try:
        return ssl.create_default_context(cafile=endpoint.ca_file)
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


def _json_object(reply: HttpReply) -> dict[str, Any]:
    document = parse_json(reply.body.tobytes(), "the reply")
    if not isinstance(document, dict):
        raise MalformedError("the reply is not a JSON object: is this a backsolve server?")
    return document
