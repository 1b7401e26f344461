"""One measured run as a row of figures, the way it is written to JSON."""

import json
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from .generator import Plan
from .histogram import NAMES, Latencies
from .tally import BLOCKS, WRONG, Tally
from .watch import Watched, slope

CURVE = (0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.8, 99.9, 99.95, 99.99, 100.0)

Counters = Mapping[str, float]


@final
@dataclass(frozen=True)
class Row:
    """What was measured; durations in seconds, sizes in bytes.

    Attributes:
        scenario, part, transport: what ran, and how it was sent.
        loop: "closed", or "open" at `rate` steps a second.
        steps: all that were begun or due; `answered` of them had an answer, checked ones a right one.
        lasted: the run with all its answers, in seconds: a queue is worked off after the last step has begun.
        throughput: answered steps a second of that; `goodput` those within `limit`.
        errors: failed steps by code, as callers saw them after the client's retries.
        latency, failed: p50, p90, p99, p99.9 and the largest, from the intended start, of answered
            and of failed steps.
        noise: relative half-width of a 95 % interval of each figure, from blocks of this run.
        checked, wrong: answers that were compared with the truth, and that were not it.
        passed: nothing was wrong, something was checked, and steps failed only where they may.
        wire_up, wire_down: payload bytes a step.
        hit_ratio: factor lookups that were hits; `coalesced` waited for a build already under way.
        server_codes: calls by how they ended, as the server counted them, retries included.
        server_cpu: cores' worth of processor time; None for a server on another machine, as memory.
        rss_slope: bytes a second with its 95 % interval.
        health: of the health endpoint, every 50 ms.
        generator_cpu: cores' worth of the busiest generator process; near 1 it is the bottleneck.
        late_p99: how late its idle callers began.
    """

    scenario: str
    part: str
    transport: str
    loop: str
    rate: float | None
    callers: int
    seconds: float
    limit: float
    steps: int
    answered: int
    lasted: float
    throughput: float
    goodput: float
    errors: dict[str, int]
    latency: dict[str, float | None]
    failed: dict[str, float | None]
    noise: dict[str, float | None]
    checked: int
    wrong: int
    passed: bool
    wire_up: float
    wire_down: float
    uploads: int
    hit_ratio: float | None
    coalesced: int
    factorizations: int
    evictions: int
    server_codes: dict[str, int]
    server_cpu: float | None
    rss_start: float | None
    rss_end: float | None
    rss_slope: tuple[float, float, float] | None
    health: dict[str, float | None]
    unhealthy: int
    generator_cpu: float
    late_p99: float | None
    curve: list[tuple[float, float]]
    memory: list[tuple[float, float]]
    notes: list[str] = field(default_factory=list)


@final
@dataclass(frozen=True)
class Counted:
    """What a server has counted since it started: its totals, and calls by code."""

    totals: Counters
    codes: Counters


def counted(http_url: str) -> Counted:
    """Ask a server what it has counted.

    Raises:
        OSError: it does not answer.
    """
    with urllib.request.urlopen(f"{http_url}/v1/stats", timeout=30) as reply:
        totals: Counters = json.load(reply)
    with urllib.request.urlopen(f"{http_url}/metrics", timeout=30) as reply:
        page = reply.read().decode()
    codes: Counter[str] = Counter()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == "backsolve_requests_total":
                codes[sample.labels["code"]] += int(sample.value)
    return Counted(totals, codes)


def row(
    names: tuple[str, str, str],
    plan: Plan,
    tally: Tally,
    seen: Watched,
    before: Counted,
    after: Counted,
    *,
    may_fail: bool,
    notes: list[str],
) -> Row:
    """Put the figures of one run together.

    Args:
        names: scenario, part and transport.
        plan: what ran.
        tally: what became of it.
        seen: what the server did meanwhile.
        before, after: its counters.
        may_fail: whether failed steps belong to the scenario; wrong answers never do.
        notes: what a reader should know beside the figures.
    """
    # A server that was restarted counts from zero: its new life is all that can be told.
    again = after.totals["solves"] < before.totals["solves"] or any(
        after.codes.get(c, 0) < n for c, n in before.codes.items()
    )
    since = _less(after.totals, {} if again else before.totals)
    lookups = [since[f"cache_{result}_factor"] for result in ("hits", "misses", "coalesced")]
    wrong = tally.errors[WRONG]
    grown = slope(seen.times, seen.sizes) if seen.lives == 1 else None
    return Row(
        *names,
        loop="closed" if plan.rate is None else "open",
        rate=plan.rate,
        callers=plan.callers,
        seconds=plan.seconds,
        limit=plan.limit,
        steps=tally.steps,
        answered=tally.right,
        lasted=tally.lasted,
        throughput=tally.right / tally.lasted,
        goodput=tally.good / tally.lasted,
        errors=dict(tally.errors),
        latency=tally.answered.summary(),
        failed=tally.failed.summary(),
        noise=noise(tally.blocks),
        checked=tally.checked,
        wrong=wrong,
        passed=not wrong and tally.checked > 0 and (may_fail or not tally.errors),
        wire_up=tally.sent / max(tally.steps, 1),
        wire_down=tally.received / max(tally.steps, 1),
        uploads=tally.uploads,
        hit_ratio=lookups[0] / sum(lookups) if sum(lookups) else None,
        coalesced=int(lookups[2]),
        factorizations=int(since["factorizations"]),
        evictions=int(since["evictions"]),
        server_codes={c: int(n) for c, n in _less(after.codes, {} if again else before.codes).items() if n},
        server_cpu=None if seen.cpu_seconds is None else seen.cpu_seconds / seen.seconds,
        rss_start=seen.sizes[0] if seen.sizes else None,
        rss_end=seen.sizes[-1] if seen.sizes else None,
        rss_slope=None if grown is None else (grown.value, grown.low, grown.high),
        health=seen.health.summary(),
        unhealthy=seen.unhealthy,
        generator_cpu=tally.cpu_seconds / plan.seconds,
        late_p99=tally.late.percentile(99),
        curve=tally.answered.curve(CURVE),
        memory=list(zip(seen.times, seen.sizes, strict=True)),
        notes=notes + (["the counters are those since the restart"] if again else []),
    )


def noise(blocks: list[Latencies]) -> dict[str, float | None]:
    """How far p50, p90, p99, p99.9 and throughput are uncertain, as a share of themselves; from a run's blocks.

    Half a 95 % interval of the mean of the blocks' logarithms. Blocks of one run share what the
    machine did in that minute, so runs on different days differ by more.
    """
    filled = [block for block in blocks if block.count]
    if len(filled) < BLOCKS:
        return dict.fromkeys((*NAMES, "throughput"))
    figures = {name: [block.summary()[name] for block in filled] for name in NAMES}
    figures["throughput"] = [float(block.count) for block in filled]
    return {name: _half_width(np.array(values, dtype=float)) for name, values in figures.items()}


def _half_width(values: "np.ndarray[Any, np.dtype[np.float64]]") -> float:
    from scipy.stats import t as student  # noqa: PLC0415  (slow to load, and generators do not need it)

    spread = np.log(values).std(ddof=1) / np.sqrt(values.size)
    return float(np.expm1(student.ppf(0.975, values.size - 1) * spread))


def _less(after: Counters, before: Counters) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in after.items()}
