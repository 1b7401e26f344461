"""Circulant matrices: the Fourier transform of the first column holds the eigenvalues.

Source: Davis, "Circulant matrices", 1979, theorem 3.2.2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2
from typing import final

import numpy as np

from backsolve.errors import SingularMatrixError
from backsolve.kinds.base import NUMPY
from backsolve.kinds.fourier import back, transform
from backsolve.pattern import StructuredPattern
from backsolve.types import Array

from ..tolerance import epsilon
from .base import Prepared, StructuredSolver


@final
@dataclass(frozen=True, eq=False)
class CirculantSystem(Prepared):
    """Eigenvalues `[n, 1]`, or the half of them that a real matrix has."""

    n: int
    real: bool
    eigenvalues: Array

    @property
    def nbytes(self) -> int:
        """Bytes of the eigenvalues."""
        return int(self.eigenvalues.nbytes)

    def solve(self, rhs: Array, *, adjoint: bool) -> Array:
        """Two transforms a column."""
        if not rhs.size:
            return rhs.copy()
        eigenvalues = self.eigenvalues.conj() if adjoint else self.eigenvalues
        of_rhs = transform(NUMPY, rhs, self.n, real=self.real)
        return np.asarray(back(NUMPY, of_rhs / eigenvalues, self.n, real=self.real))

    def inverse_norm(self, n: int, dtype: "np.dtype[np.generic]") -> float:
        """Exact: the inverse is circulant too."""
        del dtype
        return float(np.abs(back(NUMPY, 1 / self.eigenvalues, n, real=self.real)).sum())


@final
class Circulant(StructuredSolver):
    """Any nonsingular circulant matrix."""

    name = "circulant"
    kind = "circulant"

    def prepare(self, pattern: StructuredPattern, parts: Mapping[str, Array]) -> Prepared:
        """One transform of length n.

        Raises:
            SingularMatrixError: an eigenvalue is zero within the rounding of the transform.
        """
        c = parts["c"]
        n, real = pattern.n, c.dtype.kind != "c"
        if n == 0:
            return CirculantSystem(0, real, c[:, None])
        eigenvalues = transform(NUMPY, c[:, None], n, real=real)
        # A transform errs by a few eps sqrt(log n) ||c||₂, in each coefficient alike.
        rounding = epsilon(c.dtype) * log2(2 * n) * np.sqrt(n) * float(np.abs(c).max())
        least = int(np.argmin(np.abs(eigenvalues[:, 0])))
        if float(np.abs(eigenvalues[least, 0])) <= rounding / np.sqrt(n):
            raise SingularMatrixError(
                f"the circulant matrix is singular within rounding: coefficient {least} of the Fourier transform of c "
                "vanishes; solve A + shift*I by adding shift to c[0]",
                kind="numeric",
            )
        return CirculantSystem(n, real, eigenvalues)
