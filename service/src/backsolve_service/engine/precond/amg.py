"""Algebraic multigrid: pyamg builds the hierarchy, one V-cycle of ours on it is the preconditioner.

pyamg's own cycle works on one vector, has no adjoint and (with the smoothers it comes with) no
form for several columns; ours is a fixed linear operator on blocks whose adjoint is exact, for
nonsymmetric matrices as well, without a second hierarchy.
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from scipy.sparse import csc_array, tril, triu
from scipy.sparse.linalg import splu

from backsolve.types import Array, Trans

from .base import Preconditioner
from .hierarchy import hierarchy, singular_level
from .triangle import Triangle, solve_rows


@final
@dataclass(frozen=True, eq=False)
class _Level:
    """One level above the coarsest: its matrix, its Gauss-Seidel sweeps, and the way down and up.

    Attributes:
        upper: None where the matrix is Hermitian: the adjoint of `lower` then.
    """

    matrix: Any
    lower: Triangle
    upper: Triangle | None
    restriction: Any
    prolongation: Any

    @property
    def nbytes(self) -> int:
        upper = 0 if self.upper is None else self.upper.nbytes
        held = (self.matrix, self.restriction, self.prolongation)
        stored = sum(int(m.data.nbytes + m.indices.nbytes + m.indptr.nbytes) for m in held)
        return self.lower.nbytes + upper + stored

    def forward(self, rows: Array, *, adjoint: bool) -> Array:
        """The sweep before the coarse correction; of the adjoint cycle, the adjoint of the other."""
        if not adjoint:
            return self.lower.solve(rows, "N")
        return self.lower.solve(rows, "N") if self.upper is None else self.upper.solve(rows, "H")

    def backward(self, rows: Array, *, adjoint: bool) -> Array:
        """The sweep after it."""
        if adjoint or self.upper is None:
            return self.lower.solve(rows, "H")
        return self.upper.solve(rows, "N")


@final
class AlgebraicMultigrid(Preconditioner):
    """M⁻¹ is one V-cycle: a Gauss-Seidel sweep down, a correction by the coarser level, a sweep up.

    Where A is Hermitian positive definite the second sweep is the adjoint of the first and every
    coarser matrix is Pᴴ A P, so M is too. Iterations hardly grow with n on discretized scalar elliptic
    operators. The hierarchy is about two to three times the size of A; setting it up holds the
    interpreter's lock within each of pyamg's kernels.

    Args:
        a: no zero on the diagonal.
        kind: "rs" is Ruge-Stüben (real matrices; best on scalar problems whose slow modes are
            nearly constant), "sa" smoothed aggregation (complex matrices and badly scaled ones as
            well), "auto" the first that can.

    Raises:
        InvalidOptionError: "rs" for a complex matrix, or one that it cannot interpolate on.
        SingularMatrixError: a zero on the diagonal, or a level that is singular.

    Source: Ruge and Stüben, "Algebraic multigrid" (1987); Vaněk, Mandel and Brezina, Computing 56
    (1996); Bell, Olson, Schroder and Southworth, "PyAMG", JOSS 8 (2023).
    """

    def __init__(self, a: Any, kind: str) -> None:
        built = hierarchy(a, kind)
        self._levels: list[_Level] = []
        self._coarsest: Any = None
        self._item = np.dtype(a.dtype).itemsize
        self._s: Array = built.scaling
        if a.shape[0] == 0:
            return
        for step in built.steps:
            upper = None if built.hermitian else Triangle(triu(step.matrix, format="csr"), "amg")
            lower = Triangle(tril(step.matrix, format="csr"), "amg")
            self._levels.append(_Level(step.matrix, lower, upper, step.restriction, step.prolongation))
        self._coarsest = _direct(built.coarsest)

    @property
    def nbytes(self) -> int:
        """Bytes of all levels."""
        coarsest = 0 if self._coarsest is None else int(self._coarsest.nnz) * (self._item + 4)
        return sum(level.nbytes for level in self._levels) + coarsest + int(self._s.nbytes)

    def apply(self, residuals: Array) -> Array:
        """`M⁻¹ r` for each of the rows of `residuals`, `[k, n]`."""
        return self._solved(residuals, adjoint=False)

    def apply_adjoint(self, residuals: Array) -> Array:
        """`M⁻ᴴ r` likewise."""
        return self._solved(residuals, adjoint=True)

    def _solved(self, residuals: Array, *, adjoint: bool) -> Array:
        if not residuals.size:
            return residuals.copy()
        return self._cycle(0, residuals * self._s, adjoint=adjoint) * self._s

    def _cycle(self, depth: int, rows: Array, *, adjoint: bool) -> Array:
        if depth == len(self._levels):
            return solve_rows(self._coarsest, rows, "H" if adjoint else "N")
        level = self._levels[depth]
        trans: Trans = "H" if adjoint else "N"
        down, up = (level.prolongation, level.restriction) if adjoint else (level.restriction, level.prolongation)
        x = level.forward(rows, adjoint=adjoint)
        coarse = _times(down, rows - _times(level.matrix, x, trans), trans)
        x += _times(up, self._cycle(depth + 1, coarse, adjoint=adjoint), trans)
        x += level.backward(rows - _times(level.matrix, x, trans), adjoint=adjoint)
        return x


def _direct(matrix: Any) -> Any:
    """SuperLU of the coarsest matrix, which may be large where there was nothing to coarsen."""
    try:
        return splu(csc_array(matrix), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.1)
    except RuntimeError as error:  # SciPy has no type of its own for this failure
        if "singular" not in str(error):
            raise
        raise singular_level() from error


def _times(matrix: Any, rows: Array, trans: Trans = "N") -> Array:
    """`op(matrix) v` for each of the rows of `[k, n]`."""
    if trans == "N":
        return np.ascontiguousarray((matrix @ rows.T).T)
    if rows.dtype.kind != "c":
        return np.ascontiguousarray((matrix.T @ rows.T).T)
    return np.ascontiguousarray(np.conj(matrix.T @ np.conj(rows.T)).T)
