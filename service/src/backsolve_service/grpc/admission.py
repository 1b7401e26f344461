"""Who may call, in what circumstances, and how a failed call ends: the same for every method."""

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import grpc

from backsolve._rpc.status import DETAILS_KEY, encode_error
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

    @contextmanager
    def let_in(self, context: Any, refuse_when_full: Callable[[int], None]) -> Iterator[CallContext]:
        """As `admit`, for what may have to queue: refused while that is cheap when there is no room.

        Args:
            context: gRPC's.
            refuse_when_full: given how many such calls are under way, raises what refuses one more.
        """
        with self.admit(context) as call:
            with self._lock:
                refuse_when_full(self._under_way)
                self._under_way += 1
            try:
                yield call
            finally:
                with self._lock:
                    self._under_way -= 1

    @contextmanager
    def admit(self, context: Any) -> Iterator[CallContext]:
        """The circumstances of a call, for as long as it is handled.

        Errors of ours end the call with their status and details; anything else ends it with
        INTERNAL and the request id, and its trace goes to the log.
        """
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        given = metadata.get(REQUEST_ID, "")
        request_id = given if _SAFE_ID.fullmatch(given) else new_request_id()
        context.set_trailing_metadata(((REQUEST_ID, request_id),))
        left = context.time_remaining()
        endless = left is None or left > _NO_DEADLINE_SECONDS
        call = CallContext.within(None if endless else left, "grpc", request_id)
        release = _cancel_with(context, call)
        try:
            token = _token(metadata.get("authorization", ""))
            tenant = self._callers.tenant(token, "send metadata 'authorization: Bearer <token>'")
            yield replace(call, tenant=tenant)
        except BacksolveError as error:
            self._failed(error, request_id)
            _end(context, error, request_id)
        except grpc.RpcError:
            raise  # the caller went away while its frames were read; gRPC has ended the call already
        except Exception as error:
            self._failed(error, request_id)
            _log.exception("request %s failed unexpectedly", request_id, extra={"request_id": request_id})
            text = f"the server failed; its log has the cause under request {request_id}"
            _end(context, InternalError(text, request_id=request_id), request_id, error)
        finally:
            release()


def _token(header: str) -> str | None:
    """The token of an authorization header, or None."""
    scheme, _, token = header.partition(" ")
    return token if scheme.lower() == "bearer" else None


def _cancel_with(context: Any, call: CallContext) -> Callable[[], None]:
    """Cancel `call` when the RPC ends before it has been handled; the result says that it has."""
    handled = False

    def gone() -> None:
        if not handled:
            call.cancel()

    def release() -> None:
        nonlocal handled
        handled = True

    if not context.add_callback(gone):
        gone()
    return release


def _end(context: Any, error: BacksolveError, request_id: str, cause: Exception | None = None) -> None:
    """End the call with a status; raises, as gRPC wants it."""
    trailer = ((REQUEST_ID, request_id), (DETAILS_KEY, encode_error(error)))
    text = str(error)[:_MESSAGE_CHARACTERS]
    context.abort_with_status(_Ending(STATUS_CODES[WIRE[error.code].grpc], text, trailer))
