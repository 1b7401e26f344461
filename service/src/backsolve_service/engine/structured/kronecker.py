"""Kronecker products of dense factors: `(A1 ⊗ A2)⁻¹ = A1⁻¹ ⊗ A2⁻¹`, so an LU of each factor is a factor of all.

Source: Van Loan, "The ubiquitous Kronecker product", J. Comput. Appl. Math. 123 (2000), section 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import final

import numpy as np

from backsolve.errors import SingularMatrixError
from backsolve.pattern import StructuredPattern
from backsolve.types import Array

from ..direct.condition import inverse_norm
from .base import Prepared, StructuredSolver
from .small import SmallLu, small_lu


@final
@dataclass(frozen=True, eq=False)
class KroneckerSystem(Prepared):
    """LU factors of every factor."""

    factors: tuple[SmallLu, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the LU factors."""
        return sum(factor.nbytes for factor in self.factors)

    def solve(self, rhs: Array, *, adjoint: bool) -> Array:
        """Along one axis after the other: `n (n1 + n2 + ...)` multiply-adds a column."""
        sizes = [factor.lu.shape[0] for factor in self.factors]
        x = rhs
        for index, factor in enumerate(self.factors):
            before = prod(sizes[:index])
            cube = x.reshape(before, sizes[index], -1 if x.size else 0)
            flat = cube.swapaxes(0, 1).reshape(sizes[index], -1 if x.size else 0)
            solved = factor.solve(np.asfortranarray(flat), adjoint=adjoint)
            x = solved.reshape(sizes[index], before, -1 if x.size else 0).swapaxes(0, 1).reshape(rhs.shape)
        return x

    def inverse_norm(self, n: int, dtype: "np.dtype[np.generic]") -> float:
        """The product of the estimates of the factors: no vector of all n rows is needed."""
        found = 1.0
        for factor in self.factors:
            found *= inverse_norm(
                factor.solve, partial(factor.solve, adjoint=True), factor.lu.shape[0], np.dtype(dtype)
            )
        return found


@final
class Kronecker(StructuredSolver):
    """Any nonsingular `A1 ⊗ A2 ⊗ ...`."""

    name = "kronecker"
    kind = "kronecker"

    def prepare(self, pattern: StructuredPattern, parts: Mapping[str, Array]) -> Prepared:
        """Factorize each factor.

        Raises:
            SingularMatrixError: one of them is.
        """
        del pattern
        factors = []
        for name, a in parts.items():
            try:
                factors.append(small_lu(a))
            except SingularMatrixError as error:
                raise SingularMatrixError(
                    f"factor {name} of the Kronecker product is exactly singular: shift its diagonal, or remove the "
                    "dependent row",
                    kind="numeric",
                ) from error
        return KroneckerSystem(tuple(factors))
