"""HTTP itself: lengths, media types, methods, tokens, request ids, keep-alive, callers that vanish."""

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable

import numpy as np
import pytest

from backsolve._rest.body import MEDIA_TYPE, Body, decode
from backsolve._rest.documents import ref_from_key
from backsolve._rest.messages import put_body, read_solve_reply, solve_body
from backsolve._transports.base import PutCall, SolveCall, SolveReply
from backsolve.errors import WIRE, BacksolveError, from_wire
from backsolve.matrix import Matrix
from backsolve.types import ErrorCode, MatrixRef, Options
from backsolve_service.context import CallContext
from backsolve_service.dataplane.plane import DataPlane
from backsolve_service.rest.server import RestServer
from support.rest import CERTIFICATE, METRICS, ToldPlane, ask, ask_json, dense_matrix, echo, serving

from .conftest import LIMIT

UNKNOWN = MatrixRef(b"\xab" * 32, b"\xcd" * 32)
SMALL = {"matrix": {"values": [[2.0]]}, "b": [4.0]}


def joined(body: Body) -> bytes:
    return b"".join(body.parts)


def put(port: int, matrix: Matrix, values_only: bool = False) -> int:
    body = joined(put_body(PutCall(matrix.ref, matrix, values_only)))
    return ask(port, "PUT", f"/v1/matrices/{matrix.ref.key}", body, MEDIA_TYPE).status


def raw(port: int, *pieces: bytes, shut: bool = False) -> tuple[bytes, bytes]:
    """Send bytes as they are; returns head and body of what comes back before the connection ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        for piece in pieces:
            connection.sendall(piece)
        if shut:
            with contextlib.suppress(OSError):  # refused, answered and closed already
                connection.shutdown(socket.SHUT_WR)
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return head, body


def wait_until(server: RestServer, happened: Callable[[], bool]) -> None:
    """Let the server's loop turn until something has happened."""
    for _ in range(5000):
        if happened():
            return
        assert ask(server.port, "GET", "/livez").status == 200
    pytest.fail("it did not happen")


