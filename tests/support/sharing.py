"""A REST server in this process that shares memory, and callers of its control socket below the level of the client."""

import fcntl
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backsolve._transports.http import HttpTransport
from backsolve._transports.shared import SharedMemory
from backsolve_service.callers import Callers
from backsolve_service.rest.server import RestServer
from backsolve_service.sharing.control import ControlServer
from backsolve_service.sharing.registry import Quotas, Registry
from backsolve_service.unixsocket import SocketFile
from support.rest import serving

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
MIB = 1 << 20


class SharingServer:
    """REST over TCP, and a control socket."""

    def __init__(self, rest: RestServer, registry: Registry, path: Path) -> None:
        self.rest, self.registry, self.path = rest, registry, path

    def memory(self, **options: Any) -> SharedMemory:
        return SharedMemory(str(self.path), **{"least_bytes": 1, **options})

    def transport(self, memory: SharedMemory) -> HttpTransport:
        return HttpTransport(f"http://127.0.0.1:{self.rest.port}", shared=memory)


@contextmanager
def sharing(plane: Any, token: str | None = None, **settings: Any) -> Iterator[SharingServer]:
    """A server over a plane; `settings` are quotas and those of REST."""
    limits = {"total_bytes": 512 * MIB, "caller_bytes": 256 * MIB, "total_regions": 8, "caller_regions": 4}
    quotas = Quotas(**{name: settings.pop(name, default) for name, default in limits.items()})
    with tempfile.TemporaryDirectory(prefix="backsolve-") as folder:
        path = Path(folder) / "shared"
        registry = Registry(quotas)
        control = ControlServer(SocketFile(path, 0o600), registry, Callers(token), "this-one")
        control.start()
        try:
            with serving(plane, registry=registry, **settings) as rest:
                yield SharingServer(rest, registry, path)
        finally:
            control.stop()
        assert registry.regions == 0


def sealed(nbytes: int, seals: int = SEALS, flags: int = 0) -> int:
    """Anonymous memory."""
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    os.ftruncate(descriptor, nbytes)
    if seals:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


class Caller:
    """One connection to the control socket, by hand."""

    def __init__(self, path: Path, hello: dict[str, Any] | None = None) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.socket.settimeout(30.0)
            self.socket.connect(str(path))
            self.greeting = self.ask({"hello": 1, **(hello or {})})
        except (OSError, ValueError):
            self.socket.close()
            raise

    def ask(self, question: dict[str, Any] | bytes, *descriptors: int) -> dict[str, Any]:
        packet = question if isinstance(question, bytes) else json.dumps(question).encode()
        socket.send_fds(self.socket, [packet], list(descriptors))
        return json.loads(self.socket.recv(1 << 16))

    def register(self, descriptor: int) -> dict[str, Any]:
        """Register memory, whose descriptor is closed here."""
        try:
            return self.ask({"register": True}, descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        self.socket.close()
