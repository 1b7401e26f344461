"""Dense LU with partial pivoting (torch: LAPACK getrf, or cuSOLVER on a CUDA device)."""

from dataclasses import dataclass, replace
from typing import final

import torch

from backsolve.errors import InvalidPatternError
from backsolve.pattern import AnyPattern, DensePattern
from backsolve.types import Array, Status, Trans

from ..base import Controls, Factor, FactorSpec, Outcome, Solver, Symbolic
from ..device import CPU
from ..faults import finite_statuses, record, singular
from ..operand import Operand
from .dense import (
    MAX_COLUMNS,
    DenseSymbolic,
    condition_estimate,
    conjugating_solve,
    memory_guard,
    outcome,
    values_tensor,
)
from .mixed import factorize_mixed, is_mixed


@final
@dataclass(frozen=True, eq=False)
class DenseLuFactor(Factor):
    """`P A = L U` of one matrix or of each of a batch."""

    operand: Operand
    device: str
    lu: torch.Tensor
    pivots: torch.Tensor
    statuses: tuple[Status, ...]
    estimate: float | None

    direct = True
    movable = True
    max_columns = MAX_COLUMNS

    @property
    def nbytes(self) -> int:
        """Bytes of L, U and the pivots."""
        return self.lu.nbytes + self.pivots.nbytes

    @property
    def device_nbytes(self) -> int:
        """All of them, where they are not on the CPU."""
        return 0 if self.device == CPU else self.nbytes

    def moved(self, device: str) -> "DenseLuFactor":
        """The same factor on another device, bit for bit."""
        with memory_guard(device):
            return replace(self, device=device, lu=self.lu.to(device), pivots=self.pivots.to(device))

    @property
    def condition(self) -> float | None:
        """1-norm condition number, estimated when the factor was made; None for a batch."""
        return self.estimate

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """Two triangular sweeps, the same for each `trans`."""
        del controls
        x = _solve(self.lu, self.pivots, rhs, trans, self.device, self.operand)
        return outcome(x, self.statuses, self.operand.batch is not None)


@final
class DenseLu(Solver):
    """Any square nonsingular dense matrix."""

    name = "lu"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Nothing to prepare."""
        del spec
        if not isinstance(pattern, DensePattern):
            raise InvalidPatternError("method 'lu' takes dense matrices: use method 'superlu'")
        return DenseSymbolic(pattern)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Factorize; `2/3 n³` multiply-adds, and a few solves for the condition estimate.

        Raises:
            SingularMatrixError: a pivot is exactly zero; `details["column"]` says where.
            NonfiniteInputError: the matrix holds NaN or infinity.
            DeviceOutOfMemoryError: the device has no room.
        """
        symbolic.check(operand)
        if is_mixed(operand, spec):
            return factorize_mixed(self, symbolic, operand, spec, symmetric=False)
        statuses = finite_statuses(operand)
        with memory_guard(spec.device):
            lu, pivots, info = torch.linalg.lu_factor_ex(values_tensor(operand, statuses, spec.device))
        # LAPACK counts from 1: the first column whose pivot is zero.
        for index, column in enumerate(info.reshape(-1).tolist()):
            if column:
                statuses[index] = record(operand, singular(column - 1))
        estimate = condition_estimate(operand, lambda v, trans: _solve(lu, pivots, v, trans, spec.device, operand))
        return DenseLuFactor(operand, spec.device, lu, pivots, tuple(statuses), estimate)


def _solve(lu: torch.Tensor, pivots: torch.Tensor, rhs: Array, trans: Trans, device: str, operand: Operand) -> Array:
    def backend(b: torch.Tensor, adjoint: bool) -> torch.Tensor:
        x: torch.Tensor = torch.linalg.lu_solve(lu, pivots, b, adjoint=adjoint)
        return x

    return conjugating_solve(backend, rhs, trans, device, operand.dtype)
