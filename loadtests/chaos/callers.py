"""Callers whose every answer is checked, and whose every call is timed against its own deadline."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, final

import numpy as np
from scipy.sparse import csr_array

from backsolve import Client
from backsolve.errors import BacksolveError
from loadtests.served.problems import Changing, grid, pulls, solves

T = TypeVar("T")

GRACE_SECONDS = 5.0
"""How much later than its deadline a call may end on a busy machine before it counts as hung."""

PAUSE_SECONDS = 0.2
"""The longest that a caller rests before a call: what goes wrong meanwhile falls on early and late calls alike."""

TIMEOUTS = (1.0, 3.0, 8.0)
SIDE, BULKY_SIDE, BULKY_COLUMNS = 20, 110, 48
"""Bulky calls carry 4.6 MB each way: over gRPC they are streams of frames."""


CALLERS, CALLS = 4, 6

SHARED = -1
"""In place of a caller's number: the matrix that all callers of a round share."""


def matrix_of(seed: int, number: int, turn: int) -> csr_array:
    """The small matrix of one caller in one turn, of a round with this seed; of `SHARED`, the same in all turns."""
    return Changing(SIDE, (seed % (1 << 31), number + 1)).at(0 if number == SHARED else turn)


@final
@dataclass
class Findings:
    """What became of the calls, and everything that should not be. Thread-safe.

    Attributes:
        answered: calls with a right answer.
        errors: calls that failed with a typed error, by code; none of them is a fault here.
        faults: wrong answers, errors of other types, calls that hung, leaks; one line each.
        harm: cuts and flips on the wire.
        told: calls of everybody, the mischievous ones included, by how the server said they ended.
    """

    answered: int = 0
    harm: int = 0
    told: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def answer(self) -> None:
        """A right answer in time."""
        with self._lock:
            self.answered += 1

    def error(self, code: str) -> None:
        """A typed error in time."""
        with self._lock:
            self.errors[code] += 1

    def fault(self, text: str) -> None:
        """Something that must not be."""
        with self._lock:
            self.faults.append(text)

    def add(self, other: "Findings") -> None:
        """Take in another round's."""
        self.answered += other.answered
        self.harm += other.harm
        self.told.update(other.told)
        self.errors.update(other.errors)
        self.faults += other.faults


@final
class GoodCallers:
    """Threads that solve, and pull gradients back, through whatever lies between them and the server.

    Args:
        url: where.
        seed: of everything they do.
        count: how many; they share one matrix and have others of their own.
        calls: of each.
        checked: whether answers must be right; on a wire that flips bits nobody can promise that.
    """

    def __init__(self, url: str, seed: int, *, count: int = CALLERS, calls: int = CALLS, checked: bool = True) -> None:
        self._url, self._seed, self._calls, self._checked = url, seed, calls, checked
        self.findings = Findings()
        self._threads = [threading.Thread(target=self._work, args=(k,), daemon=True) for k in range(count)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def join(self) -> Findings:
        """Wait until all are done; one that never is becomes a finding."""
        # A gradient is two calls, so each turn may take two deadlines.
        deadline = time.monotonic() + self._calls * 2 * (max(TIMEOUTS) + GRACE_SECONDS)
        for number, thread in enumerate(self._threads):
            thread.join(max(deadline - time.monotonic(), 0))
            if thread.is_alive():
                self.findings.fault(f"caller {number} hangs")
        return self.findings

    def _work(self, number: int) -> None:
        rng = random.Random(f"{self._seed} {number}")
        try:
            with Client(self._url) as client:
                for turn in range(self._calls):
                    time.sleep(rng.uniform(0, PAUSE_SECONDS))
                    self._turn(client, rng, number, turn)
        except BaseException as err:  # on a thread of its own it would only be printed
            self.findings.fault(f"caller {number} ended with {type(err).__name__}: {err}")

    def _turn(self, client: Client, rng: random.Random, number: int, turn: int) -> None:
        kind = rng.choice(("shared", "new", "gradient", "gradient", "bulky" if turn % 2 else "new"))
        whose = SHARED if kind == "shared" else number
        A = grid(BULKY_SIDE) if kind == "bulky" else matrix_of(self._seed, whose, turn)
        numbers = np.random.default_rng([self._seed % (1 << 31), number, turn])
        n = A.shape[0]
        b = numbers.standard_normal((n, BULKY_COLUMNS) if kind == "bulky" else n)
        timeout = rng.choice(TIMEOUTS)

        what = f"{kind} call of caller {number}, turn {turn}"
        solution = self._timed(lambda: client.solve(A, b, timeout=timeout), timeout, what)
        if solution is None:
            return
        right = not self._checked or solves(A, solution.x, b)
        if right and kind == "gradient":
            gradients = self._timed(lambda: client.vjp(A, solution.x, b, timeout=timeout), timeout, what)
            if gradients is None:
                return
            right = not self._checked or pulls(A, solution.x, b, gradients)
        if right:
            self.findings.answer()
        else:
            self.findings.fault(f"WRONG ANSWER to the {what}")

    def _timed(self, call: Callable[[], T], timeout: float, what: str) -> T | None:
        """What the call returns, or None after an error; either way in time."""
        began = time.monotonic()
        result: T | None = None
        try:
            result = call()
        except BacksolveError as err:
            self.findings.error(err.code.name)
        except Exception as err:
            self.findings.fault(f"{what} failed with {type(err).__name__}, not one of ours: {err}")
        late = time.monotonic() - began - timeout
        if late > GRACE_SECONDS:
            self.findings.fault(f"{what} ended {late:.1f} s after its deadline of {timeout:g} s")
        return result
