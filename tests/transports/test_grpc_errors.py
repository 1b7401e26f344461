"""Every error of the table crosses a real socket and comes out as its class; foreign ones tell nothing."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest

from backsolve._rpc import framing, replies
from backsolve._transports.base import SolveCall, SolveReply
from backsolve._transports.grpc import GrpcTransport
from backsolve.errors import (
    BY_CODE,
    WIRE,
    CancelledError,
    DeadlineError,
    InternalError,
    MalformedError,
    NotSupportedError,
    PayloadTooLargeError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnreachableError,
    from_wire,
)
from backsolve.types import Certificate, ErrorCode, MatrixRef, Options, Status, Timings
from backsolve.v1 import solver_pb2
from backsolve_service.callers import Callers
from backsolve_service.grpc.admission import STATUS_CODES, Admission
from support.servers import free_port

TIMEOUT = 30
REF = MatrixRef(b"p" * 32, b"v" * 32)
SECRET = 8_640_153.25


@contextmanager
def serve(solve) -> Iterator[GrpcTransport]:
    """A client of a server whose only method is `solve(request, context)`."""
    handler = grpc.unary_unary_rpc_method_handler(
        solve, solver_pb2.SolveRequest.FromString, solver_pb2.SolveResponse.SerializeToString
    )
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("backsolve.v1.Solver", {"Solve": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    transport = GrpcTransport(f"127.0.0.1:{port}")
    yield transport
    transport.close()
    server.stop(None).wait()


@pytest.fixture(scope="module")
def failing() -> Iterator[GrpcTransport]:
    """Its method fails with the error that `method` names, inside the service's own admission."""
    admission = Admission(Callers(), lambda error, request_id: None)

    def solve(request, context):
        with admission.admit(context):
            name = request.options.method
            if name not in ErrorCode.__members__:
                raise RuntimeError(f"no such thing as {SECRET}")
            details = {"limit": "12"} | ({"retry_after": "0.5"} if WIRE[ErrorCode[name]].retry == "backoff" else {})
            raise from_wire(ErrorCode[name], f"this is {name}", details)

    with serve(solve) as transport:
        yield transport


@pytest.fixture(scope="module")
def foreign() -> Iterator[GrpcTransport]:
    """Its method ends with the bare gRPC status that `method` names, as a proxy would."""
    with serve(lambda request, context: context.abort(grpc.StatusCode[request.options.method], "proxy")) as transport:
        yield transport


def ask(transport: GrpcTransport, method: str) -> None:
    transport.solve(SolveCall(REF, Options(method), np.ones(2)), TIMEOUT)


def test_every_code_has_a_status():
    assert set(WIRE) == set(ErrorCode)
    assert {STATUS_CODES[WIRE[code].grpc] for code in ErrorCode} <= set(grpc.StatusCode)


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_comes_out_as_its_class(failing, code):
    with pytest.raises(BY_CODE[code]) as caught:
        ask(failing, code.name)
    assert type(caught.value) is BY_CODE[code]
    assert str(caught.value) == f"this is {code.name}"
    assert caught.value.details["limit"] == "12"
    assert caught.value.retry_after == (0.5 if WIRE[code].retry == "backoff" else None)
    assert caught.value.__cause__.code() is STATUS_CODES[WIRE[code].grpc]


def test_foreign_exceptions_leave_with_a_request_id_and_nothing_else(failing, caplog):
    with caplog.at_level(logging.ERROR), pytest.raises(InternalError) as caught:
        ask(failing, "no such code")
    request_id = dict(caught.value.__cause__.trailing_metadata())["x-request-id"]
    assert request_id in str(caught.value)
    assert caught.value.details == {"request_id": request_id}
    assert str(SECRET) not in str(caught.value)
    [record] = [r for r in caplog.records if r.name.startswith("backsolve_service")]
    assert request_id in record.getMessage()
    assert str(SECRET) in str(record.exc_info[1])


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("UNAVAILABLE", UnreachableError),
        ("DEADLINE_EXCEEDED", DeadlineError),
        ("RESOURCE_EXHAUSTED", PayloadTooLargeError),
        ("CANCELLED", CancelledError),
        ("UNAUTHENTICATED", UnauthenticatedError),
        ("PERMISSION_DENIED", PermissionDeniedError),
        ("UNIMPLEMENTED", NotSupportedError),
        ("INVALID_ARGUMENT", MalformedError),
        ("UNKNOWN", InternalError),
        ("INTERNAL", InternalError),
        ("DATA_LOSS", InternalError),
    ],
)
def test_statuses_without_our_details(foreign, status, kind):
    with pytest.raises(kind) as caught:
        ask(foreign, status)
    assert type(caught.value) is kind
    assert caught.value.details == {"grpc_status": status}


def test_another_program_at_the_address(foreign):
    with pytest.raises(NotSupportedError, match=r"not backsolve\.v1"):
        foreign.info(TIMEOUT)


def test_nobody_at_the_address():
    transport = GrpcTransport(f"127.0.0.1:{free_port()}")
    with pytest.raises(UnreachableError, match="no server answered"):
        ask(transport, "auto")
    with pytest.raises(UnreachableError):
        transport.solve(SolveCall(REF, Options(), np.ones(1 << 20)), None)
    transport.close()


def test_a_closed_transport_says_so(foreign):
    transport = GrpcTransport(foreign._target)
    with pytest.raises(UnreachableError):
        ask(transport, "UNAVAILABLE")
    transport.close()
    transport.close()
    for call in (lambda: ask(transport, "auto"), lambda: transport.info(None), lambda: transport.find([], None)):
        with pytest.raises(CancelledError, match="closed"):
            call()


def test_an_answer_of_another_shape_is_not_believed():
    certificate = Certificate(Status.OK, "lu", "", "float64", 0, 0.0, 0.0, None, False, False, Timings(), "x")
    message, arrays = replies.encode_solved(SolveReply(np.ones(3), certificate))
    framing.embed(message, arrays)
    with serve(lambda request, context: message) as transport, pytest.raises(MalformedError, match="another shape"):
        ask(transport, "auto")
