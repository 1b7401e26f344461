"""Large bodies, which are received past the parser: every cut of them, what follows them, and callers that stop."""

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from backsolve._rest.body import MEDIA_TYPE, decode
from backsolve._rest.messages import read_solve_reply, solve_body
from backsolve._transports.base import SolveCall, SolveReply
from backsolve.types import MatrixRef, Options
from backsolve_service.context import CallContext
from backsolve_service.rest import exchange
from backsolve_service.rest.bulk import LEAST_BYTES, BulkProtocol, Progress
from backsolve_service.rest.server import RestServer
from support.rest import CERTIFICATE, ToldPlane, ask, echo, serving

REF = MatrixRef(b"\x5c" * 32, b"\x91" * 32)


@pytest.fixture
def echoing() -> Iterator[RestServer]:
    with serving(ToldPlane(echo)) as server:
        yield server


def request(rhs: np.ndarray, *headers: str) -> bytes:
    body = b"".join(solve_body(SolveCall(REF, Options(), rhs)).parts)
    lines = ["POST /v1/solve HTTP/1.1", "host: test", f"content-type: {MEDIA_TYPE}", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def answer(connection: socket.socket) -> tuple[int, bytes]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


def x_of(body: bytes) -> np.ndarray:
    return read_solve_reply(decode(np.frombuffer(body, np.uint8).copy())).x


@pytest.mark.parametrize("n", [LEAST_BYTES // 8 - 64, LEAST_BYTES // 8 + 64, 100_003, 1_300_017])
def test_bodies_arrive_as_they_were_sent_whatever_the_pieces(echoing: RestServer, n: int) -> None:
    rng = np.random.default_rng(280_447_196 + n)
    with socket.create_connection(("127.0.0.1", echoing.port), timeout=60) as connection:
        for _ in range(3):  # the same connection serves again
            rhs = rng.standard_normal(n)
            sent = memoryview(request(rhs))
            position = 0
            while position < len(sent):
                end = position + int(rng.integers(1, 400_000))
                connection.sendall(sent[position:end])
                position = end
            status, body = answer(connection)
            assert status == 200
            np.testing.assert_array_equal(x_of(body), rhs)


def test_what_follows_a_large_body_is_the_next_request(echoing: RestServer) -> None:
    first, second = np.random.default_rng(611_230_847).standard_normal((2, 400_000))
    get = b"GET /livez HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", echoing.port), timeout=60) as connection:
        writer = threading.Thread(target=connection.sendall, args=(request(first) + request(second) + get,))
        writer.start()
        data = b""
        while piece := connection.recv(1 << 20):
            data += piece
        writer.join(60)
    for rhs in (first, second):
        head, _, rest = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        size = int(next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))[15:])
        np.testing.assert_array_equal(x_of(rest[:size]), rhs)
        data = rest[size:]
    assert data.partition(b"\r\n\r\n")[2] == b'{"live": true}'


@pytest.mark.parametrize("reset", [False, True])
def test_a_caller_that_stops_in_the_middle_leaves_nothing(echoing: RestServer, reset: bool) -> None:
    sent = request(np.ones(1 << 20))
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", echoing.port), timeout=60) as connection:
            connection.sendall(sent[: len(sent) // 2])
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            else:
                connection.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionError):
                    connection.recv(1 << 16)
    for _ in range(5000):
        if ask(echoing.port, "GET", "/livez").status == 200 and not echoing._handlers._places.nbytes:
            return
    pytest.fail("the buffer of a body that nobody sends is still held")


def test_a_body_that_stalls_is_refused_and_its_rest_is_not_taken_for_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "STALL_SECONDS", 0.2)
    received, kept = threading.Event(), []
    into = BulkProtocol._into

    async def noted(self: BulkProtocol, room: memoryview, progress: Progress) -> int:
        received.set()
        try:
            return await into(self, room, progress)
        finally:
            kept.append(len(self.cycle.body))

    monkeypatch.setattr(BulkProtocol, "_into", noted)
    sent = request(np.ones(1 << 20))
    with (
        serving(ToldPlane(echo)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection,
    ):
        connection.sendall(sent[:-1000])
        assert received.wait(60)
        # The parser has caught up: these bytes are the last of the body, after which the refusal comes.
        threading.Timer(1.0, connection.sendall, (sent[-1000:],)).start()
        status, body = answer(connection)
        assert (status, json.loads(body)["reason"]) == (400, "MALFORMED")
        assert "no more of the body arrived" in json.loads(body)["detail"]
        assert kept == [0]
        rhs = np.random.default_rng(934_105_628).standard_normal(1 << 18)
        connection.sendall(request(rhs))
        status, body = answer(connection)
        assert status == 200
        np.testing.assert_array_equal(x_of(body), rhs)


def test_a_caller_that_goes_after_a_large_body_cancels_its_call() -> None:
    entered, gone = threading.Event(), threading.Event()

    def waits(call: SolveCall, context: CallContext) -> SolveReply:
        entered.set()
        if context.cancelled.wait(60):
            gone.set()
        return SolveReply(call.rhs, CERTIFICATE)

    with serving(ToldPlane(waits)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(request(np.ones(1 << 18)))
            assert entered.wait(60)
        assert gone.wait(60)


def test_small_requests_sent_at_once_are_answered_one_after_the_other(echoing: RestServer) -> None:
    right = np.random.default_rng(940_116_582).standard_normal((4, 30))
    wrong = request(right[0]).replace(b"matrix", b"metrix")
    sent = [request(right[0]), wrong, request(right[1]), request(right[2]), request(right[3], "connection: close")]
    with socket.create_connection(("127.0.0.1", echoing.port), timeout=60) as connection:
        connection.sendall(b"".join(sent))
        with connection.makefile("rb") as stream:
            replies = [read_reply(stream) for _ in sent]
            assert stream.read() == b""  # the last one was asked to be the last
    assert [status for status, _, _ in replies] == [200, 422, 200, 200, 200]
    for (_, _, body), expected in zip(replies[:1] + replies[2:], right, strict=True):
        np.testing.assert_array_equal(x_of(body), expected)
    heads = [head for status, head, _ in replies if status == 200]
    assert all(set(head) >= {"date", "content-length", "content-type", "x-request-id"} for head in heads)
    assert [head.get("connection") for head in heads] == [None, None, None, "close"]


def read_reply(stream: Any) -> tuple[int, dict[str, str], bytes]:
    status = int(stream.readline().split()[1])
    head: dict[str, str] = {}
    while (line := stream.readline()) != b"\r\n":
        name, _, value = line.decode().partition(": ")
        assert name not in head
        head[name] = value.strip()
    return status, head, stream.read(int(head["content-length"]))


def test_a_small_body_that_comes_without_the_permission_it_asked_for_is_answered(echoing: RestServer) -> None:
    rhs = np.random.default_rng(375_290_418).standard_normal(30)
    with socket.create_connection(("127.0.0.1", echoing.port), timeout=60) as connection:
        for _ in range(2):
            connection.sendall(request(rhs, "expect: 100-continue"))
            with connection.makefile("rb") as stream:
                if (first := stream.peek(12)[:12]) == b"HTTP/1.1 100":
                    assert stream.readline() + stream.readline() == b"HTTP/1.1 100 Continue\r\n\r\n"
                else:
                    assert first == b"HTTP/1.1 200"
                status, _, body = read_reply(stream)
            assert status == 200
            np.testing.assert_array_equal(x_of(body), rhs)
