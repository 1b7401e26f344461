"""Preconditioners that are polynomials in a matrix: products, and three numbers a step, on whole blocks."""

from collections.abc import Callable, Sequence
from typing import final

import torch

from backsolve.types import Trans

from ..precond.chebyshev import Chebyshev
from .matrix import DeviceMatrix
from .place import upload
from .precondition import DevicePreconditioner

Apply = Callable[[torch.Tensor], torch.Tensor]


def polynomial(times: Apply, weigh: Apply, rows: torch.Tensor, steps: Sequence[tuple[float, float]]) -> torch.Tensor:
    """`p(A) r` for each row r of `[k, n]`, by the recurrence of an iteration for `A x = r` from zero.

    Args:
        times: `A v` for each row.
        weigh: what residuals are multiplied by before they become steps.
        rows: `[k, n]`; not modified.
        steps: each step is the one before times the first number, plus the weighed residual times the second.
    """
    r = rows
    step = steps[0][1] * weigh(r)
    x = step
    for before, now in steps[1:]:
        r = r - times(step)
        step = before * step + now * weigh(r)
        x = x + step
    return x


@final
class DeviceChebyshev(DevicePreconditioner):
    """The host's `Chebyshev`, its matrix and scaling on the device."""

    def __init__(self, host: Chebyshev, device: str) -> None:
        self._matrix = DeviceMatrix(host.matrix, device)
        self._scaling = upload(host.scaling, device)
        self._steps = host.steps

    @property
    def nbytes(self) -> int:
        """Bytes of the scaled matrix, its pattern included, and of the scaling."""
        return self._matrix.nbytes + int(self._scaling.nbytes)

    def apply(self, rows: torch.Tensor, trans: Trans) -> torch.Tensor:
        """As many products as the degree; M is Hermitian, so the transpose is a conjugate."""
        if trans == "T" and rows.is_complex():
            return torch.conj_physical(self.apply(torch.conj_physical(rows), "N"))
        return polynomial(self._matrix.times, _same, rows * self._scaling, self._steps) * self._scaling


def _same(rows: torch.Tensor) -> torch.Tensor:
    return rows
