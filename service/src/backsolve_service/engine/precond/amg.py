"""Algebraic multigrid: pyamg builds the hierarchy, one V-cycle of ours on it is the preconditioner.

pyamg's own cycle works on one vector, has no adjoint and (with the smoothers it comes with) no
form for several columns; ours is a fixed linear operator on blocks whose adjoint is exact, for
nonsymmetric matrices as well, without a second hierarchy.
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from pyamg import ruge_stuben_solver, smoothed_aggregation_solver
from scipy.sparse import csc_array, csr_array, tril, triu
from scipy.sparse.linalg import splu

from backsolve.errors import InvalidOptionError, SingularMatrixError
from backsolve.types import Array, Trans

from ..scaling import exponents, magnitude, shift
from ..structure import diagonal, is_hermitian
from .base import Preconditioner
from .forms import no_pivot, nonzero_diagonal, sparse
from .triangle import Triangle, solve_rows

_COARSEST = 64
"""Rows below which a direct solve is cheaper than another level."""

_SPAN = 53
"""In powers of two: the digits of a double."""


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
        if kind == "rs" and a.dtype.kind == "c":
            raise InvalidOptionError(
                "preconditioner 'amg(kind=rs)' takes real matrices: use 'amg(kind=sa)'", option="preconditioner"
            )
        self._levels: list[_Level] = []
        self._coarsest: Any = None
        self._item = np.dtype(a.dtype).itemsize
        self._s: Array = np.ones(a.shape[0])
        if a.shape[0] == 0:
            return
        nonzero_diagonal(a, "amg")
        hermitian = is_hermitian(a)
        matrix = sparse(a)
        # pyamg compares with fixed small numbers here and there.
        powers = _powers(matrix)
        self._s = np.ldexp(1.0, powers)
        rows = np.repeat(powers, np.diff(matrix.indptr))
        matrix = csr_array((shift(matrix.data, rows + powers[matrix.indices]), matrix.indices, matrix.indptr), a.shape)
        levels = _hierarchy(matrix, kind, hermitian=hermitian)
        matrices = [sparse(level.A) for level in levels]
        # Nothing was left to coarsen where a coarse matrix has no diagonal: all rows are alone, say.
        usable = [bool(np.all(diagonal(own) != 0)) for own in matrices]
        last = usable.index(False) - 1 if False in usable else len(levels) - 1
        for level, own in zip(levels[:last], matrices, strict=False):
            upper = None if hermitian else Triangle(triu(own, format="csr"), "amg")
            lower = Triangle(tril(own, format="csr"), "amg")
            self._levels.append(_Level(own, lower, upper, csr_array(level.R), csr_array(level.P)))
        self._coarsest = _direct(matrices[last])

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


def _powers(matrix: Any) -> Array:
    """Powers of two that scale rows and columns alike: one for all of them, or the diagonal's own.

    One for all keeps the slow modes as they are, on which interpolation rests. A diagonal that spans more
    than double precision resolves has none to keep.
    """
    own = exponents(magnitude(diagonal(matrix)[None], 0))
    if own.max() - own.min() <= _SPAN:
        own = np.full(own.shape, exponents(magnitude(matrix.data, 0)))
    return np.asarray(-(own // 2))


def _hierarchy(matrix: Any, kind: str, *, hermitian: bool) -> list[Any]:
    """Pyamg's levels, built without its smoothers and without its random numbers; finite.

    Raises:
        InvalidOptionError: Ruge-Stüben interpolation has divided by zero.
        SingularMatrixError: smoothed aggregation has.
    """
    if kind != "sa" and matrix.dtype.kind != "c":
        with np.errstate(all="ignore"):
            made = ruge_stuben_solver(
                matrix,
                interpolation="classical" if _dominant(matrix) else "direct",
                presmoother=None,
                postsmoother=None,
                max_coarse=_COARSEST,
            )
        if _finite(made.levels):
            return list(made.levels)
        if kind == "rs":
            raise InvalidOptionError(
                "Ruge-Stüben interpolation does not exist for this matrix: use preconditioner 'amg(kind=sa)'",
                option="preconditioner",
            )
    with np.errstate(all="ignore"):
        made = smoothed_aggregation_solver(
            matrix,
            symmetry="hermitian" if hermitian else "nonsymmetric",
            # "local" weights come from row sums; the default estimates a norm from a random vector.
            smooth=("jacobi", {"weighting": "local"}),
            presmoother=None,
            postsmoother=None,
            max_coarse=_COARSEST,
        )
    if not _finite(made.levels):
        raise no_pivot("amg")
    return list(made.levels)


def _dominant(matrix: Any) -> bool:
    """No entry off the diagonal is positive, and none of the rows has a negative sum (but for rounding).

    Classical interpolation needs somewhat fewer iterations than direct; elsewhere it may divide by
    zero, and pyamg then writes to the standard output of the process.
    """
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    entries = diagonal(matrix)
    sums = np.asarray(matrix.sum(axis=1))
    signs = bool(np.all(matrix.data[rows != matrix.indices] <= 0))
    return signs and bool(np.all(sums >= -1e-12 * entries))


def _finite(levels: list[Any]) -> bool:
    return all(np.isfinite(level.A.data).all() for level in levels)


def _direct(matrix: Any) -> Any:
    """SuperLU of the coarsest matrix, which may be large where there was nothing to coarsen."""
    try:
        return splu(csc_array(matrix), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.1)
    except RuntimeError as error:  # SciPy has no type of its own for this failure
        if "singular" not in str(error):
            raise
        raise SingularMatrixError(
            "preconditioner 'amg' would be exactly singular, as its coarsest level is: use preconditioner 'ilut' "
            "or a direct method, or solve A + shift*I",
            kind="numeric",
        ) from error


def _times(matrix: Any, rows: Array, trans: Trans = "N") -> Array:
    """`op(matrix) v` for each of the rows of `[k, n]`."""
    if trans == "N":
        return np.ascontiguousarray((matrix @ rows.T).T)
    if rows.dtype.kind != "c":
        return np.ascontiguousarray((matrix.T @ rows.T).T)
    return np.ascontiguousarray(np.conj(matrix.T @ np.conj(rows.T)).T)
