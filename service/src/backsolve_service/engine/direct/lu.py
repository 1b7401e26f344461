"""Dense LU with partial pivoting: SciPy's LAPACK for one matrix on the host, else torch (batches, cuSOLVER)."""

from dataclasses import dataclass
from typing import final

import torch

from backsolve.errors import InvalidPatternError
from backsolve.pattern import AnyPattern, DensePattern

from ..base import Factor, FactorSpec, Solver, Symbolic
from ..device import CPU
from ..faults import finite_statuses
from ..operand import Operand
from .dense import dense_symbolic, memory_guard, values_tensor
from .dense_factor import Form, dense_factor, record_zero_pivots
from .host_lu import factorize_on_host
from .mixed import factorize_mixed, is_mixed


@final
@dataclass(frozen=True, eq=False)
class Lu(Form):
    """`P A = L U`."""

    lu: torch.Tensor
    pivots: torch.Tensor

    def solve(self, b: torch.Tensor, *, adjoint: bool) -> torch.Tensor:
        """Two triangular sweeps."""
        x: torch.Tensor = torch.linalg.lu_solve(self.lu, self.pivots, b, adjoint=adjoint)
        return x


@final
class DenseLu(Solver):
    """Any square nonsingular dense matrix."""

    name = "lu"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Nothing to prepare."""
        if not isinstance(pattern, DensePattern):
            raise InvalidPatternError("method 'lu' takes dense matrices: use method 'superlu'")
        return dense_symbolic(pattern, spec)

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
        if spec.device == CPU and operand.batch is None and operand.n:
            return factorize_on_host(operand)
        statuses = finite_statuses(operand)
        with memory_guard(spec.device):
            lu, pivots, info = torch.linalg.lu_factor_ex(values_tensor(operand, statuses, spec.device))
        record_zero_pivots(operand, statuses, info)
        return dense_factor(operand, spec.device, Lu(lu, pivots), statuses)
