"""Bodies in memory that this process shares with a server on the same machine.

The memory is this process's own; the server maps it once, over its control socket, and requests over
HTTP then name parts of it. Whatever goes wrong with it, the same request can go in the ordinary way, and
`lease` gives None.
"""

import logging
import math
import os
import select
import socket
import threading
import time
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from .._fork import before_fork, renew_after_fork
from .._rest.body import Body, aligned_copy
from .._shared import wire
from .._shared.spans import ALIGNMENT, ANSWER_HEADER, MOST_SPANS, SHARED_HEADER, Span, read_spans, write_spans
from ..errors import BacksolveError, CancelledError, MalformedError
from ..types import Array
from .region import Region, Slot, address_of

LEAST_BYTES = 256 << 10
"""Messages below this are faster in the body (docs/adr/0038)."""

_LEAST_REGION = 16 << 20
_GRAIN = 2 << 20
_PATIENCE_SECONDS = 5.0
_REVOKE_SECONDS = 1.0
"""How long a call that was given up waits to hear that its memory is free; else that memory is given up too."""

_RETRY_SECONDS = 5.0

_log = logging.getLogger("backsolve")


@final
class SharedMemory:
    """This process's regions, and its connection to one server's control socket. Thread-safe.

    After a fork the child has regions and a connection of its own; what lies in the parent's is not
    reused by the parent while anything there is held, since the child may hold it as well.

    Args:
        path: of the control socket.
        token: bearer token, or None.
        instance: the server that it must be; None: any.
        least_bytes: messages below this are not shared.
    """

    def __init__(
        self, path: str, *, token: str | None = None, instance: str | None = None, least_bytes: int = LEAST_BYTES
    ) -> None:
        self.least_bytes = least_bytes
        self._path, self._token, self._instance = path, token, instance
        self._regions: list[Region] = []
        self._socket: socket.socket | None = None
        self._most_bytes = self._most_regions = 0
        self._retry_at = 0.0
        self._said = self._closed = False
        self._lock = threading.Lock()
        renew_after_fork(self, SharedMemory._renew)
        before_fork(self, SharedMemory._retire)

    def connect(self) -> bool:
        """Whether the server can be reached, and is the right one."""
        with self._lock:
            return self._connected()

    def empty(self, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> Array | None:
        """An array in the shared memory, not initialised; None if there is no room."""
        nbytes = math.prod(shape) * dtype.itemsize
        with self._lock:
            slot = self._take(nbytes) if nbytes and self._connected() else None
        return None if slot is None else slot.array.view(dtype).reshape(shape)

    def lease(self, body: Body, answer_bytes: int) -> "Lease | None":
        """Put a body's tensors into shared memory, those that are not there already, and make room for the answer.

        Args:
            body: framed; its first part is the header.
            answer_bytes: of the reply's tensors, as far as is known.

        Returns:
            What to send instead, or None if the body is to be sent as it is.
        """
        tensors = [part for part in body.parts[1:] if len(part)]
        shares = sum(map(len, tensors)) >= self.least_bytes and len(tensors) <= MOST_SPANS
        answers = answer_bytes >= self.least_bytes
        if not (shares or answers):
            return None
        with self._lock:
            if not self._connected():
                return None
            found = [self._found(part) if shares else None for part in tensors]
            slots = [
                self._take(len(part)) if shares and at is None else None
                for part, at in zip(tensors, found, strict=True)
            ]
            if shares and any(at is None and slot is None for at, slot in zip(found, slots, strict=True)):
                return None
            answer = self._take(answer_bytes) if answers else None
            if not shares and answer is None:
                return None
            places = [at or (slot and (slot.region, slot.offset)) for at, slot in zip(found, slots, strict=True)]
            spans = [self._span(*at, len(part)) for at, part in zip(places, tensors, strict=True) if at]
            room = None if answer is None else self._span(answer.region, answer.offset, answer.nbytes)
            if None in spans or (answer is not None and room is None):
                return None
        for part, slot in zip(tensors, slots, strict=True):
            if slot is not None:
                np.copyto(slot.array, np.frombuffer(part, dtype=np.uint8))
        inline = Body(body.parts[:1], len(body.parts[0])) if shares else body
        held = [slot for slot in slots if slot is not None]
        in_place = shares and not held
        return Lease(self, inline, [span for span in spans if span], held, answer, room, in_place=in_place)

    def refused(self, error: BacksolveError) -> bool:
        """Whether an error is about the memory and not about the call, which is then repeated without."""
        about = error.details.get("region")
        if about is None:
            return False
        with self._lock:
            if about == "unknown":  # the server has been started again: register what there is anew
                self._disconnect()
            else:
                self._give_up(str(error))
        return True

    def revoke(self, region: Region, handle: str) -> None:
        """See that nothing is written to a region any more on behalf of a call that was given up.

        The server answers when it has done with it; the next call registers the memory anew.
        """
        with self._lock:
            if region.handle == handle:
                region.handle = None
                try:
                    self._ask({"release": handle}, patience=_REVOKE_SECONDS)
                except (OSError, BacksolveError):
                    self._disconnect()
                else:
                    return
            region.retired = True  # the server may still write there: nothing else may ever lie there

    def close(self) -> None:
        """Give all memory back, apart from what arrays lie in."""
        with self._lock:
            self._closed = True
            self._disconnect()
            for region in self._regions:
                region.forget()
            self._regions = []

    def _renew(self) -> None:
        """In a forked child: the parent's memory and connection are the parent's."""
        self._lock = threading.Lock()
        for region in self._regions:
            region.forget()
        self._regions = []
        self._disconnect()

    def _retire(self) -> None:
        """Before a fork: where anything is held, nothing else may come, for the child may look at it."""
        with self._lock:
            for region in self._regions:
                region.retired = region.retired or not region.idle

    # -- with the lock held ----------------------------------------------------------------

    def _connected(self) -> bool:
        if self._closed:
            raise CancelledError("the client is closed: make a new one")
        if self._socket is not None:
            if _is_quiet(self._socket):
                return True
            self._disconnect()
        if time.monotonic() < self._retry_at:
            return False
        if not hasattr(os, "memfd_create"):
            self._give_up("this system has no sealed anonymous memory")
            return False
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = connection
        try:
            connection.settimeout(_PATIENCE_SECONDS)
            connection.connect(self._path)
            greeting = self._ask({"hello": wire.VERSION, **({} if self._token is None else {"token": self._token})})
            self._most_bytes, self._most_regions = int(greeting["bytes"]), int(greeting["regions"])
        except (OSError, BacksolveError, KeyError, TypeError, ValueError) as error:
            self._give_up(str(error))
            return False
        if self._instance is not None and greeting.get("instance") != self._instance:
            self._give_up("another server listens there")
            return False
        self._instance = None  # after a restart it has another name
        return True

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        for region in self._regions:
            region.handle = None

    def _give_up(self, reason: str) -> None:
        """Do without for a while, and say so once."""
        self._disconnect()
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        if not self._said:
            self._said = True
            _log.warning("memory is not shared with the server, calls go over HTTP alone: %s", reason)

    def _ask(
        self, question: dict[str, Any], descriptor: int | None = None, patience: float = _PATIENCE_SECONDS
    ) -> dict[str, Any]:
        if self._socket is None:
            raise ConnectionError("not connected")
        self._socket.settimeout(patience)
        packet = wire.write_packet(question)
        if descriptor is None:
            self._socket.send(packet)
        else:
            socket.send_fds(self._socket, [packet], [descriptor])
        answer = self._socket.recv(wire.MOST_BYTES)
        if not answer:
            raise ConnectionError("the server has closed the control socket")
        return wire.read_packet(answer)

    def _take(self, nbytes: int) -> Slot | None:
        for region in self._regions:
            slot = region.take(nbytes)
            if slot is not None:
                return slot
        grown = self._grow(nbytes)
        return None if grown is None else grown.take(nbytes)

    def _grow(self, nbytes: int) -> Region | None:
        """A new region with room for `nbytes`, if the server takes as much."""
        for region in [region for region in self._regions if region.idle]:  # too small, or it would have served
            self._drop(region)
        self._regions = [region for region in self._regions if region.descriptor >= 0]
        used = sum(region.size for region in self._regions)
        size = min(max(_LEAST_REGION, 2 * nbytes, used), self._most_bytes - used) // _GRAIN * _GRAIN
        if size < nbytes or len(self._regions) >= self._most_regions:
            _log.debug("no room in shared memory for %d bytes: %d of %d are taken", nbytes, used, self._most_bytes)
            return None
        try:
            region = Region(size)
        except OSError as error:
            self._give_up(str(error))
            return None
        self._regions.append(region)
        return region

    def _drop(self, region: Region) -> None:
        handle, region.handle = region.handle, None
        region.forget()
        if handle is not None:
            try:
                self._ask({"release": handle})
            except (OSError, BacksolveError):
                self._disconnect()

    def _span(self, region: Region, offset: int, nbytes: int) -> Span | None:
        """Some bytes as the server knows them; the region is registered when it is first used."""
        if region.handle is None:
            try:
                region.handle = str(self._ask({"register": True}, region.descriptor)["handle"])
            except (OSError, BacksolveError, KeyError) as error:
                self._give_up(str(error))
                return None
        return Span(region.handle, offset, nbytes)

    def _found(self, part: memoryview) -> tuple[Region, int] | None:
        """Where in the regions a tensor lies already."""
        address = address_of(part)
        for region in self._regions:
            if region.holds(address, len(part)) and (address - region.address) % ALIGNMENT == 0:
                return region, address - region.address
        return None


@final
class Lease:
    """One request in shared memory: use it in a `with` block around the exchange.

    Attributes:
        body: what is left to send in the ordinary way.
        headers: lines that name the rest.
    """

    def __init__(
        self,
        memory: SharedMemory,
        body: Body,
        spans: list[Span],
        slots: list[Slot],
        answer: Slot | None,
        room: Span | None,
        *,
        in_place: bool,
    ) -> None:
        self.body = body
        self._memory, self._slots, self._answer, self._room, self._in_place = memory, slots, answer, room, in_place
        self.headers = f"{SHARED_HEADER}: {write_spans(spans)}\r\n" if spans else ""
        if room is not None:
            self.headers += f"{ANSWER_HEADER}: {room}\r\n"
        self._over = False

    def answered(self, header: str | None) -> NDArray[np.uint8] | None:
        """The reply has arrived, and with it the server has done with the memory.

        Args:
            header: `backsolve-shared` of the reply, or None.

        Returns:
            The tensors of the reply, or None if they are in its body. A view of the shared memory, which
            keeps it, if all tensors of the request lay there already; else a copy of their own.

        Raises:
            MalformedError: the reply names other memory than it was offered.
        """
        self._over = True
        if header is None:
            return None
        spans = read_spans(header)
        room = self._room
        if self._answer is None or room is None or len(spans) != 1:
            raise MalformedError("the reply lies in memory that it was not offered: is this a backsolve server?")
        (span,) = spans
        if (span.handle, span.offset) != (room.handle, room.offset) or span.length > room.length:
            raise MalformedError("the reply lies in memory that it was not offered: is this a backsolve server?")
        data = self._answer.array[: span.length]
        return data if self._in_place else aligned_copy(data)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._over and self._answer is not None and self._room is not None:
            self._memory.revoke(self._answer.region, self._room.handle)
        self._slots, self._answer = [], None


def _is_quiet(connection: socket.socket) -> bool:
    """Whether the other end has neither closed nor spoken out of turn."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return not poll.poll(0)
