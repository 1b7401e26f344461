"""Incomplete LU with fill and pivoting: SciPy's `spilu`."""

from typing import Any, final

import numpy as np
from scipy.sparse import csc_array
from scipy.sparse.linalg import spilu

from backsolve.types import Array

from ..scaling import exponents, magnitude, shift
from .base import Preconditioner
from .forms import no_pivot, sparse
from .triangle import solve_rows


@final
class ThresholdLu(Preconditioner):
    """M = L U with the entries dropped that are small in their column.

    It pivots, so it serves matrices with zeros on the diagonal, where ILU(0) cannot be. On the grids
    that were measured it never paid: building it took up to ten times as long as factorizing the
    matrix completely with a good ordering ('superlu').

    Args:
        a: any square matrix.
        drop: entries below this part of their column are dropped.
        fill: most entries of L + U, in those of A.

    Raises:
        SingularMatrixError: a column has no pivot.

    Source: Li and Shao, "A supernodal approach to incomplete LU factorization with partial
    pivoting", ACM TOMS 37 (2011).
    """

    def __init__(self, a: Any, drop: float, fill: float) -> None:
        columns = csc_array(sparse(a))
        self._lu: Any = None
        self._power = 0
        self._item = columns.dtype.itemsize
        if not columns.shape[0]:
            return
        if not columns.nnz or not columns.data.any():
            raise no_pivot("ilut", 0)
        self._power = int(exponents(magnitude(columns.data, 0)))
        columns.data = shift(columns.data, np.array(-self._power))
        try:
            self._lu = spilu(columns, drop_tol=drop, fill_factor=fill)
        except RuntimeError as error:  # SciPy has no type of its own for this failure
            if "singular" not in str(error):
                raise
            raise no_pivot("ilut") from error

    @property
    def nbytes(self) -> int:
        """Bytes of L and U."""
        return 0 if self._lu is None else int(self._lu.nnz) * (self._item + np.dtype(np.intc).itemsize)

    def apply(self, residuals: Array) -> Array:
        """`M⁻¹ r` for each of the rows of `residuals`, `[k, n]`."""
        return shift(solve_rows(self._lu, residuals, "N"), np.array(-self._power))

    def apply_adjoint(self, residuals: Array) -> Array:
        """`M⁻ᴴ r` likewise."""
        return shift(solve_rows(self._lu, residuals, "H"), np.array(-self._power))
