"""Callers that a server must survive: bodies cut short, bits turned over, and nobody there to hear the answer."""

import random
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any, final
from urllib.parse import urlsplit

import grpc
import numpy as np

from backsolve._rest.body import MEDIA_TYPE
from backsolve._rest.messages import put_body, solve_body, vjp_body
from backsolve._rpc import calls, framing, pieces, streams
from backsolve._transports.base import PutCall, SolveCall, VjpCall
from backsolve.canonical import canonicalise
from backsolve.matrix import Matrix
from backsolve.types import Options
from backsolve.v1 import solver_pb2

from .callers import CALLERS, CALLS, SHARED, SIDE, matrix_of

_PATIENCE = 10.0
_CHUNK = 2048
_RESET = struct.pack("ii", 1, 0)


@final
class Vandal:
    """Sends what no client of ours would, about the very matrices that good callers use, or are about to.

    Args:
        url: `http://...` or `grpc://...`.
        seed: of the harm.
        callers: the seed of the callers.
    """

    def __init__(self, url: str, seed: int, callers: int) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._rest = parts.scheme == "http"
        self._host, self._port = parts.hostname, parts.port
        self._rng = random.Random(seed)
        self._matrices = _matrices(callers)
        self._rhs = np.random.default_rng(seed % (1 << 31)).standard_normal(SIDE * SIDE)

    def truncate(self) -> None:
        """Send part of a body: its end missing, or the connection closed in the middle."""
        if self._rest:
            method, path, body = self._rest_request()
            kept = body[: self._rng.randrange(len(body))]
            # Either the shorter length is announced, or the rest never comes.
            announced = len(kept) if self._rng.random() < 0.5 else len(body)
            self._send_rest(method, path, kept, announced, answered=announced == len(kept))
            return
        method, messages = self._grpc_request()
        kept_messages = messages[: self._rng.randint(1, len(messages))]
        last = kept_messages[-1]
        kept_messages[-1] = last[: self._rng.randrange(len(last) + 1)]
        self._send_grpc(method, kept_messages)

    def flip(self) -> None:
        """Send a body in which a few bits are turned over, named by the digests of the true one."""
        if self._rest:
            method, path, body = self._rest_request()
            self._send_rest(method, path, self._flipped(body), len(body), answered=True)
            return
        method, messages = self._grpc_request()
        number = self._rng.randrange(len(messages))
        messages[number] = self._flipped(messages[number])
        self._send_grpc(method, messages)

    def vanish(self) -> None:
        """Ask properly, and be gone before the answer."""
        if self._rest:
            method, path, body = self._rest_request()
            self._send_rest(method, path, body, len(body), answered=False)
            return
        method, messages = self._grpc_request()
        self._send_grpc(method, messages, answered=False)

    def _flipped(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self._rng.choice((1, 1, 2, 8))):
            changed[self._rng.randrange(len(changed))] ^= 1 << self._rng.randrange(8)
        return bytes(changed)

    # -- REST ------------------------------------------------------------------------------

    def _rest_request(self) -> tuple[str, str, bytes]:
        matrix = self._rng.choice(self._matrices)
        ref = matrix.ref
        method, path, body = self._rng.choice(
            (
                ("PUT", f"/v1/matrices/{ref.key}", put_body(PutCall(ref, matrix))),
                ("PUT", f"/v1/matrices/{ref.key}", put_body(PutCall(ref, matrix))),
                ("POST", "/v1/solve", solve_body(SolveCall(ref, Options(), self._rhs))),
                ("POST", "/v1/vjp", vjp_body(VjpCall(ref, Options(), self._rhs))),
            )
        )
        return method, path, b"".join(bytes(part) for part in body.parts)

    def _send_rest(self, method: str, path: str, body: bytes, announced: int, *, answered: bool) -> None:
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: {MEDIA_TYPE}\r\n"
            f"content-length: {announced}\r\n\r\n"
        )
        with suppress(OSError), socket.create_connection((self._host, self._port), timeout=_PATIENCE) as sock:
            sock.sendall(head.encode() + body)
            if answered:
                while sock.recv(1 << 16).find(b"\r\n\r\n") < 0:
                    pass
            elif self._rng.random() < 0.5:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    # -- gRPC ------------------------------------------------------------------------------

    def _grpc_request(self) -> tuple[str, list[bytes]]:
        """A method, and its messages as bytes; several for one that takes a stream."""
        matrix = self._rng.choice(self._matrices)
        ref = matrix.ref
        kind = self._rng.choice(("put", "put", "put", "solve", "vjp", "stream"))
        if kind == "put":
            message, arrays = calls.encode_put(PutCall(ref, matrix))
            return "/backsolve.v1.Matrices/Put", self._frames(solver_pb2.Frame(put=message), message, arrays)
        if kind == "vjp":
            message, arrays = calls.encode_vjp(VjpCall(ref, Options(), self._rhs))
            framing.embed(message, arrays)
            return "/backsolve.v1.Solver/Vjp", [message.SerializeToString()]
        message, arrays = calls.encode_solve(SolveCall(ref, Options(), self._rhs))
        if kind == "stream":
            return "/backsolve.v1.Solver/SolveStream", self._frames(solver_pb2.Frame(solve=message), message, arrays)
        framing.embed(message, arrays)
        return "/backsolve.v1.Solver/Solve", [message.SerializeToString()]

    def _frames(self, header: Any, message: Any, arrays: Any) -> list[bytes]:
        # A frame of the usual size would hold all of so small a matrix: it is cut finer, so that there is a middle.
        frames = [pieces.write(header)]
        for frame in streams.chunk_frames(message, arrays):
            chunk = frame.chunk
            for at in range(0, len(chunk.data), _CHUNK):
                piece = pieces.Piece(chunk.tensor, chunk.offset + at, chunk.data[at : at + _CHUNK])
                frames.append(pieces.write(piece))
        return frames

    def _send_grpc(self, method: str, messages: list[bytes], *, answered: bool = True) -> None:
        with (
            grpc.insecure_channel(
                f"{self._host}:{self._port}",
                options=[*framing.channel_options(), ("grpc.use_local_subchannel_pool", 1)],
            ) as channel,
            suppress(grpc.RpcError),
        ):
            if method.endswith("Stream"):
                replies = channel.stream_stream(method)(iter(messages), timeout=_PATIENCE)
                self._hear(replies, answered)
            elif method.endswith("Put"):
                call = channel.stream_unary(method).future(iter(messages), timeout=_PATIENCE)
                self._wait(call, answered)
            else:
                call = channel.unary_unary(method).future(messages[0], timeout=_PATIENCE)
                self._wait(call, answered)

    def _hear(self, replies: Iterator[bytes], answered: bool) -> None:
        for _ in replies:
            if not answered:
                return  # the channel is closed under the call

    def _wait(self, call: Any, answered: bool) -> None:
        if answered:
            call.result()
        elif self._rng.random() < 0.5:
            with suppress(grpc.FutureTimeoutError):
                call.result(timeout=0.01)


@lru_cache(maxsize=4)
def _matrices(callers: int) -> tuple[Matrix, ...]:
    """All that callers with this seed will use; what they bring in later turns a bad copy could take the place of."""
    turns = [(SHARED, 0), *((number, turn) for turn in range(CALLS) for number in range(CALLERS))]
    return tuple(canonicalise(matrix_of(callers, number, turn)).matrix for number, turn in turns)
