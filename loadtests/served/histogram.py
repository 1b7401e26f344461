"""Latencies in HdrHistograms: bounded memory however many there are, every percentile to three digits."""

import math
from collections.abc import Sequence
from typing import Any, final

from hdrh.histogram import HdrHistogram

_MOST_SECONDS = 3600.0
_DIGITS = 3
_PER_SECOND = 1_000_000

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
NAMES = ("p50", "p90", "p99", "p99.9")


@final
class Latencies:
    """Seconds, kept as whole microseconds; above an hour they count as an hour."""

    def __init__(self) -> None:
        self._kept: Any = HdrHistogram(1, int(_MOST_SECONDS * _PER_SECOND), _DIGITS)

    def record(self, seconds: float) -> None:
        """Keep one latency.

        Raises:
            ValueError: it is negative or not a number, so the clock was read wrongly.
        """
        if not seconds >= 0:
            raise ValueError("a latency is never negative: the end was read before the beginning")
        whole = min(math.ceil(seconds * _PER_SECOND), int(_MOST_SECONDS * _PER_SECOND))
        self._kept.record_value(max(whole, 1))

    @property
    def count(self) -> int:
        """How many are kept."""
        return int(self._kept.get_total_count())

    def percentile(self, percent: float) -> float | None:
        """Seconds that `percent` of the latencies do not exceed; None of nothing."""
        count = self.count
        if not count:
            return None
        # The library rounds the rank to the nearest; with few latencies that would leave more than the rest above.
        rank = math.ceil(percent / 100 * count - 1e-9)
        return float(self._kept.get_value_at_percentile(100 * rank / count)) / _PER_SECOND

    def summary(self) -> dict[str, float | None]:
        """p50, p90, p99, p99.9 and the largest, in seconds."""
        found = {name: self.percentile(percent) for name, percent in zip(NAMES, PERCENTILES, strict=True)}
        return found | {"max": self._kept.get_max_value() / _PER_SECOND if self.count else None}

    def curve(self, points: Sequence[float]) -> list[tuple[float, float]]:
        """(percentile, seconds) at each of `points`, for a picture."""
        return [(p, s) for p in points if (s := self.percentile(p)) is not None]

    def add(self, other: "Latencies") -> None:
        """Take in everything that another one keeps."""
        self._kept.add(other._kept)

    def encode(self) -> bytes:
        """Compressed, for another process."""
        return bytes(self._kept.encode())

    @classmethod
    def decode(cls, data: bytes) -> "Latencies":
        """What `encode` wrote."""
        made = cls()
        made._kept.decode_and_add(data)
        return made
