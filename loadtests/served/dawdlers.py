"""Callers that a server must bear: uploads that dawdle, stop in the middle, or break off."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, final
from urllib.parse import urlsplit

import grpc

from backsolve._rpc import framing
from backsolve.v1 import solver_pb2, types_pb2
from backsolve.v1.solver_pb2_grpc import MatricesStub

_BODY = 4 << 20
_PIECE = 64 << 10
_PAUSE = 0.2
_KINDS = ("dawdle", "stop", "break off")


@final
class Dawdlers:
    """Uploads over REST or gRPC of which none is ever complete.

    Args:
        url: `http://...` or `grpc://...`.
        count: how many at a time, a third of each kind.
        seconds: how long they go on; one that broke off begins again.

    Attributes:
        begun: uploads so far.
    """

    def __init__(self, url: str, count: int, seconds: float) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._rest = parts.scheme == "http"
        self._host, self._port = parts.hostname, parts.port
        self._count, self._seconds = count, seconds
        self._end = 0.0
        self._lock = threading.Lock()
        self.begun = 0

    def run(self) -> None:
        """Upload until the time is over."""
        self._end = time.monotonic() + self._seconds
        threads = [
            threading.Thread(target=self._again_and_again, args=(_KINDS[number % len(_KINDS)],))
            for number in range(self._count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _again_and_again(self, kind: str) -> None:
        while time.monotonic() < self._end:
            with self._lock:
                self.begun += 1
            try:
                if self._rest:
                    self._put_rest(kind)
                else:
                    self._put_grpc(kind)
            except (OSError, grpc.RpcError):
                pass  # the server has ended it, as it may
            time.sleep(_PAUSE)

    def _put_rest(self, kind: str) -> None:
        key = f"{'ab' * 32}-{'cd' * 32}"
        head = (
            f"PUT /v1/matrices/{key} HTTP/1.1\r\nhost: {self._host}\r\n"
            f"content-type: application/x-safetensors\r\ncontent-length: {_BODY}\r\n\r\n"
        )
        with socket.create_connection((self._host, self._port), timeout=10) as sock:
            sock.sendall(head.encode())
            for piece in self._pieces(kind):
                sock.sendall(piece)

    def _put_grpc(self, kind: str) -> None:
        header = solver_pb2.PutRequest(
            matrix=types_pb2.MatrixRef(pattern=b"\xab" * 32, values=b"\xcd" * 32),
            layout=solver_pb2.LAYOUT_DENSE,
            n=724,
            values=types_pb2.Tensor(dtype=types_pb2.DTYPE_FLOAT64, shape=(724, 724), nbytes=724 * 724 * 8),
        )

        def frames() -> Iterator[solver_pb2.Frame]:
            yield solver_pb2.Frame(put=header)
            at = 0
            for piece in self._pieces(kind):
                yield solver_pb2.Frame(chunk=solver_pb2.Chunk(tensor=7, offset=at, data=piece))
                at += len(piece)

        with grpc.insecure_channel(f"{self._host}:{self._port}", options=framing.channel_options()) as channel:
            stub: Any = MatricesStub(channel)  # type: ignore[no-untyped-call]  # generated
            call = stub.Put.future(frames(), timeout=self._seconds + 10)
            while time.monotonic() < self._end and not call.done():
                time.sleep(_PAUSE)
                if kind == "break off":
                    break
            call.cancel()

    def _pieces(self, kind: str) -> Iterator[bytes]:
        """Less than the whole body, in the manner of `kind`; zeros, since nobody will look."""
        yield bytes(_PIECE)
        if kind == "break off":
            return
        while time.monotonic() < self._end:
            time.sleep(_PAUSE)
            if kind == "dawdle":
                yield b"\0"
