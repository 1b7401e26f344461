"""A run as JSON, for machines and comparisons, and as Markdown, for people."""

import json
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .rows import Row

MIB = 1 << 20


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    packages = ("backsolve", "backsolve-service", "numpy", "scipy", "grpcio", "uvicorn")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "versions": {name: version(name) for name in packages},
    }


def write(rows: list[Row], about: dict[str, Any], folder: Path) -> None:
    """Write `load.json` and `load.md` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"environment": about, "rows": [asdict(row) for row in rows]}
    (folder / "load.json").write_text(json.dumps(document, indent=1))
    (folder / "load.md").write_text(markdown(rows, about))


def markdown(rows: list[Row], about: dict[str, Any]) -> str:
    """Three tables: what callers saw, what it cost the server, what to mind."""
    parts = [
        "# Load on one server\n",
        f"Python {about['python']}, {about['cores']} cores shared by server and generator; load average before the "
        f"run {about['load_before']:.2f}. Latencies in ms from the intended start, rates a second.\n",
        "## What callers saw\n",
        _table(
            [
                *("scenario", "transport", "loop", "steps", "throughput", "goodput", "p50", "p90", "p99", "p99.9"),
                *("max", "errors", "checked", "passed"),
            ],
            [_callers(row) for row in rows],
        ),
        "## What it cost\n",
        _table(
            [
                *("scenario", "transport", "up/step", "down/step", "hits", "factorizations", "evictions"),
                *("server CPU", "RSS MiB", "RSS slope KiB/s (95 %)", "health p99", "missed", "generator CPU"),
                "late p99",
            ],
            [_cost(row) for row in rows],
        ),
        "## Beside the figures\n",
        "\n".join(_remarks(rows)) + "\n",
    ]
    return "\n".join(parts)


def _callers(row: Row) -> list[str]:
    rate = "" if row.rate is None else f" {row.rate:.0f}/s"
    errors = ", ".join(f"{code} {count}" for code, count in sorted(row.errors.items())) or "none"
    figures = [_ms(row.latency[name]) for name in ("p50", "p90", "p99", "p99.9", "max")]
    rates = [f"{row.throughput:.1f}", f"{row.goodput:.1f}"]
    checked = f"{row.checked}" if not row.wrong else f"{row.checked}, **{row.wrong} wrong**"
    verdict = "yes" if row.passed else "**no**"
    return [
        *(_name(row), row.transport, row.loop + rate, str(row.steps), *rates, *figures),
        *(errors, checked, verdict),
    ]


def _cost(row: Row) -> list[str]:
    memory = (
        "?" if row.rss_start is None or row.rss_end is None else f"{row.rss_start / MIB:.0f} → {row.rss_end / MIB:.0f}"
    )
    growth = "?" if row.rss_slope is None else "{:.0f} ({:.0f} to {:.0f})".format(*(v / 1024 for v in row.rss_slope))
    hits = "?" if row.hit_ratio is None else f"{100 * row.hit_ratio:.1f} %"
    if row.coalesced:
        hits += f" ({row.coalesced} waited)"
    cpu = "?" if row.server_cpu is None else f"{row.server_cpu:.2f}"
    return [
        *(_name(row), row.transport, _size(row.wire_up), _size(row.wire_down), hits, str(row.factorizations)),
        *(str(row.evictions), cpu, memory, growth, _ms(row.health["p99"]), str(row.unhealthy)),
        *(f"{row.generator_cpu:.2f}", _ms(row.late_p99)),
    ]


def _remarks(rows: list[Row]) -> list[str]:
    lines = [f"- {_name(row)}, {row.transport}: {note}" for row in rows for note in row.notes]
    for row in rows:
        if row.generator_cpu > 0.8:
            lines.append(
                f"- {_name(row)}, {row.transport}: the generator took {row.generator_cpu:.2f} of a core, so it may be "
                "what limits the rate (`--processes` adds more of it)"
            )
        codes = {code: count for code, count in row.server_codes.items() if code != "OK"}
        if codes:
            counts = ", ".join(f"{code} {count}" for code, count in sorted(codes.items()))
            lines.append(f"- {_name(row)}, {row.transport}: the server answered {counts}")
    return lines or ["- nothing"]


def _name(row: Row) -> str:
    return f"{row.scenario}: {row.part}"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.2f}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"


def _size(count: float) -> str:
    return f"{count / 1024:.1f} KiB" if count < MIB else f"{count / MIB:.2f} MiB"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
