"""Sparse LU and LDLᵀ by MUMPS (CeCILL-C; Debian's libmumps-seq-5.5), multifrontal, with threshold pivoting.

Each factor is an instance of the library; what factors of one pattern share is its order. Pivots
that would be too small are put off to where larger ones can be had, so no matrix needs another
plan. The library has one state for all of a process, and its methods run in a process of their own.

Source: Amestoy, Duff, L'Excellent and Koster, "A fully asynchronous multifrontal solver using
distributed dynamic scheduling", SIAM J. Matrix Anal. Appl. 23 (2001).
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from backsolve.pattern import AnyPattern, IndexArray
from backsolve.types import Array, Status, Trans

from ...base import Controls, Factor, FactorSpec, Outcome, Solver, Symbolic
from ...faults import factorize_each, systems
from ...operand import Operand
from ...symmetry import hermitian_systems
from ..columns import checked, solve_each
from .instance import Instance

MAX_COLUMNS = 32
"""The library takes so many columns at once itself."""


@final
@dataclass(frozen=True, eq=False)
class MumpsSymbolic(Symbolic):
    """The order of a pattern.

    Attributes:
        pattern: the pattern.
        rows, columns: of each entry, int32 and from one.
        lower: which entries are on the diagonal or below it.
        order: place of each row, int32 and from one; None without a full diagonal.
        symmetric: (i, j) is stored if and only if (j, i) is.
        entries, integers: of the factors of a general matrix in that order.
    """

    pattern: AnyPattern
    rows: IndexArray
    columns: IndexArray
    lower: IndexArray
    order: IndexArray | None
    symmetric: bool
    entries: int
    integers: int

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        order = 0 if self.order is None else int(self.order.nbytes)
        return int(self.rows.nbytes + self.columns.nbytes + self.lower.nbytes) + order

    def predicted_nbytes(self, precision: str) -> int | None:
        """Bytes of L and U, of a mirrored matrix half as many; None without a full diagonal."""
        if self.pattern.n == 0:
            return 0
        return None if self.order is None else self.entries * np.dtype(precision).itemsize + 4 * self.integers


@final
@dataclass(frozen=True, eq=False)
class Part:
    """The factor of one system.

    Attributes:
        instance: the library's.
        nbytes: of the factors, of gathered values and of an entry list of its own.
    """

    instance: Instance
    nbytes: int


@final
@dataclass(frozen=True, eq=False)
class MumpsFactor(Factor):
    """An instance of the library for each system; None where a system has no factor."""

    operand: Operand
    parts: tuple[Part | None, ...]
    statuses: tuple[Status, ...]

    direct = True

    @property
    def max_columns(self) -> int:
        """Columns of a block that still gain."""
        return MAX_COLUMNS

    @property
    def nbytes(self) -> int:
        """Bytes of the factors as the library tells them."""
        return sum(part.nbytes for part in self.parts if part is not None)

    @property
    def condition(self) -> float | None:
        """Not told by the library. The certificate has a free lower bound."""
        return None

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """Two triangular sweeps."""
        del controls
        x = solve_each(self.parts, rhs, lambda part, b: part.instance.solve(b, trans))
        return Outcome(x, self.statuses, (0,) * len(self.statuses))


@final
class Mumps(Solver):
    """Any square nonsingular sparse matrix; best where the fill is large."""

    name = "mumps"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Order the pattern by nested dissection.

        Raises:
            SingularMatrixError: no values on this pattern are invertible.
            InvalidPatternError: the pattern is dense.
            NotSupportedError: it has more entries than 32-bit indices reach, or the library is another release.
        """
        del spec
        pattern, facts = checked(pattern, self.name)
        rows, columns = (np.asarray(of + 1, dtype=np.int32) for of in (pattern.rows, pattern.indices))
        lower = np.flatnonzero(rows >= columns).astype(np.int32)
        order, entries, integers = None, 0, 0
        if pattern.n and facts.full_diagonal:
            instance = Instance("float64", pattern.n, rows, columns, mirrored=False)
            instance.analyze()
            order, (entries, integers) = instance.order, instance.foreseen
        return MumpsSymbolic(pattern, rows, columns, lower, order, facts.symmetric_pattern, entries, integers)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Factorize as LDLᵀ what equals its transpose, else as LU.

        Raises:
            SingularMatrixError: a pivot is zero.
            NonfiniteInputError: the matrix holds NaN or infinity.
            MemoryBudgetError: the factors do not fit in memory.
        """
        del spec
        symbolic.check(operand)
        assert isinstance(symbolic, MumpsSymbolic)
        mirrored = np.zeros(systems(operand), dtype=bool)
        if symbolic.symmetric and symbolic.order is not None and operand.batch != 0:
            mirrored = hermitian_systems(operand, conjugate=False)
        parts, statuses = factorize_each(operand, lambda index: _one(symbolic, operand, index, bool(mirrored[index])))
        return MumpsFactor(operand, parts, statuses)


def _one(symbolic: MumpsSymbolic, operand: Operand, index: int, mirrored: bool) -> Part | None:
    if operand.n == 0:
        return None
    rows, columns, values = symbolic.rows, symbolic.columns, operand.systems[index].data
    gathered = 0
    if mirrored:
        rows, columns, values = (each.take(symbolic.lower) for each in (rows, columns, values))
        gathered = int(rows.nbytes + columns.nbytes + values.nbytes)
    values = np.ascontiguousarray(values)
    instance = Instance(operand.dtype.name, operand.n, rows, columns, mirrored=mirrored)
    if symbolic.order is None:
        instance.analyze(values)
    else:
        instance.analyze(order=symbolic.order)
    instance.factorize(values)
    return Part(instance, instance.factor_nbytes + gathered)
