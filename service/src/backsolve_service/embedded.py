"""The engine in the caller's own process: the same data plane, no sockets, no encoding.

It is a guest there: its own metrics, no signal handlers, no logging set-up, no thread settings
of any library touched. All clients of a process share one data plane; after `fork` the child
makes a fresh one, since threads do not survive a fork.
"""

import atexit
import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import final

import numpy as np

from backsolve._fork import renew_after_fork
from backsolve._transports.base import JvpCall, PutCall, SolveCall, SolveReply, Transport, VjpCall, VjpReply
from backsolve._transports.recall import recalled_by
from backsolve.errors import NotSupportedError
from backsolve.matrix import Matrix
from backsolve.types import Holding, MatrixRef, ServerInfo

from .context import CallContext
from .dataplane.plane import DataPlane, PlaneConfig
from .machine import memory_bytes
from .metrics import Metrics

_GIB = 1 << 30

_EXIT_SECONDS = 2.0
"""How long the end of the process waits for a factorization that cannot be interrupted."""


def guest_config() -> PlaneConfig:
    """Settings of an engine that shares its process: a cache of min(2 GiB, 10 % of memory)."""
    return PlaneConfig(cache_bytes=min(2 * _GIB, memory_bytes() // 10))


class _Shared:
    """The data plane of this process and how many transports use it."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.plane: DataPlane | None = None
        self.metrics = Metrics()
        self.users = 0
        renew_after_fork(self, _Shared.renew)
        # SuperLU objects must be freed by the thread that made them, so before the threads are gone.
        atexit.register(self.end)

    def renew(self) -> None:
        """In a forked child: forget the parent's plane, whose threads are not here."""
        self.lock = Lock()
        inherited, self.plane = self.plane, None
        if inherited is not None:
            # Nor can its factors be freed here, for the same reason: let the copy live as long as the child.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))

    def end(self) -> None:
        """The process ends: free the factors where they were made."""
        with self.lock:
            plane, self.plane = self.plane, None
        if plane is not None:
            plane.close(_EXIT_SECONDS)

    def get(self) -> DataPlane:
        """The plane, made on first use in this process."""
        with self.lock:
            if self.plane is None:
                self.metrics = Metrics()
                self.plane = DataPlane(guest_config(), self.metrics)
            return self.plane

    def join(self) -> None:
        """One more user."""
        with self.lock:
            self.users += 1

    def leave(self) -> None:
        """One user less; the last one closes the plane and frees its memory."""
        with self.lock:
            self.users -= 1
            if self.users > 0 or self.plane is None:
                return
            plane, self.plane = self.plane, None
        plane.close()


_shared = _Shared()


def metrics_text() -> tuple[bytes, str]:
    """The page that Prometheus would scrape of this process's engine, and its media type.

    The metrics live in a registry of their own, so they never meet those of the host program;
    serve the page wherever that program serves its own. They begin anew with the engine.
    """
    return _shared.metrics.text()


@final
class EmbeddedTransport(Transport):
    """Calls the data plane directly.

    Args:
        plane: a plane of one's own; by default the one that all clients of the process share.
    """

    def __init__(self, plane: DataPlane | None = None) -> None:
        self._own = plane
        self._closed = False
        if plane is None:
            _shared.join()

    @property
    def plane(self) -> DataPlane:
        """The data plane behind this transport.

        Raises:
            NotSupportedError: the transport is closed.
        """
        if self._closed:
            raise NotSupportedError("this client is closed: make a new one")
        return self._own or _shared.get()

    def solve(self, call: SolveCall, timeout: float | None) -> SolveReply:
        """Solve; values that come with the call are copied, since the caller may write to them later."""
        if call.values is not None:
            call = replace(call, values=np.array(call.values, order="C", copy=True))
        return self.plane.solve(call, _context(timeout))

    def vjp(self, call: VjpCall, timeout: float | None) -> VjpReply:
        """One adjoint solve."""
        return self.plane.vjp(call, _context(timeout))

    def jvp(self, call: JvpCall, timeout: float | None) -> SolveReply:
        """One tangent solve."""
        return self.plane.jvp(call, _context(timeout))

    def put(self, call: PutCall, timeout: float | None) -> MatrixRef:
        """Hand a matrix over; its values are copied, since the caller may write to them later."""
        matrix = call.matrix
        own = Matrix(matrix.pattern, np.array(matrix.values, order="C", copy=True), matrix.base)
        return self.plane.put(PutCall(call.ref, own, call.values_only), _context(timeout))

    def find(self, refs: Sequence[MatrixRef], timeout: float | None) -> list[Holding]:
        """How much of each matrix is held."""
        return self.plane.find(refs, _context(timeout))

    def release(self, ref: MatrixRef, timeout: float | None) -> None:
        """Hint that the matrix is needed no longer."""
        self.plane.release(ref, _context(timeout))

    def info(self, timeout: float | None) -> ServerInfo:
        """Versions, limits and methods."""
        return self.plane.info()

    def stats(self, timeout: float | None) -> Mapping[str, float]:
        """Counters of the data plane."""
        return self.plane.stats()

    def close(self) -> None:
        """Leave the data plane; whoever leaves last closes it."""
        if not self._closed:
            self._closed = True
            if self._own is None:
                _shared.leave()


def _context(timeout: float | None) -> CallContext:
    context = CallContext.within(timeout, "embedded")
    recalled_by(context.cancel)
    return context
