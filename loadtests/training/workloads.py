"""What a training job asks of a solver in one step, by a served caller and by one who has SciPy and NumPy alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lu_factor, lu_solve
from scipy.sparse import csr_array

import backsolve
from loadtests.engine.users import spsolve_pair
from loadtests.micro.ways import laplacian

Floats = NDArray[np.float64]
Answer = tuple[NDArray[Any], ...]
"""x, and the gradients of b and of the values where they are wanted."""

Step = Callable[[], Answer]
Pair = tuple[Step, Step]
"""The same step as served and by hand, with the same numbers."""


@final
@dataclass(frozen=True)
class Workload:
    """One kind of step.

    Attributes:
        name: for the table.
        steps: gives the steps, ours and theirs, of each round; endless.
        target: what ours over theirs is to stay below; None: `milliseconds` is the target.
        milliseconds: what a step of ours is to stay below.
        rounds: how often it is timed by default.
        tolerance: to which the answers must agree, relative to their largest number.
    """

    name: str
    steps: Callable[[backsolve.Client, np.random.Generator], Iterator[Pair]]
    target: float | None
    milliseconds: float | None = None
    rounds: int = 15
    tolerance: float = 1e-8


def same_matrix(side: int) -> Callable[[backsolve.Client, np.random.Generator], Iterator[Pair]]:
    """One matrix, a new right-hand side each step; gradients of b and of the values."""

    def steps(client: backsolve.Client, rng: np.random.Generator) -> Iterator[Pair]:
        A = laplacian(side)
        while True:
            b, g = rng.standard_normal((2, A.shape[0]))
            yield partial(_served, client, A, b, g), partial(spsolve_pair, A, b, g)

    return steps


def new_values(side: int) -> Callable[[backsolve.Client, np.random.Generator], Iterator[Pair]]:
    """One pattern, new values and a new right-hand side each step."""

    def steps(client: backsolve.Client, rng: np.random.Generator) -> Iterator[Pair]:
        pattern = laplacian(side)
        while True:
            values = pattern.data * (1 + 0.1 * rng.random(pattern.nnz))
            A = csr_array((values, pattern.indices, pattern.indptr), shape=pattern.shape)
            b, g = rng.standard_normal((2, A.shape[0]))
            yield partial(_served, client, A, b, g), partial(spsolve_pair, A, b, g)

    return steps


def dense(n: int) -> Callable[[backsolve.Client, np.random.Generator], Iterator[Pair]]:
    """A new dense matrix each step; by hand one LU serves both directions."""

    def steps(client: backsolve.Client, rng: np.random.Generator) -> Iterator[Pair]:
        while True:
            A = rng.standard_normal((n, n)) + n * np.eye(n)
            b, g = rng.standard_normal((2, n))
            yield partial(_served, client, A, b, g), partial(_one_lu, A, b, g)

    return steps


def batch(count: int, n: int) -> Callable[[backsolve.Client, np.random.Generator], Iterator[Pair]]:
    """A new batch of dense matrices each step; by hand NumPy's batched solve, once each way."""

    def steps(client: backsolve.Client, rng: np.random.Generator) -> Iterator[Pair]:
        while True:
            A = rng.standard_normal((count, n, n)) + n * np.eye(n)
            b, g = rng.standard_normal((2, count, n))
            yield partial(_served, client, A, b, g), partial(_batched, A, b, g)

    return steps


WORKLOADS = (
    Workload("same matrix, n = 1e5", same_matrix(316), 0.045, rounds=9),
    Workload("same matrix, n = 1e4", same_matrix(100), 0.20, rounds=25),
    Workload("new values, n = 1e5", new_values(316), 0.45, rounds=7),
    Workload("new values, n = 1e4", new_values(100), 0.60, rounds=15),
    Workload("dense, n = 100", dense(100), None, 2.5, rounds=60),
    Workload("dense, n = 500", dense(500), 2.5, rounds=60),
    Workload("dense, n = 2000", dense(2000), 1.8, rounds=7),
    Workload("64 dense, n = 100", batch(64, 100), 2.0, rounds=40),
)


def _served(client: backsolve.Client, A: Any, b: Floats, g: Floats) -> Answer:
    x = client.solve(A, b).x
    gradients = client.vjp(A, x, g)
    values = gradients.values
    return x, np.asarray(gradients.b), np.asarray(values.data if isinstance(values, csr_array) else values)


def _one_lu(A: Floats, b: Floats, g: Floats) -> Answer:
    factor = lu_factor(A, check_finite=False)
    x = lu_solve(factor, b, check_finite=False)
    lam = lu_solve(factor, g, trans=1, check_finite=False)
    return x, lam, np.asarray(-np.outer(lam, x))


def _batched(A: Floats, b: Floats, g: Floats) -> Answer:
    x = np.linalg.solve(A, b[..., None])[..., 0]
    lam = np.linalg.solve(A.swapaxes(-1, -2), g[..., None])[..., 0]
    return x, lam, -lam[..., :, None] * x[..., None, :]
