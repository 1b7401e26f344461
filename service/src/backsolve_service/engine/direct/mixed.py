"""Mixed precision: a double matrix factorized in single, its answers refined to double.

Any direct method serves: it is given the matrix rounded to single precision, after rows and columns
were scaled by powers of two, so that no entry leaves the narrower range. `answer` refines more
patiently with such a factor, to the backward error of a double one.

Sources: Wilkinson, "Rounding Errors in Algebraic Processes", 1963, chapter 3; Langou, Langou,
Luszczek, Kurzak, Buttari and Dongarra, "Exploiting the performance of 32 bit floating point
arithmetic in obtaining 64 bit accuracy", SC 2006; Higham, "Accuracy and Stability of Numerical
Algorithms", 2nd edition, section 12.2, for where it converges: condition numbers below about 1e7.
"""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import final

import numpy as np

from backsolve.errors import NotPositiveDefiniteError, SingularMatrixError
from backsolve.matrix import Matrix
from backsolve.pattern import AnyPattern, Pattern
from backsolve.types import Array, Trans

from ..base import Controls, Factor, FactorSpec, Outcome, Solver, Symbolic
from ..operand import Operand
from ..scaling import exponents, shift
from ..tolerance import epsilon
from .condition import condition_number, inverse_norm

_NOTHING = -(2**20)
"""Stands for the exponent of zero: below that of any number, and sums of a few do not overflow."""


_FAR = 1e10
"""Products of two such numbers and three of their inverses are far from the ends of single precision."""
_ROUNDS = 12
"""Halvings that bring the largest exponent of a double below 2."""


@final
@dataclass(frozen=True, eq=False)
class MixedFactor(Factor):
    """A factor of `2^rows A 2^columns` in single precision.

    Attributes:
        operand: the matrix itself.
        inner: the factor of the scaled matrix.
        rows, columns: `[systems, n, 1]` exponents.
        estimate: of the condition number of A, where `inner` makes one cheap.
    """

    operand: Operand
    inner: Factor
    rows: Array
    columns: Array
    estimate: float | None = None

    direct = True
    max_columns = 32

    @property
    def narrow(self) -> bool:
        """Answers are single until they are refined."""
        return True

    @property
    def nbytes(self) -> int:
        """Bytes of the factor and of the exponents; the rounded matrix is not kept."""
        return self.inner.nbytes + int(self.rows.nbytes + self.columns.nbytes)

    @property
    def condition(self) -> float | None:
        """1-norm condition number; what single precision cannot tell from singular has about 1e8."""
        return self.estimate

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """Scale, solve in single precision, scale back: about half the digits of the answer."""
        stacked = rhs if rhs.ndim == 3 else rhs[None]
        before, after = (self.rows, self.columns) if trans == "N" else (self.columns, self.rows)
        # The largest entry of each column, as the scaled matrix meets it, comes to about 1.
        exponent = np.where(stacked == 0, _NOTHING, exponents(_size(stacked)) + before)
        powers = exponent.max(axis=1, keepdims=True, initial=_NOTHING)
        powers[powers == _NOTHING] = 0
        scaled = shift(stacked, before - powers).astype(self.inner.operand.dtype)
        found = self.inner.solve(scaled if rhs.ndim == 3 else scaled[0], trans, controls)
        x = shift(found.x.reshape(stacked.shape).astype(rhs.dtype), after + powers)
        return replace(found, x=x.reshape(rhs.shape), proof=None)  # that was of the rounded matrix


def is_mixed(operand: Operand, spec: FactorSpec) -> bool:
    """Whether the factor is wanted in a narrower type than the matrix has."""
    return epsilon(np.dtype(spec.precision)) > epsilon(operand.dtype)


def factorize_mixed(
    solver: Solver, symbolic: Symbolic, operand: Operand, spec: FactorSpec, *, symmetric: bool
) -> MixedFactor:
    """Scale, round, and factorize with `solver`.

    Args:
        solver: whose `symbolic` it is.
        symbolic: of the operand's pattern.
        operand: in double precision.
        spec: whose precision is the narrower type.
        symmetric: scale rows and columns alike, so that a Hermitian matrix stays one.

    Raises:
        SingularMatrixError, NotPositiveDefiniteError: the rounded matrix has no such factor.
        NonfiniteInputError: the matrix holds NaN or infinity.
    """
    rows, columns, values = _scaled(operand, symmetric)
    narrow = Operand(Matrix(operand.pattern, values.astype(spec.precision)))
    try:
        inner = solver.factorize(symbolic, narrow, spec)
    except SingularMatrixError as error:
        raise SingularMatrixError(
            "in single precision the matrix is singular: use precision='full', or solve A + shift*I", **error.details
        ) from error
    except NotPositiveDefiniteError as error:
        raise NotPositiveDefiniteError(
            "in single precision the matrix is not Hermitian positive definite: use precision='full', or a method "
            "that does not need it",
            **error.details,
        ) from error
    made = MixedFactor(operand, _hollow(inner), rows, columns, inner.condition)
    as_it_is = not (rows.any() or columns.any())
    return made if as_it_is or inner.condition is None else replace(made, estimate=_condition(made))


