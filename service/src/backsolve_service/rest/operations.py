"""What each computing route does with a body: read it as a call, run the call, write the reply.

Everything here runs on a worker thread, but for small calls whose factor lies ready: those are read and
answered on the event loop, since handing them over would take longer than they do. Where they have to wait, they do so
without a thread.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Generic, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from backsolve._rest.body import MEDIA_TYPE, Body, Header, Message, decode, read_header
from backsolve._rest.documents import certificate_to_json
from backsolve._rest.messages import (
    read_jvp,
    read_solve,
    read_vjp,
    solve_reply_body,
    vjp_reply_body,
)
from backsolve._transports.base import JvpCall, PutCall, SolveCall, SolveReply, VjpCall, VjpReply
from backsolve.errors import NeedMatrixError, NeedValuesError, PayloadTooLargeError
from backsolve.types import MatrixRef, Status

from ..context import CallContext, WouldWaitError
from ..scheduling.steps import Steps, finish
from . import people
from .exchange import Reply
from .media import JSON
from .people import BaseOf
from .problems import PROBLEM_TYPE, make_problem
from .uploads import own

if TYPE_CHECKING:
    from ..dataplane.plane import DataPlane

Call = TypeVar("Call", SolveCall, VjpCall, JvpCall)
Answer = TypeVar("Answer", SolveReply, VjpReply)

_USUAL_HEADER_BYTES = 1 << 10
"""Headers of usual calls are shorter."""


@final
@dataclass(frozen=True, slots=True)
class Request:
    """A body and what its headers say about it.

    Attributes:
        body: all of it.
        source: its media type.
        target: the media type of the reply.
        strict: whether a solve whose status is not OK is to be an error.
        context: the circumstances of the call.
    """

    body: NDArray[np.uint8]
    source: str
    target: str
    strict: bool
    context: CallContext


@final
@dataclass(frozen=True, slots=True)
class Operation(Generic[Call, Answer]):
    """One computing route: how its two kinds of bodies are read and written, and what runs between."""

    read_bulk: Callable[[Message], Call]
    read_json: Callable[[NDArray[np.uint8], BaseOf], tuple[Call, PutCall | None]]
    run: Callable[["DataPlane", Call, CallContext], Steps[Answer]]
    write_bulk: Callable[[Answer], Body]
    write_json: Callable[[Answer, MatrixRef], bytes]

    def __call__(self, plane: "DataPlane", request: Request) -> Reply:
        """Read, run, write."""
        call, put = self._read(plane, request)
        return finish(self._replied(plane, request, request.context, call, put), request.context)

    def at_once(self, plane: "DataPlane", request: Request, most_bytes: int) -> Steps[Reply | None]:
        """The reply without work of any length on this thread, or None: call it on another.

        Args:
            plane: what answers.
            request: read here.
            most_bytes: of a factor times columns, that may be read here; longer solves are waited for.
        """
        call, put = self._read(plane, request)
        if put is not None or not plane.at_hand(call, request.context):
            return None
        try:
            return (yield from self._replied(plane, request, request.context.hurried(most_bytes), call, put))
        except WouldWaitError:
            return None

    def _read(self, plane: "DataPlane", request: Request) -> tuple[Call, PutCall | None]:
        if request.source == JSON:
            if request.body.size > people.MAX_BYTES:
                raise PayloadTooLargeError(
                    f"a JSON body has at most {people.MAX_BYTES} bytes: send {MEDIA_TYPE}",
                    limit=people.MAX_BYTES,
                    size=request.body.size,
                )
            return self.read_json(request.body, lambda ref: plane.base(ref, request.context))
        call = self.read_bulk(decode(request.body, read=_read_header))
        if isinstance(call, SolveCall) and call.values is not None:
            call = replace(call, values=own(call.values, request.body))
        return call, None

    def _replied(
        self, plane: "DataPlane", request: Request, context: CallContext, call: Call, put: PutCall | None
    ) -> Steps[Reply]:
        answer = yield from self._answer(plane, call, put, context)
        status = answer.certificate.status
        if request.strict and status is not Status.OK:
            return _refusal(status, answer, context.request_id)
        if request.target == JSON:
            return Reply(200, JSON, (self.write_json(answer, call.ref),))
        return Reply(200, MEDIA_TYPE, self.write_bulk(answer).parts)

    def _answer(self, plane: "DataPlane", call: Call, put: PutCall | None, context: CallContext) -> Steps[Answer]:
        """Run a call, with the upload of a matrix that was written out before it."""
        if put is None:
            return (yield from self.run(plane, call, context))
        plane.put(put, context)
        try:
            return (yield from self.run(plane, call, context))
        except (NeedMatrixError, NeedValuesError):
            # Evicted between the two; the caller has sent it and need not know.
            plane.put(put, context)
            return (yield from self.run(plane, call, context))


def _read_header(text: bytes) -> Header:
    """A header as `read_header` has it: a job that solves with one matrix again and again sends the same each time."""
    return (_remembered if len(text) <= _USUAL_HEADER_BYTES else read_header)(text)


_remembered = lru_cache(maxsize=1024)(read_header)


def _refusal(status: Status, answer: SolveReply | VjpReply, request_id: str) -> Reply:
    """A solve that ran and is not good enough for a caller who asked for `on_failure=raise`."""
    certificate = certificate_to_json(answer.certificate)
    problem = make_problem(status.name, 422, status.advice, request_id, certificate=certificate)
    return Reply(problem.status, PROBLEM_TYPE, (problem.body,), problem.headers)


Job = Operation[SolveCall, SolveReply] | Operation[VjpCall, VjpReply] | Operation[JvpCall, SolveReply]
"""Any computing route."""

SOLVE = Operation(
    read_solve,
    people.read_solve,
    lambda plane, call, context: plane.solving(call, context),
    solve_reply_body,
    people.write_solve,
)
VJP = Operation(
    read_vjp,
    people.read_vjp,
    lambda plane, call, context: plane.pulling(call, context),
    vjp_reply_body,
    people.write_vjp,
)
JVP = Operation(
    read_jvp,
    people.read_jvp,
    lambda plane, call, context: plane.pushing(call, context),
    solve_reply_body,
    people.write_solve,
)
