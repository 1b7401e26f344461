"""Scenarios that differ in which matrices callers send: one, a new one each step, a shared one, too many."""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
from scipy.sparse import csr_array

from backsolve import Client

from ..generator import Plan
from ..problems import Changing, Floats, grid, one_of_many, pulls, solves
from ..rows import Row
from ..workload import Caller, Workload
from .base import Bench, Scenario

SIDE = 50


@final
class Solver(Caller):
    """Solves with one matrix and a new right-hand side each step."""

    def __init__(self, client: Client, A: csr_array, number: int) -> None:
        self._client, self._A = client, A
        self._rng = np.random.default_rng([388_120_941, number])
        self._b: Floats = np.zeros(0)
        self._x: Floats = np.zeros(0)

    def prepare(self, k: int) -> None:
        """A right-hand side."""
        self._b = self._rng.standard_normal(self._A.shape[0])

    def step(self) -> None:
        """One solve."""
        self._x = self._client.solve(self._A, self._b).x

    def check(self) -> bool:
        """By its residual."""
        return solves(self._A, self._x, self._b)


@final
@dataclass(frozen=True)
class OneMatrix(Workload):
    """All callers solve with the same matrix, each with right-hand sides of its own."""

    side: int = SIDE

    def callers(self, clients: list[Client], first: int) -> list[Caller]:
        """They share the matrix."""
        A = grid(self.side)
        return [Solver(client, A, first + index) for index, client in enumerate(clients)]


@final
class Fixed(Scenario):
    """The cache at its best."""

    name = "fixed"
    about = "one matrix, new right-hand sides: closed loop, then an open one at half that rate"

    def rows(self, bench: Bench) -> Iterator[Row]:
        """The closed loop tells what can be done, the open one what a caller sees who does not wait for it."""
        closed = self.measure(bench, "closed", Plan(OneMatrix(), bench.url, bench.seconds))
        yield closed
        rate = max(closed.throughput / 2, 1.0)
        yield self.measure(
            bench, "open at half", Plan(OneMatrix(), bench.url, bench.seconds, callers=16, rate=rate, check_every=2)
        )


@final
class Trainer(Caller):
    """One training step after another: new values on one pattern, a solve and its gradients."""

    def __init__(self, client: Client, systems: Changing, barrier: threading.Barrier | None, number: int) -> None:
        self._client, self._systems, self._barrier = client, systems, barrier
        self._rng = np.random.default_rng([204_771_653, number])
        self._count = 0
        self._A: Any = None
        self._b = self._g = self._x = np.zeros(0)
        self._pulled: Any = None

    def prepare(self, k: int) -> None:
        """New values; with a barrier, those that all its callers take in this step."""
        self._A = self._systems.at(self._count)
        self._count += 1
        self._b, self._g = self._rng.standard_normal((2, self._systems.n))
        if self._barrier is not None and k >= 0:
            self._barrier.wait()

    def step(self) -> None:
        """Forward and backward."""
        self._x = self._client.solve(self._A, self._b).x
        self._pulled = self._client.vjp(self._A, self._x, self._g)

    def check(self) -> bool:
        """By residuals, and the gradient of the values by its formula."""
        return solves(self._A, self._x, self._b) and pulls(self._A, self._x, self._g, self._pulled)

    def end(self) -> None:
        """Nobody waits for a caller that is done."""
        if self._barrier is not None:
            self._barrier.abort()


@final
@dataclass(frozen=True)
class Training(Workload):
    """Each caller trains on values of its own, all on one pattern; another `salt` gives other values."""

    side: int = SIDE
    salt: int = 0

    def callers(self, clients: list[Client], first: int) -> list[Caller]:
        """Each has a stream of values of its own."""
        return [
            Trainer(client, Changing(self.side, (self.salt, first + index)), None, first + index)
            for index, client in enumerate(clients)
        ]


@final
@dataclass(frozen=True)
class DataParallel(Workload):
    """All callers meet before each step and take the same new values, as the ranks of one training job do."""

    side: int = SIDE
    salt: int = 0
    one_process: bool = True

    def callers(self, clients: list[Client], first: int) -> list[Caller]:
        """All have the same stream of values."""
        barrier = threading.Barrier(len(clients))
        return [
            Trainer(client, Changing(self.side, (self.salt,)), barrier, index) for index, client in enumerate(clients)
        ]


@final
class Steps(Scenario):
    """What a training job does."""

    name = "steps"
    about = "new values on one pattern each step, forward and backward"

    def rows(self, bench: Bench) -> Iterator[Row]:
        """A closed loop: a training job waits for its gradients."""
        yield self.measure(bench, "closed", Plan(Training(salt=bench.salt), bench.url, bench.seconds, callers=2))


