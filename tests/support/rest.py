"""REST servers on free ports, and clients below the level of `HttpTransport`."""

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from backsolve._transports.base import JvpCall, SolveCall, SolveReply, VjpCall, VjpReply
from backsolve.canonical import canonicalise
from backsolve.matrix import Matrix
from backsolve.types import Certificate, Holding, Limits, MatrixRef, Status, Timings
from backsolve_service.context import CallContext
from backsolve_service.rest.server import RestConfig, RestServer
from backsolve_service.scheduling.steps import Steps

METRICS = (b"backsolve_up 1\n", "text/plain; version=0.0.4")

CERTIFICATE = Certificate(Status.OK, "echo", "as told", "float64", 0, 0.0, 0.0, None, True, True, Timings(), "stand-in")


class ToldPlane:
    """A data plane that answers as a test tells it, for what the real one cannot be brought to do at will."""

    def __init__(self, answer: Callable[[SolveCall, CallContext], SolveReply], limit: int = 1 << 30) -> None:
        self._answer = answer
        self.limits = Limits(8 << 20, limit)
        self.ready = True

    def solve(self, call: SolveCall, context: CallContext) -> SolveReply:
        return self._answer(call, context)

    def vjp(self, call: VjpCall, context: CallContext) -> VjpReply:
        return VjpReply(call.cotangent, None, CERTIFICATE)

    def jvp(self, call: JvpCall, context: CallContext) -> SolveReply:
        return SolveReply(call.b_tangent, CERTIFICATE)

    def solving(self, call: SolveCall, context: CallContext) -> Steps[SolveReply]:
        yield from ()
        return self.solve(call, context)

    def pulling(self, call: VjpCall, context: CallContext) -> Steps[VjpReply]:
        yield from ()
        return self.vjp(call, context)

    def pushing(self, call: JvpCall, context: CallContext) -> Steps[SolveReply]:
        yield from ()
        return self.jvp(call, context)

    def refuse_when_full(self, calls: int, context: CallContext) -> None:
        pass

    def at_hand(self, call: SolveCall, context: CallContext) -> bool:
        return False

    def require(self, ref: MatrixRef, context: CallContext, *, brought: bool = False) -> None:
        pass

    def find(self, refs: list[MatrixRef], context: CallContext) -> list[Holding]:
        return [Holding.FACTOR for _ in refs]

    def refused(self, error: BaseException, transport: str, request_id: str) -> None:
        pass


def echo(call: SolveCall, _: CallContext) -> SolveReply:
    """The right-hand side is the answer."""
    return SolveReply(call.rhs, CERTIFICATE)


@contextmanager
def serving(plane: Any, **settings: Any) -> Iterator[RestServer]:
    """A REST server over a plane, in this process."""
    registry = settings.pop("registry", None)
    server = RestServer(plane, RestConfig(**{"port": 0, "max_threads": 16, **settings}), lambda: METRICS, registry)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def ask(port: int, method: str, path: str, body: bytes | None = None, kind: str | None = None, **headers: str) -> Reply:
    """One request over a connection of its own, as curl would make it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if kind is not None:
            sent["content-type"] = kind
        connection.request(method, path, body, sent)
        response = connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def ask_json(port: int, path: str, document: Any, **headers: str) -> Reply:
    """POST a JSON document."""
    return ask(port, "POST", path, json.dumps(document).encode(), "application/json", **headers)


def canned(answers: list[bytes | None]) -> tuple[int, list[int], threading.Thread]:
    """A server of one-shot replies, for what a real one or a proxy may do: each item answers one request.

    None closes the connection instead of answering. Returns the port, the number of requests that each accepted
    connection carried, and the thread, which ends after the last item.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    served: list[int] = []

    def run() -> None:
        waiting = list(answers)
        with listener:
            while waiting:
                connection, _ = listener.accept()
                served.append(0)
                with connection:
                    while waiting and _read_request(connection):
                        served[-1] += 1
                        answer = waiting.pop(0)
                        if answer is None:
                            break
                        connection.sendall(answer)
                        if b"connection: close" in answer.lower():
                            break

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return int(listener.getsockname()[1]), served, thread


def _read_request(connection: socket.socket) -> bool:
    """Read one request to its end; false when the connection was closed before one began."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return False
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    sizes = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    missing = int(sizes[0]) - len(body) if sizes else 0
    while missing > 0:
        missing -= len(connection.recv(65536))
    return True


def dense_matrix(n: int, seed: int, dtype: str = "float64") -> Matrix:
    """A well-conditioned dense matrix."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((n, n)) + n * np.eye(n)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * rng.standard_normal((n, n))
    return canonicalise(values.astype(dtype)).matrix
