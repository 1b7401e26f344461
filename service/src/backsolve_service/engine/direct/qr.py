"""Dense QR by Householder reflections (torch: LAPACK geqrf, or cuSOLVER on a CUDA device).

Backward stable whatever the matrix, with no growth of elements as in LU; four times LU's time.
"""

from dataclasses import dataclass
from typing import final

import torch

from backsolve.errors import InvalidPatternError, SingularMatrixError
from backsolve.pattern import AnyPattern, DensePattern
from backsolve.types import Status

from ..base import Factor, FactorSpec, Solver, Symbolic
from ..device import CPU
from ..faults import finite_statuses, record
from ..operand import Operand
from ..tolerance import epsilon
from .dense import DenseSymbolic, memory_guard, values_tensor
from .dense_factor import Form, dense_factor

_ROUNDINGS = 4.0
"""A column whose part beyond the earlier ones is within so many roundings of nothing depends on them."""


@final
@dataclass(frozen=True, eq=False)
class Factored(Form):
    """`A = Q R`, two full squares."""

    q: torch.Tensor
    r: torch.Tensor

    def solve(self, b: torch.Tensor, *, adjoint: bool) -> torch.Tensor:
        """A product with Q and a triangular sweep."""
        if adjoint:
            y: torch.Tensor = self.q @ torch.linalg.solve_triangular(self.r.mH, b, upper=False)
            return y
        x: torch.Tensor = torch.linalg.solve_triangular(self.r, self.q.mH @ b, upper=True)
        return x


@final
@dataclass(frozen=True)
class QrSymbolic(Symbolic):
    """Nothing but the size, and whether factors lie on a device."""

    pattern: AnyPattern
    on_device: bool = False

    @property
    def nbytes(self) -> int:
        """Nothing is held."""
        return 0

    def predicted_nbytes(self, precision: str) -> int | None:
        """Q and R; on a device the matrix beside them."""
        return (3 if self.on_device else 2) * DenseSymbolic(self.pattern).predicted_nbytes(precision)


@final
class Qr(Solver):
    """Any square nonsingular dense matrix."""

    name = "qr"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Nothing to prepare."""
        if not isinstance(pattern, DensePattern):
            raise InvalidPatternError("method 'qr' takes dense matrices: use method 'superlu'")
        return QrSymbolic(pattern, on_device=spec is not None and spec.device != CPU)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Factorize; `8/3 n³` multiply-adds with Q formed, and a few solves for the condition estimate.

        Raises:
            SingularMatrixError: a column depends on those before it to within rounding;
                `details["column"]` says which.
            NonfiniteInputError: the matrix holds NaN or infinity.
            DeviceOutOfMemoryError: the device has no room.
        """
        symbolic.check(operand)
        statuses = finite_statuses(operand)
        with memory_guard(spec.device):
            q, r = torch.linalg.qr(values_tensor(operand, statuses, spec.device))
        for index, column in enumerate(_dependent(r, epsilon(operand.dtype))):
            if column < operand.n and statuses[index] is Status.OK:
                statuses[index] = record(operand, _singular(column))
        return dense_factor(operand, spec.device, Factored(q, r), statuses)


def _dependent(r: torch.Tensor, rounding: float) -> list[int]:
    """Of each system, the first column that depends on those before it; n where none does."""
    n = r.shape[-1]
    if n == 0:
        return [0] * (1 if r.ndim == 2 else r.shape[0])
    size = r.abs().reshape(-1, n, n)
    small = size.diagonal(dim1=-2, dim2=-1) <= _ROUNDINGS * rounding * size.amax(dim=-2)
    first = torch.where(small.any(dim=-1), small.int().argmax(dim=-1), n)
    columns: list[int] = first.tolist()
    return columns


def _singular(column: int) -> SingularMatrixError:
    return SingularMatrixError(
        f"the matrix is exactly singular, or so near it that rounding hides the difference: column {column} depends on "
        "those before it; solve A + shift*I, or remove the dependent column",
        kind="numeric",
        column=column,
    )
