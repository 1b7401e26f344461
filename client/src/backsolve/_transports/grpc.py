"""The gRPC transport: unary calls while payloads are small, chunked streams beyond 4 MiB.

The only module of the client that imports gRPC.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, final

import grpc
import numpy as np

from .. import __version__
from .._forkgate import ForkGate
from .._rpc import calls, framing, pieces, replies, streams
from .._rpc.status import DETAILS_KEY, decode_error
from ..errors import (
    BacksolveError,
    CancelledError,
    DeadlineError,
    InternalError,
    InvalidOptionError,
    MalformedError,
    NotFoundError,
    NotSupportedError,
    PayloadTooLargeError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnreachableError,
)
from ..types import Array, Holding, Limits, MatrixRef, ServerInfo
from ..v1 import solver_pb2 as solver
from ..v1 import types_pb2 as types
from ..v1.solver_pb2_grpc import MatricesStub, SolverStub
from .base import REPEATED_HEADER, JvpCall, PutCall, SolveCall, SolveReply, Transport, VjpCall, VjpReply
from .recall import CURRENT, recalled_by

T = TypeVar("T")
Arrays = Mapping[str, Array]
Metadata = list[tuple[str, str]]
_SOLVER = solver.DESCRIPTOR.services_by_name["Solver"].full_name
_MATRICES = solver.DESCRIPTOR.services_by_name["Matrices"].full_name

_ASK_BYTES = 256 << 10
"""No server takes less in a message: calls up to here are made without asking for its limits."""
_CLOSED = "the client is closed: make a new one"
_TAKEN_BACK = "the call was taken back"

Decode = Callable[[Any, Arrays, Iterable[types.Element]], T]

_OPTIONS = [
    *framing.channel_options(),
    # A restarted server is met again within about a second; gRPC's own pauses grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # despite its name the time one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A solve may be silent for minutes; a dead peer must not look like one.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # No channel shares connections: bulk has one of its own, and a forked child does not get its parent's.
    ("grpc.use_local_subchannel_pool", 1),
    # The service is a neighbour, not a site on the web; REST ignores proxy variables as well.
    ("grpc.enable_http_proxy", 0),
]

_calls = ForkGate()

# What a status means that came without our details: from gRPC itself, a proxy or another program.
_FOREIGN: Mapping[grpc.StatusCode, tuple[type[BacksolveError], str]] = {
    grpc.StatusCode.UNAVAILABLE: (UnreachableError, "no server answered"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        DeadlineError,
        "the deadline passed before the answer was there: raise timeout=, or try again later",
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (
        PayloadTooLargeError,
        f"a message is larger than a proxy on the way, or gRPC, allows: both must take {framing.MESSAGE_BYTES} bytes",
    ),
    grpc.StatusCode.CANCELLED: (CancelledError, _TAKEN_BACK),
    grpc.StatusCode.UNAUTHENTICATED: (UnauthenticatedError, "the token is missing or wrong: pass token="),
    grpc.StatusCode.PERMISSION_DENIED: (PermissionDeniedError, "access is denied"),
    grpc.StatusCode.UNIMPLEMENTED: (NotSupportedError, "the address answers gRPC, but not backsolve.v1"),
    grpc.StatusCode.NOT_FOUND: (NotFoundError, "there is nothing at this address"),
    grpc.StatusCode.INVALID_ARGUMENT: (MalformedError, "the request was refused before it reached the server"),
}


@final
class GrpcTransport(Transport):
    """Calls over gRPC. Thread-safe; usable after a fork.

    Args:
        target: `host:port`.
        secure: whether to speak TLS.
        ca_file: certificate authorities to trust instead of the system's.
        token: bearer token sent with every call.

    Raises:
        InvalidOptionError: the CA file cannot be read, or the token cannot be a header.
    """

    def __init__(
        self, target: str, *, secure: bool = False, ca_file: str | None = None, token: str | None = None
    ) -> None:
        if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
            raise InvalidOptionError("token= must be printable ASCII without blanks")
        self._target = target
        self._credentials = _credentials(ca_file) if secure else None
        self._metadata = [("backsolve-client", f"python/{__version__}")]
        if token is not None:
            self._metadata.append(("authorization", f"Bearer {token}"))
        # By pid: a forked child finds nothing under its own and leaves its parent's channels alone.
        self._connections: dict[int, _Connection] = {}
        self._closed = False

    @property
    def sent(self) -> int:
        """Payload bytes sent by this process."""
        return self._connection().sent.total

    @property
    def received(self) -> int:
        """Payload bytes received by this process: those of arrays, as this process does not see the rest."""
        return self._connection().received.total

    @property
    def received_arrays(self) -> int:
        """The same."""
        return self.received

    def solve(self, call: SolveCall, timeout: float | None) -> SolveReply:
        """Solve; streamed if the right-hand side does not fit one message."""
        message, arrays = calls.encode_solve(call)
        beside = self._headers(call.ref, repeated=call.repeated)
        stub = self._connection().stub
        reply: SolveReply
        like = call.rhs
        if call.answer_shape is not None:
            like = np.broadcast_to(np.empty((), dtype=call.rhs.dtype), call.answer_shape)
        if self._fits(arrays, like, timeout):
            reply = self._unary(stub.Solve, message, arrays, beside, timeout, replies.decode_solved)
        else:
            frame = solver.Frame(solve=message)
            reply = self._stream("SolveStream", frame, arrays, beside, timeout, ("solved", replies.decode_solved))
        _check_shape(reply.x, like)
        return reply

    def vjp(self, call: VjpCall, timeout: float | None) -> VjpReply:
        """One adjoint solve; streamed if the server is to form gradients whose size only it knows."""
        message, arrays = calls.encode_vjp(call)
        beside = self._headers(call.ref, repeated=call.repeated)
        stub = self._connection().stub
        reply: VjpReply
        fits = self._fits(arrays, call.cotangent, timeout)
        if "values" not in call.want and fits:
            reply = self._unary(stub.Vjp, message, arrays, beside, timeout, replies.decode_pulled)
        else:
            frame = solver.Frame(vjp=message)
            reply = self._stream("VjpStream", frame, arrays, beside, timeout, ("pulled", replies.decode_pulled))
        if reply.b is not None:
            _check_shape(reply.b, call.cotangent)
        return reply

    def jvp(self, call: JvpCall, timeout: float | None) -> SolveReply:
        """One tangent solve."""
        message, arrays = calls.encode_jvp(call)
        beside = self._headers(call.ref, repeated=call.repeated)
        stub = self._connection().stub
        like = call.b_tangent if call.b_tangent is not None else call.x
        reply: SolveReply
        if self._fits(arrays, like, timeout):
            reply = self._unary(stub.Jvp, message, arrays, beside, timeout, replies.decode_solved)
        else:
            frame = solver.Frame(jvp=message)
            reply = self._stream("JvpStream", frame, arrays, beside, timeout, ("pushed", replies.decode_solved))
        if like is not None:
            _check_shape(reply.x, like)
        return reply

    def put(self, call: PutCall, timeout: float | None) -> MatrixRef:
        """Upload a matrix, or its values alone; a small one travels in the first frame."""
        message, arrays = calls.encode_put(call)
        beside = self._headers(call.ref, repeated=call.repeated)
        connection = self._connection()
        if self._fits(arrays, None, timeout):
            framing.embed(message, arrays)
            connection.sent.add(_size(arrays))
            arrays = {}
        chunks = streams.chunk_frames(message, arrays)
        upload = streams.Upload(solver.Frame(put=message), chunks, connection.sent.add)
        upload.go()
        try:
            with self._translated():
                reply = self._wait(connection.bulk.Put, upload, beside, timeout)
        finally:
            upload.stop()
        return calls.decode_ref(_message(reply).matrix)

    def find(self, refs: Sequence[MatrixRef], timeout: float | None) -> list[Holding]:
        """How much of each matrix the server holds."""
        message = solver.FindRequest(matrices=[calls.encode_ref(ref) for ref in refs])
        ref = refs[0] if refs else None
        return replies.decode_holdings(
            self._plain(self._connection().matrices.Find, message, self._headers(ref), timeout)
        )

    def release(self, ref: MatrixRef, timeout: float | None) -> None:
        """Hint that this caller needs the matrix no longer."""
        message = solver.ReleaseRequest(matrix=calls.encode_ref(ref))
        self._plain(self._connection().matrices.Release, message, self._headers(ref), timeout)

    def info(self, timeout: float | None) -> ServerInfo:
        """Versions, limits and methods."""
        message = solver.GetServerInfoRequest()
        return replies.decode_info(self._plain(self._connection().stub.GetServerInfo, message, self._metadata, timeout))

    def stats(self, timeout: float | None) -> Mapping[str, float]:
        """Counters of the data plane."""
        message = solver.GetStatsRequest()
        return dict(self._plain(self._connection().stub.GetStats, message, self._metadata, timeout).counters)

    def close(self) -> None:
        """Close the channels of this process; calls under way end with `CancelledError`."""
        self._closed = True
        connection = self._connections.pop(os.getpid(), None)
        if connection is not None:
            connection.close()

    def _connection(self) -> "_Connection":
        """The channels of this process."""
        connection = self._connections.get(os.getpid())
        if connection is None:
            if self._closed:
                raise CancelledError(_CLOSED)
            # No lock, which a fork could leave locked: setdefault is atomic, channels connect lazily.
            mine = _Connection(self._target, self._credentials)
            connection = self._connections.setdefault(os.getpid(), mine)
            if connection is not mine:
                mine.close()
        return connection

    def _fits(self, arrays: Arrays, like: Array | None, timeout: float | None) -> bool:
        """Whether request and reply fit a message each, by our own limits and by those that the server tells.

        Args:
            arrays: of the request.
            like: the reply is shaped like it.
            timeout: of the call.

        Raises:
            PayloadTooLargeError: the server would refuse the request, of which nothing has been sent.
        """
        size = _size(arrays)
        larger = max(size, _reply_bytes(like))
        if larger <= _ASK_BYTES:
            return True
        limits = self._limits(timeout, fresh=False)
        if 0 < limits.max_payload_bytes < size:
            limits = self._limits(timeout, fresh=True)  # it may have been started again, with another limit
            framing.check_payload(size, limits.max_payload_bytes or size)
        # Half of a message is left to what is not in the tensors, as between our own two limits.
        return larger <= min(framing.UNARY_BYTES, limits.max_message_bytes // 2 or framing.UNARY_BYTES)

    def _limits(self, timeout: float | None, *, fresh: bool) -> Limits:
        """What the server says of its limits, asked once for each connection; 0 where it says nothing."""
        connection = self._connection()
        if connection.limits is None or fresh:
            try:
                connection.limits = self.info(timeout).limits
            except (NotSupportedError, PermissionDeniedError):
                connection.limits = Limits(0, 0)
        return connection.limits

    def _headers(self, ref: MatrixRef | None, *, repeated: bool = False) -> Metadata:
        if ref is None:
            return self._metadata
        headers = [*self._metadata, ("backsolve-route-key", ref.route_key)]
        return [*headers, (REPEATED_HEADER, "1")] if repeated else headers

    def _plain(self, method: Any, message: Any, beside: Metadata, timeout: float | None) -> Any:
        """One unary call."""
        with self._translated():
            reply = self._wait(method, message, beside, timeout)
        return _message(reply)

    def _wait(self, method: Any, request: Any, beside: Metadata, timeout: float | None) -> Any:
        """Make a call that has one reply, and wait for it; so that it can be taken back, if anybody will."""
        recall = CURRENT.get()
        if recall is None:
            return method(request, timeout=timeout, metadata=beside)
        under_way = method.future(request, timeout=timeout, metadata=beside)
        recall.by(under_way.cancel)
        try:
            return under_way.result()
        except grpc.FutureCancelledError as error:
            raise CancelledError(_TAKEN_BACK) from error

    def _unary(
        self, method: Any, message: Any, arrays: Arrays, beside: Metadata, timeout: float | None, decode: Decode[T]
    ) -> T:
        """One unary call with tensors."""
        connection = self._connection()
        framing.embed(message, arrays)
        connection.sent.add(_size(arrays))
        reply = self._plain(method, message, beside, timeout)
        connection.received.add(framing.payload_bytes(reply))
        return decode(reply, framing.embedded(reply, None), ())

    def _stream(
        self,
        method: str,
        header: solver.Frame,
        arrays: Arrays,
        beside: Metadata,
        timeout: float | None,
        answer: tuple[str, Decode[T]],
    ) -> T:
        """One streaming call: the header, then the payload once the server is ready for it."""
        connection = self._connection()
        kind, decode = answer
        message = getattr(header, str(header.WhichOneof("kind")))
        upload = streams.Upload(header, streams.chunk_frames(message, arrays), connection.sent.add)
        frames = None
        try:
            with self._translated():
                frames = getattr(connection.bulk, method)(upload, timeout=timeout, metadata=beside)
                recalled_by(frames.cancel)
                streams.expect(frames, "ready")
                upload.go()
                reply = streams.expect(frames, kind)
                target = framing.Assembler(reply, None)
                elements: list[types.Element] = []
                streams.receive(frames, target, elements)
            connection.received.add(target.size)
            return decode(reply, target.finish(), elements)
        finally:
            upload.stop()
            if frames is not None:
                frames.cancel()  # nothing to a call that has ended

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Around every call: raise what a failed one stands for, the server's own error if it sent one."""
        try:
            with _calls:
                yield
        except grpc.RpcError as error:
            raise _error_of(error, self._target) from error
        except ValueError as error:
            # gRPC's word for a closed channel.
            if not self._closed or isinstance(error, BacksolveError):
                raise
            raise CancelledError(_CLOSED) from error


