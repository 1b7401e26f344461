"""What the solvers of structured matrices share: systems one by one, in double precision, in every direction.

The parameters are few, so double precision costs next to nothing beside the right-hand sides,
whatever the element type is.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from backsolve.errors import InvalidPatternError, SingularMatrixError
from backsolve.pattern import AnyPattern, StructuredPattern
from backsolve.types import Array, Status, Trans

from ..base import Controls, Factor, FactorSpec, Outcome, Solver, Symbolic
from ..direct.condition import condition_number, inverse_norm
from ..faults import finite_statuses, record
from ..operand import Operand

_MAX_COLUMNS = 64
"""Wider blocks gain nothing: the work is a product of thin matrices, or transforms of single columns."""


class Prepared(ABC):
    """One system, ready to be solved; immutable."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held beside the parameters."""

    @abstractmethod
    def solve(self, rhs: Array, *, adjoint: bool) -> Array:
        """`A⁻¹ rhs`, or `A⁻ᴴ rhs`; `rhs` is `[n, k]` in float64 or complex128 as A is."""

    def inverse_norm(self, n: int, dtype: "np.dtype[np.generic]") -> float:
        """An estimate of ||A⁻¹||₁ from below, n at least 1."""
        return inverse_norm(
            lambda v: self.solve(v, adjoint=False), lambda v: self.solve(v, adjoint=True), n, np.dtype(dtype)
        )


@final
@dataclass(frozen=True)
class StructuredSymbolic(Symbolic):
    """Nothing is prepared from kind and sizes."""

    pattern: AnyPattern

    @property
    def nbytes(self) -> int:
        """Nothing."""
        return 0


@final
@dataclass(frozen=True, eq=False)
class StructuredFactor(Factor):
    """Each system of an operand, prepared; None where one has no factor."""

    operand: Operand
    systems: tuple[Prepared | None, ...]
    statuses: tuple[Status, ...]
    estimate: float | None

    direct = True
    max_columns = _MAX_COLUMNS

    @property
    def nbytes(self) -> int:
        """Bytes of all systems."""
        return sum(system.nbytes for system in self.systems if system is not None)

    @property
    def condition(self) -> float | None:
        """1-norm condition number, estimated when the factor was made; None for a batch."""
        return self.estimate

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """System by system, in double precision."""
        del controls
        dtype = self.operand.dtype
        stacked = rhs if self.operand.batch is not None else rhs[None]
        x = np.empty(stacked.shape, dtype=dtype)
        for index, system in enumerate(self.systems):
            if system is None:
                x[index] = np.nan
                continue
            wide = stacked[index].astype(self.operand.wide_dtype, copy=False)
            # A⁻ᵀ b is the conjugate of A⁻ᴴ conj(b).
            if trans == "T":
                x[index] = system.solve(wide.conj(), adjoint=True).conj()
            else:
                x[index] = system.solve(wide, adjoint=trans == "H")
        return Outcome(x if self.operand.batch is not None else x[0], self.statuses, (0,) * len(self.systems))


class StructuredSolver(Solver, ABC):
    """A direct method for one kind of structured matrix."""

    kind: ClassVar[str]

    @abstractmethod
    def prepare(self, pattern: StructuredPattern, parts: Mapping[str, Array]) -> Prepared:
        """Prepare one system out of its parameters, in float64 or complex128.

        Raises:
            SingularMatrixError: it has no inverse.
        """

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Nothing to prepare."""
        del spec
        if not isinstance(pattern, StructuredPattern) or pattern.kind.name != self.kind:
            raise InvalidPatternError(f"method {self.name!r} takes {self.kind} matrices: use method 'auto'")
        return StructuredSymbolic(pattern)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Prepare each system.

        Raises:
            SingularMatrixError: the one system has no inverse.
            NonfiniteInputError: the parameters hold NaN or infinity.
        """
        del spec
        symbolic.check(operand)
        assert isinstance(operand.pattern, StructuredPattern)
        statuses = finite_statuses(operand)
        systems: list[Prepared | None] = [None] * len(statuses)
        for index, parts in enumerate(operand.wide):
            if statuses[index] is not Status.OK:
                continue
            try:
                systems[index] = self.prepare(operand.pattern, parts)
            except SingularMatrixError as error:
                statuses[index] = record(operand, error)
        estimate = None
        first = systems[0] if operand.batch is None and operand.n else None
        if first is not None:
            estimate = condition_number(operand.norms[0][0], first.inverse_norm(operand.n, operand.wide_dtype))
        return StructuredFactor(operand, tuple(systems), tuple(statuses), estimate)
