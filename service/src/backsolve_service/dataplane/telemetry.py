"""What the data plane counts: totals for `stats()`, and every event on to the observer."""

from collections import Counter
from collections.abc import Callable, Mapping
from threading import Lock
from typing import final, get_args

from ..engine.base import Pivots
from ..observer import Gauge, Level, Lookup, Observer, Phase, Reading, Restart

_PLURAL: Mapping[Lookup, str] = {"hit": "hits", "miss": "misses", "coalesced": "coalesced"}

_LOOKUPS = {
    (level, result): f"cache_{plural}_{level}" for level in get_args(Level) for result, plural in _PLURAL.items()
}
_PHASES = {phase: f"seconds_{phase}" for phase in get_args(Phase)}

_TOTALS = (
    "solves",
    "adjoint_solves",
    "tangent_solves",
    "columns",
    "blocks",
    "factorizations",
    "pivots_kept",
    "pivots_refused",
    "analyses",
    "uploads",
    "need_matrix",
    "need_values",
    "evictions",
    "restarts",
    *(f"cache_{result}_{level}" for level in ("symbolic", "factor") for result in _PLURAL.values()),
    *(f"seconds_{phase}" for phase in ("queue", "hash", "analyze", "factor", "solve")),
)
"""These appear in the totals from the start; others when they are first counted."""


@final
class Telemetry(Observer):
    """Totals since the data plane started, kept beside an observer's own. Thread-safe."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._lock = Lock()
        self._totals: Counter[str] = Counter()

    def totals(self) -> Mapping[str, float]:
        """Every total; those in seconds begin with `seconds_`."""
        with self._lock:
            return {name: float(self._totals[name]) for name in (*_TOTALS, *self._totals)}

    def count(self, name: str, amount: float = 1) -> None:
        """Add to a total."""
        with self._lock:
            self._totals[name] += amount  # type: ignore[assignment]  # Counter is typed for integers alone

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
        """A call has ended."""
        self._observer.request(
            op,
            transport,
            code,
            seconds,
            request_bytes=request_bytes,
            response_bytes=response_bytes,
            request_id=request_id,
        )

    def queued(self, seconds: float) -> None:
        """A call waited this long for a worker."""
        if seconds:
            self.count("seconds_queue", seconds)
        self._observer.queued(seconds)

    def phase(self, name: Phase, seconds: float) -> None:
        """A phase took this long."""
        self.count(_PHASES[name], seconds)
        self._observer.phase(name, seconds)

    def block(self, columns: int) -> None:
        """A worker solved this many columns at once."""
        self.count("blocks")
        self._observer.block(columns)

    def solved(self, op: str, iterations: int, relative_residual: float, converged: bool) -> None:
        """A solve ran."""
        self._observer.solved(op, iterations, relative_residual, converged)

    def lookup(self, level: Level, result: Lookup) -> None:
        """The cache was asked."""
        self.count(_LOOKUPS[level, result])
        self._observer.lookup(level, result)

    def evicted(self, reason: str, count: int = 1) -> None:
        """The cache dropped entries."""
        self.count("evictions", count)
        self._observer.evicted(reason, count)

    def factorized(self, method: str, pivots: Pivots = "new") -> None:
        """A matrix was factorized; pivots that were taken over are counted with it, and those that were refused."""
        self.count("factorizations")
        if pivots != "new":
            self.count(f"pivots_{pivots}")
        self._observer.factorized(method, pivots)

    def restarted(self, reason: Restart) -> None:
        """A worker process was started in place of a lost one."""
        self.count("restarts")
        self._observer.restarted(reason)

    def bytes_not_sent(self, count: int) -> None:
        """A call named a held matrix by its digest."""
        self._observer.bytes_not_sent(count)

    def bind(self, name: Gauge, read: Callable[[], Reading]) -> None:
        """Ask `read` for a gauge."""
        self._observer.bind(name, read)
