"""Who may call, in what circumstances, and how a failed call ends: the same for every method."""

import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import grpc

from backsolve._rpc.status import DETAILS_KEY, encode_error
from backsolve._transports.base import REPEATED_HEADER
from backsolve.errors import WIRE, BacksolveError, InternalError

from ..callers import Callers
from ..context import CallContext, new_request_id

REQUEST_ID = "x-request-id"

_SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_NO_DEADLINE_SECONDS = 3.0e8
"""gRPC tells of a call without a deadline that it has centuries left."""

_MESSAGE_CHARACTERS = 400
"""gRPC's own text is percent-encoded, so up to 12 bytes a character; the whole text is in the details."""

_log = logging.getLogger(__name__)

Refuse = Callable[[int, CallContext], None]
ErrorTable = Mapping[str, "grpc.StatusCode"]
STATUS_CODES: ErrorTable = {form.grpc: grpc.StatusCode[form.grpc] for form in WIRE.values()}


@dataclass(frozen=True, slots=True)
class _Ending:
    """What `abort_with_status` needs (the interface `grpc.Status`)."""

    code: Any
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


@final
class Admission:
    """Turns a gRPC call into a `CallContext`, and an exception into a status.

    Args:
        callers: whose tokens let in.
        failed: hears of every call that fails, with its request id.
    """

    def __init__(self, callers: Callers, failed: Callable[[Exception, str], None]) -> None:
        self._failed = failed
        self._callers = callers
        self._lock = threading.Lock()
        self._under_way = 0

    def let_in(self, context: Any, refuse_when_full: Refuse) -> "Admitted":
        """As `admit`, for what may have to queue: refused while that is cheap when there is no room.

        Args:
            context: gRPC's.
            refuse_when_full: given how many such calls are under way, and one more, raises what refuses that.
        """
        return Admitted(self, context, refuse_when_full)

    def admit(self, context: Any) -> "Admitted":
        """The circumstances of a call, for as long as a `with` block handles it.

        Errors of ours end the call with their status and details; anything else ends it with
        INTERNAL and the request id, and its trace goes to the log.
        """
        return Admitted(self, context, None)

    def tenant(self, header: str) -> str:
        """Whose call it is, by its authorization header.

        Raises:
            UnauthenticatedError: a token is asked for, and this is none.
        """
        return self._callers.tenant(_token(header), "send metadata 'authorization: Bearer <token>'")

    def enter(self, refuse_when_full: Refuse, call: CallContext) -> None:
        """One more that may have to queue is under way, unless it is refused."""
        with self._lock:
            refuse_when_full(self._under_way, call)
            self._under_way += 1

    def leave(self) -> None:
        """One of them has ended."""
        with self._lock:
            self._under_way -= 1

    def end(self, context: Any, error: Exception, request_id: str) -> None:
        """End a call with the status of an error; raises, as gRPC wants it."""
        self._failed(error, request_id)
        if not isinstance(error, BacksolveError):
            _log.error("request %s failed unexpectedly", request_id, exc_info=error, extra={"request_id": request_id})
            text = f"the server failed; its log has the cause under request {request_id}"
            error = InternalError(text, request_id=request_id)
        _end(context, error, request_id)


@final
class Admitted:
    """One call while it is handled: the `with` block gets its circumstances, and what it raises becomes a status."""

    __slots__ = ("_admission", "_context", "_handled", "_refuse_when_full", "_request_id", "_under_way")

    def __init__(self, admission: Admission, context: Any, refuse_when_full: Refuse | None) -> None:
        self._admission, self._context, self._refuse_when_full = admission, context, refuse_when_full
        self._handled = self._under_way = False
        self._request_id = ""

    def __enter__(self) -> CallContext:
        context = self._context
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        given = metadata.get(REQUEST_ID, "")
        self._request_id = given if _SAFE_ID.fullmatch(given) else new_request_id()
        context.set_trailing_metadata(((REQUEST_ID, self._request_id),))
        left = context.time_remaining()
        endless = left is None or left > _NO_DEADLINE_SECONDS
        try:
            tenant = self._admission.tenant(metadata.get("authorization", ""))
            repeated = REPEATED_HEADER in metadata
            call = CallContext.within(None if endless else left, "grpc", self._request_id, tenant, repeated=repeated)
            if self._refuse_when_full is not None:
                self._admission.enter(self._refuse_when_full, call)
                self._under_way = True
        except Exception as error:
            self._admission.end(context, error, self._request_id)
            raise

        def gone() -> None:
            if not self._handled:
                call.cancel()

        if not context.add_callback(gone):
            gone()
        return call

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._handled = True
        if self._under_way:
            self._admission.leave()
        # Where the caller went away while its frames were read, gRPC has ended the call already.
        if isinstance(error, Exception) and not isinstance(error, grpc.RpcError):
            self._admission.end(self._context, error, self._request_id)


def _token(header: str) -> str | None:
    """The token of an authorization header, or None."""
    scheme, _, token = header.partition(" ")
    return token if scheme.lower() == "bearer" else None


def _end(context: Any, error: BacksolveError, request_id: str) -> None:
    """End the call with a status; raises, as gRPC wants it."""
    trailer = ((REQUEST_ID, request_id), (DETAILS_KEY, encode_error(error)))
    text = str(error)[:_MESSAGE_CHARACTERS]
    context.abort_with_status(_Ending(STATUS_CODES[WIRE[error.code].grpc], text, trailer))
