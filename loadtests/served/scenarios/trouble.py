"""Scenarios in which something is wrong: too much load, a dead server, callers that dawdle, one that is huge."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import numpy as np

from backsolve import Client
from loadtests.target import Target

from ..dawdlers import Dawdlers
from ..generator import Plan, run
from ..problems import Changing, solves
from ..rows import Row
from ..tally import Tally
from ..workload import Caller, Workload
from .base import Bench, Scenario
from .matrices import OneMatrix, Training


@final
class Refiner(Caller):
    """Solves with new values each step, so that each step costs the server a factorization."""

    def __init__(self, client: Client, systems: Changing, number: int) -> None:
        self._client, self._systems = client, systems
        self._rng = np.random.default_rng([633_905_172, number])
        self._A: Any = None
        self._b = self._x = np.zeros(0)

    def prepare(self, k: int) -> None:
        """New values; `k` is another one for each step of the run."""
        self._A = self._systems.at(k)
        self._b = self._rng.standard_normal(self._systems.n)

    def step(self) -> None:
        """One solve."""
        self._x = self._client.solve(self._A, self._b).x

    def check(self) -> bool:
        """By its residual."""
        return solves(self._A, self._x, self._b)


@final
@dataclass(frozen=True)
class Factorizing(Workload):
    """Each step is a matrix that nobody has sent before; `stream` tells runs on one server apart."""

    side: int
    stream: int
    salt: int = 0

    def callers(self, clients: list[Client], first: int) -> list[Caller]:
        """They share one sequence of matrices."""
        systems = Changing(self.side, (self.salt, self.stream))
        return [Refiner(client, systems, first + index) for index, client in enumerate(clients)]


@final
class Overload(Scenario):
    """Three times as much as the server can do.

    Systems are so large that a step costs the server many times what it costs the callers: they have one core, on which
    those that are refused must not keep the others waiting.
    """

    name = "overload"
    about = "a new matrix each step: measured capacity, then an open loop at three times that rate"
    settings: ClassVar[Mapping[str, str]] = {"BACKSOLVE_QUEUE_DEPTH": "16", "BACKSOLVE_WORKERS": "1"}
    apart = True
    needs_own = True
    may_fail = True

    def rows(self, bench: Bench) -> Iterator[Row]:
        """Goodput under overload should stay near the capacity, and failures come within their deadline."""
        patience = 4.0
        capacity = self.measure(
            bench, "capacity", Plan(Factorizing(150, 1, bench.salt), bench.url, bench.seconds, limit=patience)
        )
        yield capacity
        rate = max(3 * capacity.throughput, 3.0)
        plan = Plan(
            Factorizing(150, 2, bench.salt),
            bench.url,
            bench.seconds,
            callers=min(int(rate * patience) + 8, 512),
            rate=rate,
            timeout=patience,
            limit=patience,
        )
        row = self.measure(bench, "three times as much", plan)
        share = row.goodput / max(capacity.goodput, 1e-9)
        row.notes.append(str(Target("goodput, of the capacity's", share, 0.9, at_most=False)))
        yield row


@final
class Restart(Scenario):
    """The server dies in the middle and comes back with an empty cache."""

    name = "restart"
    about = "kill -9 after a third of an open loop, restart on the same port; callers' clients wait and send again"
    needs_own = True

    def rows(self, bench: Bench) -> Iterator[Row]:
        """Every step should be answered, some late."""
        own = bench.own
        assert own is not None
        notes: list[str] = []

        def kill_and_restart() -> None:
            time.sleep(bench.seconds / 3)
            began = time.monotonic()
            own.kill()
            own.start()
            notes.append(f"no server for {time.monotonic() - began:.1f} s")

        plan = Plan(OneMatrix(), bench.url, bench.seconds, callers=8, rate=40.0, timeout=60.0, check_every=1)
        yield self.measure(bench, "open", plan, during=kill_and_restart, notes=notes)


@final
class Slow(Scenario):
    """Uploads that dawdle, stop, or break off."""

    name = "slow"
    about = "good callers, first alone, then beside 12 uploads that dawdle, stop in the middle, or break off"

    def rows(self, bench: Bench) -> Iterator[Row]:
        """The good callers should see no difference."""
        plan = Plan(OneMatrix(), bench.url, bench.seconds)
        yield self.measure(bench, "alone", plan)
        dawdlers = Dawdlers(bench.url, 12, bench.seconds)
        row = self.measure(bench, "beside dawdlers", plan, during=dawdlers.run)
        row.notes.append(f"{dawdlers.begun} uploads begun, none of them ended")
        yield row


@final
class Huge(Scenario):
    """One huge system among small ones."""

    name = "huge"
    about = "small steps of 4 callers, first alone, then beside one caller with a matrix 30 times as large"

    def rows(self, bench: Bench) -> Iterator[Row]:
        """What the small ones see."""
        small = Plan(Training(40, bench.salt), bench.url, bench.seconds)
        yield self.measure(bench, "small alone", small)
        # Other values than before, or every factor would be there already.
        small = replace(small, workload=Training(40, bench.salt + 100))
        workload = Factorizing(220, 3, bench.salt)
        large = Plan(workload, bench.url, bench.seconds, callers=1, warm=0, check_every=1)
        found: list[Tally] = []
        row = self.measure(bench, "small beside huge", small, during=lambda: found.append(run(large)))
        slowest = found[0].answered.percentile(50)
        row.notes.append(
            f"beside them {found[0].right} huge solves, median {slowest or 0:.2f} s, errors {dict(found[0].errors)}"
        )
        yield row


@final
class Soak(Scenario):
    """The same for long: does anything grow?"""

    name = "soak"
    about = "training steps for twice the usual time, at most 100 000: the slope of the server's memory"
    settings: ClassVar[Mapping[str, str]] = {"BACKSOLVE_CACHE_BYTES": "24MiB"}

    def rows(self, bench: Bench) -> Iterator[Row]:
        """The cache is full soon, so that what grows after that is a leak."""
        yield self.measure(
            bench,
            "closed",
            Plan(Training(30, bench.salt), bench.url, 2 * bench.seconds, most=100_000, callers=4, warm=20),
        )