def _message(reply: Any) -> Any:
    """The message of a unary call that has ended well.

    Raises:
        MalformedError: there is none: gRPC takes a status of OK alone for an answer.
    """
    if reply is None:
        raise MalformedError("the answer is empty: does the address lead to a backsolve server?")
    return reply


@final
class _Counter:
    """A number that several threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.total = 0

    def add(self, count: int) -> None:
        with self._lock:
            self.total += count


@final
class _Connection:
    """One process's channels to one server; bulk has its own, so that small calls never queue behind it."""

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None) -> None:
        self._channels = [_channel(target, credentials) for _ in range(2)]
        control, bulk = self._channels
        self.stub: Any = SolverStub(control)  # type: ignore[no-untyped-call]
        self.matrices: Any = MatricesStub(control)  # type: ignore[no-untyped-call]
        self.bulk = _Bulk(bulk)
        self.sent, self.received = _Counter(), _Counter()
        self.limits: Limits | None = None

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


@final
class _Bulk:
    """The streams of both services, by their names, with frames that go past protobuf."""

    def __init__(self, channel: Any) -> None:
        for name in ("SolveStream", "VjpStream", "JvpStream"):
            setattr(self, name, channel.stream_stream(f"/{_SOLVER}/{name}", pieces.write, pieces.read))
        self.Put = channel.stream_unary(f"/{_MATRICES}/Put", pieces.write, solver.PutResponse.FromString)


