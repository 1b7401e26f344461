"""A load generator that costs little: one process, one thread, one closed loop of callers over prepared requests."""

import multiprocessing
import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from backsolve import Client
from backsolve._rest.body import decode
from backsolve._rest.messages import read_solve_reply
from backsolve._rpc import calls, framing, replies
from backsolve._transports.base import SolveCall, SolveReply
from backsolve._transports.http import RestCalls
from backsolve.canonical import canonicalise
from backsolve.config import resolve
from backsolve.types import MatrixRef, Options, Status
from backsolve.v1 import solver_pb2

from .line import GrpcLine, HttpLine, Line

Floats = NDArray[np.float64]

CHECK_EVERY = 16
"""One of so many answers is compared with the right one."""

TOLERANCE = 1e-9
"""Largest error of a right answer, relative to its largest entry."""

PREPARED = 64
"""Right-hand sides, of which callers take one after the other."""

_RECEIVE = 1 << 18
_SILENCE_SECONDS = 30.0
_SEED = 771_930_462


@final
@dataclass(frozen=True)
class Load:
    """What callers send: solves with one matrix that the server holds.

    Attributes:
        way: "http" or "grpc".
        address: host and port.
        requests: complete, for `HttpLine` or `GrpcLine`.
        headers: of every request over gRPC.
        answers: `[requests, n]`, the right ones.
    """

    way: str
    address: tuple[str, int]
    requests: tuple[bytes, ...]
    headers: tuple[tuple[str, str], ...]
    answers: Floats

    def line(self) -> Line:
        """A connection."""
        return HttpLine() if self.way == "http" else GrpcLine(list(self.headers))

    def right(self, number: int, reply: bytes) -> bool:
        """Whether a reply holds the answer to a request, and the certificate of one."""
        answer = _read_http(reply) if self.way == "http" else _read_grpc(reply)
        certificate, expected = answer.certificate, self.answers[number]
        proved = certificate.status is Status.OK and certificate.factor_hit and certificate.backward_error < 1e-12
        return proved and bool(np.abs(answer.x - expected).max() <= TOLERANCE * np.abs(expected).max())


@final
@dataclass(frozen=True)
class Rate:
    """What came of one run.

    Attributes:
        seconds: from the first request that counts to the last reply.
        answered, checked, wrong: replies, those that were compared with the right ones, and those that differ.
        latencies: seconds of each reply that counts.
        generator: share of a core that the generator took; near 1 it is what limits the rate.
    """

    seconds: float
    answered: int
    checked: int
    wrong: int
    latencies: Floats
    generator: float

    @property
    def per_second(self) -> float:
        """Replies a second."""
        return self.answered / self.seconds

    def percentile(self, percent: float) -> float:
        """Seconds that so many of 100 replies took at most."""
        return float(np.percentile(self.latencies, percent))


def prepare(url: str, A: Floats) -> Load:
    """Make requests for solves with a dense matrix, and have the server hold its factor.

    Args:
        url: `http://` or `grpc://`, with a port.
        A: `[n, n]`.
    """
    with Client(url) as client:
        client.solve(A, np.ones(A.shape[0]))
        client.solve(A, np.ones(A.shape[0]))
    endpoint = resolve(url, None, None, environment={})
    ref = canonicalise(A).matrix.ref
    b = np.random.default_rng(_SEED).standard_normal((PREPARED, A.shape[0]))
    answers = np.asarray(np.linalg.solve(A, b.T).T, dtype=np.float64)
    listed = [SolveCall(ref, Options(), each) for each in b]
    http = endpoint.scheme == "http"
    if http:
        rest = RestCalls(endpoint)
        wire = [next(rest.solve(call, 30.0)) for call in listed]
        requests = [b"".join((request.head, *request.body.parts)) for request in wire]
    else:
        requests = [_grpc_message(call) for call in listed]
    headers = () if http else _grpc_headers(endpoint.address, ref)
    return Load("http" if http else "grpc", (endpoint.host, endpoint.port), tuple(requests), headers, answers)


def _grpc_message(call: SolveCall) -> bytes:
    message, arrays = calls.encode_solve(call)
    framing.embed(message, arrays)
    return bytes(message.SerializeToString())


def _grpc_headers(authority: str, ref: MatrixRef) -> tuple[tuple[str, str], ...]:
    """What gRPC's own client sends with a call of ours."""
    return (
        (":scheme", "http"),
        (":method", "POST"),
        (":authority", authority),
        (":path", "/backsolve.v1.Solver/Solve"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "grpc-python"),
        ("grpc-accept-encoding", "identity, deflate, gzip"),
        ("backsolve-client", "python"),
        ("backsolve-route-key", ref.route_key),
        ("grpc-timeout", "30S"),
    )


