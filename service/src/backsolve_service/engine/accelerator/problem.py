"""What an iteration on a device is given, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch

from backsolve.errors import CancelledError
from backsolve.types import Array, Status

Apply = Callable[[torch.Tensor], torch.Tensor]

LOOK = 10
"""Iterations between two looks of the host. A look stalls the stream for about the time of one
iteration's launches, and columns may idle until the next one: ten keep both near a tenth."""

PATIENCE = 2
"""Restarts that may fail to bring the true residual down before a column counts as stagnated."""


class NotDefiniteError(ArithmeticError):
    """A vector with pᴴ A p <= 0, or rᴴ M⁻¹ r <= 0, was met."""


@final
@dataclass(frozen=True, slots=True)
class Problem:
    """`[k, n]` systems on one operator.

    Attributes:
        multiply: `A v` for each row of a block.
        adjoint: `Aᴴ v` likewise.
        precondition: `M⁻¹ v` likewise.
        b: right-hand sides, magnitudes near 1.
        x0: first iterates, or None for zero.
        sizes: `[k]` 2-norm of each right-hand side; on the host, as `targets`.
        targets: `[k]` wanted 2-norm of each residual.
        limit: most iterations.
        norm: of A, in the infinity-norm.
        cancelled: asked at each look.
    """

    multiply: Apply
    adjoint: Apply
    precondition: Apply
    b: torch.Tensor
    x0: torch.Tensor | None
    sizes: Array
    targets: Array
    limit: int
    norm: float
    cancelled: Callable[[], bool]

    def check_wanted(self) -> None:
        """Stop a solve that nobody waits for.

        Raises:
            CancelledError: nobody does.
        """
        if self.cancelled():
            raise CancelledError("the solve was cancelled between two iterations")


@final
@dataclass(frozen=True, slots=True)
class Iterated:
    """How a run ended.

    Attributes:
        x: `[k, n]` on the device.
        statuses: one a column.
        iterations: the most of any column.
    """

    x: torch.Tensor
    statuses: tuple[Status, ...]
    iterations: int
