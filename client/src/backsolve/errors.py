"""Every error that may cross the wire, each known by one `ErrorCode`.

    BacksolveError
    ├── InvalidInputError (ValueError)
    │   ├── MalformedError, InvalidShapeError, InvalidDtypeError (TypeError), InvalidPatternError,
    │   └── InvalidOptionError, NonfiniteInputError, NotHermitianError
    ├── SolveError (numpy.linalg.LinAlgError)
    │   ├── SingularMatrixError, NotPositiveDefiniteError
    │   └── NotConvergedError ── InconsistentError        raised by the client, with `.solution`
    ├── NotSupportedError, UnsupportedMediaError, NotAcceptableError, NotFoundError
    ├── NeedMatrixError, NeedValuesError                  answered by the client itself
    ├── DigestMismatchError ── MatrixChangedError
    ├── CapacityError (MemoryError)
    │   └── PayloadTooLargeError, MemoryBudgetError, DeviceOutOfMemoryError
    ├── BusyError ── QueueFullError, DrainingError, RateLimitedError
    ├── DeadlineError (TimeoutError), CancelledError
    ├── UnauthenticatedError, PermissionDeniedError       (PermissionError)
    ├── UnreachableError (ConnectionError)
    └── InternalError

One table, `WIRE`, holds what each code is called in gRPC and HTTP and whether repeating the
call can help; both transports and the client's retries read it and nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from .types import ErrorCode, Solution

Retry = Literal["no", "backoff", "payload", "once", "caller"]


@dataclass(frozen=True, slots=True)
class WireForm:
    """How one error code travels, and what a client may do about it.

    Attributes:
        grpc: name of the canonical gRPC status.
        http: HTTP status.
        retry: "backoff": the same call may succeed later; "payload": at once, with the data
            that was missing; "once": one repetition; "caller": only the caller can know.
    """

    grpc: str
    http: int
    retry: Retry


WIRE: Mapping[ErrorCode, WireForm] = {
    ErrorCode.INTERNAL: WireForm("INTERNAL", 500, "once"),
    ErrorCode.MALFORMED: WireForm("INVALID_ARGUMENT", 400, "no"),
    ErrorCode.INVALID_SHAPE: WireForm("INVALID_ARGUMENT", 422, "no"),
    ErrorCode.INVALID_DTYPE: WireForm("INVALID_ARGUMENT", 422, "no"),
    ErrorCode.INVALID_PATTERN: WireForm("INVALID_ARGUMENT", 422, "no"),
    ErrorCode.INVALID_OPTION: WireForm("INVALID_ARGUMENT", 422, "no"),
    ErrorCode.NONFINITE_INPUT: WireForm("INVALID_ARGUMENT", 422, "no"),
    ErrorCode.NOT_HERMITIAN: WireForm("INVALID_ARGUMENT", 422, "no"),
    ErrorCode.SINGULAR_MATRIX: WireForm("FAILED_PRECONDITION", 422, "no"),
    ErrorCode.NOT_POSITIVE_DEFINITE: WireForm("FAILED_PRECONDITION", 422, "no"),
    ErrorCode.NOT_SUPPORTED: WireForm("UNIMPLEMENTED", 501, "no"),
    ErrorCode.UNSUPPORTED_MEDIA: WireForm("INVALID_ARGUMENT", 415, "no"),
    ErrorCode.NOT_ACCEPTABLE: WireForm("INVALID_ARGUMENT", 406, "no"),
    ErrorCode.NEED_MATRIX: WireForm("NOT_FOUND", 404, "payload"),
    ErrorCode.NEED_VALUES: WireForm("NOT_FOUND", 404, "payload"),
    ErrorCode.NOT_FOUND: WireForm("NOT_FOUND", 404, "no"),
    ErrorCode.DIGEST_MISMATCH: WireForm("DATA_LOSS", 422, "once"),
    ErrorCode.PAYLOAD_TOO_LARGE: WireForm("RESOURCE_EXHAUSTED", 413, "no"),
    ErrorCode.MEMORY_BUDGET: WireForm("RESOURCE_EXHAUSTED", 507, "no"),
    ErrorCode.QUEUE_FULL: WireForm("UNAVAILABLE", 503, "backoff"),
    ErrorCode.DRAINING: WireForm("UNAVAILABLE", 503, "backoff"),
    ErrorCode.RATE_LIMITED: WireForm("RESOURCE_EXHAUSTED", 429, "backoff"),
    ErrorCode.DEVICE_OUT_OF_MEMORY: WireForm("RESOURCE_EXHAUSTED", 507, "no"),
    ErrorCode.DEADLINE: WireForm("DEADLINE_EXCEEDED", 504, "caller"),
    ErrorCode.CANCELLED: WireForm("CANCELLED", 499, "caller"),
    ErrorCode.UNAUTHENTICATED: WireForm("UNAUTHENTICATED", 401, "no"),
    ErrorCode.PERMISSION_DENIED: WireForm("PERMISSION_DENIED", 403, "no"),
    ErrorCode.UNREACHABLE: WireForm("UNAVAILABLE", 503, "backoff"),
}


class BacksolveError(Exception):
    """Base of all errors; servers and clients translate `code` and nothing else.

    Attributes:
        code: the one reason this class stands for.
        details: machine-readable facts about this occurrence (a limit, a column, seconds to
            wait), never the caller's numbers. They travel with the error.
    """

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL

    def __init__(self, message: str, **details: str | int | float) -> None:
        super().__init__(message)
        self.details: dict[str, str] = {name: str(value) for name, value in details.items()}

    @property
    def retry_after(self) -> float | None:
        """Seconds after which the server would like to be asked again, if it said so."""
        text = self.details.get("retry_after")
        return None if text is None else float(text)


class InternalError(BacksolveError):
    """Something failed that should not have; the server's log has the trace under the given id."""


