"""LU factors of the small dense matrices that structured ones come down to (LAPACK getrf)."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from scipy.linalg import get_lapack_funcs

from backsolve.types import Array

from ..faults import singular


@final
@dataclass(frozen=True, eq=False)
class SmallLu:
    """`P M = L U`, with M's columns as LAPACK has them."""

    lu: Array
    pivots: Array

    @property
    def nbytes(self) -> int:
        """Bytes of L, U and the pivots."""
        return int(self.lu.nbytes + self.pivots.nbytes)

    def solve(self, rhs: Array, *, adjoint: bool = False) -> Array:
        """`M⁻¹ rhs`, or `M⁻ᴴ rhs`; `[m, k]`. LAPACK's wrapper holds the interpreter's lock meanwhile."""
        if not rhs.size:
            return rhs.copy()
        getrs: Any = get_lapack_funcs("getrs", (self.lu, rhs))
        return np.asarray(getrs(self.lu, self.pivots, rhs, trans=2 if adjoint else 0)[0])


def small_lu(m: Array) -> SmallLu:
    """Factorize a square matrix in float64 or complex128.

    Raises:
        SingularMatrixError: a pivot is exactly zero.
    """
    if not m.size:
        return SmallLu(m, np.zeros(0, dtype=np.int32))
    getrf: Any = get_lapack_funcs("getrf", (m,))
    lu, pivots, info = getrf(m)
    if info > 0:
        raise singular()
    return SmallLu(lu, pivots)
