"""A factor of A whose columns were multiplied by powers of two, so that no pivot underflows on the way.

Elimination may make pivots much smaller than any entry of A; one that underflows looks like a zero. The columns
are brought near the square root of the largest number. That is exact, and partial pivoting, which compares entries
of one column, takes the same rows: each number of the elimination is what it was, times the power of its column.
So a pivot that is zero again is zero.
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
    """A factor of `A 2^columns`.

    Attributes:
        operand: A.
        inner: the factor.
        columns: `[n, 1]` exponents.
    """

    operand: Operand
    inner: Factor
    columns: Array

    direct = True

    @property
    def max_columns(self) -> int:
        """As of the factor."""
        return self.inner.max_columns

    @property
    def nbytes(self) -> int:
        """Bytes of the factor, of the matrix that it is of, and of the exponents."""
        return self.inner.nbytes + self.inner.operand.nbytes + int(self.columns.nbytes)

    @property
    def note(self) -> str | None:
        """What was done to the matrix."""
        return "a pivot of A underflows, so its columns were multiplied by powers of two"

    @property
    def condition(self) -> float | None:
        """Not known of A: `conditioning.lower_bound` asks for it, once."""
        return None

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """As the factor; what leaves the range is infinite, or zero."""
        if trans == "N":
            found = self.inner.solve(rhs, trans, controls)
            return replace(found, x=shift(found.x, self.columns), proof=None)
        return replace(self.inner.solve(shift(rhs, self.columns), trans, controls), proof=None)


def lifted(operand: Operand) -> tuple[Operand, Array] | None:
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
    return Operand(Matrix(pattern, shift(values, each))), columns[:, None]