def _channel(target: str, credentials: Any) -> Any:
    if credentials is None:
        return grpc.insecure_channel(target, _OPTIONS)
    return grpc.secure_channel(target, credentials, _OPTIONS)


def _credentials(ca_file: str | None) -> Any:
    try:
        roots = None if ca_file is None else Path(ca_file).read_bytes()
    except OSError as error:
        raise InvalidOptionError("the CA file cannot be read: name a file in PEM form") from error
    if roots is not None and b"BEGIN CERTIFICATE" not in roots:
        raise InvalidOptionError("the CA file must be PEM, with BEGIN CERTIFICATE lines")
    return grpc.ssl_channel_credentials(roots)


def _error_of(error: Any, target: str) -> BacksolveError:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and (ours := decode_error(value)) is not None:
            return ours
    status = error.code()
    kind, text = _FOREIGN.get(status, (InternalError, "the server, or a proxy before it, failed"))
    return kind(f"{text} (gRPC {status.name} from {target})", grpc_status=status.name)


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


def _reply_bytes(like: Array | None) -> int:
    """Bytes of a reply that is shaped like `like`."""
    if like is None:
        return 0
    # If the leading axis is a batch, the certificate has an element for each of its systems.
    return max(like.nbytes, framing.ELEMENT_BYTES * like.shape[0] if like.ndim > 1 else 0)


def _check_shape(answer: Array, like: Array) -> None:
    if answer.shape != like.shape or answer.dtype != like.dtype:
        raise MalformedError("the server's answer has another shape or type than the question: is it a v1 server?")
