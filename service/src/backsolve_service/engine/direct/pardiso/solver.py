"""Sparse Cholesky, LDLᴴ, LDLᵀ and LU by PARDISO (Intel MKL, proprietary; extra "pardiso").

The order of a pattern is found once; each kind of matrix on it is laid out once, and its factors
share that. PARDISO searches pivots within supernodes only and replaces those that vanish, without
an error, so every new factor is tried on a vector before it is believed; where it fails, a safer
plan follows (`plans.py`). The library's own refinement is off: `answer` refines, and proves.

Source: Schenk and Gärtner, "On fast factorization pivoting methods for sparse symmetric indefinite
systems", ETNA 23 (2006).
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from backsolve.errors import SingularMatrixError
from backsolve.pattern import AnyPattern, IndexArray, Pattern
from backsolve.types import Array, Status, Trans

from ...base import Controls, Factor, FactorSpec, Outcome, Solver, Symbolic
from ...faults import factorize_each, singular
from ...operand import Operand
from ...tolerance import epsilon, pivoting_backward_error
from ..columns import checked, solve_each
from ..probe import trial
from .handles import Handle, Shelf, Slot, order_of
from .plans import Plan, Plans

MAX_COLUMNS = 64
"""A sweep reads L and U once for all columns of a block."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """A pattern by rows, or its upper triangle, with 32-bit indices.

    Attributes:
        indptr, indices: int32.
        positions: which entry of the canonical values stands at each entry; None: they are the same.
    """

    indptr: IndexArray
    indices: IndexArray
    positions: IndexArray | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(int(a.nbytes) for a in (self.indptr, self.indices, self.positions) if a is not None)

    def take(self, values: Array) -> Array:
        """One system's values, in this order."""
        return np.ascontiguousarray(values) if self.positions is None else values.take(self.positions)


@final
@dataclass(frozen=True, eq=False)
class PardisoSymbolic(Symbolic):
    """The order of a pattern, and what the library lays out with it.

    Attributes:
        pattern: the pattern.
        rows: by whether the matrix is mirrored; without a full diagonal, as it is alone.
        shelf: slots for factors in the pattern's order; None without a full diagonal.
        analysis_nbytes, factor_nbytes: of a real general matrix in that order, in double precision.
    """

    pattern: AnyPattern
    rows: dict[bool, Rows]
    shelf: Shelf | None = None
    analysis_nbytes: int = 0
    factor_nbytes: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, the order, and one analysis."""
        return sum(rows.nbytes for rows in self.rows.values()) + 4 * self.pattern.n + self.analysis_nbytes

    def predicted_nbytes(self, precision: str) -> int | None:
        """Bytes of L and U; of a mirrored matrix half as many. None without a full diagonal."""
        if self.pattern.n == 0:
            return 0
        if self.shelf is None:
            return None
        return self.factor_nbytes * np.dtype(precision).itemsize // np.dtype(np.float64).itemsize


@final
@dataclass(frozen=True, eq=False)
class PardisoFactor(Factor):
    """A slot of the library for each system; None where a system has no factor."""

    operand: Operand
    slots: tuple[Slot | None, ...]
    statuses: tuple[Status, ...]

    direct = True
    max_columns = MAX_COLUMNS

    @property
    def nbytes(self) -> int:
        """Bytes of the factors as the library foresaw them, and of what belongs to one factor alone."""
        return sum(slot.nbytes for slot in self.slots if slot is not None)

    @property
    def condition(self) -> float | None:
        """Not told by the library. The certificate has a free lower bound."""
        return None

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """Two triangular sweeps; with a product or two more where pivots were replaced."""
        del controls
        x = solve_each(self.slots, rhs, lambda slot, b: slot.solve(b, trans))
        return Outcome(x, self.statuses, (0,) * len(self.statuses))


@final
class Pardiso(Solver):
    """Any square nonsingular sparse matrix; best where the fill is large."""

    name = "pardiso"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Order the pattern by nested dissection.

        Raises:
            SingularMatrixError: no values on this pattern are invertible.
            InvalidPatternError: the pattern is dense.
            NotSupportedError: it has more entries than 32-bit indices reach.
        """
        del spec
        pattern, facts = checked(pattern, self.name)
        whole = Rows(pattern.indptr.astype(np.int32, copy=False), pattern.indices.astype(np.int32, copy=False))
        if pattern.n == 0 or not facts.full_diagonal:
            return PardisoSymbolic(pattern, {False: whole})
        rows = {False: whole, True: _upper(pattern)} if facts.symmetric_pattern else {False: whole}
        order, found = order_of(whole.indptr, whole.indices)
        shelf = Shelf({mirrored: (each.indptr, each.indices) for mirrored, each in rows.items()}, order)
        return PardisoSymbolic(pattern, rows, shelf, found.analysis_nbytes, found.factor_nbytes)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Factorize by the first plan that its probe confirms.

        Raises:
            SingularMatrixError: rows were matched with columns by size, and still a pivot is zero up to rounding.
            NonfiniteInputError: the matrix holds NaN or infinity.
            MemoryBudgetError: the factors do not fit in memory.
        """
        del spec
        symbolic.check(operand)
        assert isinstance(symbolic, PardisoSymbolic)
        plans = Plans(operand, full_diagonal=symbolic.shelf is not None)
        slots, statuses = factorize_each(operand, lambda index: _one(symbolic, operand, index, plans))
        return PardisoFactor(operand, slots, statuses)


def _upper(pattern: Pattern) -> Rows:
    stored = np.flatnonzero(pattern.indices >= pattern.rows).astype(np.int32)
    counts = np.bincount(pattern.rows[stored], minlength=pattern.n)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return Rows(indptr, pattern.indices[stored].astype(np.int32, copy=False), stored)


def _one(symbolic: PardisoSymbolic, operand: Operand, index: int, plans: Plans) -> Slot | None:
    if operand.n == 0:
        return None
    for plan in plans.of(index):
        slot = _tried(symbolic, operand, index, plan, plans.single)
        if slot is not None:
            return slot
    raise singular()


def _tried(symbolic: PardisoSymbolic, operand: Operand, index: int, plan: Plan, single: bool) -> Slot | None:
    """A factor by one plan; None where it cannot be had so, or is not good enough."""
    rows = symbolic.rows[plan.kind.mirrored]
    values = rows.take(operand.systems[index].data)
    settings = plan.settings(single)
    try:
        if plan.ordered and symbolic.shelf is not None:
            slot = symbolic.shelf.open(plan.kind, single, values, **settings)
        else:
            handle = Handle(plan.kind, single, rows.indptr, rows.indices, **settings)
            handle.analyze(values)
            slot = Slot(handle, values)
        replaced = slot.factorize()
    except SingularMatrixError:
        return None
    if plan.last:
        # What misses the limit without a replaced pivot is ill-conditioned, as its certificates will say.
        return None if replaced else slot
    tried = trial(lambda b: slot.solve(b, "N"), operand, index)
    good = tried.backward <= pivoting_backward_error(operand.dtype)
    if replaced:
        good = good and tried.relative <= epsilon(operand.dtype) ** 0.5
    return slot if good else None
