"""The control socket: callers pass memory over it, and their regions live as long as their connection.

One thread serves all connections: mapping and unmapping take microseconds. What a connection sends is
a packet (`backsolve._shared.wire`), with at most one descriptor.
"""

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
from typing import Any, final

from backsolve._shared import wire
from backsolve.errors import BacksolveError, InternalError, MalformedError, NotSupportedError, UnauthenticatedError

from ..callers import Callers
from ..unixsocket import SocketFile
from .registry import Registry

_log = logging.getLogger(__name__)

MOST_CALLERS = 512
"""Connections beyond this are closed at once: each costs a descriptor, whether or not it shares anything."""

_BACKLOG = 64
_PAUSE_SECONDS = 0.1


@final
class _Caller:
    """One connection, which owns its regions."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.greeted = False


@final
class ControlServer:
    """Serves the control socket.

    Args:
        file: where it listens.
        registry: keeps what callers share.
        callers: whose tokens let in.
        instance: of the service, so that a caller can tell that it is the one that it has met.

    Attributes:
        registry: what callers share.
    """

    def __init__(self, file: SocketFile, registry: Registry, callers: Callers, instance: str) -> None:
        self._file, self.registry, self._instance = file, registry, instance
        self._admitted = callers
        self._callers: set[_Caller] = set()
        self._thread: threading.Thread | None = None
        self._wake, self._woken = socket.socketpair()

    def start(self) -> None:
        """Listen.

        Raises:
            OSError: the path cannot be listened on.
        """
        listener = self._file.listen(socket.SOCK_SEQPACKET, _BACKLOG)
        self._thread = threading.Thread(target=self._run, args=(listener,), name="shared-control", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close all connections, and with them the regions."""
        self._file.remove()
        self._wake.close()
        if self._thread is not None:
            self._thread.join()
        else:
            self._woken.close()

    def _run(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        with selectors.DefaultSelector() as selector, listener, self._woken:
            selector.register(self._woken, selectors.EVENT_READ)
            selector.register(listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._woken:
                        for caller in [*self._callers]:
                            self._end(caller, selector)
                        return
                    if key.fileobj is listener:
                        self._accept(listener, selector)
                    elif not self._serve(key.data):
                        self._end(key.data, selector)

    def _accept(self, listener: socket.socket, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:  # it has gone again, or there is no descriptor left
            _log.warning("a connection to the control socket was not accepted: %s", error)
            time.sleep(_PAUSE_SECONDS)
            return
        if len(self._callers) >= MOST_CALLERS:
            connection.close()
            return
        connection.setblocking(False)
        caller = _Caller(connection)
        self._callers.add(caller)
        selector.register(connection, selectors.EVENT_READ, caller)

    def _end(self, caller: _Caller, selector: selectors.BaseSelector) -> None:
        selector.unregister(caller.connection)
        caller.connection.close()
        self._callers.discard(caller)
        self.registry.drop_all(caller)

    def _serve(self, caller: _Caller) -> bool:
        """Answer one packet; false when the connection is over."""
        descriptors: list[int] = []
        try:
            data, descriptors, flags, _ = socket.recv_fds(
                caller.connection, wire.MOST_BYTES, 1, socket.MSG_CMSG_CLOEXEC
            )
            if not data:
                return False
            answer = wire.write_packet(self._answer(caller, data, descriptors, flags))
        except BacksolveError as error:  # first: some are an OSError as well
            answer = wire.write_error(error)
        except BlockingIOError:
            return True
        except OSError:
            return False
        except Exception:
            _log.exception("a packet on the control socket could not be answered")
            answer = wire.write_error(InternalError("the server failed; its log has the cause"))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        with contextlib.suppress(OSError):  # who does not read its answers is told nothing more
            return caller.connection.send(answer, socket.MSG_NOSIGNAL) == len(answer)
        return False

    def _answer(self, caller: _Caller, data: bytes, descriptors: list[int], flags: int) -> dict[str, Any]:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise MalformedError(f"a packet has at most {wire.MOST_BYTES} bytes and one descriptor")
        question = wire.read_packet(data)
        if "hello" in question:
            return self._greet(caller, question)
        if not caller.greeted:
            raise UnauthenticatedError("the first packet must be a hello, with the token if one is asked for")
        if "register" in question:
            if not descriptors:
                raise MalformedError("a descriptor of the memory must come with the packet that registers it")
            return {"handle": self.registry.add(caller, descriptors[0])}
        if isinstance(handle := question.get("release"), str):
            self.registry.drop(caller, handle)
            return {"released": True}
        raise MalformedError("a packet asks to hello, register or release")

    def _greet(self, caller: _Caller, question: dict[str, Any]) -> dict[str, Any]:
        if question["hello"] != wire.VERSION:
            raise NotSupportedError(f"the control socket speaks version {wire.VERSION} only")
        self._admitted.tenant(str(question.get("token")), "pass token=")
        caller.greeted = True
        quotas = self.registry.quotas
        return {"instance": self._instance, "bytes": quotas.caller_bytes, "regions": quotas.caller_regions}
