"""Unix sockets to listen on: made with the right permissions, never in the place of one that is in use."""

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import final

_PROBE_SECONDS = 1.0


@final
class SocketFile:
    """The path of a socket that this process listens on.

    Args:
        path: absolute.
        mode: permissions of the file; connecting takes the right to write.
    """

    def __init__(self, path: Path, mode: int) -> None:
        self.path = path
        self._mode = mode
        self._identity: tuple[int, int, int] | None = None

    def check(self) -> None:
        """See that it can be listened on, before the slow part of starting.

        Raises:
            OSError: as `claimed`.
        """
        with self._alone():
            pass

    @contextmanager
    def claimed(self) -> Iterator[Path]:
        """Around making the socket, until it listens: nobody else is here, what was left behind is gone.

        A socket that nobody listens on was left by a process that was killed, and is removed. Whatever
        binds within gets the right permissions from the first moment.

        Returns:
            Where to bind. It is moved to its path when it listens: gRPC removes what it finds, when it ends,
            where it was told to bind, and that must not be the socket of its successor.

        Raises:
            OSError: somebody listens there, something else is there, or the folder cannot be used.
        """
        with self._alone():
            place = self.path.with_name(f".{secrets.token_hex(3)}")
            before = os.umask(0o777 & ~self._mode)
            try:
                yield place
                place.rename(self.path)
            finally:
                os.umask(before)
                with contextlib.suppress(OSError):
                    place.unlink()
            self._identity = _identity(self.path)

    def listen(self, kind: int = socket.SOCK_STREAM, backlog: int = 128) -> socket.socket:
        """A listening socket.

        Raises:
            OSError: as `claimed`.
        """
        listener = socket.socket(socket.AF_UNIX, kind)
        try:
            with self.claimed() as place:
                listener.bind(str(place))
                listener.listen(backlog)
        except OSError:
            listener.close()
            raise
        return listener

    def remove(self) -> None:
        """Remove the file, if it is still the one that was made here."""
        if self._identity is None:
            return
        with contextlib.suppress(OSError):
            if _identity(self.path) == self._identity:
                self.path.unlink()
        self._identity = None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Two processes that both see a dead socket must not remove each other's new one.
            fcntl.flock(folder, fcntl.LOCK_EX)
            self._clear()
            yield
        finally:
            os.close(folder)

    def _clear(self) -> None:
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise FileExistsError(errno.EEXIST, "there is something that is no socket; move it, or name another path")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_PROBE_SECONDS)
            try:
                probe.connect(str(self.path))
            except ConnectionRefusedError:
                self.path.unlink()
                return
            except PermissionError:
                raise
            except OSError:
                pass  # it listens for another kind of socket, or has too many callers to answer
        raise OSError(errno.EADDRINUSE, "another process listens there")


def _identity(path: Path) -> tuple[int, int, int]:
    """Which file it is; the number of a removed one is soon given to another, so the time counts too."""
    found = path.lstat()
    return found.st_dev, found.st_ino, found.st_mtime_ns
