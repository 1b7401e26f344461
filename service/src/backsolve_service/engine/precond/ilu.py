"""Incomplete LU without fill."""

from typing import Any, final

import numpy as np
from scipy.sparse import eye_array, tril, triu

from backsolve.types import Array

from .base import Preconditioner
from .elimination import PivotError, eliminate
from .forms import no_pivot, sparse
from .triangle import Triangle


@final
class IncompleteLu(Preconditioner):
    """M = L U, both on A's pattern and L U = A there; no pivoting.

    Args:
        a: any square matrix whose pivots do not vanish.

    Raises:
        SingularMatrixError: a pivot is zero, or not stored.

    Source: Saad, "Iterative methods for sparse linear systems", algorithm 10.4. See `elimination` for its cost.
    """

    def __init__(self, a: Any) -> None:
        a = sparse(a)
        try:
            values = eliminate(a)
        except PivotError as error:
            raise no_pivot("ilu", error.column) from None
        if not np.isfinite(values).all():
            raise no_pivot("ilu")
        factors = a.copy()
        factors.data = values
        self._lower = Triangle(tril(factors, -1, "csr") + eye_array(a.shape[0], dtype=a.dtype, format="csr"), "ilu")
        self._upper = Triangle(triu(factors, 0, "csr"), "ilu")

    @property
    def nbytes(self) -> int:
        """Bytes of L and U."""
        return self._lower.nbytes + self._upper.nbytes

    def apply(self, residuals: Array) -> Array:
        """`M⁻¹ r` for each of the rows of `residuals`, `[k, n]`."""
        return self._upper.solve(self._lower.solve(residuals, "N"), "N")

    def apply_adjoint(self, residuals: Array) -> Array:
        """`M⁻ᴴ r` likewise."""
        return self._lower.solve(self._upper.solve(residuals, "H"), "H")
