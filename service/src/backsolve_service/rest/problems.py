"""Errors as RFC 9457 problem documents, all out of the one table `backsolve.errors.WIRE`."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, final

from backsolve.errors import WIRE, BacksolveError, InternalError
from backsolve.types import ErrorCode

PROBLEM_TYPE = "application/problem+json"
REASON_HEADER = "backsolve-reason"

_log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, slots=True)
class Problem:
    """A reply that says why there is no answer."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def problem_of(error: Exception, request_id: str) -> Problem:
    """Turn an error into its document; one that is not ours shows nothing but the request's id."""
    if not isinstance(error, BacksolveError):
        _log.error("request %s failed unexpectedly", request_id, exc_info=error)
        error = InternalError(f"the server failed; its log has the cause under request {request_id}")
    code = type(error).code
    return make_problem(code.name, WIRE[code].http, str(error), request_id, error.details, WIRE[code].retry)


def make_problem(
    reason: str,
    status: int,
    detail: str,
    request_id: str,
    details: Mapping[str, str] | None = None,
    retry: str = "no",
    **members: Any,
) -> Problem:
    """A problem document.

    Args:
        reason: name of an `ErrorCode`, or of a `Status` that the caller asked to see as an error.
        status: the HTTP status.
        detail: what happened and what to try.
        request_id: of the call.
        details: machine-readable facts; "retry_after" becomes a header too.
        retry: `WireForm.retry` of the reason.
        members: further members of the document.
    """
    details = dict(details or {})
    document = {
        "type": f"urn:backsolve:problem:{reason.lower()}",
        "title": reason.replace("_", " ").capitalize(),
        "status": status,
        "detail": detail,
        "reason": reason,
        "retryable": retry in ("backoff", "payload", "once"),
        "request_id": request_id,
        "details": details,
        **members,
    }
    # For replies to HEAD, which have no body.
    headers = {REASON_HEADER: reason}
    if "retry_after" in details:
        # Whole seconds, rounded up: an early caller would only be turned away again.
        headers["retry-after"] = str(max(1, -int(-float(details["retry_after"]) // 1)))
    if status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = 'Bearer realm="backsolve"'
    return Problem(status, json.dumps(document).encode(), headers)


REASONS = tuple(code.name for code in ErrorCode if code is not ErrorCode.UNREACHABLE)
"""Every reason that a server can give."""
