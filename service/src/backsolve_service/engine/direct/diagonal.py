"""Diagonal matrices: one division a row."""

from dataclasses import dataclass
from typing import final

import numpy as np

from backsolve.errors import InvalidPatternError
from backsolve.pattern import AnyPattern, Pattern
from backsolve.types import Array, Status, Trans

from ..base import Controls, Factor, FactorSpec, Outcome, Solver, Symbolic
from ..faults import finite_statuses, record, singular
from ..operand import Operand
from ..structure import inspect_pattern
from .ordering import check_matching

_MAX = float(np.finfo(np.float64).max)


@final
@dataclass(frozen=True)
class DiagonalSymbolic(Symbolic):
    """Nothing but the pattern: its values are the diagonal."""

    pattern: AnyPattern

    @property
    def nbytes(self) -> int:
        """Nothing is held."""
        return 0

    def predicted_nbytes(self, precision: str) -> int:
        """The factor is the matrix."""
        del precision
        return 0


@final
@dataclass(frozen=True, eq=False)
class DiagonalFactor(Factor):
    """The values themselves, found to be nonzero."""

    operand: Operand
    statuses: tuple[Status, ...]
    estimate: float | None

    direct = True
    anywhere = True
    max_columns = 128

    @property
    def nbytes(self) -> int:
        """Nothing is held beside the matrix."""
        return 0

    @property
    def condition(self) -> float | None:
        """The condition number, the same in every p-norm; None for a batch, or when n is 0."""
        return self.estimate

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """One division an entry."""
        del controls
        diagonal = self.operand.values[..., None]
        if trans == "H" and diagonal.dtype.kind == "c":
            diagonal = np.conj(diagonal)
        with np.errstate(all="ignore"):
            x = rhs / diagonal
        if self.operand.batch is not None:
            x[[index for index, status in enumerate(self.statuses) if status is not Status.OK]] = np.nan
        return Outcome(x, self.statuses, (0,) * len(self.statuses))


@final
class Diagonal(Solver):
    """Sparse matrices with nothing stored off the diagonal."""

    name = "diagonal"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Check the pattern.

        Raises:
            SingularMatrixError: a diagonal entry is not stored.
            InvalidPatternError: something is stored elsewhere.
        """
        del spec
        facts = inspect_pattern(pattern)
        check_matching(facts)
        if not (isinstance(pattern, Pattern) and facts.diagonal):
            raise InvalidPatternError("method 'diagonal' takes sparse matrices with a diagonal and nothing else")
        return DiagonalSymbolic(pattern)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Look for zeros; nothing is computed.

        Raises:
            SingularMatrixError: a diagonal entry is zero; `details["column"]` says which.
            NonfiniteInputError: the matrix holds NaN or infinity.
        """
        del spec
        symbolic.check(operand)
        statuses = finite_statuses(operand)
        for index, diagonal in enumerate(operand.values.reshape(-1, operand.n) if operand.n else ()):
            zeros = np.flatnonzero(diagonal == 0)
            if zeros.size and statuses[index] is Status.OK:
                statuses[index] = record(operand, singular(int(zeros[0])))
        return DiagonalFactor(operand, tuple(statuses), _condition(operand))


def _condition(operand: Operand) -> float | None:
    if operand.batch is not None or operand.n == 0:
        return None
    size = np.abs(operand.wide_values)
    with np.errstate(over="ignore"):
        return min(float(size.max() / size.min()), _MAX)
