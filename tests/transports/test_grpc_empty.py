"""Something answers gRPC with OK and no message; gRPC calls that an answer, we do not."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest

from backsolve import Client
from backsolve.canonical import canonicalise
from backsolve.errors import MalformedError

DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6
ACK, END_STREAM, END_HEADERS = 1, 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """One header field, uncompressed (RFC 7541, 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def answer_emptily(sock: socket.socket) -> None:
    """HTTP/2 as far as one call needs it: each stream that has ended gets a status of OK, and nothing else."""
    with suppress(OSError), sock, sock.makefile("rb") as stream:
        stream.read(24)
        sock.sendall(frame(SETTINGS, 0, 0))
        while len(head := stream.read(9)) == 9:
            payload = stream.read(int.from_bytes(head[:3]))
            kind, flags, number = head[3], head[4], int.from_bytes(head[5:])
            if kind in (SETTINGS, PING) and not flags & ACK:
                sock.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
            if kind in (HEADERS, DATA) and flags & END_STREAM:
                first = literal(b":status", b"200") + literal(b"content-type", b"application/grpc")
                sock.sendall(frame(HEADERS, END_HEADERS, number, first))
                sock.sendall(frame(HEADERS, END_HEADERS | END_STREAM, number, literal(b"grpc-status", b"0")))


@pytest.fixture
def empty() -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer_emptily, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"grpc://127.0.0.1:{listener.getsockname()[1]}"
    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.mark.parametrize("call", ["solve", "vjp", "put", "find", "release", "info", "stats"])
def test_an_answer_without_a_message_is_no_answer(empty: str, call: str) -> None:
    from backsolve._transports.base import PutCall

    a, b = 4 * np.eye(3), np.ones(3)
    matrix = canonicalise(a).matrix
    with Client(empty, timeout=20) as client:
        calls = {
            "solve": lambda: client.solve(a, b),
            "vjp": lambda: client.vjp(a, b / 4, b),
            "put": lambda: client.transport.put(PutCall(matrix.ref, matrix), 20),
            "find": lambda: client.transport.find([matrix.ref], 20),
            "release": lambda: client.transport.release(matrix.ref, 20),
            "info": client.info,
            "stats": client.stats,
        }
        with pytest.raises(MalformedError, match="the answer is empty"):
            calls[call]()
