"""Starts the process of a process worker, and says how it ended."""

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from typing import final

from backsolve.errors import NotSupportedError

from .channel import Channel, shared_memory

_START_SECONDS = 120.0
"""A new process says that it is ready within this time, or is taken to hang."""

DEVICE_FAULT_STATUS = 70
"""A process exits with it when its device has failed."""

_REAP_SECONDS = 10.0
"""A process that was killed is gone within this time, unless the kernel itself waits for a device."""


@final
class Child:
    """A process that runs `child.py`, and what is shared with it."""

    def __init__(self, process: "subprocess.Popen[bytes]", channel: Channel, flag: mmap.mmap) -> None:
        self._process = process
        self._flag = flag
        self._killed = False
        self.channel = channel
        self.pid = process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs, and is to."""
        return not self._killed and self._process.poll() is None

    def cancel(self, over: bool) -> None:
        """Tell the solve that runs whether it is still of any use."""
        self._flag[0] = int(over)

    def end(self, timeout: float) -> None:
        """Close the channel, on which an idle process ends by itself; kill it after `timeout` seconds."""
        self.channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """Kill the process; whoever reads from the channel reads the end of the stream."""
        if self.alive:
            self._process.kill()
        self._killed = True

    def abandon(self) -> None:
        """In a forked copy of the owner: let the descriptors go, the process is not ours."""
        self.channel.close()
        self._process.returncode = 0  # or its finalizer would warn of a process that still runs

    def fate(self) -> str:
        """How the process ended; it is closing or closed."""
        try:
            code = self._process.wait(_REAP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return "closed its channel without ending"
        if code == DEVICE_FAULT_STATUS:
            return "ended because its device failed"
        if code >= 0:
            return f"exited with status {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"was killed by {name}"


def launch() -> Child:
    """Start a process and wait until it is ready.

    The module is run by its name rather than through `multiprocessing`, whose children import the
    caller's `__main__`: a script without a guard would run twice. It is no fork either: threads
    and locks of the owner do not come along.

    The kernel ties the child's life to the thread that calls this (PR_SET_PDEATHSIG), which must
    live as long as the child is needed.

    Raises:
        OSError, EOFError: it could not be started, or ended at once.
        NotSupportedError: this program has no Python interpreter to start.
    """
    if not sys.executable:
        raise NotSupportedError("sys.executable is not set, so no worker process can be started: set it")
    ours, theirs = socket.socketpair()
    flag = shared_memory(mmap.PAGESIZE)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "backsolve_service.scheduling.child"]
            + [str(number) for number in (theirs.fileno(), flag, os.getpid())],
            pass_fds=(theirs.fileno(), flag),
            stdin=subprocess.DEVNULL,
            stdout=_standard_error(),
            # What is importable here is importable there, whatever this program did to its path.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        child = Child(process, Channel(ours), mmap.mmap(flag, mmap.PAGESIZE))
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        os.close(flag)
    until = time.monotonic() + _START_SECONDS
    try:
        if not child.channel.readable(until - time.monotonic()):
            raise OSError(f"a new worker process was not ready within {_START_SECONDS:.0f} seconds")
        child.channel.receive()
    except (OSError, EOFError) as error:
        child.kill()
        raise OSError(f"a new worker process {child.fate()} before it was ready; its error output says why") from error
    return child


def _standard_error() -> int:
    """Where a library's prints go: standard output is the caller's own."""
    try:
        os.fstat(2)
    except OSError:
        return subprocess.DEVNULL
    return 2
