"""Many callers of one matrix at once, against one who solves at home."""

import multiprocessing
import threading
import time
from dataclasses import dataclass
from typing import Any, final

import numpy as np

import backsolve
from loadtests.engine.users import spsolve_pair
from loadtests.micro.ways import laplacian

SIDE = 100
SECONDS = 6.0
PROCESSES = 4
"""Callers are spread over processes, so that their own interpreter is not what is measured."""

SEED = 118_540_977


@final
@dataclass(frozen=True)
class Crowd:
    """What many callers got.

    Attributes:
        way: the transport.
        callers: how many.
        rate: steps per second of all together.
        p95: seconds that 95 of 100 steps took at most.
        errors: steps that failed or were wrong.
        alone: steps per second of one caller without a server.
    """

    way: str
    callers: int
    rate: float
    p95: float
    errors: int
    alone: float

    @property
    def speedup(self) -> float:
        """Their rate over that of the one at home."""
        return self.rate / self.alone


def crowd(url: str, way: str, callers: int) -> Crowd:
    """Let them all make steps of solve and vjp for some seconds."""
    alone = _alone()
    context = multiprocessing.get_context("spawn")
    gate, results = context.Barrier(PROCESSES), context.Queue()
    shares = [callers // PROCESSES + (number < callers % PROCESSES) for number in range(PROCESSES)]
    processes = [
        context.Process(target=_share, args=(url, share, number, gate, results)) for number, share in enumerate(shares)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=20 * SECONDS + 120) for _ in processes]
    for process in processes:
        process.join(60)
    seconds = np.concatenate([np.array(each["seconds"]) for each in found])
    errors = sum(each["errors"] for each in found)
    return Crowd(way, callers, seconds.size / SECONDS, float(np.percentile(seconds, 95)), errors, alone)


def _alone() -> float:
    A, rng = laplacian(SIDE), np.random.default_rng(SEED)
    took = []
    for _ in range(7):
        b, g = rng.standard_normal((2, A.shape[0]))
        began = time.perf_counter()
        spsolve_pair(A, b, g)
        took.append(time.perf_counter() - began)
    return 1 / float(np.median(took))


def _share(url: str, callers: int, number: int, gate: Any, results: Any) -> None:
    """The callers of one process; the matrix is cached, and every answer is checked by its residual."""
    A = laplacian(SIDE)
    seconds: list[float] = []
    errors: list[str] = []
    with backsolve.Client(url) as client:
        client.solve(A, np.ones(A.shape[0]))
        gate.wait(120)
        until = time.perf_counter() + SECONDS

        def steps(seed: int) -> None:
            rng = np.random.default_rng(seed)
            while time.perf_counter() < until:
                b, g = rng.standard_normal((2, A.shape[0]))
                began = time.perf_counter()
                try:
                    x = client.solve(A, b).x
                    gradients = client.vjp(A, x, g)
                except backsolve.BacksolveError as error:
                    errors.append(type(error).__name__)
                    continue
                seconds.append(time.perf_counter() - began)
                if np.abs(A @ x - b).max() > 1e-9 or np.abs(A.T @ gradients.b - g).max() > 1e-9:
                    errors.append("wrong")

        threads = [threading.Thread(target=steps, args=(SEED + 1000 * number + k,)) for k in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    results.put({"seconds": seconds, "errors": len(errors)})
