"""Dense triangular matrices (torch: BLAS trsm): the matrix is its own factor."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from backsolve.errors import InvalidPatternError
from backsolve.types import Status

from ..base import Factor, FactorSpec
from ..faults import finite_statuses, record, singular
from ..operand import Operand
from ..structure import common_triangle, diagonals
from .dense import memory_guard, values_tensor
from .dense_factor import Form, dense_factor


@final
@dataclass(frozen=True, eq=False)
class Triangle(Form):
    """The copy of a triangular matrix that torch solves with."""

    matrix: torch.Tensor
    upper: bool

    def solve(self, b: torch.Tensor, *, adjoint: bool) -> torch.Tensor:
        """One triangular sweep."""
        op = self.matrix.mH if adjoint else self.matrix
        x: torch.Tensor = torch.linalg.solve_triangular(op, b, upper=self.upper != adjoint)
        return x


def factorize_dense(operand: Operand, spec: FactorSpec) -> Factor:
    """Find the side, and look for zeros on the diagonal.

    Raises:
        SingularMatrixError: a diagonal entry is zero; `details["column"]` says which.
        NonfiniteInputError: the matrix holds NaN or infinity.
        InvalidPatternError: there are nonzeros on both sides of the diagonal.
        DeviceOutOfMemoryError: the device has no room.
    """
    statuses = finite_statuses(operand)
    side = common_triangle(operand)
    if side is None:
        raise InvalidPatternError("method 'triangular' takes matrices with nonzeros on one side of the diagonal only")
    zeros = (diagonals(operand) == 0).reshape(len(statuses), operand.n)
    for index in np.flatnonzero(zeros.any(axis=1)).tolist():
        if statuses[index] is Status.OK:
            statuses[index] = record(operand, singular(int(zeros[index].argmax())))
    with memory_guard(spec.device):
        matrix = values_tensor(operand, statuses, spec.device)
    return dense_factor(operand, spec.device, Triangle(matrix, side == "upper"), statuses)
