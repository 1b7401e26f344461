"""A wire that breaks: connections end in the middle of a frame, or carry bits that nobody sent.

Of HTTP/2 only what DATA frames carry is changed, not the frames themselves: gRPC's own core ends the whole process of a
client that is sent a GOAWAY with an error code it does not know (grpcio 1.85.1), whatever the program around it does.
"""

import random
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import final
from urllib.parse import urlsplit

_PIECE = 16 << 10
_PREFACE_BYTES, _HEAD_BYTES = 24, 9
"""Of HTTP/2."""

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing sends a reset instead of a goodbye."""


@final
class Proxy:
    """Passes bytes between callers and a server, and does harm on the way.

    Args:
        url: the server, `http://...` or `grpc://...`.
        seed: the same seed does the same harm to the first, second, ... connection.
        cuts: connections are reset after some bytes, in either direction.
        flips: now and then one bit is turned over, in either direction.

    Attributes:
        url: where callers connect.
        harmed: cuts and flips so far.
    """

    def __init__(self, url: str, seed: int, *, cuts: bool = False, flips: bool = False) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._upstream = parts.hostname, parts.port
        self._framed = parts.scheme == "grpc"
        self._rng = random.Random(seed)
        self._cuts, self._flips = cuts, flips
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"{parts.scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._over = False
        self.harmed = 0

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for sock in self._open:
                _reset(sock)

    def _accept(self) -> None:
        while not self._over:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._upstream, timeout=5)
            except OSError:
                _reset(near)
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            for source, target in ((near, far), (far, near)):
                # Half of the connections live, so that callers who try again get through.
                cut = int(10 ** self._rng.uniform(1, 6)) if self._cuts and self._rng.random() < 0.5 else None
                flips = None
                if self._flips:
                    seed = self._rng.random()
                    flips = _Flips(seed, self._harmed, framed=self._framed, preface=self._framed and source is near)
                threading.Thread(target=self._pump, args=(source, target, cut, flips), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, cut: int | None, flips: "_Flips | None") -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(_PIECE):
                if cut is not None and passed + len(data) >= cut:
                    target.sendall(data[: max(cut - passed, 0)])
                    self._harmed()
                    break
                target.sendall(data if flips is None else flips.apply(data))
                passed += len(data)
            else:
                target.shutdown(socket.SHUT_WR)
                return
        for sock in (source, target):
            _reset(sock)
            with self._lock:
                self._open.discard(sock)

    def _harmed(self) -> None:
        with self._lock:
            self.harmed += 1


@final
class _Flips:
    """Turns over a bit in about every third piece of one direction of a connection.

    Args:
        seed: which.
        harmed: called for each.
        framed: HTTP/2, of which only what DATA frames carry is changed.
        preface: the direction begins with HTTP/2's preface.
    """

    def __init__(self, seed: float, harmed: Callable[[], None], *, framed: bool, preface: bool) -> None:
        self._rng = random.Random(seed)
        self._harmed = harmed
        self._framed = framed
        # Bytes until the next frame's head, and whether they may be changed.
        self._skip, self._data = _PREFACE_BYTES if preface else 0, False
        self._head = b""

    def apply(self, piece: bytes) -> bytes:
        """The piece, perhaps changed."""
        places = self._places(piece) if self._framed else [(0, len(piece))]
        if not places or self._rng.random() > 0.3:
            return piece
        first, last = self._rng.choice(places)
        changed = bytearray(piece)
        changed[self._rng.randrange(first, last)] ^= 1 << self._rng.randrange(8)
        self._harmed()
        return bytes(changed)

    def _places(self, piece: bytes) -> list[tuple[int, int]]:
        """Where in the piece DATA frames carry something: 9 bytes of head (RFC 9113, 4.1), then the payload."""
        found = []
        at = 0
        while at < len(piece):
            if self._skip:
                end = min(at + self._skip, len(piece))
                if self._data:
                    found.append((at, end))
                self._skip -= end - at
                at = end
                continue
            taken = piece[at : at + _HEAD_BYTES - len(self._head)]
            self._head += taken
            at += len(taken)
            if len(self._head) == _HEAD_BYTES:
                self._skip, self._data = int.from_bytes(self._head[:3]), self._head[3] == 0
                self._head = b""
        return found


def _reset(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    # Another thread may wait in recv on it, which closing alone would not wake.
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
