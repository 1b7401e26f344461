"""A server whose answer to every solve is its right-hand side, so that nothing but the way is timed.

`python -m loadtests.transports.echo FOLDER` listens on free ports of 127.0.0.1 and on sockets in the folder,
prints one JSON line that says where, and ends with its standard input.
"""

import json
import socket
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, final

import grpc
import numpy as np

from backsolve._transports.base import SolveCall, SolveReply
from backsolve.types import DIGEST_VERSION, Certificate, Holding, Limits, MatrixRef, ServerInfo, Status, Timings
from backsolve.v1 import solver_pb2 as solver
from backsolve.v1 import types_pb2 as types
from backsolve_service.callers import Callers
from backsolve_service.context import CallContext
from backsolve_service.grpc.server import GrpcConfig, GrpcServer
from backsolve_service.machine import keep_buffers
from backsolve_service.rest.server import RestConfig, RestServer
from backsolve_service.scheduling.steps import Steps
from backsolve_service.sharing.control import ControlServer
from backsolve_service.sharing.registry import Quotas, Registry
from backsolve_service.unixsocket import SocketFile

LENGTH_BYTES = 8
INSTANCE = "echo"
_CERTIFICATE = Certificate(Status.OK, "echo", "", "float64", 0, 0.0, 0.0, None, True, True, Timings(), INSTANCE)
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
_MODE = 0o600
_GIB = 1 << 30


@final
class EchoPlane:
    """As much of a data plane as a solve needs."""

    limits = Limits(8 << 20, _GIB)
    ready = True

    def solve(self, call: SolveCall, _: CallContext) -> SolveReply:
        """The right-hand side."""
        return SolveReply(call.rhs, _CERTIFICATE)

    def solving(self, call: SolveCall, context: CallContext) -> Steps[SolveReply]:
        """The same, without a wait."""
        yield from ()
        return self.solve(call, context)

    def at_hand(self, call: SolveCall, context: CallContext) -> bool:
        """Whether it may be answered on the event loop: no, so that all sizes go the same way."""
        return False

    def require(self, ref: MatrixRef, context: CallContext, *, brought: bool = False) -> None:
        """Every matrix is held."""

    def find(self, refs: Sequence[MatrixRef], _: CallContext) -> list[Holding]:
        """Every matrix is held."""
        return [Holding.FACTOR for _ in refs]

    def refuse_when_full(self, calls: int, context: CallContext) -> None:
        """There is always room."""

    def info(self) -> ServerInfo:
        """Its limits; it has no methods."""
        return ServerInfo("0", ("v1",), DIGEST_VERSION, INSTANCE, "cpu", (), (), (), self.limits)

    def refused(self, error: BaseException, transport: str, request_id: str) -> None:
        """What fails is told to the caller alone."""


def unary_reference() -> tuple[Any, int]:
    """A gRPC server as a tutorial has it: the whole array in one protobuf message each way; and its port."""
    handler = grpc.unary_unary_rpc_method_handler(
        lambda request, _: solver.SolveRequest(rhs=types.Tensor(data=request.rhs.data)),
        request_deserializer=solver.SolveRequest.FromString,
        response_serializer=solver.SolveRequest.SerializeToString,
    )
    server = grpc.server(ThreadPoolExecutor(4), options=UNLIMITED)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("reference", {"Echo": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def bounce(listener: socket.socket) -> None:
    """Send back what each connection sends: a length, then as many bytes, both ways without another copy."""
    while True:
        connection, _ = listener.accept()
        if connection.family == socket.AF_INET:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_bounce, args=(connection,), daemon=True).start()


def _bounce(connection: socket.socket) -> None:
    buffer = np.zeros(0, np.uint8)
    while head := connection.recv(LENGTH_BYTES, socket.MSG_WAITALL):
        size = int.from_bytes(head, "little")
        if buffer.size < size:
            buffer = np.zeros(size, np.uint8)
        receive(connection, buffer[:size])
        connection.sendall(buffer[:size].data)


def receive(connection: socket.socket, target: np.ndarray[Any, Any]) -> None:
    """Fill an array of bytes."""
    position = 0
    while position < target.size:
        position += connection.recv_into(target[position:].data)


def main() -> None:
    """Serve until standard input ends."""
    keep_buffers()  # as the service does
    folder = Path(sys.argv[1])
    quotas = Quotas(total_bytes=4 * _GIB, caller_bytes=2 * _GIB, total_regions=64, caller_regions=32)
    control = ControlServer(SocketFile(folder / "shared", _MODE), Registry(quotas), Callers(), INSTANCE)
    control.start()
    plane: Any = EchoPlane()
    config = RestConfig(port=0, max_threads=16, unix=SocketFile(folder / "http", _MODE))
    rest = RestServer(plane, config, lambda: (b"", "text/plain"), control.registry)
    rest.start()
    tcp, unix = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
    unix.bind(str(folder / "bare"))
    unix.listen()
    for listener in (tcp, unix):
        threading.Thread(target=bounce, args=(listener,), daemon=True).start()
    streams = GrpcServer(plane, GrpcConfig())
    streams.start()
    reference, unary_port = unary_reference()
    ports = {"http": rest.port, "bare": tcp.getsockname()[1], "grpc": streams.port, "unary": unary_port}
    print(json.dumps(ports), flush=True)
    sys.stdin.read()
    rest.stop()
    streams.stop()
    reference.stop(None)
    control.stop()


if __name__ == "__main__":
    main()
