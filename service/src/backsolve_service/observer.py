"""What the data plane tells about itself while it works: a fixed set of events and gauges.

The data plane, the scheduler and the cache speak to an `Observer` and know nothing of how it is
kept; `metrics.Metrics` keeps it for Prometheus. Every method is thread-safe, cheap and raises
nothing, so that no call fails because it was counted.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal, final

from .engine.base import Pivots

Phase = Literal["hash", "analyze", "factor", "solve"]
Level = Literal["pattern", "matrix", "symbolic", "factor"]
Lookup = Literal["hit", "miss", "coalesced"]
Restart = Literal["crash", "stuck", "device"]

Gauge = Literal[
    "inflight_requests",
    "queue_depth",
    "cache_bytes",
    "cache_entries",
    "device_memory_bytes",
    "shared_regions",
    "shared_bytes",
]

OK = "OK"
"""The `code` of a request that was answered; every other code is the name of an `ErrorCode`."""

REFUSED = "refused"
"""The `op` of a request that was turned away before it was known what it asks: unreadable, unauthenticated, missed."""

Reading = float | Mapping[tuple[str, ...], float]
"""One number, or one number for each tuple of label values in the order of `GAUGE_LABELS`."""

GAUGE_LABELS: Mapping[Gauge, tuple[str, ...]] = {
    "inflight_requests": (),
    "queue_depth": (),
    "cache_bytes": ("level", "tier"),
    "cache_entries": ("level",),
    "device_memory_bytes": ("kind",),
    "shared_regions": (),
    "shared_bytes": (),
}
"""The labels of each gauge: `level` of the cache, `tier` "host" or "device", `kind` "used" or "total"."""


class Observer(ABC):
    """Hears of every event that is worth counting."""

    @abstractmethod
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
        """A call has ended.

        Args:
            op: "solve", "vjp", "jvp", "put", "find", "release", or "refused".
            transport: "rest", "grpc" or "embedded".
            code: "OK", or the name of the `ErrorCode` it failed with.
            seconds: from its arrival to its reply.
            request_bytes: payload that came in.
            response_bytes: payload that went out.
            request_id: names the call in the log, never in a metric.
        """

    @abstractmethod
    def queued(self, seconds: float) -> None:
        """A call waited this long for a worker."""

    @abstractmethod
    def phase(self, name: Phase, seconds: float) -> None:
        """A phase of a call took this long."""

    @abstractmethod
    def block(self, columns: int) -> None:
        """A worker solved this many columns at once."""

    @abstractmethod
    def solved(self, op: str, iterations: int, relative_residual: float, converged: bool) -> None:
        """A solve ran; `relative_residual` is the certificate's, `converged` whether its status is good."""

    @abstractmethod
    def lookup(self, level: Level, result: Lookup) -> None:
        """The cache was asked: `result` is "hit", "miss", or "coalesced" with a build already under way."""

    @abstractmethod
    def evicted(self, reason: str, count: int = 1) -> None:
        """The cache dropped entries; `reason` is one of few words ("budget", "released", ...)."""

    @abstractmethod
    def factorized(self, method: str, pivots: Pivots = "new") -> None:
        """A matrix was factorized; `pivots` as `Factor.pivoting` has it."""

    @abstractmethod
    def restarted(self, reason: Restart) -> None:
        """A worker process was started in place of one that ended by itself, or that was stuck and was killed."""

    @abstractmethod
    def bytes_not_sent(self, count: int) -> None:
        """A call named a matrix of `count` bytes by its digest and it was held: they did not travel."""

    @abstractmethod
    def bind(self, name: Gauge, read: Callable[[], Reading]) -> None:
        """Ask `read` for the gauge `name` whenever somebody looks; the latest binding counts."""


@final
class Silent(Observer):
    """Forgets everything."""

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
        """Forget."""

    def queued(self, seconds: float) -> None:
        """Forget."""

    def phase(self, name: Phase, seconds: float) -> None:
        """Forget."""

    def block(self, columns: int) -> None:
        """Forget."""

    def solved(self, op: str, iterations: int, relative_residual: float, converged: bool) -> None:
        """Forget."""

    def lookup(self, level: Level, result: Lookup) -> None:
        """Forget."""

    def evicted(self, reason: str, count: int = 1) -> None:
        """Forget."""

    def factorized(self, method: str, pivots: Pivots = "new") -> None:
        """Forget."""

    def restarted(self, reason: Restart) -> None:
        """Forget."""

    def bytes_not_sent(self, count: int) -> None:
        """Forget."""

    def bind(self, name: Gauge, read: Callable[[], Reading]) -> None:
        """Forget."""
