"""What a process worker and its owner speak over: small messages on a socket, arrays in shared memory.

Arrays never pass through a message's bytes. They lie in an arena, one piece of anonymous shared memory
that both ends map and that serves both directions in turn: who has the turn writes its arrays
from the beginning, so a message's arrays are good until the next one is sent. An arena that is
too small is replaced by the sender, and its descriptor goes with the message.
"""

import mmap
import os
import select
import socket
import struct
import tempfile
from collections.abc import Sequence
from math import prod
from typing import Any, final

import numpy as np

from backsolve.types import Array

from .compact import Place, decode, encode

_HEAD = struct.Struct("<QQ")
"""Length of the message; size of the arena whose descriptor comes with it, or 0."""

_ALIGNMENT = 64
_LEAST_BYTES = 1 << 16
KEPT_BYTES = 64 << 20
"""An arena above this is given back once it is not in use; page faults make the next one dearer."""


def shared_memory(nbytes: int) -> int:
    """A descriptor of anonymous memory of that size, which goes with its last user."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("backsolve", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, nbytes)
    return descriptor


@final
class Channel:
    """One end. Not thread-safe; the two ends take turns, apart from messages without a reply.

    Args:
        end: one end of a pair of stream sockets.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._arena: mmap.mmap | None = None
        self._capacity = 0

    @property
    def large(self) -> bool:
        """Whether the arena is of a size that is not kept."""
        return self._capacity > KEPT_BYTES

    def send(self, message: object, arrays: Sequence[Sequence[Array]] = ()) -> None:
        """Send a message with arrays, each given in parts that become one along the last axis.

        Raises:
            OSError: the other end is gone, or there is no memory.
        """
        layout, total = _layout(arrays)
        descriptor = self._grow(total) if total > self._capacity else None
        for (offset, dtype, shape), parts in zip(layout, arrays, strict=True):
            place = self._view(offset, dtype, shape)
            if len(parts) == 1:
                np.copyto(place, parts[0])
            else:
                np.concatenate(parts, axis=-1, out=place)
        body = encode(message, layout)
        head = _HEAD.pack(len(body), 0 if descriptor is None else self._capacity)
        if descriptor is None:
            self._socket.sendall(head + body)
            return
        try:
            sent = socket.send_fds(self._socket, [head], [descriptor])
            self._socket.sendall(head[sent:] + body)
        finally:
            os.close(descriptor)

    def receive(self) -> tuple[Any, list[Array]]:
        """The next message, with views of its arrays.

        Raises:
            EOFError: the other end has closed.
            OSError: it is gone.
        """
        head, descriptors = b"", []
        while len(head) < _HEAD.size:
            data, passed, _, _ = socket.recv_fds(self._socket, _HEAD.size - len(head), 1)
            if not data:
                raise EOFError("the other end has closed")
            head += data
            descriptors += passed
        length, capacity = _HEAD.unpack(head)
        for descriptor in descriptors:
            self._arena, self._capacity = mmap.mmap(descriptor, capacity), capacity
            os.close(descriptor)
        message, layout = decode(self._exactly(length))
        return message, [self._view(*place) for place in layout]

    def readable(self, seconds: float) -> bool:
        """Whether a message, or the end, comes within that time."""
        poll = select.poll()  # not select(): that one takes no descriptor beyond 1023
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def forget_arena(self) -> None:
        """Let the arena go; its pages are free when the other end has let it go too."""
        self._arena, self._capacity = None, 0

    def close(self) -> None:
        """End the conversation: the other end reads the end of the stream."""
        self.forget_arena()
        self._socket.close()

    def _grow(self, nbytes: int) -> int:
        """Take a new arena, of a power of two of bytes; its descriptor is to be passed on and closed."""
        capacity = max(_LEAST_BYTES, 1 << (nbytes - 1).bit_length())
        descriptor = shared_memory(capacity)
        self._arena, self._capacity = mmap.mmap(descriptor, capacity), capacity
        return descriptor

    def _view(self, offset: int, dtype: str, shape: tuple[int, ...]) -> Array:
        if prod(shape) == 0:
            return np.empty(shape, dtype)
        assert self._arena is not None
        return np.frombuffer(self._arena, dtype, prod(shape), offset).reshape(shape)

    def _exactly(self, count: int) -> bytearray:
        body = bytearray(count)
        view, got = memoryview(body), 0
        while got < count:
            more = self._socket.recv_into(view[got:])
            if not more:
                raise EOFError("the other end has closed in the midst of a message")
            got += more
        return body


def _layout(arrays: Sequence[Sequence[Array]]) -> tuple[list[Place], int]:
    """(offset, dtype, shape) of each array in the arena, and the bytes of all."""
    places: list[Place] = []
    offset = 0
    for parts in arrays:
        first = parts[0]
        shape = (*first.shape[:-1], sum(part.shape[-1] for part in parts))
        places.append((offset, first.dtype.str, shape))
        nbytes = prod(shape) * first.dtype.itemsize
        offset += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
    return places, offset
