"""Jacobi: the diagonal of A."""

from typing import Any, final

import numpy as np

from backsolve.types import Array

from ..structure import diagonal
from .base import Preconditioner


@final
class Jacobi(Preconditioner):
    """M = |diag(A)|, and 1 where nothing is stored or it is zero: positive definite for every A."""

    def __init__(self, a: Any) -> None:
        entries = np.abs(diagonal(a))
        with np.errstate(over="ignore", divide="ignore"):
            inverse = 1.0 / entries
        self._inverse: Array = np.where(np.isfinite(inverse), inverse, 1.0)

    @property
    def nbytes(self) -> int:
        """Bytes of the inverted diagonal."""
        return int(self._inverse.nbytes)

    def apply(self, residuals: Array) -> Array:
        """Scale each row of `residuals`, `[k, n]`."""
        return residuals * self._inverse

    def apply_adjoint(self, residuals: Array) -> Array:
        """M is Hermitian."""
        return self.apply(residuals)
