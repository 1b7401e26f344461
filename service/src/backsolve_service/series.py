"""Counters and histograms for Prometheus that cost an event one lock and two additions.

`prometheus_client` has one object, and one lock, for each bucket and each sum. A cached solve is a dozen events, which
took a quarter of its time that way. Here each metric is one table by its labels; its text is made when somebody asks.
"""

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import final

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]


@final
class Counts(Collector):
    """A counter for each combination of labels. Thread-safe.

    Args:
        name, text: as Prometheus shows them; the name without `_total`.
        labels: their names.
        known: combinations that are shown before their first event: a series that is born with it has no rate for it.
    """

    def __init__(self, name: str, text: str, labels: Labels = (), known: Sequence[Labels] = ()) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._lock = threading.Lock()
        self._values = defaultdict(float, dict.fromkeys(known if labels else ((),), 0.0))

    def add(self, labels: Labels = (), amount: float = 1.0) -> None:
        """Count an event, or so many."""
        with self._lock:
            self._values[labels] += amount

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        with self._lock:
            values = dict(self._values)
        for labels, value in values.items():
            family.add_metric(labels, value)
        yield family


@final
class Spread(Collector):
    """A histogram for each combination of labels. Thread-safe.

    Args:
        name, text: as Prometheus shows them.
        bounds: upper ends of the buckets, ascending; what is above the last one is in a bucket of its own.
        labels: their names.
        known: combinations that are shown before their first event.
    """

    def __init__(
        self, name: str, text: str, bounds: Sequence[float], labels: Labels = (), known: Sequence[Labels] = ()
    ) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._bounds = tuple(bounds)
        self._ends = (*(floatToGoString(bound) for bound in bounds), "+Inf")  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()
        self._cells: defaultdict[Labels, list[float]] = defaultdict(self._cell)
        for each in known if labels else ((),):
            self._cells[each] = self._cell()

    def _cell(self) -> list[float]:
        """How many were in each bucket, and then the sum of all."""
        return [0.0] * (len(self._ends) + 1)

    def observe(self, value: float, labels: Labels = ()) -> None:
        """Count one value."""
        place = bisect_left(self._bounds, value)
        with self._lock:
            cell = self._cells[labels]
            cell[place] += 1.0
            cell[-1] += value

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        with self._lock:
            found = [(labels, list(cell)) for labels, cell in self._cells.items()]
        for labels, (*buckets, total) in found:
            below, rows = 0.0, []
            for end, count in zip(self._ends, buckets, strict=True):
                below += count
                rows.append((end, below))
            family.add_metric(labels, rows, total)
        yield family
