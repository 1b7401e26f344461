"""A wire that breaks: connections end in the middle of a frame, or arrive with bits that nobody sent."""

import random
import socket
import struct
import threading
from contextlib import suppress
from types import TracebackType
from typing import final
from urllib.parse import urlsplit

_PIECE = 16 << 10
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
                flips = random.Random(self._rng.random()) if self._flips else None
                threading.Thread(target=self._pump, args=(source, target, cut, flips), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, cut: int | None, flips: random.Random | None) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(_PIECE):
                if cut is not None and passed + len(data) >= cut:
                    target.sendall(data[: max(cut - passed, 0)])
                    self.harmed += 1
                    break
                if flips is not None and flips.random() < 0.3:
                    data = _flipped(data, flips)
                    self.harmed += 1
                target.sendall(data)
                passed += len(data)
            else:
                target.shutdown(socket.SHUT_WR)
                return
        for sock in (source, target):
            _reset(sock)
            with self._lock:
                self._open.discard(sock)


def _flipped(data: bytes, rng: random.Random) -> bytes:
    """The same bytes but for one bit."""
    changed = bytearray(data)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _reset(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    # Another thread may wait in recv on it, which closing alone would not wake.
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
