"""The ways to bring an array to the server and back that are compared, and the limits beside them."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

import grpc
import numpy as np
from numpy.typing import NDArray

from backsolve._transports.base import SolveCall, Transport
from backsolve._transports.grpc import GrpcTransport
from backsolve._transports.http import HttpTransport
from backsolve._transports.shared import SharedMemory
from backsolve.types import MatrixRef, Options
from backsolve.v1 import solver_pb2 as solver
from backsolve.v1 import types_pb2 as types

from .echo import LENGTH_BYTES, UNLIMITED, receive

Floats = NDArray[np.float64]

_REF = MatrixRef(b"\x17" * 32, b"\x2f" * 32)
_TIMEOUT = 60.0


@final
@dataclass(frozen=True)
class Way:
    """One way.

    Attributes:
        name: of its row.
        prepare: is given a number of elements, and returns what is timed: there and back once.
    """

    name: str
    prepare: Callable[[int], Callable[[], object]]


@contextmanager
def ways(folder: Path, ports: dict[str, int]) -> Iterator[list[Way]]:
    """Every way to one echo server; the first is the reference."""
    with ExitStack() as stack:
        listed = [Way("memcpy, there and back", _copies), Way("memcpy into fresh memory", _fresh_copies)]
        for name, family, address in (
            ("bare socket, TCP", socket.AF_INET, ("127.0.0.1", ports["bare"])),
            ("bare socket, unix", socket.AF_UNIX, str(folder / "bare")),
        ):
            connection = stack.enter_context(socket.socket(family))
            connection.connect(address)
            if family == socket.AF_INET:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listed.append(Way(name, lambda n, connection=connection: _bare(connection, n)))  # type: ignore[misc]
        unix = f"unix:{folder}/http"
        plain = {"HTTP, TCP": HttpTransport(f"http://127.0.0.1:{ports['http']}"), "HTTP, unix": HttpTransport(unix)}
        memory = SharedMemory(str(folder / "shared"), least_bytes=1)
        shared = HttpTransport(unix, shared=memory)
        for transport in (*plain.values(), shared):
            stack.callback(transport.close)
        listed += [Way(name, lambda n, over=over: _solve(over, np.ones(n))) for name, over in plain.items()]  # type: ignore[misc]
        stream = GrpcTransport(f"127.0.0.1:{ports['grpc']}")
        stack.callback(stream.close)
        listed.append(Way("gRPC, as it chooses", lambda n: _solve(stream, np.ones(n))))
        channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{ports['unary']}", UNLIMITED))
        listed.append(Way("gRPC unary, protobuf", lambda n: _unary(channel, n)))
        listed.append(Way("shared memory, any array", lambda n: _solve(shared, np.ones(n))))
        listed.append(Way("shared memory, client.empty", lambda n: _solve(shared, _in_memory(shared, n))))
        yield listed


def _copies(n: int) -> Callable[[], object]:
    here, there, back = np.ones(n), np.ones(n), np.ones(n)

    def run() -> None:
        np.copyto(there, here)
        np.copyto(back, there)

    return run


def _fresh_copies(n: int) -> Callable[[], object]:
    here = np.ones(n)
    return lambda: here.copy().copy()


def _bare(connection: socket.socket, n: int) -> Callable[[], object]:
    here, back = np.ones(n).view(np.uint8), np.ones(n).view(np.uint8)
    head = here.nbytes.to_bytes(LENGTH_BYTES, "little")

    def run() -> None:
        connection.sendall(head)
        connection.sendall(here.data)
        receive(connection, back)

    return run


def _in_memory(transport: HttpTransport, n: int) -> Floats:
    array = transport.empty((n,), np.dtype(np.float64))
    array[:] = 1.0
    return array


def _unary(channel: grpc.Channel, n: int) -> Callable[[], object]:
    call = channel.unary_unary(
        "/reference/Echo",
        request_serializer=solver.SolveRequest.SerializeToString,
        response_deserializer=solver.SolveRequest.FromString,
    )
    here = np.ones(n)

    def run() -> Floats:
        reply = call(solver.SolveRequest(rhs=types.Tensor(data=here.tobytes())), timeout=_TIMEOUT)
        return np.frombuffer(reply.rhs.data).copy()

    np.testing.assert_array_equal(run(), here)
    return run


def _solve(transport: Transport, rhs: Floats) -> Callable[[], object]:
    call = SolveCall(_REF, Options(), rhs)
    np.testing.assert_array_equal(transport.solve(call, _TIMEOUT).x, rhs)
    return lambda: transport.solve(call, _TIMEOUT).x
