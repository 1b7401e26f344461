"""The client's own reading of replies, against `http.client` and against what is none."""

import http.client
import socket
import threading
import time

import numpy as np
import pytest

from backsolve._transports.reply import BrokenReplyError, HttpReply, NoReplyError, read_reply
from backsolve.errors import DeadlineError

PATIENCE = 60.0

REPLIES = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Odd:  two words\r\n\r\nhello",
    "empty": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "no reason phrase": b"HTTP/1.1 404\r\nContent-Length: 2\r\n\r\nno",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 1\r\n\r\nx",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;name=x\r\nwiki\r\n"
    b"A\r\n0123456789\r\n0\r\nT: 1\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n",
    "until closed": b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it",
    "old": b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold",
    "old and kept": b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nold",
    "closing": b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy",
    "twice": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: 1\r\nx-a: 2\r\n\r\nok",
    "large": b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + bytes(range(250)) * 800,
}


def read(wire: bytes, *, method: str = "GET", step: int = 1 << 20, close: bool = True) -> tuple[HttpReply, bool]:
    """What is read of these bytes when they arrive `step` at a time."""
    near, far = socket.socketpair()

    def deliver() -> None:
        for start in range(0, len(wire), step):
            far.sendall(wire[start : start + step])
        if close:
            far.close()

    sender = threading.Thread(target=deliver)
    sender.start()
    try:
        return read_reply(near, method, time.monotonic() + PATIENCE)
    finally:
        near.close()
        sender.join(PATIENCE)
        far.close()


def by_http_client(wire: bytes) -> http.client.HTTPResponse:
    near, far = socket.socketpair()
    with near, far:
        sender = threading.Thread(target=lambda: (far.sendall(wire), far.shutdown(socket.SHUT_WR)))
        sender.start()
        response = http.client.HTTPResponse(near, method="GET")
        response.begin()
        response.content = response.read()  # type: ignore[attr-defined]
        sender.join(PATIENCE)
        return response


@pytest.mark.parametrize("name", REPLIES)
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_replies_are_read_as_http_client_reads_them_however_they_are_cut(name: str, step: int) -> None:
    wire = REPLIES[name]
    if step == 1 and len(wire) > 4096:
        step = 997
    reply, keep = read(wire, step=step)
    expected = by_http_client(wire)
    assert reply.status == expected.status
    assert reply.body.tobytes() == expected.content  # type: ignore[attr-defined]
    assert reply.headers == {key.lower(): ", ".join(expected.headers.get_all(key)) for key in expected.headers}
    assert keep == (not expected.will_close)


def test_a_reply_ends_where_it_says_and_the_connection_stays_open() -> None:
    reply, keep = read(REPLIES["length"], close=False)
    assert reply.body.tobytes() == b"hello"
    assert keep


def test_a_head_has_no_body_whatever_its_length_says() -> None:
    reply, keep = read(b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n", method="HEAD", close=False)
    assert (reply.body.size, reply.headers["content-length"], keep) == (0, "70000", True)


def test_a_connection_on_which_more_came_than_was_asked_for_is_not_used_again() -> None:
    reply, keep = read(REPLIES["length"] + b"HTTP/1.1 200 OK\r\n")
    assert reply.body.tobytes() == b"hello"
    assert not keep


def test_bodies_are_aligned_for_whatever_is_read_from_them() -> None:
    assert read(REPLIES["large"])[0].body.ctypes.data % 64 == 0


@pytest.mark.parametrize(
    "wire",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 2000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * (70 << 10),
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
    ],
    ids=lambda wire: wire[:60].decode("latin-1"),
)
def test_what_is_no_reply_is_refused(wire: bytes) -> None:
    with pytest.raises(BrokenReplyError) as refusal:
        read(wire)
    assert not isinstance(refusal.value, NoReplyError)


def test_silence_is_told_from_a_broken_reply() -> None:
    with pytest.raises(NoReplyError):
        read(b"")


def test_the_deadline_ends_the_wait_and_is_looked_at_before_each_read() -> None:
    near, far = socket.socketpair()
    with near, far:
        with pytest.raises(TimeoutError):
            read_reply(near, "GET", time.monotonic() + 0.02)
        far.sendall(b"HTTP/1.1 200 OK\r\n")
        with pytest.raises(DeadlineError):
            read_reply(near, "GET", time.monotonic() - 1.0)


def test_large_bodies_arrive_unchanged() -> None:
    numbers = np.random.default_rng(31_907).standard_normal(300_000)
    wire = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % numbers.nbytes + numbers.tobytes()
    np.testing.assert_array_equal(read(wire)[0].body.view(np.float64), numbers)
