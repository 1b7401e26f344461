"""What a run does to the server, seen from beside it: memory, processor time, and how soon it says that it lives."""

import http.client
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import final
from urllib.parse import urlsplit

import numpy as np
from scipy.stats import t as student

from .histogram import Latencies

SAMPLE_SECONDS = 0.1
PROBE_SECONDS = 0.05
PROBE_TIMEOUT = 5.0
_SLOPE_BLOCKS = 10
_SETTLING = 0.2
"""Share of a run whose memory does not count for the slope: caches and pools fill."""


@final
@dataclass(frozen=True)
class Slope:
    """Growth of resident memory, in bytes a second, with the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float


def slope(times: list[float], sizes: list[float]) -> Slope | None:
    """Least squares through the means of ten equal times, after the first fifth of the run; None of too little.

    Neighbouring samples of one process are nearly equal, so an interval from all of them would be
    far too narrow; means over longer times are closer to independent.

    Args:
        times: seconds, ascending.
        sizes: bytes.
    """
    if len(times) < 3 * _SLOPE_BLOCKS:
        return None
    at, size = np.asarray(times), np.asarray(sizes)
    kept = at >= at[0] + _SETTLING * (at[-1] - at[0])
    x, y = (np.array([part.mean() for part in np.array_split(each[kept], _SLOPE_BLOCKS)]) for each in (at, size))
    x = x - x.mean()
    value = float(x @ y / (x @ x))
    rest = y - y.mean() - value * x
    freedom = _SLOPE_BLOCKS - 2
    error = float(np.sqrt(rest @ rest / freedom / (x @ x)))
    wide = float(student.ppf(0.975, freedom)) * error
    return Slope(value, value - wide, value + wide)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and of those it has started, in bytes; Linux only.

    Raises:
        OSError: there is no such process.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) * page for each in _family(pid))


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and of those it has started, in seconds; Linux only.

    Raises:
        OSError: there is no such process.
    """
    tick = os.sysconf("SC_CLK_TCK")
    total = 0
    for each in _family(pid):
        # The name of the program may hold blanks; it ends at the last parenthesis.
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / tick


def _family(pid: int) -> list[int]:
    found = [pid]
    # Any thread may have started processes.
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue  # the thread has ended meanwhile
    return found


@final
@dataclass
class Watched:
    """What was seen.

    Attributes:
        times, sizes: resident memory over time, in seconds after the start and in bytes.
        cpu_seconds: processor time that the server took while it was watched; None: it could not be read.
        health: how long `GET /livez` took, counted from when it was due.
        unhealthy: probes that were not answered with 200.
        seconds: how long all of this lasted.
        lives: processes that the server was; memory of several says nothing of growth.
    """

    times: list[float] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    cpu_seconds: float | None = None
    health: Latencies = field(default_factory=Latencies)
    unhealthy: int = 0
    seconds: float = 0.0
    lives: int = 0


@final
class Watch:
    """Looks at a server while the `with` block runs; `seen` is complete after it.

    Args:
        http_url: where it serves REST and health.
        pid: says which process it is now; it may be another one after a restart. None: another
            machine's, so that memory and processor time stay unknown.
    """

    def __init__(self, http_url: str, pid: Callable[[], int] | None) -> None:
        self.seen = Watched()
        self._address = urlsplit(http_url)
        self._pid = pid
        self._over = threading.Event()
        self._start = time.monotonic()
        # Processor time is counted by process, since each counts from its own beginning.
        self._cpu: dict[int, tuple[float, float]] = {}
        self._threads = [threading.Thread(target=self._probe), threading.Thread(target=self._sample)]

    def __enter__(self) -> "Watch":
        self._start = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self.seen.seconds = time.monotonic() - self._start
        self.seen.lives = len(self._cpu)
        if self._cpu:
            self.seen.cpu_seconds = sum(last - first for first, last in self._cpu.values())

    def _sample(self) -> None:
        while self._pid is not None:
            pid = self._pid()
            try:
                size, spent = resident_bytes(pid), cpu_seconds(pid)
            except (OSError, IndexError):
                pass  # between two lives of the server
            else:
                self.seen.times.append(time.monotonic() - self._start)
                self.seen.sizes.append(float(size))
                # A process that began after the watch did counts from zero.
                first = self._cpu.get(pid, (spent if not self._cpu else 0.0, spent))[0]
                self._cpu[pid] = first, spent
            if self._over.wait(SAMPLE_SECONDS):
                return

    def _probe(self) -> None:
        """Ask at fixed times; a probe that comes late because the one before it hung counts from when it was due."""
        due = time.monotonic()
        while not self._over.wait(max(due - time.monotonic(), 0)):
            try:
                right = self._ask() == http.HTTPStatus.OK
            except (OSError, http.client.HTTPException):
                right = False
            if right:
                self.seen.health.record(max(time.monotonic() - due, 0.0))
            else:
                self.seen.unhealthy += 1
            due += PROBE_SECONDS

    def _ask(self) -> int:
        assert self._address.hostname is not None
        secure = self._address.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self._address.hostname, self._address.port, timeout=PROBE_TIMEOUT)
        try:
            connection.request("GET", "/livez")
            reply = connection.getresponse()
            reply.read()
            return reply.status
        finally:
            connection.close()
