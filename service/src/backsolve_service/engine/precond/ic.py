"""Incomplete Cholesky without fill, shifted where it would break down."""

from typing import Any, final

import numpy as np
from scipy.sparse import csr_array, tril

from backsolve.types import Array

from .base import Preconditioner
from .elimination import PivotError, eliminate
from .forms import sparse, unit_diagonal
from .triangle import Triangle

_FIRST_SHIFT = 1e-3
"""Of a matrix with unit diagonal; doubled until elimination succeeds (Lin and Moré, 1999, algorithm 2.2).

Beyond 1 the matrix is far from definite, and the steps are longer.
"""

_LEAST_PIVOT = 64 * float(np.finfo(np.float64).eps)
"""Of a matrix with unit diagonal: what is below is rounding noise."""

FULL = 4
"""A pattern with more than n²/4 entries is factorized completely: that is cheaper, and M better."""


@final
class IncompleteCholesky(Preconditioner):
    """M = L Lᴴ, L on the lower half of A's pattern and L Lᴴ = A on all of it.

    Positive definite by construction. Where a pivot is not positive (which cannot happen for
    M-matrices), A + shift * diag(A) is factorized instead, with the smallest shift tried that works.
    A matrix that fills a quarter of its square or more has a complete L.

    Args:
        a: Hermitian with a positive diagonal.

    Attributes:
        shift: relative to the diagonal; 0 where none was needed.

    Raises:
        NotPositiveDefiniteError: not Hermitian, or a diagonal entry is not positive.

    Source: Meijerink and van der Vorst, Math. Comp. 31 (1977); Manteuffel, Math. Comp. 34 (1980)
    for the shift. See `elimination` for its cost.
    """

    def __init__(self, a: Any) -> None:
        s, scaled = unit_diagonal(a, "ic")
        scaled = sparse(scaled)
        factorize = _complete if FULL * scaled.nnz > scaled.shape[0] ** 2 else _incomplete
        shift = 0.0
        while True:
            try:
                lower = factorize(scaled, shift)
                break
            except PivotError:
                shift = max((2 if shift < 1 else 16) * shift, _FIRST_SHIFT)
        self.shift = shift
        rows = np.repeat(1 / s, np.diff(lower.indptr))
        lower = csr_array((lower.data * rows, lower.indices, lower.indptr), shape=lower.shape)
        self._lower = Triangle(lower, "ic")

    @property
    def nbytes(self) -> int:
        """Bytes of L."""
        return self._lower.nbytes

    @property
    def note(self) -> str | None:
        """The shift, where one was needed: a large one makes M a poor stand-in."""
        return f"ic broke down and was built with {self.shift:.1g} of the diagonal added" if self.shift else None

    def apply(self, residuals: Array) -> Array:
        """`M⁻¹ r` for each of the rows of `residuals`, `[k, n]`."""
        return self._lower.solve(self._lower.solve(residuals, "N"), "H")

    def apply_adjoint(self, residuals: Array) -> Array:
        """M is Hermitian."""
        return self.apply(residuals)


def _incomplete(scaled: Any, shift: float) -> Any:
    """L of IC(0) from ILU(0): U = D Lᴴ where A is Hermitian."""
    shifted = _shifted(scaled, shift)
    shifted.data = eliminate(shifted, _LEAST_PIVOT)
    root = np.sqrt(shifted.diagonal().real)
    lower = tril(shifted, format="csr")
    rows = np.repeat(np.arange(lower.shape[0]), np.diff(lower.indptr))
    on_diagonal = lower.indices == rows
    lower.data = np.where(on_diagonal, root[rows], lower.data * root[lower.indices])
    return lower


def _complete(scaled: Any, shift: float) -> Any:
    try:
        return csr_array(np.linalg.cholesky(_shifted(scaled, shift).toarray()))
    except np.linalg.LinAlgError:
        raise PivotError(0) from None


def _shifted(scaled: Any, shift: float) -> Any:
    out = scaled.copy()
    rows = np.repeat(np.arange(out.shape[0]), np.diff(out.indptr))
    out.data[out.indices == rows] = 1 + shift
    return out