class InvalidInputError(BacksolveError, ValueError):
    """The call itself is wrong: repeating it cannot help."""


class MalformedError(InvalidInputError):
    """The body or a frame cannot be read."""

    code = ErrorCode.MALFORMED


class InvalidShapeError(InvalidInputError):
    """Shapes do not fit each other."""

    code = ErrorCode.INVALID_SHAPE


class InvalidDtypeError(InvalidInputError, TypeError):
    """An element type that cannot be solved in."""

    code = ErrorCode.INVALID_DTYPE


class InvalidPatternError(InvalidInputError):
    """`indptr` and `indices` are not a CSR pattern in canonical form."""

    code = ErrorCode.INVALID_PATTERN


class InvalidOptionError(InvalidInputError):
    """An option that does not exist, has an impossible value, or that the method does not use."""

    code = ErrorCode.INVALID_OPTION


class NonfiniteInputError(InvalidInputError):
    """The matrix or the right-hand side holds NaN or infinity."""

    code = ErrorCode.NONFINITE_INPUT


class NotHermitianError(InvalidInputError):
    """Storage "hermitian" or "lower" was promised for a matrix that is not Hermitian."""

    code = ErrorCode.NOT_HERMITIAN


class SolveError(BacksolveError, np.linalg.LinAlgError):
    """The request was well formed, the system has no answer that can be given.

    Attributes:
        solution: what the solve gave all the same, when it gave anything.
    """

    solution: Solution | None = None


class SingularMatrixError(SolveError):
    """The matrix has no inverse: by its pattern alone, or because a pivot is exactly zero."""

    code = ErrorCode.SINGULAR_MATRIX


class NotPositiveDefiniteError(SolveError):
    """A method for Hermitian positive definite matrices was given another one."""

    code = ErrorCode.NOT_POSITIVE_DEFINITE


class NotConvergedError(SolveError):
    """The solve ran and its answer misses the tolerance; `solution` holds it all the same."""


class InconsistentError(NotConvergedError):
    """A singular system whose right-hand side lies outside the range of the matrix."""


class NotSupportedError(BacksolveError):
    """The method, element type or device is not available here."""

    code = ErrorCode.NOT_SUPPORTED


class UnsupportedMediaError(BacksolveError):
    """The body's media type is not read here; the message lists those that are."""

    code = ErrorCode.UNSUPPORTED_MEDIA


