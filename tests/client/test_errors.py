"""One error table: complete both ways."""

import inspect

import numpy as np
import pytest

from backsolve import errors
from backsolve.errors import BY_CODE, WIRE, BacksolveError, from_wire
from backsolve.types import ErrorCode, Status

CLIENT_ONLY = {
    errors.BacksolveError,
    errors.InvalidInputError,
    errors.SolveError,
    errors.CapacityError,
    errors.BusyError,
    errors.NotConvergedError,
    errors.InconsistentError,
    errors.MatrixChangedError,
}


# How each error travels, written out a second time: (gRPC status, HTTP status, retry).
# A code that one of the transports never sends has an entry there all the same, for the day a proxy asks.
TABLE = {
    "MALFORMED": ("INVALID_ARGUMENT", 400, "no"),
    "INVALID_SHAPE": ("INVALID_ARGUMENT", 422, "no"),
    "INVALID_DTYPE": ("INVALID_ARGUMENT", 422, "no"),
    "INVALID_PATTERN": ("INVALID_ARGUMENT", 422, "no"),
    "INVALID_OPTION": ("INVALID_ARGUMENT", 422, "no"),
    "NONFINITE_INPUT": ("INVALID_ARGUMENT", 422, "no"),
    "NOT_HERMITIAN": ("INVALID_ARGUMENT", 422, "no"),
    "SINGULAR_MATRIX": ("FAILED_PRECONDITION", 422, "no"),
    "NOT_POSITIVE_DEFINITE": ("FAILED_PRECONDITION", 422, "no"),
    "NOT_SUPPORTED": ("UNIMPLEMENTED", 501, "no"),
    "UNSUPPORTED_MEDIA": ("INVALID_ARGUMENT", 415, "no"),
    "NOT_ACCEPTABLE": ("INVALID_ARGUMENT", 406, "no"),
    "NEED_MATRIX": ("NOT_FOUND", 404, "payload"),
    "NEED_VALUES": ("NOT_FOUND", 404, "payload"),
    "NOT_FOUND": ("NOT_FOUND", 404, "no"),
    "DIGEST_MISMATCH": ("DATA_LOSS", 422, "once"),
    "PAYLOAD_TOO_LARGE": ("RESOURCE_EXHAUSTED", 413, "no"),
    "MEMORY_BUDGET": ("RESOURCE_EXHAUSTED", 507, "no"),
    "QUEUE_FULL": ("UNAVAILABLE", 503, "backoff"),
    "DRAINING": ("UNAVAILABLE", 503, "backoff"),
    "RATE_LIMITED": ("RESOURCE_EXHAUSTED", 429, "backoff"),
    "DEVICE_OUT_OF_MEMORY": ("RESOURCE_EXHAUSTED", 507, "no"),
    "DEADLINE": ("DEADLINE_EXCEEDED", 504, "caller"),
    "CANCELLED": ("CANCELLED", 499, "caller"),
    "UNAUTHENTICATED": ("UNAUTHENTICATED", 401, "no"),
    "PERMISSION_DENIED": ("PERMISSION_DENIED", 403, "no"),
    "UNREACHABLE": ("UNAVAILABLE", 503, "backoff"),
    "INTERNAL": ("INTERNAL", 500, "once"),
}


def test_every_error_travels_as_the_table_says() -> None:
    assert {code.name: (form.grpc, form.http, form.retry) for code, form in WIRE.items()} == TABLE


def test_every_code_has_a_wire_form_and_a_class() -> None:
    assert set(WIRE) == set(ErrorCode)
    assert set(BY_CODE) == set(ErrorCode)


def test_every_class_is_in_the_table_or_raised_by_the_client_alone() -> None:
    classes = {cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, BacksolveError)}
    assert classes == set(BY_CODE.values()) | CLIENT_ONLY


@pytest.mark.parametrize("code", list(ErrorCode), ids=lambda c: c.name)
def test_an_error_survives_the_wire(code: ErrorCode) -> None:
    sent = BY_CODE[code]("the text", limit=12, kind="structural")
    received = from_wire(code, str(sent), sent.details)
    assert type(received) is type(sent)
    assert str(received) == "the text"
    assert received.details == {"limit": "12", "kind": "structural"}


def test_what_is_retried_is_exactly_this() -> None:
    retried = {code for code, form in WIRE.items() if form.retry == "backoff"}
    assert retried == {ErrorCode.QUEUE_FULL, ErrorCode.DRAINING, ErrorCode.RATE_LIMITED, ErrorCode.UNREACHABLE}
    assert {code for code, form in WIRE.items() if form.retry == "payload"} == {
        ErrorCode.NEED_MATRIX,
        ErrorCode.NEED_VALUES,
    }


def test_errors_are_what_users_already_catch() -> None:
    assert issubclass(errors.SingularMatrixError, np.linalg.LinAlgError)
    assert issubclass(errors.InvalidShapeError, ValueError)
    assert issubclass(errors.InvalidDtypeError, TypeError)
    assert issubclass(errors.UnreachableError, ConnectionError)
    assert issubclass(errors.DeadlineError, TimeoutError)
    assert issubclass(errors.MemoryBudgetError, MemoryError)


def test_every_status_says_what_to_try() -> None:
    advice = [status.advice for status in Status]
    assert len(set(advice)) == len(Status)
    assert all(":" in text for text, status in zip(advice, Status, strict=True) if status is not Status.OK)
