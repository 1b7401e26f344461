"""Dense Cholesky (torch: LAPACK potrf, or cuSOLVER on a CUDA device): half the work of LU."""

from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch

from backsolve.types import Array, Status, Trans

from ..base import Controls, Factor, FactorSpec, Outcome
from ..device import CPU
from ..faults import finite_statuses, not_definite, record
from ..operand import Operand
from ..structure import hermitian_systems
from .dense import MAX_COLUMNS, condition_estimate, conjugating_solve, memory_guard, outcome, values_tensor


@final
@dataclass(frozen=True, eq=False)
class DenseCholeskyFactor(Factor):
    """`A = L Lᴴ` of one matrix or of each of a batch."""

    operand: Operand
    device: str
    lower: torch.Tensor
    statuses: tuple[Status, ...]
    estimate: float | None

    direct = True
    movable = True
    max_columns = MAX_COLUMNS

    @property
    def nbytes(self) -> int:
        """Bytes of L, stored as a full square."""
        return self.lower.nbytes

    @property
    def device_nbytes(self) -> int:
        """All of them, where they are not on the CPU."""
        return 0 if self.device == CPU else self.nbytes

    def moved(self, device: str) -> "DenseCholeskyFactor":
        """The same factor on another device, bit for bit."""
        with memory_guard(device):
            return replace(self, device=device, lower=self.lower.to(device))

    @property
    def condition(self) -> float | None:
        """1-norm condition number, estimated when the factor was made; None for a batch."""
        return self.estimate

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """Two triangular sweeps, the same for each `trans`."""
        del controls
        x = _solve(self.lower, rhs, trans, self.device, self.operand)
        return outcome(x, self.statuses, self.operand.batch is not None)


def factorize_dense(operand: Operand, spec: FactorSpec) -> DenseCholeskyFactor:
    """Factorize; `1/3 n³` multiply-adds, and a few solves for the condition estimate.

    Raises:
        NotPositiveDefiniteError: not Hermitian, or `details["column"]` has no positive pivot.
        NonfiniteInputError: the matrix holds NaN or infinity.
        DeviceOutOfMemoryError: the device has no room.
    """
    statuses = finite_statuses(operand)
    for index in np.flatnonzero(~hermitian_systems(operand)).tolist():
        if statuses[index] is Status.OK:
            statuses[index] = record(operand, not_definite(None, "cholesky", "lu"))
    with memory_guard(spec.device):
        lower, info = torch.linalg.cholesky_ex(values_tensor(operand, statuses, spec.device))
    # LAPACK counts from 1: the order of the first leading minor that is not positive.
    for index, order in enumerate(info.reshape(-1).tolist()):
        if order:
            statuses[index] = record(operand, not_definite(order - 1, "cholesky", "lu"))
    estimate = condition_estimate(operand, lambda v, trans: _solve(lower, v, trans, spec.device, operand))
    return DenseCholeskyFactor(operand, spec.device, lower, tuple(statuses), estimate)


def _solve(lower: torch.Tensor, rhs: Array, trans: Trans, device: str, operand: Operand) -> Array:
    def backend(b: torch.Tensor, adjoint: bool) -> torch.Tensor:
        del adjoint  # A = Aᴴ
        if lower.ndim == 3:
            return torch.cholesky_solve(b, lower)
        # A third of the time of `cholesky_solve`, which copies L.
        middle = torch.linalg.solve_triangular(lower, b, upper=False)
        x: torch.Tensor = torch.linalg.solve_triangular(lower.mH, middle, upper=True)
        return x

    return conjugating_solve(backend, rhs, trans, device, operand.dtype)