def head_of(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: test", "connection: close", *headers, "", ""]).encode()


# -- matrices ---------------------------------------------------------------------------------


def test_a_matrix_is_put_found_and_released(port: int) -> None:
    matrix = dense_matrix(6, 318_440_925)
    path = f"/v1/matrices/{matrix.ref.key}"
    found = ask(port, "HEAD", path)
    assert (found.status, found.headers["backsolve-holding"], found.body) == (404, "absent", b"")
    assert put(port, matrix) == 201
    assert put(port, matrix) == 200
    found = ask(port, "HEAD", path)
    assert (found.status, found.headers["backsolve-holding"]) == (200, "values")
    body = joined(solve_body(SolveCall(matrix.ref, Options(), np.ones(6))))
    assert ask(port, "POST", "/v1/solve", body, MEDIA_TYPE).status == 200
    assert ask(port, "HEAD", path).headers["backsolve-holding"] == "factor"
    released = ask(port, "DELETE", path)
    assert (released.status, released.body) == (204, b"")


def test_values_alone_go_beside_a_held_pattern(port: int) -> None:
    matrix = dense_matrix(9, 771_092_634)
    other = Matrix(matrix.pattern, matrix.values * 1.25)
    refused = ask(
        port,
        "PUT",
        f"/v1/matrices/{UNKNOWN.key}",
        joined(put_body(PutCall(UNKNOWN, other, True))),
        MEDIA_TYPE,
    )
    assert (refused.status, refused.json()["reason"]) == (404, "NEED_MATRIX")
    assert put(port, matrix) == 201
    pattern_only = ask(port, "HEAD", f"/v1/matrices/{other.ref.key}")
    assert (pattern_only.status, pattern_only.headers["backsolve-holding"]) == (404, "pattern")
    assert put(port, other, values_only=True) == 201


def test_a_matrix_under_wrong_digests_is_refused(port: int) -> None:
    matrix, other = dense_matrix(5, 104_558_213), dense_matrix(5, 990_321_764)
    body = joined(put_body(PutCall(matrix.ref, matrix)))
    reply = ask(port, "PUT", f"/v1/matrices/{other.ref.key}", body, MEDIA_TYPE)
    assert (reply.status, reply.json()["reason"]) == (422, "DIGEST_MISMATCH")
    assert ask(port, "HEAD", f"/v1/matrices/{other.ref.key}").status == 404


@pytest.mark.parametrize("name", ["x", "12-34", f"{'zz' * 32}-{'00' * 32}", f"{'a%20' * 32}-{'00' * 32}"])
def test_what_is_no_digest_is_malformed(port: int, name: str) -> None:
    assert ask(port, "DELETE", f"/v1/matrices/{name}").json()["reason"] == "MALFORMED"
    head = ask(port, "HEAD", f"/v1/matrices/{name}")
    assert (head.status, head.headers["backsolve-reason"]) == (400, "MALFORMED")


# -- media types ------------------------------------------------------------------------------


def test_a_body_of_unknown_type_is_refused_with_the_list(port: int) -> None:
    for kind in (None, "application/x-www-form-urlencoded", "application/octet-stream"):
        reply = ask(port, "POST", "/v1/solve", b"{}", kind)
        assert (reply.status, reply.json()["reason"]) == (415, "UNSUPPORTED_MEDIA")
        assert MEDIA_TYPE in reply.json()["details"]["supported"]
    reply = ask(port, "POST", "/v1/matrices", b"{}", "image/png")
    assert "application/x-npz" in reply.json()["details"]["supported"]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        (MEDIA_TYPE, MEDIA_TYPE),
        (f"application/json;q=0.2, {MEDIA_TYPE};q=0.9", MEDIA_TYPE),
        (f"application/json, {MEDIA_TYPE};q=0.9", "application/json"),
        ("text/html, application/*;q=0.1", "application/json"),
        (f"application/json;q=0, */*;q=0.5, {MEDIA_TYPE};q=0.1", MEDIA_TYPE),
        ("text/html", None),
        (f"{MEDIA_TYPE};q=0, application/json;q=0", None),
        (f"{MEDIA_TYPE};q=many", None),
    ],
)
def test_accept_is_negotiated(port: int, accept: str | None, expected: str | None) -> None:
    reply = ask_json(port, "/v1/solve", SMALL, **({} if accept is None else {"accept": accept}))
    if expected is None:
        assert (reply.status, reply.json()["reason"]) == (406, "NOT_ACCEPTABLE")
        assert reply.json()["details"]["supported"] == f"application/json, {MEDIA_TYPE}"
        return
    assert (reply.status, reply.headers["content-type"]) == (200, expected)
    if expected == MEDIA_TYPE:
        x = read_solve_reply(decode(np.frombuffer(reply.body, np.uint8).copy())).x
        np.testing.assert_allclose(x, [2.0], rtol=1e-14)


def test_bulk_may_be_answered_in_json(port: int) -> None:
    matrix = dense_matrix(3, 618_339_007)
    put(port, matrix)
    body = joined(solve_body(SolveCall(matrix.ref, Options(), np.ones(3))))
    reply = ask(port, "POST", "/v1/solve", body, MEDIA_TYPE, accept="application/json")
    np.testing.assert_allclose(matrix.values @ reply.json()["x"], np.ones(3), rtol=1e-13)


# -- lengths ----------------------------------------------------------------------------------


