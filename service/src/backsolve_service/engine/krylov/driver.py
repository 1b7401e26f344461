"""From cycles of a recurrence to an answer that its own true residual proves.

A recurrence only proposes: after each cycle the residual b - A x is computed, and it decides. What
has not converged begins anew from there, as long as cycles still gain something.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np

from backsolve.types import Array

from .problem import Finished, Problem, Stop, norms

_FLOOR = 1e-20
"""Where the recurrence says so little remains of b, the true residual has long stopped falling."""

_ORTHOGONAL = 1e-10
"""A residual r with ||Aᴴr|| below this part of ||A|| ||r|| is orthogonal to the range: nothing reduces it."""

_PATIENCE = 3
"""Cycles in a row that may gain too little before a column counts as stagnated."""


@final
@dataclass(frozen=True, slots=True)
class Start:
    """Where a cycle begins.

    Attributes:
        x: `[c, n]` iterates.
        r: `[c, n]` their true residuals; none is zero.
        triggers: `[c]` 2-norms below which the recurrence may propose to stop.
        limits: `[c]` most products with A that each column may still take, 1 or more.
        attempts: `[c]` cycles in a row that gained each column too little so far.
    """

    x: Array
    r: Array
    triggers: Array
    limits: Array
    attempts: Array


@final
@dataclass(frozen=True, slots=True)
class Cycle:
    """What a cycle gave.

    Attributes:
        x: `[c, n]` new iterates; what is not a number is dropped.
        products: `[c]` products with A that the recurrence of each column has taken.
        broke: `[c]` columns that met a zero denominator.
    """

    x: Array
    products: Array
    broke: Array


Recurrence = Callable[[Problem, Start], Cycle]


def run(problem: Problem, cycle: Recurrence, progress: float, *, varies: bool = False) -> Finished:
    """Run cycles until each column is decided, each by its own count of products and of cycles in vain.

    Args:
        problem: what is solved.
        cycle: the recurrence, from a residual until it proposes to stop, breaks down, or has to restart.
        progress: factor by which a cycle's residual must fall to count as a gain.
        varies: a cycle depends on `Start.attempts`, so that going back to where one began can help.
    """
    return _Run(problem, cycle, progress, varies).finished()


@final
class _Run:
    """The state between cycles."""

    def __init__(self, problem: Problem, cycle: Recurrence, progress: float, varies: bool) -> None:
        self._problem, self._cycle, self._progress, self._varies = problem, cycle, progress, varies
        b = problem.b
        self._x = np.zeros_like(b) if problem.x0 is None else problem.x0.copy()
        # Where b = 0 the answer is 0, whatever x0 was.
        self._x[~b.any(axis=1)] = 0
        self._r = b.copy() if problem.x0 is None else b - problem.multiply(self._x)
        self._size = norms(self._r)
        self._stops = [Stop.LIMIT] * b.shape[0]
        self._fruitless = np.zeros(b.shape[0], dtype=np.int64)
        self._taken = np.zeros(b.shape[0], dtype=np.int64)
        self._triggers = np.maximum(problem.targets, _FLOOR * norms(b))

    def finished(self) -> Finished:
        """Cycle until nothing is left to decide."""
        undecided = self._undecided(np.arange(self._x.shape[0]))
        while undecided.size:
            self._problem.check()
            start = Start(
                self._x[undecided],
                self._r[undecided],
                self._triggers[undecided],
                self._problem.limit - self._taken[undecided],
                self._fruitless[undecided],
            )
            with np.errstate(all="ignore"):
                got = self._cycle(self._problem, start)
            self._taken[undecided] += got.products
            self._judge(undecided, got)
            undecided = self._undecided(undecided)
        return Finished(self._x, self._stops, int(self._taken.max(initial=0)))

    def _undecided(self, columns: Array) -> Array:
        """Those of `columns` that go on; the others get their reason."""
        size = self._size[columns]
        for column in columns[~np.isfinite(size)]:
            self._stops[column] = Stop.BROKE_DOWN
        for column in columns[size <= self._problem.targets[columns]]:
            self._stops[column] = Stop.CONVERGED
        open_ = np.array([self._stops[column] is Stop.LIMIT for column in columns], dtype=bool)
        return np.asarray(columns[open_ & (self._taken[columns] < self._problem.limit)])

    def _judge(self, columns: Array, got: Cycle) -> None:
        """Take over what a cycle improved, and decide the columns that gain nothing any more."""
        with np.errstate(all="ignore"):
            residual = self._problem.b[columns] - self._problem.multiply(got.x)
            size = norms(residual)
        before = self._size[columns]
        better = size < before  # false for what is not a number
        self._x[columns[better]] = got.x[better]
        self._r[columns[better]] = residual[better]
        self._size[columns[better]] = size[better]
        gained = size <= self._progress * before
        self._fruitless[columns] = np.where(gained, 0, self._fruitless[columns] + 1)
        # From where it began, a cycle that does not vary would only repeat itself.
        spent = (self._fruitless[columns] >= _PATIENCE) | ~(better | self._varies)
        spent &= self._taken[columns] < self._problem.limit
        broke = got.broke | ~np.isfinite(size)
        for column, of_column in zip(columns[spent], broke[spent], strict=True):
            self._stops[column] = self._spent(int(column), broke=bool(of_column))

    def _spent(self, column: int, *, broke: bool) -> Stop:
        """Why a column gains nothing: its residual is orthogonal to the range of A, or the method is at its end."""
        if self._size[column] <= self._problem.targets[column]:
            return Stop.CONVERGED
        residual = self._r[column : column + 1]
        seen = float(norms(self._problem.adjoint(residual))[0])
        if seen <= _ORTHOGONAL * self._problem.norm * float(self._size[column]):
            return Stop.INCONSISTENT
        return Stop.BROKE_DOWN if broke else Stop.STAGNATED
