"""A factor of A whose columns, or rows as well, were multiplied by powers of two, so that no pivot looks like a zero.

Elimination may make pivots much smaller than any entry of A; one that underflows looks like a zero. The columns
are brought near the square root of the largest number. That is exact, and partial pivoting, which compares entries
of one column, takes the same rows: each number of the elimination is what it was, times the power of its column.
So a pivot that is zero again is zero, unless a row of L has underflowed, whose entries are ratios within columns.

Reflections mix all rows of a column, and lose those that are tiny beside the others: for QR the rows are brought near 1
as well.
"""

from dataclasses import dataclass, replace
from typing import final

import numpy as np

from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import Array, Trans

from .base import Controls, Factor, Outcome
from .operand import Operand
from .scaling import exponents, magnitude, shift


@final
@dataclass(frozen=True, eq=False)
class LiftedFactor(Factor):
    """A factor of `2^rows A 2^columns`.

    Attributes:
        operand: A.
        inner: the factor.
        columns: `[n, 1]` exponents.
        rows: `[n, 1]` exponents; None: 0.
    """

    operand: Operand
    inner: Factor
    columns: Array
    rows: Array | None = None

    direct = True

    @property
    def max_columns(self) -> int:
        """As of the factor."""
        return self.inner.max_columns

    @property
    def nbytes(self) -> int:
        """Bytes of the factor, of the matrix that it is of, and of the exponents."""
        powers = int(self.columns.nbytes) * (1 if self.rows is None else 2)
        return self.inner.nbytes + self.inner.operand.nbytes + powers

    @property
    def note(self) -> str | None:
        """What was done to the matrix."""
        if self.rows is not None:
            return "rows and columns of A differ so much in size that both were multiplied by powers of two"
        return "a pivot of A underflows, so its columns were multiplied by powers of two"

    @property
    def condition(self) -> float | None:
        """Not known of A: `conditioning.lower_bound` asks for it, once."""
        return None

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """As the factor; what leaves the range is infinite, or zero."""
        before, after = (self.rows, self.columns) if trans == "N" else (self.columns, self.rows)
        found = self.inner.solve(rhs if before is None else shift(rhs, before), trans, controls)
        return replace(found, x=found.x if after is None else shift(found.x, after), proof=None)


def levelled(operand: Operand) -> tuple[Operand, Array, Array] | None:
    """`2^rows A 2^columns` of a single dense matrix, its columns' and rows' exponents; None where that changes nothing.

    The largest entry of each row is brought near 1, then that of each column.
    """
    values = operand.values
    if not values.size:
        return None
    rows = -exponents(magnitude(values, 1))
    within = shift(values, rows[:, None])
    columns = -exponents(magnitude(within, 0))
    if not (rows.any() or columns.any()):
        return None
    return Operand(Matrix(operand.pattern, shift(within, columns))), columns[:, None], rows[:, None]


def lifted(operand: Operand) -> tuple[Operand, Array, None] | None:
    """`A 2^columns` of a single dense or sparse matrix, and the exponents; None where that changes nothing."""
    pattern, values = operand.pattern, operand.values
    if not values.size:
        return None
    if isinstance(pattern, Pattern):
        largest = np.zeros(operand.n, dtype=values.real.dtype)
        np.maximum.at(largest, pattern.indices, magnitude(values[None], 0))
    else:
        largest = magnitude(values, 0)
    top = int(np.finfo(operand.dtype).maxexp) // 2
    columns = np.where(largest > 0, top - exponents(largest), 0)
    if not columns.any():
        return None
    each = columns[pattern.indices] if isinstance(pattern, Pattern) else columns
    return Operand(Matrix(pattern, shift(values, each))), columns[:, None], None
