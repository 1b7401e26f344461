"""Time every way to bring an array to a server on this machine and back, all in one run, beside memcpy.

    python -m loadtests.transports [--bytes 8192,262144,…] [--rounds 15]

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
from pathlib import Path

from .ways import Way, ways

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
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        server = subprocess.Popen(
            [sys.executable, "-m", "loadtests.transports.echo", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert server.stdout is not None
            ports = json.loads(server.stdout.readline())
            with ways(Path(name), ports) as listed:
                for nbytes in map(int, asked.bytes.split(",")):
                    report(nbytes, measure(listed, nbytes, asked.rounds))
        finally:
            server.communicate()


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
