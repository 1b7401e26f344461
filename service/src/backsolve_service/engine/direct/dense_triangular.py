"""Dense triangular matrices (torch: BLAS trsm): the matrix is its own factor."""

from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch

from backsolve.errors import InvalidPatternError
from backsolve.types import Array, Status, Trans

from ..base import Controls, Factor, FactorSpec, Outcome
from ..device import CPU
from ..faults import finite_statuses, record, singular
from ..operand import Operand
from ..structure import triangle
from .dense import MAX_COLUMNS, condition_estimate, conjugating_solve, memory_guard, outcome, values_tensor


@final
@dataclass(frozen=True, eq=False)
class DenseTriangularFactor(Factor):
    """One triangular matrix, or each of a batch."""

    operand: Operand
    device: str
    matrix: torch.Tensor
    upper: bool
    statuses: tuple[Status, ...]
    estimate: float | None

    direct = True
    movable = True
    max_columns = MAX_COLUMNS

    @property
    def nbytes(self) -> int:
        """Bytes of the copy that torch solves with."""
        return self.matrix.nbytes

    @property
    def device_nbytes(self) -> int:
        """All of them, where they are not on the CPU."""
        return 0 if self.device == CPU else self.nbytes

    def moved(self, device: str) -> "DenseTriangularFactor":
        """The same factor on another device, bit for bit."""
        with memory_guard(device):
            return replace(self, device=device, matrix=self.matrix.to(device))

    @property
    def condition(self) -> float | None:
        """1-norm condition number, estimated when the factor was made; None for a batch."""
        return self.estimate

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """One triangular sweep."""
        del controls
        x = _solve(self.matrix, self.upper, rhs, trans, self.device, self.operand)
        return outcome(x, self.statuses, self.operand.batch is not None)


def factorize_dense(operand: Operand, spec: FactorSpec) -> DenseTriangularFactor:
    """Find the side, and look for zeros on the diagonal.

    Raises:
        SingularMatrixError: a diagonal entry is zero; `details["column"]` says which.
        NonfiniteInputError: the matrix holds NaN or infinity.
        InvalidPatternError: there are nonzeros on both sides of the diagonal.
        DeviceOutOfMemoryError: the device has no room.
    """
    statuses = finite_statuses(operand)
    sides = [triangle(a) for a in operand.systems]
    side = "lower" if "lower" in sides else "upper"
    if None in sides or ("lower" in sides and "upper" in sides):
        raise InvalidPatternError("method 'triangular' takes matrices with nonzeros on one side of the diagonal only")
    for index, a in enumerate(operand.systems):
        zeros = np.flatnonzero(a.diagonal() == 0)
        if zeros.size and statuses[index] is Status.OK:
            statuses[index] = record(operand, singular(int(zeros[0])))
    with memory_guard(spec.device):
        matrix = values_tensor(operand, statuses, spec.device)
    upper = side == "upper"
    estimate = condition_estimate(operand, lambda v, trans: _solve(matrix, upper, v, trans, spec.device, operand))
    return DenseTriangularFactor(operand, spec.device, matrix, upper, tuple(statuses), estimate)


def _solve(matrix: torch.Tensor, upper: bool, rhs: Array, trans: Trans, device: str, operand: Operand) -> Array:
    def backend(b: torch.Tensor, adjoint: bool) -> torch.Tensor:
        x: torch.Tensor = torch.linalg.solve_triangular(matrix.mH if adjoint else matrix, b, upper=upper != adjoint)
        return x

    return conjugating_solve(backend, rhs, trans, device, operand.dtype)