class NotAcceptableError(BacksolveError):
    """No media type that the caller accepts can be written; the message lists those that can."""

    code = ErrorCode.NOT_ACCEPTABLE


class NotFoundError(BacksolveError):
    """There is nothing at this address."""

    code = ErrorCode.NOT_FOUND


class NeedMatrixError(BacksolveError):
    """The server does not hold this matrix; the client sends it and repeats the call."""

    code = ErrorCode.NEED_MATRIX


class NeedValuesError(BacksolveError):
    """The server holds the pattern but not these values; the client sends them and repeats."""

    code = ErrorCode.NEED_VALUES


class DigestMismatchError(BacksolveError):
    """The data received is not what its digest says."""

    code = ErrorCode.DIGEST_MISMATCH


class MatrixChangedError(DigestMismatchError):
    """The matrix was modified while a call was using it: pass a copy, or do not write to it."""


class CapacityError(BacksolveError, MemoryError):
    """The call needs more room than there is; the message has both figures."""


class PayloadTooLargeError(CapacityError):
    """The call is larger than the server accepts."""

    code = ErrorCode.PAYLOAD_TOO_LARGE


class MemoryBudgetError(CapacityError):
    """The matrix or its factor does not fit the cache's budget."""

    code = ErrorCode.MEMORY_BUDGET


class DeviceOutOfMemoryError(CapacityError):
    """The accelerator's memory is exhausted even after everything unused was released."""

    code = ErrorCode.DEVICE_OUT_OF_MEMORY


class BusyError(BacksolveError):
    """The server cannot take the call now; `retry_after` says when to come back."""


class QueueFullError(BusyError):
    """The queue is full."""

    code = ErrorCode.QUEUE_FULL


class DrainingError(BusyError):
    """The server is shutting down; another replica, or the restarted one, will answer."""

    code = ErrorCode.DRAINING


class RateLimitedError(BusyError):
    """This caller asks too often."""

    code = ErrorCode.RATE_LIMITED


class DeadlineError(BacksolveError, TimeoutError):
    """The deadline passed before the answer was there."""

    code = ErrorCode.DEADLINE


class CancelledError(BacksolveError):
    """The caller went away, or took the call back."""

    code = ErrorCode.CANCELLED


class UnauthenticatedError(BacksolveError, PermissionError):
    """The token is missing or wrong."""

    code = ErrorCode.UNAUTHENTICATED


class PermissionDeniedError(BacksolveError, PermissionError):
    """The token is known and does not allow this."""

    code = ErrorCode.PERMISSION_DENIED


class UnreachableError(BacksolveError, ConnectionError):
    """No server answered at the address; raised on the client's side only."""

    code = ErrorCode.UNREACHABLE


class IllConditionedWarning(UserWarning):
    """The answer has a small residual and may still have few right digits."""


class NotConvergedWarning(UserWarning):
    """With `on_failure="warn"`: the answer misses the tolerance."""


BY_CODE: Mapping[ErrorCode, type[BacksolveError]] = {
    cls.code: cls
    for cls in (
        InternalError,
        MalformedError,
        InvalidShapeError,
        InvalidDtypeError,
        InvalidPatternError,
        InvalidOptionError,
        NonfiniteInputError,
        NotHermitianError,
        SingularMatrixError,
        NotPositiveDefiniteError,
        NotSupportedError,
        UnsupportedMediaError,
        NotAcceptableError,
        NotFoundError,
        NeedMatrixError,
        NeedValuesError,
        DigestMismatchError,
        PayloadTooLargeError,
        MemoryBudgetError,
        DeviceOutOfMemoryError,
        QueueFullError,
        DrainingError,
        RateLimitedError,
        DeadlineError,
        CancelledError,
        UnauthenticatedError,
        PermissionDeniedError,
        UnreachableError,
    )
}
"""The class that stands for each code."""


def from_wire(code: ErrorCode, message: str, details: Mapping[str, str]) -> BacksolveError:
    """Rebuild the error that the other side raised."""
    return BY_CODE[code](message, **details)