def test_a_body_without_length_is_refused_with_the_cure(port: int) -> None:
    pieces = head_of("POST", "/v1/solve", "content-type: application/json", "transfer-encoding: chunked")
    head, body = raw(port, pieces, b"4\r\n{}  \r\n0\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert "Content-Length" in json.loads(body)["detail"]
    head, body = raw(port, head_of("POST", "/v1/solve", "content-type: application/json"))
    assert json.loads(body)["reason"] == "MALFORMED"


def test_a_body_above_the_limit_is_read_and_refused_with_both_figures(port: int) -> None:
    reply = ask(port, "POST", "/v1/solve", bytes(LIMIT + 17), MEDIA_TYPE)
    assert (reply.status, reply.json()["reason"]) == (413, "PAYLOAD_TOO_LARGE")
    assert reply.json()["details"] == {"limit": str(LIMIT), "size": str(LIMIT + 17)}


@pytest.mark.parametrize("length", ["9" * 15, "-5", "12x", "0x10", "1, 2"])
def test_lying_lengths_end_in_a_refusal(port: int, length: str) -> None:
    lines = head_of("POST", "/v1/solve", f"content-type: {MEDIA_TYPE}", f"content-length: {length}")
    head, _ = raw(port, lines, b"x" * 100, shut=True)
    assert head == b"" or head.split()[1] in (b"400", b"413")
    assert ask(port, "GET", "/livez").status == 200


def test_a_half_sent_body_releases_its_memory(plane: DataPlane) -> None:
    with serving(plane) as server:
        handlers = server._handlers
        lines = head_of("POST", "/v1/solve", f"content-type: {MEDIA_TYPE}", f"content-length: {LIMIT}")
        for _ in range(8):  # more than there is room for at a time
            with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
                connection.sendall(lines + b"x" * 1000)
                wait_until(server, lambda: handlers._places.nbytes == LIMIT)
                assert ask(server.port, "GET", "/v1/stats").json()["body_bytes"] == LIMIT
            wait_until(server, lambda: handlers._places.nbytes == 0)


def test_bodies_that_would_fill_the_memory_are_turned_away(plane: DataPlane) -> None:
    lines = head_of("POST", "/v1/solve", f"content-type: {MEDIA_TYPE}", f"content-length: {LIMIT}")
    with serving(plane) as server:
        waiting = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(4)]
        for connection in waiting:
            connection.sendall(lines + b"x")
        wait_until(server, lambda: server._handlers._places.nbytes == 4 * LIMIT)
        reply = ask_json(server.port, "/v1/solve", SMALL)
        assert (reply.status, reply.json()["reason"], reply.headers["retry-after"]) == (503, "QUEUE_FULL", "1")
        for connection in waiting:
            connection.close()
        wait_until(server, lambda: not server._handlers._places.nbytes)
        assert ask_json(server.port, "/v1/solve", SMALL).status == 200


def test_bulk_for_an_unknown_matrix_is_refused_and_the_connection_stays(port: int) -> None:
    body = joined(solve_body(SolveCall(UNKNOWN, Options(), np.ones(1 << 18))))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"content-type": MEDIA_TYPE, "backsolve-matrix": UNKNOWN.key}
    for _ in range(2):
        connection.request("POST", "/v1/solve", body, headers)
        own_socket = connection.sock
        response = connection.getresponse()
        assert (response.status, json.load(response)["reason"]) == (404, "NEED_MATRIX")
        assert connection.sock is own_socket
    connection.close()


def test_a_caller_that_waits_for_permission_is_refused_before_it_sends(port: int) -> None:
    lines = head_of(
        "POST",
        "/v1/solve",
        f"content-type: {MEDIA_TYPE}",
        f"content-length: {8 << 20}",
        f"backsolve-matrix: {UNKNOWN.key}",
        "expect: 100-continue",
    )
    head, body = raw(port, lines)
    assert head.startswith(b"HTTP/1.1 404")
    assert json.loads(body)["reason"] == "NEED_MATRIX"


# -- everything else --------------------------------------------------------------------------


def test_unknown_addresses_and_methods_are_problems(port: int) -> None:
    reply = ask(port, "GET", "/v1/nothing-73502")
    assert (reply.status, reply.json()["reason"]) == (404, "NOT_FOUND")
    assert "73502" not in reply.body.decode()
    assert ask(port, "GET", "/v1/solve/").status == 404
    reply = ask(port, "GET", "/v1/solve")
    assert (reply.status, reply.json()["reason"], reply.headers["allow"]) == (405, "NOT_SUPPORTED", "POST")
    reply = ask(port, "PATCH", f"/v1/matrices/{UNKNOWN.key}")
    assert set(reply.headers["allow"].split(", ")) == {"PUT", "HEAD", "DELETE"}
    reply = ask(port, "POST", "/v1/nothing", bytes(1 << 20), MEDIA_TYPE)
    assert reply.status == 404


