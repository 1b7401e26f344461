"""No preconditioning."""

from typing import Any, final

from backsolve.types import Array

from .base import Preconditioner


@final
class Identity(Preconditioner):
    """M = I."""

    def __init__(self, a: Any) -> None:
        del a

    @property
    def nbytes(self) -> int:
        """Nothing is held."""
        return 0

    def apply(self, residuals: Array) -> Array:
        """Return the residuals themselves."""
        return residuals

    def apply_adjoint(self, residuals: Array) -> Array:
        """M is Hermitian."""
        return self.apply(residuals)
