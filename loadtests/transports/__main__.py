"""Time every way to bring an array to a server on this machine and back, all in one run, beside memcpy.

    python -m loadtests.transports [--bytes 8192,262144,…] [--rounds 15]     # a table for each size
    python -m loadtests.transports --targets                               # 80 MB, memory, cached solves: met or MISSED

The answer of the server is the array itself. Ways take turns, round by round; figures are the median and the best
round, and "x memcpy" the speed as a fraction of two copies in warm memory in the same run.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from loadtests.micro.__main__ import environment

from . import solves, targets
from .memory import growth
from .picture import draw
from .ways import Way, ways

LARGE = 80_000_000
SIZES = "8192,65536,262144,1048576,8388608,80000000"


def measure(listed: list[Way], nbytes: int, rounds: int) -> dict[str, list[float]]:
    """Seconds there and back of every round, by way."""
    runs = {way.name: way.prepare(nbytes // 8) for way in listed}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 2):
        for name, run in runs.items():
            started = time.perf_counter()
            result = run()
            spent = time.perf_counter() - started
            del result
            if number >= 2:  # the first rounds fault the pages in
                seconds[name].append(spent)
    return seconds


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.transports", description=__doc__)
    parser.add_argument("--bytes", default=SIZES, help="sizes of the array, separated by commas")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--targets", action="store_true", help="measure what the targets are about, and say which are met"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the results (default: %(default)s)")
    asked = parser.parse_args()
    if asked.targets:
        check(asked.rounds, asked.out)
        return
    for nbytes, seconds in speeds([int(size) for size in asked.bytes.split(",")], asked.rounds):
        report(nbytes, seconds)


def speeds(sizes: list[int], rounds: int) -> Iterator[tuple[int, dict[str, list[float]]]]:
    """Seconds of every round by way, for each size, against a server of its own."""
    with tempfile.TemporaryDirectory() as name:
        server = subprocess.Popen(
            [sys.executable, "-m", "loadtests.transports.echo", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert server.stdout is not None
            ports = json.loads(server.stdout.readline())
            with ways(Path(name), ports) as listed:
                for nbytes in sizes:
                    yield nbytes, measure(listed, nbytes, rounds)
        finally:
            server.communicate()


def check(rounds: int, out: Path) -> None:
    """Print each target as met or MISSED; write `transports.json` and `transports.png`."""
    ((_, seconds),) = speeds([LARGE], rounds)
    report(LARGE, seconds)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    grown = {way: growth(way, LARGE) for way in ("http", "grpc")}
    rows = list(solves.measure())
    listed = [*targets.of_ways(medians), *targets.of_memory(grown), *targets.of_solves(rows)]
    print("", *listed, sep="\n")
    out.mkdir(parents=True, exist_ok=True)
    found = [{**asdict(target), "met": target.met} for target in listed]
    document = {"environment": environment(), "targets": found, "seconds": medians, "memory": grown, "solves": rows}
    (out / "transports.json").write_text(json.dumps(document, indent=1))
    draw(listed, out / "transports.png")


def report(nbytes: int, seconds: dict[str, list[float]]) -> None:
    """One table."""
    print(f"\n{nbytes} bytes each way\n{'':32}{'ms':>10}{'MB/s':>8}{'x memcpy':>10}{'best ms':>12}{'x memcpy':>10}")
    median, best = next((statistics.median(taken), min(taken)) for taken in seconds.values())
    for name, taken in seconds.items():
        usual, least = statistics.median(taken), min(taken)
        speed = 2e-6 * nbytes / usual
        print(f"{name:32}{1e3 * usual:10.3f}{speed:8.0f}{median / usual:10.2f}{1e3 * least:12.3f}{best / least:10.2f}")


if __name__ == "__main__":
    main()
