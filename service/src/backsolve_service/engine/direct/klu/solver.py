"""Sparse LU by KLU, for circuits and other matrices with little fill.

The analysis is kept per pattern. New values on a pattern take over the pivots of the latest factor
that is still alive, which halves the work, in a copy of it: factors are immutable. Pivots that were
chosen for other values may lose every digit, so a solve proves them, and where the proof fails they
are chosen anew.

Source: Davis and Palamadai Natarajan, "Algorithm 907: KLU, a direct sparse solver for circuit
simulation problems", ACM Transactions on Mathematical Software 37 (2010).
"""

import weakref
from dataclasses import dataclass, field
from typing import final

import numpy as np

from backsolve.pattern import AnyPattern
from backsolve.types import Array, Status, Trans

from ...base import Controls, Factor, FactorSpec, Outcome, Pivots, Solver, Symbolic
from ...faults import factorize_each
from ...operand import Operand
from ...tolerance import direct_backward_error, pivoting_backward_error
from ..columns import Columns, by_columns, solve_each
from ..probe import probe
from .numeric import Analysis, Numeric, factored

MAX_COLUMNS = 16
"""A column of 16 costs .3-.5 of one alone."""

_BYTES_PER_INDEX = 8
"""KLU stores an index in the room of a number."""

_LEAST_GROWTH = 1e-6
"""Reciprocal pivot growth below which kept pivots are given up: a solve proves one right-hand side, this bounds all."""


@final
@dataclass(frozen=True, eq=False)
class KluSymbolic(Symbolic):
    """The block triangular form of a pattern and the order within its blocks.

    Attributes:
        pattern: the pattern.
        columns: the pattern by columns.
        analysis: KLU's; None when n is 0.
        latest: by kind of number, the factor whose pivots were chosen or proved last, as long as anybody holds it.
    """

    pattern: AnyPattern
    columns: Columns
    analysis: Analysis | None
    latest: "weakref.WeakValueDictionary[str, Numeric]" = field(default_factory=weakref.WeakValueDictionary)

    @property
    def nbytes(self) -> int:
        """Bytes of the analysis (six vectors) and of the gather."""
        return self.columns.nbytes + 6 * 4 * self.pattern.n

    def predicted_nbytes(self, precision: str) -> int | None:
        """As much as L and U have at least, if every pivot is on the diagonal."""
        if self.analysis is None:
            return 0
        return self.analysis.least_entries * (np.dtype(precision).itemsize + _BYTES_PER_INDEX)

    def predicted_fill(self) -> float | None:
        """As if every pivot were on the diagonal."""
        return 0.0 if self.analysis is None else self.analysis.least_entries / self.pattern.nnz


@final
@dataclass(frozen=True, eq=False)
class KluFactor(Factor):
    """L, U and the entries above the diagonal blocks; None where a system has no factor."""

    operand: Operand
    handles: tuple[Numeric | None, ...]
    statuses: tuple[Status, ...]
    came: Pivots

    direct = True
    anywhere = True
    max_columns = MAX_COLUMNS

    @property
    def nbytes(self) -> int:
        """Bytes of the factors' entries with their indices."""
        per_entry = self.operand.wide_dtype.itemsize + _BYTES_PER_INDEX
        return sum(handle.entries * per_entry for handle in self.handles if handle is not None)

    @property
    def pivoting(self) -> Pivots:
        """Of a batch, the dearest that happened to any system."""
        return self.came

    @property
    def note(self) -> str | None:
        """Whose pivots they are, where the pattern has had a factor before."""
        return _NOTES[self.came]

    @property
    def condition(self) -> float | None:
        """Not estimated: KLU's own estimate costs solves. The certificate has a free lower bound."""
        return None

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """Two triangular sweeps a block, in double precision; solves with one factor take turns."""
        del controls
        x = solve_each(self.handles, rhs, lambda handle, b: handle.solve(b, trans))
        return Outcome(x, self.statuses, (0,) * len(self.statuses))


_DEAREST: tuple[Pivots, ...] = ("refused", "new", "kept")

_NOTES: dict[Pivots, str | None] = {
    "new": None,
    "kept": "pivots of the values before, proved by a solve",
    "refused": "pivots of the values before were not good enough, so they were chosen anew",
}


@final
class Klu(Solver):
    """Any square nonsingular sparse matrix; computed in double precision."""

    name = "klu"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Find the block triangular form, and order each block by minimum degree."""
        del spec
        columns = by_columns(pattern, self.name)
        return KluSymbolic(pattern, columns, Analysis(pattern.n, columns) if pattern.n else None)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Factorize with kept pivots, else with pivots near the diagonal, else with full pivoting: the first proved.

        Raises:
            SingularMatrixError: a pivot is exactly zero.
            NonfiniteInputError: the matrix holds NaN or infinity.
            MemoryBudgetError: L and U do not fit in memory.
        """
        del spec
        symbolic.check(operand)
        assert isinstance(symbolic, KluSymbolic)
        came: list[Pivots] = []
        handles, statuses = factorize_each(operand, lambda index: _one(symbolic, operand, index, came))
        return KluFactor(operand, handles, statuses, next((kind for kind in _DEAREST if kind in came), "new"))


def _one(symbolic: KluSymbolic, operand: Operand, index: int, came: list[Pivots]) -> Numeric | None:
    if symbolic.analysis is None:
        return None
    values = operand.wide[index].data.take(symbolic.columns.positions)
    latest = symbolic.latest.get(operand.wide_dtype.kind)
    handle = None if latest is None else _kept(latest, values, operand, index)
    came.append("new" if latest is None else "refused" if handle is None else "kept")
    if handle is None:
        handle = _chosen(symbolic, symbolic.analysis, values, operand, index)
    symbolic.latest[operand.wide_dtype.kind] = handle
    return handle


def _kept(latest: Numeric, values: Array, operand: Operand, index: int) -> Numeric | None:
    """The factor with another one's pivots, where a solve that is refined once shows them good enough."""
    handle = latest.refactored(values)
    if handle is None or not handle.growth(values) >= _LEAST_GROWTH:
        return None
    limit = direct_backward_error(operand.dtype)
    proved = any(probe(lambda b: handle.solve(b, "N"), operand, index, refinements=steps) <= limit for steps in (0, 1))
    return handle if proved else None


def _chosen(symbolic: KluSymbolic, analysis: Analysis, values: Array, operand: Operand, index: int) -> Numeric:
    """The factor with pivots of its own."""
    handle = factored(analysis, values, None if symbolic.columns.full_diagonal else 1.0)
    limit = pivoting_backward_error(operand.dtype)
    if probe(lambda b: handle.solve(b, "N"), operand, index) <= limit:
        return handle
    return factored(analysis, values, 1.0)
