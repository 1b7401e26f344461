"""Time products, iterations, factorizations and solves on a CUDA device, beside what its memory allows.

Absolute times, since nothing on the host compares: medians of wall clocks that begin and end with an
idle device. Without a CUDA device it says so, measures nothing, and ends well.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from backsolve_service.engine.direct.cudss.library import installed

from . import figures
from .clock import copy_bandwidth
from .figures import Figure

SIDES = (100, 316, 1000)
ORDERS = (1024, 4096)
CUDSS_SIDES = (100, 316)
ROUNDS = 50


def main() -> None:
    """Measure, print the table, write `out/bench-gpu.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the results (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="calls of each operation (default: %(default)s)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"skipped: torch {torch.__version__} sees no CUDA device, and a CPU's figures would say nothing of one")
        return
    device = "cuda"
    bandwidth = copy_bandwidth(device, options.rounds)
    measured = []
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; copies move {bandwidth / 1e9:.0f} GB/s")
    for figure in every(device, options.rounds):
        measured.append(figure)
        print(line(figure, bandwidth), flush=True)
    if not installed():
        print("skipped: cuDSS, whose package is not installed")
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [{name: getattr(figure, name) for name in Figure.__slots__} for figure in measured]
    written = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "copy_bandwidth": bandwidth}
    (options.out / "bench-gpu.json").write_text(json.dumps({**written, "rows": rows}, indent=1))
    print(f"\nwritten: {options.out / 'bench-gpu.json'}")


def every(device: str, rounds: int) -> Iterator[Figure]:
    """All figures, each as soon as it is there."""
    for side in SIDES:
        yield from figures.sparse(side, device, rounds)
    for side in SIDES:
        yield from figures.preconditioners(side, device, rounds)
    for n in ORDERS:
        yield from figures.dense(n, device, rounds)
    for side in CUDSS_SIDES:
        yield from figures.cudss(side, device, rounds)


def line(figure: Figure, bandwidth: float) -> str:
    """Time, bytes a second, and their share of what a copy reaches."""
    start = f"{figure.operation:<42}{figure.n:>9}{1e3 * figure.seconds:>12.4f} ms"
    if figure.nbytes is None:
        return start
    speed = figure.nbytes / figure.seconds
    return f"{start}{speed / 1e9:>10.1f} GB/s{100 * speed / bandwidth:>7.1f} % of a copy"


if __name__ == "__main__":
    main()
