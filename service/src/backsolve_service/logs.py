"""One JSON object a line on stderr: what happened, to which request, and nothing of what it carried.

Only `main` calls `configure`. A data plane inside somebody else's process leaves logging alone.
"""

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import IO, Any, final

from .engine.base import Pivots
from .observer import Gauge, Level, Lookup, Observer, Phase, Reading, Restart

ACCESS = "backsolve_service.access"

# What every LogRecord has; anything beside it was given as `extra`.
_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


@final
class JsonLines(logging.Formatter):
    """A record as one JSON object; fields given as `extra=` become keys of their own."""

    def __init__(self, instance: str) -> None:
        super().__init__()
        self.instance = instance

    def format(self, record: logging.LogRecord) -> str:
        """Render `record`; what JSON cannot hold appears as text."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "instance": self.instance,
        }
        line.update((key, value) for key, value in vars(record).items() if key not in _STANDARD)
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return _ENCODER.encode(line)


# Made once: `json.dumps` with arguments makes one for each line.
_ENCODER = json.JSONEncoder(default=str, ensure_ascii=True)


def configure(level: str, instance: str, stream: IO[str] | None = None) -> None:
    """Send every logger of this process to `stream` (default: stderr) as JSON lines.

    Args:
        level: "debug", "info", "warning" or "error".
        instance: name of this replica, a field of every line.
        stream: where the lines go.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonLines(instance))
    root = logging.getLogger()
    for former in tuple(root.handlers):
        root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # What no line has is not looked up for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # The web server's news of itself say less than ours, and say it twice.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.captureWarnings(True)


@final
class AccessLog(Observer):
    """Writes one line for every call and passes all events on."""

    def __init__(self, inner: Observer) -> None:
        self._inner = inner
        self._log = logging.getLogger(ACCESS)

    def request(
        self,
        op: str,
        transport: str,
        code: str,
        seconds: float,
        *,
        request_bytes: int,
        response_bytes: int,
        request_id: str = "",
    ) -> None:
        """Log the call, then pass it on."""
        if self._log.isEnabledFor(logging.INFO):
            fields = {
                "op": op,
                "transport": transport,
                "code": code,
                "seconds": round(seconds, 6),
                "request_bytes": request_bytes,
                "response_bytes": response_bytes,
                "request_id": request_id,
            }
            # Not by `info`, which looks for the line of code that calls.
            self._log.handle(self._log.makeRecord(ACCESS, logging.INFO, "", 0, "call", (), None, extra=fields))
        self._inner.request(
            op,
            transport,
            code,
            seconds,
            request_bytes=request_bytes,
            response_bytes=response_bytes,
            request_id=request_id,
        )

    def queued(self, seconds: float) -> None:
        """Pass on."""
        self._inner.queued(seconds)

    def phase(self, name: Phase, seconds: float) -> None:
        """Pass on."""
        self._inner.phase(name, seconds)

    def block(self, columns: int) -> None:
        """Pass on."""
        self._inner.block(columns)

    def solved(self, op: str, iterations: int, relative_residual: float, converged: bool) -> None:
        """Pass on."""
        self._inner.solved(op, iterations, relative_residual, converged)

    def lookup(self, level: Level, result: Lookup) -> None:
        """Pass on."""
        self._inner.lookup(level, result)

    def evicted(self, reason: str, count: int = 1) -> None:
        """Pass on."""
        self._inner.evicted(reason, count)

    def factorized(self, method: str, pivots: Pivots = "new") -> None:
        """Pass on."""
        self._inner.factorized(method, pivots)

    def restarted(self, reason: Restart) -> None:
        """Pass on."""
        self._inner.restarted(reason)

    def bytes_not_sent(self, count: int) -> None:
        """Pass on."""
        self._inner.bytes_not_sent(count)

    def bind(self, name: Gauge, read: Callable[[], Reading]) -> None:
        """Pass on."""
        self._inner.bind(name, read)