def _read_http(reply: bytes) -> SolveReply:
    return read_solve_reply(decode(np.frombuffer(reply, np.uint8)))


def _read_grpc(reply: bytes) -> SolveReply:
    message = solver_pb2.SolveResponse.FromString(reply)
    return replies.decode_solved(message, framing.embedded(message, None))


def drive(load: Load, callers: int, connections: int, seconds: float, warm: float) -> Rate:
    """Let callers ask, each again when it has its answer, for so many seconds after the warm ones.

    Raises:
        BrokenLineError: the server has refused a request.
        TimeoutError: it is silent.
    """
    return _Loop(load, callers, connections).run(seconds, warm)


@final
class _Loop:
    """The callers of one run."""

    def __init__(self, load: Load, callers: int, connections: int) -> None:
        self._load = load
        connections = callers if load.way == "http" else min(connections, callers)
        self._shares = [len(range(k, callers, connections)) for k in range(connections)]
        self._lines = [load.line() for _ in self._shares]
        self._asked = [[(0, 0.0)] * share for share in self._shares]
        self._count = self._checked = self._wrong = 0
        self._latencies: list[float] = []

    def run(self, seconds: float, warm: float) -> Rate:
        """Connect, ask until the time is over, wait for what is under way."""
        sockets = [socket.create_connection(self._load.address, timeout=_SILENCE_SECONDS) for _ in self._lines]
        try:
            for sock in sockets:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self._run(sockets, seconds, warm)
        finally:
            for sock in sockets:
                sock.close()

    def _run(self, sockets: Sequence[socket.socket], seconds: float, warm: float) -> Rate:
        poll = select.epoll()
        numbers = {sock.fileno(): number for number, sock in enumerate(sockets)}
        start = time.perf_counter() + warm
        end = start + seconds
        for number, sock in enumerate(sockets):
            poll.register(sock, select.EPOLLIN)
            asked = [self._ask(number, caller, time.perf_counter()) for caller in range(self._shares[number])]
            sock.sendall(self._lines[number].hello() + b"".join(asked))
        under_way, now, spent = sum(self._shares), start, 0.0
        while under_way:
            ready = poll.poll(_SILENCE_SECONDS)
            if not ready:
                raise TimeoutError(f"the server has said nothing for {_SILENCE_SECONDS:.0f} s")
            if not spent and time.perf_counter() >= start:
                spent = time.process_time()
            for descriptor, _ in ready:
                number = numbers[descriptor]
                line, sock = self._lines[number], sockets[number]
                data = sock.recv(_RECEIVE)
                if not data:
                    raise ConnectionResetError("the server closed a connection")
                replies_, out = line.came(data), b""
                now = time.perf_counter()
                for caller, reply in replies_:
                    self._answered(number, caller, reply, now, start)
                    if now < end:
                        out += self._ask(number, caller, now)
                    else:
                        under_way -= 1
                out = line.owed() + out
                if out:
                    sock.sendall(out)
        poll.close()
        took = now - start
        share = (time.process_time() - spent) / took
        return Rate(took, len(self._latencies), self._checked, self._wrong, np.array(self._latencies), share)

    def _ask(self, number: int, caller: int, now: float) -> bytes:
        which = self._count % len(self._load.requests)
        self._count += 1
        self._asked[number][caller] = which, now
        return self._lines[number].ask(caller, self._load.requests[which])

    def _answered(self, number: int, caller: int, reply: bytes, now: float, start: float) -> None:
        which, began = self._asked[number][caller]
        if began < start:
            return
        self._latencies.append(now - began)
        if len(self._latencies) % CHECK_EVERY == 0:
            self._checked += 1
            self._wrong += not self._load.right(which, reply)


@final
class Generator:
    """A process that drives loads, on a core of its own.

    Args:
        core: which, or None for any.
    """

    def __init__(self, core: int | None) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, core), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> "Generator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def drive(self, load: Load, *, callers: int, connections: int = 1, seconds: float, warm: float = 0.3) -> Rate:
        """`drive` in that process.

        Raises:
            RuntimeError: it failed; the text says how.
        """
        self._pipe.send((load, callers, connections, seconds, warm))
        if not self._pipe.poll(seconds + warm + 4 * _SILENCE_SECONDS):
            raise RuntimeError("the load generator says nothing")
        found: Any = self._pipe.recv()
        if isinstance(found, str):
            raise RuntimeError(f"the load generator failed: {found}")
        assert isinstance(found, Rate)
        return found


def _serve(pipe: Connection, core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    while True:
        try:
            asked: Any = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(drive(*asked))
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")
