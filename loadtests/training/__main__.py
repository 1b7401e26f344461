"""Time training steps, forward and backward, on a server of their own against the same steps by hand.

Ours and theirs take turns in one process on the same numbers, one BLAS thread on both sides, and their answers
are compared. A target that is missed is printed as missed.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import numpy as np
from tqdm import tqdm

import backsolve
from loadtests.micro.__main__ import environment
from scripts.local_server import local_server

from .callers import Crowd, crowd
from .picture import draw
from .workloads import WORKLOADS, Answer, Step, Workload

SEED = 662_018_347


@final
@dataclass(frozen=True)
class Row:
    """Medians of one workload.

    Attributes:
        name, way: which, and over which transport.
        ours, theirs: seconds of a step.
        target: of the ratio, or None.
        milliseconds: of a step of ours, or None.
        wire_bytes: of a step, both ways together.
    """

    name: str
    way: str
    ours: float
    theirs: float
    target: float | None
    milliseconds: float | None
    wire_bytes: float

    @property
    def ratio(self) -> float:
        """Ours over theirs."""
        return self.ours / self.theirs

    @property
    def missed(self) -> bool:
        """Whether it is slower than it should be."""
        if self.target is not None:
            return self.ratio > self.target
        return self.milliseconds is not None and 1e3 * self.ours > self.milliseconds


def main() -> None:
    """Measure, print the table, write `out/training.json` and `out/training.png`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the results (default: %(default)s)")
    parser.add_argument(
        "--ways", nargs="+", action="extend", choices=("http", "grpc", "embedded"), help="(default: http)"
    )
    parser.add_argument(
        "--only", nargs="+", action="extend", metavar="WORDS", help="workloads whose names hold any of these"
    )
    parser.add_argument("--rounds", type=int, help="rounds of each workload (default: its own)")
    parser.add_argument("--callers", type=int, default=32, help="callers on one matrix at once; 0: leave that out")
    options = parser.parse_args()
    chosen = [workload for workload in WORKLOADS if any(words in workload.name for words in options.only or [""])]
    rows: list[Row] = []
    crowds: list[Crowd] = []
    with local_server(BACKSOLVE_LOG_LEVEL="warning", OMP_NUM_THREADS="1") as server:
        urls = {"http": server.http, "grpc": server.grpc, "embedded": "embedded"}
        for way in options.ways or ["http"]:
            with backsolve.Client(urls[way]) as client:
                rows += [measure(workload, way, client, options.rounds or workload.rounds) for workload in chosen]
            if options.callers and way != "embedded":
                crowds.append(crowd(urls[way], way, options.callers))
    print(table(rows, crowds))
    options.out.mkdir(parents=True, exist_ok=True)
    document = {
        "environment": environment(),
        "rows": [{**asdict(row), "ratio": row.ratio, "missed": row.missed} for row in rows],
        "crowds": [{**asdict(each), "speedup": each.speedup} for each in crowds],
    }
    (options.out / "training.json").write_text(json.dumps(document, indent=1))
    draw([(f"{row.name} ({row.way})", row.ratio, row.target) for row in rows], options.out / "training.png")
    print(f"\nwritten: {options.out / 'training.json'}, {options.out / 'training.png'}")


def measure(workload: Workload, way: str, client: backsolve.Client, rounds: int) -> Row:
    """Medians over rounds, after the steps in which pattern and habits are learnt."""
    steps = workload.steps(client, np.random.default_rng([SEED, *way.encode()]))
    for _ in range(3):
        ours, theirs = next(steps)
        _compare(ours(), theirs(), workload.tolerance)
    seconds: list[tuple[float, float]] = []
    before = _moved(client)
    for number in tqdm(range(rounds), desc=f"{workload.name}, {way}", unit="round"):
        ours, theirs = next(steps)
        # Each goes first as often as last.
        first, second = (ours, theirs) if number % 2 else (theirs, ours)
        took = {first: _timed(first), second: _timed(second)}
        _compare(took[ours][1], took[theirs][1], workload.tolerance)
        seconds.append((took[ours][0], took[theirs][0]))
    wire = (_moved(client) - before) / rounds
    ours_median, theirs_median = (float(median) for median in np.median(np.array(seconds), axis=0))
    return Row(workload.name, way, ours_median, theirs_median, workload.target, workload.milliseconds, wire)


def _timed(step: Step) -> tuple[float, Answer]:
    began = time.perf_counter()
    answer = step()
    return time.perf_counter() - began, answer


def _compare(ours: Answer, theirs: Answer, tolerance: float) -> None:
    """Whatever is fast and wrong is worth nothing."""
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance * float(np.abs(other).max()))


def _moved(client: backsolve.Client) -> float:
    wire = client.transport
    return float(getattr(wire, "sent", 0) + getattr(wire, "received", 0))


def table(rows: Sequence[Row], crowds: Sequence[Crowd]) -> str:
    """Times of both sides, their ratio and the target."""
    lines = [f"{'a step':<24}{'way':<10}{'ours':>10}{'by hand':>11}{'ratio':>8}  {'target':<18}{'wire':>9}"]
    for row in rows:
        target = f"{row.target:g}" if row.target is not None else f"{row.milliseconds:g} ms"
        lines.append(
            f"{row.name:<24}{row.way:<10}{1e3 * row.ours:>7.2f} ms{1e3 * row.theirs:>8.2f} ms{row.ratio:>8.3f}  "
            f"{target + (' MISSED' if row.missed else ' met'):<18}{row.wire_bytes / 1e6:>6.2f} MB"
        )
    for each in crowds:
        fast, prompt = ("met" if good else "MISSED" for good in (each.speedup >= 20, each.p95 <= 0.11))
        lines.append(
            f"{each.callers} callers of one matrix, {each.way}: {each.rate:.0f} steps/s, "
            f"{each.speedup:.1f}x a lone caller by hand (target 20x {fast}), "
            f"p95 {1e3 * each.p95:.0f} ms (target 110 ms {prompt}), {each.errors} errors"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
