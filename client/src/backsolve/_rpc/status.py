"""Errors as `google.rpc.Status`, the form in which gRPC carries them in a trailer.

`ErrorInfo` names the code and holds the details, `RetryInfo` says when to come back, `BadRequest`
tells tools that know nothing of us which field is at fault. Texts are cut
so that everything stays below 8 KiB: longer trailers are refused by peers and proxies.
"""

from typing import Any

from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from ..errors import WIRE, BacksolveError, InvalidInputError, from_wire
from ..types import ErrorCode

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "backsolve"

_FIELDS = {ErrorCode.INVALID_PATTERN: "matrix", ErrorCode.INVALID_OPTION: "options"}
"""The field to blame where the error does not name one."""

_TEXT_BYTES = 2048
_DETAIL_BYTES = 256
_MAX_DETAILS = 12
# The constructor's own names cannot be details.
_RESERVED = frozenset({"self", "message", "retry_after"})


def encode_error(error: BacksolveError) -> bytes:
    """The `google.rpc.Status` of an error, below 8 KiB."""
    form = WIRE[error.code]
    details = {
        _cut(name, 64): _cut(text, _DETAIL_BYTES)
        for name, text in list(error.details.items())[:_MAX_DETAILS]
        if name != "retry_after"
    }
    status = Status(code=Code.Value(form.grpc), message=_cut(str(error), _TEXT_BYTES))
    status.details.add().Pack(ErrorInfo(reason=error.code.name, domain=DOMAIN, metadata=details))
    if isinstance(error, InvalidInputError):
        field = error.details.get("option", _FIELDS.get(error.code, ""))
        violation = BadRequest.FieldViolation(field=_cut(field, 64), description=_cut(str(error), _DETAIL_BYTES))
        status.details.add().Pack(BadRequest(field_violations=[violation]))
    if form.retry == "backoff" and error.retry_after is not None:
        retry = RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after * 1e9))
        status.details.add().Pack(retry)
    encoded: bytes = status.SerializeToString()
    return encoded


def decode_error(data: bytes) -> BacksolveError | None:
    """The error that `encode_error` wrote, or None if this is something else."""
    status = Status()
    try:
        status.ParseFromString(data)
    except Exception:  # the parser's own class is not public
        return None
    info = _unpack(status, ErrorInfo)
    if info is None or info.domain != DOMAIN or info.reason not in ErrorCode.__members__:
        return None
    details = {name: text for name, text in info.metadata.items() if name not in _RESERVED}
    retry = _unpack(status, RetryInfo)
    if retry is not None:
        details["retry_after"] = repr(retry.retry_delay.ToNanoseconds() / 1e9)
    return from_wire(ErrorCode[info.reason], status.message, details)


def _unpack(status: Any, kind: Any) -> Any:
    """The first detail of this message type, or None."""
    for packed in status.details:
        found = kind()
        if packed.Is(kind.DESCRIPTOR) and packed.Unpack(found):
            return found
    return None


def _cut(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8, the cut marked."""
    data = text.encode()
    return text if len(data) <= limit else data[: limit - 3].decode(errors="ignore") + "…"
