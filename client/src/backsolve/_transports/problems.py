"""What a reply over REST means that is no answer: the server's own error, a proxy's, or another program's."""

import json
from collections.abc import Mapping

from ..errors import (
    BacksolveError,
    DeadlineError,
    InternalError,
    MalformedError,
    NotFoundError,
    NotSupportedError,
    PayloadTooLargeError,
    PermissionDeniedError,
    RateLimitedError,
    UnauthenticatedError,
    UnreachableError,
    from_wire,
)
from ..types import ErrorCode
from .reply import HttpReply

PROBLEM = "application/problem+json"

_NO_BODY = "the server refused to say whether it holds the matrix"


def media_type(reply: HttpReply) -> str:
    """The media type of a reply's body, in small letters."""
    return reply.headers.get("content-type", "").partition(";")[0].strip().lower()


def error_of(reply: HttpReply) -> BacksolveError:
    """The error that a reply stands for: the server's own if it wrote one, else what its status suggests."""
    try:
        if reply.body.size == 0:  # the answer to a HEAD
            return from_wire(ErrorCode[reply.headers["backsolve-reason"]], _NO_BODY, _waiting_time(reply))
        if media_type(reply) == PROBLEM:
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