@final
class Ranks(Scenario):
    """What a data-parallel training job does."""

    name = "ranks"
    about = "8 ranks take the same new matrix each step, forward and backward"

    def rows(self, bench: Bench) -> Iterator[Row]:
        """A closed loop in step."""
        yield self.measure(bench, "closed", Plan(DataParallel(salt=bench.salt), bench.url, bench.seconds, callers=8))


@final
class Reader(Caller):
    """Solves with one of many matrices, the popular ones more often."""

    def __init__(self, client: Client, matrices: list[csr_array], exponent: float, number: int) -> None:
        self._client, self._matrices = client, matrices
        weights = np.arange(1, len(matrices) + 1) ** -exponent
        self._shares = weights / weights.sum()
        self._rng = np.random.default_rng([915_448_027, number])
        self._A: Any = None
        self._b = self._x = np.zeros(0)

    def prepare(self, k: int) -> None:
        """Draw a matrix and a right-hand side."""
        self._A = self._matrices[self._rng.choice(len(self._matrices), p=self._shares)]
        self._b = self._rng.standard_normal(self._A.shape[0])

    def step(self) -> None:
        """One solve."""
        self._x = self._client.solve(self._A, self._b).x

    def check(self) -> bool:
        """By its residual."""
        return solves(self._A, self._x, self._b)


@final
@dataclass(frozen=True)
class Popular(Workload):
    """Matrices with a pattern each, asked for by Zipf's law."""

    side: int
    count: int
    exponent: float

    def callers(self, clients: list[Client], first: int) -> list[Caller]:
        """They share the matrices."""
        matrices = [one_of_many(self.side, number) for number in range(self.count)]
        return [Reader(client, matrices, self.exponent, first + index) for index, client in enumerate(clients)]


@final
class Zipf(Scenario):
    """More than the cache can hold."""

    name = "zipf"
    about = "100 patterns by Zipf's law (exponent 1.1) through a cache that holds about a quarter of them"
    settings: ClassVar[Mapping[str, str]] = {"BACKSOLVE_CACHE_BYTES": "24MiB"}
    needs_own = True

    def rows(self, bench: Bench) -> Iterator[Row]:
        """A closed loop."""
        yield self.measure(bench, "closed", Plan(Popular(36, 100, 1.1), bench.url, bench.seconds))


@final
class Newcomer(Caller):
    """In each round, meets all other callers and solves with a matrix that the server has never seen."""

    def __init__(self, client: Client, barrier: threading.Barrier, side: int, salt: int, number: int) -> None:
        self._client, self._barrier, self._side, self._salt = client, barrier, side, salt
        self._rng = np.random.default_rng([160_553_298, number])
        self._round = 0
        self._A: Any = None
        self._b = self._x = np.zeros(0)

    def prepare(self, k: int) -> None:
        """The matrix of the next round."""
        self._A = one_of_many(self._side, self._round, self._salt)
        self._round += 1
        self._b = self._rng.standard_normal(self._A.shape[0])
        self._barrier.wait()

    def step(self) -> None:
        """One solve."""
        self._x = self._client.solve(self._A, self._b).x

    def check(self) -> bool:
        """By its residual."""
        return solves(self._A, self._x, self._b)

    def end(self) -> None:
        """Nobody waits for a caller that is done."""
        self._barrier.abort()


@final
@dataclass(frozen=True)
class Unknown(Workload):
    """All callers bring the same new matrix at the same moment."""

    side: int
    salt: int
    one_process: bool = True

    def callers(self, clients: list[Client], first: int) -> list[Caller]:
        """They meet."""
        barrier = threading.Barrier(len(clients))
        return [Newcomer(client, barrier, self.side, self.salt, index) for index, client in enumerate(clients)]


@final
class Cold(Scenario):
    """A stampede on a matrix that nobody has sent yet."""

    name = "cold"
    about = "32 callers bring the same unknown matrix at the same moment, again and again"

    def rows(self, bench: Bench) -> Iterator[Row]:
        """Rounds; each should cost one factorization."""
        callers = 32
        workload = Unknown(SIDE, bench.salt)
        plan = Plan(workload, bench.url, bench.seconds, most=20 * callers, callers=callers, warm=0, check_every=1)
        row = self.measure(bench, "rounds", plan)
        row.notes.append(
            f"{row.factorizations} factorizations and {row.uploads} uploads in {row.steps // callers} rounds"
        )
        yield row
