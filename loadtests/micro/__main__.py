"""Time cached solves and gradients as multiples of the same work done by hand.

Each round takes every way in turn on one fresh right-hand side, so that whatever else the machine
does falls on all of them alike; medians of the rounds are compared.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import backsolve
from scripts.local_server import local_server

from .picture import draw
from .ways import Task, laplacian, tasks

SIDES = (32, 100, 316)
ROUNDS = {32: 60, 100: 40, 316: 12}
SEED = 902_471_553
WAYS = ("embedded", "http", "grpc")


def main() -> None:
    """Measure, print the table, write `out/bench.json` and `out/bench.png`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the results (default: %(default)s)")
    parser.add_argument("--sides", type=int, nargs="+", action="extend", help=f"grid sides; n is their square {SIDES}")
    parser.add_argument("--rounds", type=int, help="rounds of each size (default: 60, 40 and 12)")
    options = parser.parse_args()
    with ExitStack() as stack:
        server = stack.enter_context(local_server(BACKSOLVE_LOG_LEVEL="warning"))
        urls = {"embedded": "embedded", "http": server.http, "grpc": server.grpc}
        clients = {way: stack.enter_context(backsolve.Client(urls[way])) for way in WAYS}
        rows = [
            row
            for side in options.sides or SIDES
            for row in measure(side, clients, options.rounds or ROUNDS.get(side, 12))
        ]
    print(table(rows))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bench.json").write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1))
    draw(rows, options.out / "bench.png")
    print(f"\nwritten: {options.out / 'bench.json'}, {options.out / 'bench.png'}")


def measure(side: int, clients: dict[str, backsolve.Client], rounds: int) -> list[dict[str, Any]]:
    """Median seconds of every task on one grid, and their ratios to the work by hand."""
    A = laplacian(side)
    n, rng = A.shape[0], np.random.default_rng(SEED)
    listed = tasks(A, clients, rng.standard_normal(n))
    seconds: list[list[float]] = [[] for _ in listed]
    for _ in tqdm(range(rounds), desc=f"n = {n}", unit="round"):
        b = rng.standard_normal(n)
        # In a new order each round: no way always runs behind the same neighbour.
        for index in rng.permutation(len(listed)):
            seconds[index].append(_timed(listed[index], b))
    medians = {(task.operation, task.way): float(np.median(s)) for task, s in zip(listed, seconds, strict=True)}
    return list(_rows(n, rounds, medians))


def _timed(task: Task, b: np.ndarray[Any, Any]) -> float:
    began = time.perf_counter()
    task.call(b)
    return time.perf_counter() - began


def _rows(n: int, rounds: int, medians: dict[tuple[str, str], float]) -> Iterator[dict[str, Any]]:
    for (operation, way), seconds in medians.items():
        reference = medians.get(("vjp" if operation == "vjp" else "solve", "by hand"), seconds)
        yield {
            "n": n,
            "operation": operation,
            "way": way,
            "rounds": rounds,
            "seconds": seconds,
            "ratio": seconds / reference,
        }


def table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds by hand, and the other ways as multiples of them."""
    lines = [f"{'n':>8}  {'operation':<34}{'by hand':>12}" + "".join(f"{way:>12}" for way in WAYS)]
    names = {
        "solve": "client.solve (hashes the values)",
        "handle": "client.factorized(A).solve",
        "vjp": "client.vjp, both gradients",
    }
    found = {(row["n"], row["operation"], row["way"]): row for row in rows}
    for n in sorted({row["n"] for row in rows}):
        for operation, name in names.items():
            by_hand = found[n, "vjp" if operation == "vjp" else "solve", "by hand"]["seconds"]
            ratios = "".join(f"{found[n, operation, way]['ratio']:>11.2f}x" for way in WAYS)
            lines.append(f"{n:>8}  {name:<34}{1e3 * by_hand:>9.3f} ms{ratios}")
        lines.append(
            f"{n:>8}  {'hashing the values, alone':<34}{1e3 * found[n, 'hash', 'by hand']['seconds']:>9.3f} ms"
        )
    return "\n".join(lines)


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    packages = ("backsolve", "numpy", "scipy", "torch", "grpcio", "protobuf", "blake3")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "versions": {name: version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
