"""Compare two runs of `loadtests.served`: each figure of the second as a ratio to the first, beside the noise.

python -m loadtests.compare before/load.json after/load.json
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

FIGURES = ("throughput", "p50", "p90", "p99", "p99.9")
EXACT = ("wire_up", "wire_down", "factorizations")
"""Figures without noise of their own; they are shown where they differ by more than `SHOWN`."""

SHOWN = 0.02
LEAST_ANSWERS = {"p99": 500, "p99.9": 5000}
"""With fewer answers such a percentile is decided by a handful of them."""


@final
@dataclass(frozen=True)
class Change:
    """How one figure of one row has changed.

    Attributes:
        row: scenario, part and transport.
        figure: its name.
        before, after: its values; durations in seconds.
        ratio: after / before.
        noise: how far the ratio is uncertain, as a share of itself; None: unknown.
        verdict: "better", "worse", "within the noise", or "differs" where neither is good.
    """

    row: tuple[str, str, str]
    figure: str
    before: float
    after: float
    ratio: float
    noise: float | None
    verdict: str


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    """Every figure that both documents have, row by row.

    Args:
        before, after: documents as `loadtests.served` writes them.
    """
    theirs = {_key(row): row for row in after["rows"]}
    for row in before["rows"]:
        other = theirs.get(_key(row))
        if other is None:
            continue
        for figure in FIGURES:
            old, new = _value(row, figure), _value(other, figure)
            if old and new and min(row["answered"], other["answered"]) >= LEAST_ANSWERS.get(figure, 0):
                yield _change(_key(row), figure, old, new, _noise(row, other, figure))
        for figure in EXACT:
            old, new = float(row[figure]), float(other[figure])
            if abs(new - old) > SHOWN * max(old, new):
                yield Change(_key(row), figure, old, new, new / old if old else float("inf"), None, "differs")


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["scenario"], row["part"], row["transport"]


def _value(row: Mapping[str, Any], figure: str) -> float | None:
    value: float | None = row["throughput"] if figure == "throughput" else row["latency"][figure]
    return value


def _noise(row: Mapping[str, Any], other: Mapping[str, Any], figure: str) -> float | None:
    """Of a ratio: the two relative half-widths, as independent errors add up."""
    parts = row["noise"][figure], other["noise"][figure]
    return None if None in parts else float(sum(part**2 for part in parts) ** 0.5)


def _change(key: tuple[str, str, str], figure: str, old: float, new: float, noise: float | None) -> Change:
    ratio = new / old
    if noise is None:
        verdict = "of unknown noise"
    elif 1 / (1 + noise) <= ratio <= 1 + noise:
        verdict = "within the noise"
    else:
        verdict = "better" if (ratio > 1) == (figure == "throughput") else "worse"
    return Change(key, figure, old, new, ratio, noise, verdict)


def markdown(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The comparison as a table, what only one run has, and what was wrong in either."""
    lines = [
        "| scenario | transport | figure | before | after | ratio | noise | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for change in compare(before, after):
        scenario, part, transport = change.row
        noise = "?" if change.noise is None else f"± {100 * change.noise:.0f} %"
        verdict = f"**{change.verdict}**" if change.verdict in ("better", "worse") else change.verdict
        lines.append(
            f"| {scenario}: {part} | {transport} | {change.figure} | {_text(change.figure, change.before)} | "
            f"{_text(change.figure, change.after)} | {change.ratio:.2f} | {noise} | {verdict} |"
        )
    rows = {name: {_key(row): row for row in document["rows"]} for name, document in _named(before, after)}
    for name, other in (("before", "after"), ("after", "before")):
        alone = sorted(rows[name].keys() - rows[other].keys())
        lines += [f"\n{': '.join(key[:2])} ({key[2]}) is in the run {name} only." for key in alone]
    for name, kept in rows.items():
        failed = [key for key, row in kept.items() if not row["passed"]]
        lines += [f"\n**{': '.join(key[:2])} ({key[2]}) did not pass in the run {name}.**" for key in failed]
    if before["environment"] != after["environment"] | {"load_before": before["environment"].get("load_before")}:
        lines.append("\nThe two runs had other machines, versions or settings: see `environment` in both files.")
    lines.append(
        "\nThe noise is that of the blocks of a run; runs at another time differ by more. Ratios of latencies below 1 "
        "and of throughput above 1 are better."
    )
    return "\n".join(lines)


def _named(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    return ("before", before), ("after", after)


def _text(figure: str, value: float) -> str:
    if figure in ("throughput", *EXACT):
        return f"{value:.1f}"
    return f"{1e3 * value:.2f} ms"


def main() -> int:
    """Exit status: 1 if a file cannot be read as a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args()
    try:
        documents = [json.loads(path.read_text()) for path in (options.before, options.after)]
        print(markdown(*documents))
    except (OSError, ValueError, KeyError, TypeError) as err:
        print(f"these are not two load.json of loadtests.served: {type(err).__name__}: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
