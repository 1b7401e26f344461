"""Many callers of one matrix at once, against one who solves at home."""

import itertools
import multiprocessing
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

import backsolve
from loadtests.engine.users import spsolve_pair
from loadtests.micro.ways import laplacian

SIDE = 100
SECONDS = 6.0
PROCESSES = 4
"""Callers are spread over processes, so that their own interpreter is not what is measured."""

PREPARED = 64
"""Right-hand sides and cotangents of each process, which its callers take in turn."""

TOLERANCE = 1e-9
SEED = 118_540_977

Kept = tuple[int, NDArray[np.float64], NDArray[np.float64]]
"""A step that was answered: which numbers it was asked with, x, and the gradient of b."""


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
    """The callers of one process; the matrix is cached. Numbers are made before, answers checked when all is over.

    Of each caller that is the last answer to each of its questions: to keep all would be work that no caller has.
    """
    A = laplacian(SIDE)
    rng = np.random.default_rng(SEED + number)
    sides = rng.standard_normal((PREPARED, 2, A.shape[0]))
    seconds: list[float] = []
    errors: list[str] = []
    kept: dict[tuple[int, int], Kept] = {}
    with backsolve.Client(url) as client:
        client.solve(A, np.ones(A.shape[0]))
        gate.wait(120)
        until = time.perf_counter() + SECONDS

        def steps(first: int) -> None:
            for count in itertools.count(first):
                if time.perf_counter() >= until:
                    return
                which = count % PREPARED
                b, g = sides[which]
                began = time.perf_counter()
                try:
                    x = client.solve(A, b).x
                    adjoint = client.vjp(A, x, g).b
                except backsolve.BacksolveError as error:
                    errors.append(type(error).__name__)
                    continue
                seconds.append(time.perf_counter() - began)
                kept[first, which] = (which, x, np.asarray(adjoint))

        threads = [threading.Thread(target=steps, args=(7 * k,)) for k in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    results.put({"seconds": seconds, "errors": len(errors) + wrong(A, sides, tuple(kept.values()))})


def wrong(A: csr_array, sides: NDArray[np.float64], kept: Sequence[Kept]) -> int:
    """How many of the kept steps do not solve `A x = b` and `Aᵀ λ = g`, by their residuals."""
    count = 0
    for which, x, adjoint in kept:
        b, g = sides[which]
        count += bool(np.abs(A @ x - b).max() > TOLERANCE or np.abs(A.T @ adjoint - g).max() > TOLERANCE)
    return count
