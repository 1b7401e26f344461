"""What a server adds to a cached solve: the same solves in this process, over HTTP, and by a factor kept by hand."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from scipy.sparse import diags_array

import backsolve
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import Options
from loadtests.micro.ways import ByHand, laplacian
from scripts.local_server import local_server

SIZES = {1_000: 200, 10_000: 100, 100_000: 30, 1_000_000: 9}
"""Rounds for each number of rows of the tridiagonal system, whose solve is cheap: the worst case for a server."""

SIDES = {100: 60, 316: 20, 1000: 5}
"""Rounds for each side of the grid that is solved by hand as well."""

SYSTEMS = 64


def measure() -> Iterator[dict[str, Any]]:
    """Rows of medians in seconds: what, n, and the time each way."""
    with (
        local_server(BACKSOLVE_LOG_LEVEL="warning", BACKSOLVE_CACHE_BYTES=str(4 << 30)) as server,
        backsolve.Client("embedded") as here,
        backsolve.Client(server.http) as there,
    ):
        for n, rounds in SIZES.items():
            A = diags_array([-1.0, 2.5, -1.0], offsets=[-1, 0, 1], shape=(n, n), format="csr")
            near, far, b = here.factorized(A), there.factorized(A), np.ones(n)
            yield _row("tridiagonal", n, rounds, {"embedded": partial(near.solve, b), "http": partial(far.solve, b)})
        yield _batch(here, there)
        for side, rounds in SIDES.items():
            grid = laplacian(side)
            hand, far, b = ByHand(grid), there.factorized(grid), np.ones(side * side)
            np.testing.assert_allclose(far.solve(b), hand.solve(b), rtol=1e-9)
            yield _row("grid", side * side, rounds, {"hand": partial(hand.solve, b), "http": partial(far.solve, b)})


def _batch(here: backsolve.Client, there: backsolve.Client) -> dict[str, Any]:
    """64 tridiagonal systems in one request."""
    A = diags_array([-1.0, 2.5, -1.0], offsets=[-1, 0, 1], shape=(1000, 1000), format="csr")
    values = A.data * np.linspace(1.0, 2.0, SYSTEMS)[:, None]
    matrix, rhs = Matrix(Pattern.from_csr(A), values), np.ones((SYSTEMS, 1000))
    ways = {
        "embedded": lambda: here.solve_matrix(matrix, rhs, Options()),
        "http": lambda: there.solve_matrix(matrix, rhs, Options()),
    }
    return _row(f"{SYSTEMS} systems", 1000, 40, ways)


def _row(what: str, n: int, rounds: int, ways: Mapping[str, Callable[[], object]]) -> dict[str, Any]:
    """All ways in turn, so that whatever else the machine does falls on all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 2):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            if number >= 2:
                seconds[name].append(time.perf_counter() - started)
    return {"what": what, "n": n, **{name: float(np.median(taken)) for name, taken in seconds.items()}}