def _hollow(inner: Factor) -> Factor:
    """The same factor without the rounded matrix."""
    assert is_dataclass(inner)
    # On a device a dense factor has it a second time, to prove its answers with.
    proving = {"proving": None} if "proving" in {field.name for field in fields(inner)} else {}
    made: Factor = replace(inner, operand=inner.operand.hollow(), **proving)
    return made


def _condition(factor: MixedFactor) -> float:
    operand = factor.operand

    def solve(v: Array, trans: Trans) -> Array:
        return factor.solve(v, trans, Controls()).x

    inverse = inverse_norm(lambda v: solve(v, "N"), lambda v: solve(v, "H"), operand.n, operand.dtype)
    return condition_number(operand.norms[0][0], inverse)


def _scaled(operand: Operand, symmetric: bool) -> tuple[Array, Array, Array]:
    """Exponents of rows and columns, `[systems, n, 1]`, and the values scaled by both: none above 2.

    A matrix that single precision holds with room to spare is left as it is. Else rows are brought
    to a largest entry near 1 and then columns, as LAPACK's `geequ` does; of a matrix that is to
    stay Hermitian, both at once by half, until nothing is left to halve.

    Source: Ruiz, "A scaling algorithm to equilibrate both rows and columns norms in matrices",
    RAL-TR-2001-034, for the last.
    """
    count = 1 if operand.batch is None else operand.batch
    values = operand.values.reshape(count, *operand.pattern.entries)
    rows = columns = np.zeros((count, operand.n), dtype=np.int32)
    scaled = values
    if values.size:
        lines = _Lines(operand.pattern)
        size = _size(values)
        largest = lines.largest_in_rows(size)
        if _comfortable(largest) and _comfortable(lines.largest_in_columns(size)):
            pass
        elif symmetric:
            for _ in range(_ROUNDS):
                power = exponents(lines.largest_in_rows(_size(scaled)))
                # Towards zero: what is within a factor of 2 of 1 stays.
                half = np.sign(power) * (np.abs(power) // 2)
                if not half.any():
                    break
                rows = columns = rows - half
                scaled = shift(values, lines.spread(rows, columns))
        else:
            rows = -exponents(largest)
            columns = -exponents(lines.largest_in_columns(np.ldexp(size, lines.spread(rows, columns), out=size)))
            scaled = shift(values, lines.spread(rows, columns))
    return rows[..., None], columns[..., None], scaled.reshape(operand.values.shape)


def _comfortable(largest: Array) -> bool:
    """Whether lines with these largest entries need no scaling."""
    return bool(np.all((largest > 1 / _FAR) & (largest < _FAR)))


@final
class _Lines:
    """Rows and columns of values, `[systems, *entries]`, dense or sparse."""

    def __init__(self, pattern: AnyPattern) -> None:
        self._pattern = pattern
        if isinstance(pattern, Pattern):
            # No row and no column is empty: the pattern has been analysed.
            self._by_column = np.argsort(pattern.indices, kind="stable")
            self._starts = np.searchsorted(pattern.indices[self._by_column], np.arange(pattern.n))

    def largest_in_rows(self, size: Array) -> Array:
        """`[systems, n]`."""
        if isinstance(self._pattern, Pattern):
            return np.asarray(np.maximum.reduceat(size, self._pattern.indptr[:-1], axis=1))
        return np.asarray(size.max(axis=2))

    def largest_in_columns(self, size: Array) -> Array:
        """`[systems, n]`."""
        if isinstance(self._pattern, Pattern):
            return np.asarray(np.maximum.reduceat(size[:, self._by_column], self._starts, axis=1))
        return np.asarray(size.max(axis=1))

    def spread(self, rows: Array, columns: Array) -> Array:
        """The sum of what the row and the column of each entry have."""
        if isinstance(self._pattern, Pattern):
            return np.asarray(rows[:, self._pattern.rows] + columns[:, self._pattern.indices])
        return np.asarray(rows[:, :, None] + columns[:, None, :])


def _size(a: Array) -> Array:
    """The larger of real and imaginary part: never overflows."""
    return np.abs(a) if a.dtype.kind != "c" else np.maximum(np.abs(a.real), np.abs(a.imag))
