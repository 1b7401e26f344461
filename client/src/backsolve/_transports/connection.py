"""Pooled keep-alive HTTP/1.1 connections that move bodies without copying them.

`http.client` connects and speaks TLS; what it would copy or split is done here: header and body leave
in one gathered write, and a reply is read by `reply.py` straight into the array that will be x.
"""

import errno
import http.client
import select
import socket
import ssl
import threading
import time
from contextlib import suppress
from functools import partial
from typing import Any, final

from .._fork import renew_after_fork
from .._rest.body import Body
from ..config import Endpoint
from ..errors import CancelledError, DeadlineError, UnreachableError
from .base import Meanwhile
from .recall import recalled_by
from .reply import BrokenReplyError, HttpReply, NoReplyError, read_reply, seconds_left

CONNECT_SECONDS = 10.0
"""A host that does not even accept a connection for this long is unreachable, whatever the call's deadline."""

IDLE_CONNECTIONS = 32
SLICE = 1 << 20
GATHER = 64
"""Buffers in one `sendmsg`, below every system's IOV_MAX."""


@final
class _UnixConnection(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect; a full backlog of the listener counts as no answer."""
        if not hasattr(socket, "AF_UNIX"):
            raise OSError(errno.EAFNOSUPPORT, "this system has no Unix sockets; use http://")
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class StaleError(Exception):
    """The connection was closed by the other side before it answered anything."""


@final
class ConnectionPool:
    """Connections to one server, shared by threads, renewed after a fork.

    Args:
        endpoint: where it listens.
        tls: context of an https server, else None.
    """

    def __init__(self, endpoint: Endpoint, tls: ssl.SSLContext | None) -> None:
        self._endpoint, self._tls = endpoint, tls
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        self._closed = False
        renew_after_fork(self, ConnectionPool._renew)

    def exchange(
        self, method: str, head: bytes, body: Body, timeout: float | None, meanwhile: Meanwhile | None = None
    ) -> HttpReply:
        """Send one request and read its whole reply; over a connection that turns out to be dead, once more.

        Args:
            method: decides how the reply ends (HEAD has no body).
            head: request line and headers, complete with the empty line.
            body: may be empty.
            timeout: seconds for all of it, or None.
            meanwhile: done once the request is sent.

        Raises:
            DeadlineError: the time is over.
            UnreachableError: no connection, or it broke.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        parts = (memoryview(head), *body.parts)
        if (connection := self._take()) is not None:
            try:
                return self._attempt(connection, method, parts, deadline, meanwhile)
            except StaleError:
                pass  # it was closed while it lay idle: repeat on a fresh one, every call is idempotent
        try:
            return self._attempt(self._connect(deadline), method, parts, deadline, meanwhile)
        except StaleError as err:
            raise unanswered(self._endpoint) from err.__cause__

    def close(self) -> None:
        """Close idle connections now, and those in use when their call ends."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _renew(self) -> None:
        """In a forked child: the parent's sockets are left to it, and its lock may be held for ever."""
        self._lock = threading.Lock()
        # Closing a descriptor in the child does not end the parent's connection.
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> http.client.HTTPConnection | None:
        """The idle connection used last, unless the server has closed it meanwhile."""
        with self._lock:
            if self._closed:
                raise CancelledError("the client is closed: make a new one")
            connection = self._idle.pop() if self._idle else None
        if connection is None or is_quiet(connection.sock):
            return connection
        connection.close()
        return self._take()

    def _give_back(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < IDLE_CONNECTIONS:
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self, deadline: float | None) -> http.client.HTTPConnection:
        left = seconds_left(deadline)
        patience = CONNECT_SECONDS if left is None else min(CONNECT_SECONDS, left)
        at = self._endpoint
        connection: http.client.HTTPConnection
        if at.path:
            connection = _UnixConnection(at.path, patience)
        elif self._tls is None:
            connection = http.client.HTTPConnection(at.host, at.port, timeout=patience)
        else:
            connection = http.client.HTTPSConnection(at.host, at.port, timeout=patience, context=self._tls)
        try:
            connection.connect()
        except OSError as err:
            connection.close()
            seconds_left(deadline)  # the caller's own deadline counts first
            raise not_connected(self._endpoint, err) from err
        return connection

    def _attempt(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        parts: tuple[memoryview, ...],
        deadline: float | None,
        meanwhile: Meanwhile | None,
    ) -> HttpReply:
        recalled_by(partial(_cut, connection.sock))
        try:
            reply, keep = _exchange(connection.sock, method, parts, deadline, meanwhile)
        except TimeoutError:
            connection.close()
            raise out_of_time() from None
        except OSError as err:
            connection.close()
            raise broken_off(self._endpoint, err) from err
        except BaseException:
            connection.close()
            raise
        recalled_by(_nothing)
        if keep:
            self._give_back(connection)
        else:
            connection.close()
        return reply


def not_connected(endpoint: Endpoint, error: OSError) -> UnreachableError:
    """Why there is no connection."""
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "verify_message", None) or error.reason or "the handshake failed"
        return UnreachableError(f"no secure connection to {endpoint.address}: {reason}")
    reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or "the name cannot be resolved"
    return UnreachableError(f"no server at {endpoint.address}: {reason}")


def unanswered(endpoint: Endpoint) -> UnreachableError:
    """A new connection was closed before anything came."""
    return UnreachableError(f"the server at {endpoint.address} closed the connection without an answer")


def broken_off(endpoint: Endpoint, error: OSError) -> UnreachableError:
    """The connection has failed, or what came is no reply."""
    why = f" ({error})" if isinstance(error, BrokenReplyError) else ""
    return UnreachableError(f"the connection to {endpoint.address} broke in the middle of an answer{why}")


def out_of_time() -> DeadlineError:
    """The other side was silent for too long."""
    return DeadlineError("no answer before the deadline: raise timeout=, or try again later")


def _exchange(
    sock: Any, method: str, parts: tuple[memoryview, ...], deadline: float | None, meanwhile: Meanwhile | None
) -> tuple[HttpReply, bool]:
    """One request and its reply; the flag tells whether the connection may be used again."""
    broken: OSError | None = None
    try:
        _send(sock, parts, deadline)
    except (BrokenPipeError, ConnectionResetError) as err:
        broken = err  # a server that refuses early may have said why before it closed
    if meanwhile is not None:
        meanwhile()
    try:
        reply, keep = read_reply(sock, method, deadline)
    except NoReplyError as err:
        raise StaleError from (broken or err)
    return reply, keep and broken is None


def _send(sock: Any, parts: tuple[memoryview, ...], deadline: float | None) -> None:
    """Send all parts in as few system calls as the socket's buffer allows."""
    if isinstance(sock, ssl.SSLSocket):
        for part in parts:
            for start in range(0, len(part), SLICE):
                sock.settimeout(seconds_left(deadline))
                sock.sendall(part[start : start + SLICE])
        return
    waiting = list(parts)
    while waiting:
        sock.settimeout(seconds_left(deadline))
        sent = sock.sendmsg(waiting[:GATHER])
        while waiting and sent >= len(waiting[0]):
            sent -= len(waiting.pop(0))
        if sent:
            waiting[0] = waiting[0][sent:]


def _nothing() -> None:
    """The call is over: its connection belongs to another one."""


def _cut(sock: socket.socket) -> None:
    """End a connection that another thread waits on; it is woken up, and the server stops working."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def is_quiet(sock: socket.socket) -> bool:
    """Whether an idle connection is still open: a readable one was closed, or talks out of turn."""
    if not hasattr(select, "poll"):
        return not select.select([sock], [], [], 0)[0]
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)
