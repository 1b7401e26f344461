"""The services `Solver` and `Matrices`: messages in, the data plane, messages out.

Every method is given its messages as an iterator (`reading.ReadableRequests`), and asks for them once it is let in.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, final

from backsolve._rpc import calls, framing, replies, streams
from backsolve._rpc.pieces import Frame
from backsolve._transports.base import SolveReply, VjpReply
from backsolve.errors import PayloadTooLargeError
from backsolve.pattern import AnyPattern, DensePattern, Pattern, StructuredPattern
from backsolve.types import Storage
from backsolve.v1 import solver_pb2 as solver

from ..arriving import LEAST_BYTES, UploadDigests
from ..context import CallContext
from .admission import Admission
from .reading import only_message
from .stall import Stalls

if TYPE_CHECKING:
    from ..dataplane.plane import DataPlane

Reply = TypeVar("Reply", SolveReply, VjpReply)
Frames = Iterator[Frame]
Messages = Iterator[Any]


def _check_unary(payload: int, stream: str) -> None:
    """Refuse what is too much for one message.

    Raises:
        PayloadTooLargeError: the streaming twin takes it.
    """
    if payload > framing.UNARY_BYTES:
        raise PayloadTooLargeError(
            f"one message would carry {payload} bytes each way, at most {framing.UNARY_BYTES} fit: call {stream}",
            limit=framing.UNARY_BYTES,
            size=payload,
        )


def _read(stalls: Stalls, messages: Messages, context: Any) -> Any:
    """The message of a unary call.

    Raises:
        MalformedError: there is none, or it is none of ours.
    """
    with stalls.watched(messages, context) as watched:
        return only_message(watched)


_LAYOUTS: Mapping[int, str] = {
    solver.LAYOUT_CSR: Pattern.layout,
    solver.LAYOUT_DENSE: DensePattern.layout,
    solver.LAYOUT_STRUCTURED: StructuredPattern.layout,
}


def _digests(header: solver.PutRequest, held: AnyPattern | None) -> UploadDigests | None:
    """What takes the digests of a large upload as it arrives; `held` is the pattern that its values are for."""
    layout = _LAYOUTS.get(header.layout) if held is None else held.layout
    if layout is None or framing.payload_bytes(header) < LEAST_BYTES:
        return None
    shape = (header.n, header.columns if header.HasField("columns") else header.n)
    storage: Storage = next(
        (name for name, number in calls.STORAGE_TO_WIRE.items() if number == header.storage), "general"
    )
    return UploadDigests(layout, shape if held is None else None, storage, framing.kinds(header))


@final
class SolverServicer:
    """The methods of `backsolve.v1.Solver`, by the names gRPC calls them.

    Args:
        plane: what answers.
        admission: checks of callers and endings of calls.
        stalls: looks after what is being read.
    """

    def __init__(self, plane: "DataPlane", admission: Admission, stalls: Stalls) -> None:
        self._plane = plane
        self._admission = admission
        self._stalls = stalls

    def Solve(self, messages: Messages, context: Any) -> Any:  # noqa: N802
        """Solve."""
        plane = self._plane
        return self._unary(messages, context, "SolveStream", calls.decode_solve, plane.solve, replies.encode_solved)

    def Vjp(self, messages: Messages, context: Any) -> Any:  # noqa: N802
        """One adjoint solve."""
        plane = self._plane
        return self._unary(messages, context, "VjpStream", calls.decode_vjp, plane.vjp, replies.encode_pulled)

    def Jvp(self, messages: Messages, context: Any) -> Any:  # noqa: N802
        """One tangent solve."""
        plane = self._plane
        return self._unary(messages, context, "JvpStream", calls.decode_jvp, plane.jvp, replies.encode_pushed)

    def SolveStream(self, frames: Frames, context: Any) -> Frames:  # noqa: N802
        """Solve, of any size."""
        plane, kinds = self._plane, ("solve", "solved")
        return self._stream(frames, context, kinds, calls.decode_solve, plane.solve, replies.encode_solved)

    def VjpStream(self, frames: Frames, context: Any) -> Frames:  # noqa: N802
        """One adjoint solve, of any size."""
        plane, kinds = self._plane, ("vjp", "pulled")
        return self._stream(frames, context, kinds, calls.decode_vjp, plane.vjp, replies.encode_pulled)

    def JvpStream(self, frames: Frames, context: Any) -> Frames:  # noqa: N802
        """One tangent solve, of any size."""
        plane, kinds = self._plane, ("jvp", "pushed")
        return self._stream(frames, context, kinds, calls.decode_jvp, plane.jvp, replies.encode_pushed)

    def GetServerInfo(self, messages: Messages, context: Any) -> Any:  # noqa: N802
        """Versions, limits and methods."""
        with self._admission.admit(context):
            _read(self._stalls, messages, context)
            return replies.encode_info(self._plane.info())

    def GetStats(self, messages: Messages, context: Any) -> Any:  # noqa: N802
        """Counters of the data plane."""
        with self._admission.admit(context):
            _read(self._stalls, messages, context)
            return solver.GetStatsResponse(counters=self._plane.stats())

    def _unary(
        self,
        messages: Messages,
        context: Any,
        stream: str,
        decode: Callable[[Any, calls.Given], Any],
        answer: Callable[[Any, CallContext], Reply],
        encode: Callable[[Reply], tuple[Any, calls.Arrays]],
    ) -> Any:
        """One call in one message each way; `stream` names its twin for what is larger."""
        with self._admission.let_in(context, self._plane.refuse_when_full) as call:
            request = _read(self._stalls, messages, context)
            _check_unary(framing.payload_bytes(request), stream)
            arrays = framing.embedded(request, self._plane.limits.max_payload_bytes)
            message, results = encode(answer(decode(request, arrays), call))
            # Elements of a batch's certificate may outgrow the arrays.
            _check_unary(max(sum(array.nbytes for array in results.values()), message.ByteSize()), stream)
            framing.embed(message, results)
            return message

    def _stream(
        self,
        frames: Frames,
        context: Any,
        kinds: tuple[str, str],
        decode: Callable[[Any, calls.Given], Any],
        answer: Callable[[Any, CallContext], Reply],
        encode: Callable[[Reply, bool], tuple[Any, calls.Arrays]],
    ) -> Frames:
        """One call in chunks: header, `ready` or an error, chunks; then the reply the same way."""
        asked, answered = kinds
        with self._admission.let_in(context, self._plane.refuse_when_full) as call:
            with self._stalls.watched(frames, context) as watched:
                header = streams.expect(watched, asked)
                ref = calls.decode_ref(header.matrix)
                target = framing.Assembler(header, self._plane.limits.max_payload_bytes)
                brought = asked == "solve" and header.HasField("values")
                self._plane.require(ref, call, brought=brought)
                yield solver.Frame(ready=solver.Ready())
                streams.receive(watched, target)
            reply = answer(decode(header, target.finish()), call)
            message, results = encode(reply, False)
            yield solver.Frame(**{answered: message})
            yield from streams.element_frames(replies.encode_elements(reply.certificate.elements))
            yield from streams.chunk_frames(message, results)


@final
class MatricesServicer:
    """The methods of `backsolve.v1.Matrices`, by the names gRPC calls them.

    Args:
        plane: what keeps the matrices.
        admission: checks of callers and endings of calls.
        stalls: looks after what is being read.
    """

    def __init__(self, plane: "DataPlane", admission: Admission, stalls: Stalls) -> None:
        self._plane = plane
        self._admission = admission
        self._stalls = stalls

    def Find(self, messages: Messages, context: Any) -> Any:  # noqa: N802
        """How much of each matrix is held."""
        with self._admission.admit(context) as call:
            request = _read(self._stalls, messages, context)
            holdings = self._plane.find(calls.decode_refs(request.matrices), call)
            return solver.FindResponse(holdings=[f"HOLDING_{holding.name}" for holding in holdings])

    def Put(self, frames: Frames, context: Any) -> Any:  # noqa: N802
        """Take a matrix, or the values of one whose pattern is held."""
        with self._admission.let_in(context, self._plane.refuse_when_full) as call:
            with self._stalls.watched(frames, context) as watched:
                header = streams.expect(watched, "put")
                ref = calls.decode_ref(header.matrix)
                target = framing.Assembler(header, self._plane.limits.max_payload_bytes)
                named = calls.put_base(header)
                held, base = None, None if named is None else self._plane.base(named, call)
                if header.values_only:
                    held, base = self._plane.pattern(ref.pattern, call)
                digests = _digests(header, held)
                target.watch = None if digests is None else digests.add
                streams.receive(watched, target)
            put = calls.decode_put(header, target.finish(), held, base)
            taken = None if digests is None else digests.taken
            return solver.PutResponse(matrix=calls.encode_ref(self._plane.put(put, call, taken)))

    def Release(self, messages: Messages, context: Any) -> Any:  # noqa: N802
        """Take the hint that this caller needs a matrix no longer."""
        with self._admission.admit(context) as call:
            request = _read(self._stalls, messages, context)
            self._plane.release(calls.decode_ref(request.matrix), call)
            return solver.ReleaseResponse()
