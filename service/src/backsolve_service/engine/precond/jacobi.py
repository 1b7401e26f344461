"""Jacobi: the diagonal of A."""

from typing import Any, final

import numpy as np

from backsolve.errors import NotPositiveDefiniteError
from backsolve.types import Array

from ..structure import diagonal
from .base import Preconditioner


@final
class Jacobi(Preconditioner):
    """M = diag(A)."""

    def __init__(self, a: Any) -> None:
        entries = diagonal(a).real
        bad = np.flatnonzero(~(entries > 0))
        if bad.size:
            raise NotPositiveDefiniteError(
                f"diagonal entry {bad[0]} is not positive, so the matrix is not positive definite: "
                "use method 'lu' or 'superlu'",
                column=int(bad[0]),
            )
        with np.errstate(over="ignore"):
            self._inverse: Array = 1.0 / entries

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
