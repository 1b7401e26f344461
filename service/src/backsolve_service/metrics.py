"""The data plane's events as Prometheus metrics, in a registry of their own.

Base units, few bounded labels, never a digest: a matrix must not be recognisable in a scrape.
"""

import logging
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from typing import final, get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Info, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .engine.base import Pivots
from .observer import GAUGE_LABELS, Gauge, Level, Lookup, Observer, Phase, Reading, Restart
from .series import Counts, Labels, Spread

NAMESPACE = "backsolve"

# A solve takes from tens of microseconds to minutes, so the buckets grow by factors.
SECONDS = (1e-4, 2.5e-4, 1e-3, 2.5e-3, 1e-2, 2.5e-2, 0.1, 0.25, 1.0, 2.5, 10.0, 25.0, 100.0, 600.0)
BYTES = tuple(float(4**k) for k in range(3, 17))  # 64 B to 4 GiB
COLUMNS = tuple(float(2**k) for k in range(13))
ITERATIONS = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 1e5)
RESIDUALS = tuple(10.0**k for k in range(-16, 1))

_HELP: dict[Gauge, str] = {
    "inflight_requests": "Calls that have arrived and are not answered yet.",
    "queue_depth": "Calls that wait for a worker.",
    "cache_bytes": "Bytes held by the cache.",
    "cache_entries": "Entries held by the cache.",
    "device_memory_bytes": "Memory of the accelerator.",
    "shared_regions": "Pieces of memory that callers share.",
    "shared_bytes": "Bytes of memory that callers share.",
}


@final
class BoundGauges(Collector):
    """Gauges that are read only when somebody looks."""

    def __init__(self) -> None:
        self._reads: dict[Gauge, Callable[[], Reading]] = {}

    def bind(self, name: Gauge, read: Callable[[], Reading]) -> None:
        """Ask `read` for `name` from now on."""
        self._reads[name] = read

    def collect(self) -> Iterator[Metric]:
        """Read every gauge; one that fails is left without a sample, the others still appear."""
        for name, labels in GAUGE_LABELS.items():
            family = GaugeMetricFamily(f"{NAMESPACE}_{name}", _HELP[name], labels=labels)
            read = self._reads.get(name)
            if read is not None:
                try:
                    reading = read()
                except Exception:  # a faulty device must not take the whole scrape with it
                    logging.getLogger(__name__).exception("the gauge %s could not be read", name)
                else:
                    samples = reading if not isinstance(reading, int | float) else {(): reading}
                    for values, number in samples.items():
                        family.add_metric(values, number)
            yield family


@final
class Metrics(Observer):
    """Keeps every event of one data plane.

    Args:
        registry: where the metrics are registered; by default one of their own, so that several
            data planes, or a host application with metrics of its own, never meet.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._count_calls()
        self._count_work()
        self._gauges = BoundGauges()
        self.registry.register(self._gauges)
        Info("build", "What is running.", namespace=NAMESPACE, registry=self.registry).info(
            {"version": _version("backsolve-service"), "python": platform.python_version(), "torch": _version("torch")}
        )

    def _counter(self, name: str, text: str, labels: Labels = (), known: Sequence[Labels] = ()) -> Counts:
        made = Counts(f"{NAMESPACE}_{name}", text, labels, known)
        self.registry.register(made)
        return made

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], labels: Labels = (), known: Sequence[Labels] = ()
    ) -> Spread:
        made = Spread(f"{NAMESPACE}_{name}", text, buckets, labels, known)
        self.registry.register(made)
        return made

    def _count_calls(self) -> None:
        self._requests = self._counter("requests", "Calls, by how they ended.", ("op", "transport", "code"))
        self._durations = self._histogram(
            "request_duration_seconds", "From a call's arrival to its reply.", SECONDS, ("op",)
        )
        self._request_bytes = self._histogram("request_bytes", "Payload of a call.", BYTES)
        self._response_bytes = self._histogram("response_bytes", "Payload of a reply.", BYTES)
        self._waits = self._histogram("queue_wait_seconds", "Time a call waited for a worker.", SECONDS)
        self._saved = self._counter("bytes_not_sent", "Bytes of matrices that were named by digest instead of sent.")

    def _count_work(self) -> None:
        phases = [(name,) for name in get_args(Phase)]
        lookups = list(product(get_args(Level), get_args(Lookup)))
        self._phases = self._histogram(
            "phase_duration_seconds", "Time in one phase of a call.", SECONDS, ("phase",), phases
        )
        self._columns = self._histogram("batch_rhs", "Right-hand sides solved at once.", COLUMNS)
        self._iterations = self._histogram("solver_iterations", "Iterations of a solve; 0: direct.", ITERATIONS)
        self._residuals = self._histogram(
            "relative_residual", "True relative residual of a reply, if finite.", RESIDUALS, ("op",)
        )
        self._not_converged = self._counter("not_converged", "Solves whose answer missed the tolerance.")
        self._factorizations = self._counter("factorizations", "Matrices factorized.", ("method",))
        self._pivots = self._counter(
            "pivots_reused",
            "Factorizations that tried the pivots of older values, and what came of it.",
            ("result",),
            [("kept",), ("refused",)],
        )
        self._lookups = self._counter("cache_lookups", "Questions to the cache.", ("level", "result"), lookups)
        self._evictions = self._counter("cache_evictions", "Entries dropped from the cache.", ("reason",))
        self._restarts = self._counter(
            "worker_restarts",
            "Worker processes started in place of one that crashed, was stuck, or whose device failed.",
            ("reason",),
            [(reason,) for reason in get_args(Restart)],
        )

    def text(self) -> tuple[bytes, str]:
        """The body and the content type of `GET /metrics`."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

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
        """Count a call."""
        self._requests.add((op, transport, code))
        self._durations.observe(seconds, (op,))
        self._request_bytes.observe(request_bytes)
        self._response_bytes.observe(response_bytes)

    def queued(self, seconds: float) -> None:
        """Count a wait."""
        self._waits.observe(seconds)

    def phase(self, name: Phase, seconds: float) -> None:
        """Count a phase."""
        self._phases.observe(seconds, (name,))

    def block(self, columns: int) -> None:
        """Count a block."""
        self._columns.observe(columns)

    def solved(self, op: str, iterations: int, relative_residual: float, converged: bool) -> None:
        """Count a solve; a residual that is not finite would spoil the sum for ever and is left out."""
        self._iterations.observe(iterations)
        if math.isfinite(relative_residual):
            self._residuals.observe(relative_residual, (op,))
        if not converged:
            self._not_converged.add()

    def lookup(self, level: Level, result: Lookup) -> None:
        """Count a lookup."""
        self._lookups.add((level, result))

    def evicted(self, reason: str, count: int = 1) -> None:
        """Count evictions."""
        self._evictions.add((reason,), count)

    def factorized(self, method: str, pivots: Pivots = "new") -> None:
        """Count a factorization."""
        self._factorizations.add((method,))
        if pivots != "new":
            self._pivots.add((pivots,))

    def restarted(self, reason: Restart) -> None:
        """Count a restart."""
        self._restarts.add((reason,))

    def bytes_not_sent(self, count: int) -> None:
        """Count bytes that stayed at home."""
        self._saved.add((), count)

    def bind(self, name: Gauge, read: Callable[[], Reading]) -> None:
        """Read the gauge from `read`."""
        self._gauges.bind(name, read)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "none"
