"""Symmetric successive over-relaxation: a sweep down and a sweep up, with nothing to factorize."""

from typing import Any, final

import numpy as np
from scipy.sparse import diags_array, tril, triu

from backsolve.types import Array

from ..symmetry import is_hermitian
from .base import Preconditioner
from .forms import nonzero_diagonal, sparse
from .triangle import Triangle


@final
class Ssor(Preconditioner):
    """M = (D + ωL) D⁻¹ (D + ωU) / (ω (2 - ω)), with A = L + D + U.

    Hermitian where A is, and positive definite where D is. Built in O(nnz); an application costs two
    triangular sweeps.

    Args:
        a: no zero on the diagonal.
        omega: between 0 and 2, neither allowed; 1 is symmetric Gauss-Seidel.

    Raises:
        SingularMatrixError: a zero on the diagonal.

    Source: Saad, "Iterative methods for sparse linear systems", section 10.2.
    """

    def __init__(self, a: Any, omega: float) -> None:
        d = nonzero_diagonal(a, "ssor")
        mirrored = is_hermitian(a)
        a = sparse(a)
        self._middle: Array = d * (omega * (2 - omega))
        self._lower = Triangle(_half(tril(a, -1, "csr"), d, omega), "ssor")
        self._upper = None if mirrored else Triangle(_half(triu(a, 1, "csr"), d, omega), "ssor")

    @property
    def nbytes(self) -> int:
        """Bytes of the triangles and the diagonal."""
        upper = 0 if self._upper is None else self._upper.nbytes
        return self._lower.nbytes + upper + int(self._middle.nbytes)

    def apply(self, residuals: Array) -> Array:
        """`M⁻¹ r` for each of the rows of `residuals`, `[k, n]`."""
        half = self._lower.solve(residuals, "N") * self._middle
        return self._lower.solve(half, "H") if self._upper is None else self._upper.solve(half, "N")

    def apply_adjoint(self, residuals: Array) -> Array:
        """`M⁻ᴴ r` likewise."""
        if self._upper is None:
            return self.apply(residuals)
        half = self._upper.solve(residuals, "H") * np.conj(self._middle)
        return self._lower.solve(half, "H")


def _half(strict: Any, d: Array, omega: float) -> Any:
    return omega * strict + diags_array(d, format="csr") if d.size else strict