@pytest.mark.parametrize("query", ["on_failure=warn", "on_fail=raise", "x", "on_failure=raise&on_failure=raise"])
def test_unknown_queries_are_refused(port: int, query: str) -> None:
    assert ask_json(port, f"/v1/solve?{query}", SMALL).json()["reason"] == "INVALID_OPTION"


@pytest.mark.parametrize("seconds", ["soon", "-1", "inf", "nan", ""])
def test_deadlines_are_numbers(port: int, seconds: str) -> None:
    assert ask_json(port, "/v1/solve", SMALL, backsolve_timeout=seconds).json()["reason"] == "INVALID_OPTION"


def test_a_deadline_that_has_passed(port: int) -> None:
    reply = ask_json(port, "/v1/solve", SMALL, backsolve_timeout="0")
    assert (reply.status, reply.json()["reason"]) == (504, "DEADLINE")


def test_request_ids_are_echoed_if_harmless(port: int) -> None:
    assert ask(port, "GET", "/v1/info", x_request_id="job-17.step:3").headers["x-request-id"] == "job-17.step:3"
    for bad in ("a b", "x" * 200, "é", "<script>"):
        made = ask(port, "GET", "/v1/info", x_request_id=bad).headers["x-request-id"]
        assert made != bad
        assert len(made) == 32
    reply = ask(port, "GET", "/nothing", x_request_id="job-18")
    assert (reply.headers["x-request-id"], reply.json()["request_id"]) == ("job-18", "job-18")


def test_about_pages(port: int, plane: DataPlane) -> None:
    assert ask(port, "GET", "/v1/info").json()["instance"] == plane.config.instance
    assert ask(port, "GET", "/v1/stats").json()["solves"] == plane.stats()["solves"]
    page = ask(port, "GET", "/metrics")
    assert (page.body, page.headers["content-type"]) == METRICS
    assert ask(port, "HEAD", "/livez").body == b""
    pages = {"/livez": "live", "/v2/health/live": "live", "/readyz": "ready", "/v2/health/ready": "ready"}
    for path, key in pages.items():
        reply = ask(port, "GET", path)
        assert (reply.status, reply.json()) == (200, {key: True})


def test_readiness_is_the_planes() -> None:
    plane = ToldPlane(echo)
    with serving(plane) as server:
        plane.ready = False
        assert (ask(server.port, "GET", "/readyz").status, ask(server.port, "GET", "/livez").status) == (503, 200)


def test_draining_refuses_new_calls_and_answers_running_ones() -> None:
    entered, release = threading.Event(), threading.Event()

    def slow(call: SolveCall, _: CallContext) -> SolveReply:
        entered.set()
        assert release.wait(60)
        return SolveReply(call.rhs, CERTIFICATE)

    document = {"matrix": {"ref": UNKNOWN.key}, "b": [3.0]}
    answers: list[int] = []
    with serving(ToldPlane(slow)) as server:
        running = threading.Thread(target=lambda: answers.append(ask_json(server.port, "/v1/solve", document).status))
        running.start()
        assert entered.wait(60)
        # The event loop turns while a solve runs.
        assert ask(server.port, "GET", "/livez").status == 200
        server.drain()
        assert ask(server.port, "GET", "/readyz").status == 503
        refused = ask_json(server.port, "/v1/solve", document)
        assert (refused.status, refused.json()["reason"]) == (503, "DRAINING")
        release.set()
        running.join(60)
    assert answers == [200]


