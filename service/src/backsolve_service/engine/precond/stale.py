"""A factor of older values as the preconditioner of new ones on the same pattern."""

from typing import final

import numpy as np

from backsolve.types import Array, Status, Trans

from ..base import Controls, Factor
from ..krylov.base import KrylovFactor
from ..krylov.gmres import FlexibleGmres
from ..operand import Operand
from .base import Preconditioner


@final
class StaleFactor(Preconditioner):
    """M is the matrix that the factor was made of.

    Args:
        factor: direct, of a single matrix.
    """

    def __init__(self, factor: Factor) -> None:
        self._factor = factor

    @property
    def nbytes(self) -> int:
        """Nothing of its own: the factor is counted where it is kept."""
        return 0

    def apply(self, residuals: Array) -> Array:
        """`M⁻¹ r` for each of the rows of `residuals`, `[k, n]`."""
        return self._solved(residuals, "N")

    def apply_adjoint(self, residuals: Array) -> Array:
        """`M⁻ᴴ r` likewise."""
        return self._solved(residuals, "H")

    def _solved(self, residuals: Array, trans: Trans) -> Array:
        columns = np.ascontiguousarray(residuals.T).astype(self._factor.operand.dtype, copy=False)
        x = self._factor.solve(columns, trans, Controls()).x
        return np.ascontiguousarray(x.T).astype(residuals.dtype, copy=False)


def preconditioned(factor: Factor, operand: Operand) -> KrylovFactor:
    """Solve with `operand` by flexible GMRES, preconditioned by the factor of older values; nothing is computed here.

    GMRES, since an LU of a definite matrix is not exactly symmetric, and what few iterations there are cost
    little more than CG's. The flexible form, since it spares the last solve with the factor, of six or eight; and
    a factor in single precision rounds what it solves, so that it is not one fixed matrix.

    Raises:
        InvalidPatternError: the two are not on one pattern.
    """
    operand.check_same_pattern(factor.operand)
    return KrylovFactor(operand, FlexibleGmres(), (StaleFactor(factor),), (Status.OK,))