def test_a_caller_that_goes_away_cancels_its_call() -> None:
    entered, gone = threading.Event(), threading.Event()

    def waits(call: SolveCall, context: CallContext) -> SolveReply:
        entered.set()
        if context.cancelled.wait(60):
            gone.set()
        return SolveReply(call.rhs, CERTIFICATE)

    with serving(ToldPlane(waits)) as server:
        body = json.dumps({"matrix": {"ref": UNKNOWN.key}, "b": [3.0]}).encode()
        lines = head_of("POST", "/v1/solve", "content-type: application/json", f"content-length: {len(body)}")
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(lines + body)
            assert entered.wait(60)
        assert gone.wait(60)


def test_tokens(plane: DataPlane) -> None:
    with serving(plane, token="s3cret-word") as server:
        for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic s3cret-word"}):
            reply = ask(server.port, "GET", "/v1/info", **given)
            assert (reply.status, reply.json()["reason"]) == (401, "UNAUTHENTICATED")
            assert reply.headers["www-authenticate"].startswith("Bearer")
        assert ask(server.port, "GET", "/v1/info", authorization="Bearer s3cret-word").status == 200
        assert ask(server.port, "GET", "/metrics").status == 401
        assert ask(server.port, "GET", "/readyz").status == 200
        assert ask(server.port, "POST", "/v1/solve", bytes(2 << 20), MEDIA_TYPE).status == 401


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_reason_becomes_a_problem_out_of_the_table(code: ErrorCode) -> None:
    error = from_wire(code, "what happened, and what to try", {"limit": "7", "retry_after": "1.5"})

    def fails(call: SolveCall, context: CallContext) -> SolveReply:
        raise error

    with serving(ToldPlane(fails)) as server:
        reply = ask_json(server.port, "/v1/solve", {"matrix": {"ref": UNKNOWN.key}, "b": [3.0]}, x_request_id="id-9")
    assert reply.status == WIRE[code].http
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["retry-after"] == "2"
    problem = reply.json()
    assert problem["type"] == f"urn:backsolve:problem:{code.name.lower()}"
    assert (problem["status"], problem["reason"], problem["request_id"]) == (WIRE[code].http, code.name, "id-9")
    assert (problem["detail"], problem["details"]) == ("what happened, and what to try", error.details)
    assert problem["retryable"] == (WIRE[code].retry in ("backoff", "payload", "once"))


def test_foreign_failures_show_the_id_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    def fails(call: SolveCall, context: CallContext) -> SolveReply:
        raise ZeroDivisionError("secret 90017")

    with serving(ToldPlane(fails)) as server:
        reply = ask_json(server.port, "/v1/solve", {"matrix": {"ref": UNKNOWN.key}, "b": [3.0]}, x_request_id="id-10")
    assert (reply.status, reply.json()["reason"]) == (500, "INTERNAL")
    assert "id-10" in reply.json()["detail"]
    assert "90017" not in reply.body.decode()
    assert "secret 90017" in caplog.text


def test_a_port_that_is_taken_is_an_error(plane: DataPlane, port: int) -> None:
    with pytest.raises(OSError, match="in use"), serving(plane, port=port):
        pass


def test_mutated_bulk_bodies_are_answered_with_problems(port: int) -> None:
    matrix = dense_matrix(4, 246_813_579)
    put(port, matrix)
    good = np.frombuffer(joined(solve_body(SolveCall(matrix.ref, Options(rtol=1e-9), np.ones(4)))), np.uint8)
    rng = np.random.default_rng(357_915_284)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    seen = set()
    for _ in range(200):
        body = good.copy()
        for position in rng.integers(0, body.size, rng.integers(1, 4)):
            body[position] = rng.integers(0, 256)
        connection.request("POST", "/v1/solve", body.tobytes(), {"content-type": MEDIA_TYPE})
        response = connection.getresponse()
        data = response.read()
        seen.add("OK" if response.status == 200 else json.loads(data)["reason"])
    connection.close()
    assert "INTERNAL" not in seen
    assert {"OK", "MALFORMED"} <= seen


def test_refs_are_read_as_written() -> None:
    assert ref_from_key(UNKNOWN.key) == UNKNOWN
    assert issubclass(type(from_wire(ErrorCode.NEED_MATRIX, "", {})), BacksolveError)
