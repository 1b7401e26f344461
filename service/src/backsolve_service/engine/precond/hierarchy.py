"""The coarser and coarser matrices of algebraic multigrid, and the ways between them, as pyamg builds them.

What is done on each level is the affair of whoever uses them: Gauss-Seidel sweeps on the host
(`amg.py`), polynomials on a device (`accelerator/multigrid.py`).
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from pyamg import ruge_stuben_solver, smoothed_aggregation_solver
from scipy.sparse import csr_array

from backsolve.errors import InvalidOptionError, SingularMatrixError
from backsolve.types import Array

from ..scaling import exponents, magnitude, shift
from ..structure import diagonal
from ..symmetry import is_hermitian
from .forms import no_pivot, nonzero_diagonal, sparse

_COARSEST = 64
"""Rows below which a direct solve is cheaper than another level."""

_SPAN = 53
"""In powers of two: the digits of a double."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """From one level to the next coarser one.

    Attributes:
        matrix: of the finer level; no zero on its diagonal.
        restriction: takes its residuals down.
        prolongation: takes corrections up; the restriction's adjoint where the matrix is Hermitian.
    """

    matrix: Any
    restriction: Any
    prolongation: Any


@final
@dataclass(frozen=True, eq=False, slots=True)
class Hierarchy:
    """Of `diag(scaling) A diag(scaling)`, all matrices as canonical `csr_array`.

    Attributes:
        scaling: `[n]` powers of two.
        hermitian: A is, and so is every coarser matrix.
        steps: from the finest to the last level but one.
        coarsest: matrix of the last level, which may be large where there was nothing to coarsen.
    """

    scaling: Array
    hermitian: bool
    steps: tuple[Step, ...]
    coarsest: Any


def hierarchy(a: Any, kind: str) -> Hierarchy:
    """Build all levels; takes a few products' worth of A for each, and holds the interpreter's lock in each kernel.

    Args:
        a: `csr_array` or 2-D array in float64 or complex128, with no zero on the diagonal.
        kind: "rs", "sa" or "auto"; see `AlgebraicMultigrid`.

    Raises:
        InvalidOptionError: "rs" for a complex matrix, or one that it cannot interpolate on.
        SingularMatrixError: a zero on the diagonal, or a level that is not finite.
    """
    if kind == "rs" and a.dtype.kind == "c":
        raise InvalidOptionError(
            "preconditioner 'amg(kind=rs)' takes real matrices: use 'amg(kind=sa)'", option="preconditioner"
        )
    if a.shape[0] == 0:
        return Hierarchy(np.ones(0), True, (), sparse(a))
    nonzero_diagonal(a, "amg")
    hermitian = is_hermitian(a)
    matrix = sparse(a)
    # pyamg compares with fixed small numbers here and there.
    powers = _powers(matrix)
    rows = np.repeat(powers, np.diff(matrix.indptr))
    matrix = csr_array((shift(matrix.data, rows + powers[matrix.indices]), matrix.indices, matrix.indptr), a.shape)
    levels = _hierarchy(matrix, kind, hermitian=hermitian)
    matrices = [sparse(level.A) for level in levels]
    # Nothing was left to coarsen where a coarse matrix has no diagonal: all rows are alone, say.
    usable = [bool(np.all(diagonal(own) != 0)) for own in matrices]
    last = usable.index(False) - 1 if False in usable else len(levels) - 1
    steps = [
        Step(own, csr_array(level.R), csr_array(level.P)) for level, own in zip(levels[:last], matrices, strict=False)
    ]
    return Hierarchy(np.ldexp(1.0, powers), hermitian, tuple(steps), matrices[last])


def singular_level() -> SingularMatrixError:
    """The coarsest matrix is exactly singular."""
    return SingularMatrixError(
        "preconditioner 'amg' would be exactly singular, as its coarsest level is: use preconditioner 'ilut' "
        "or a direct method, or solve A + shift*I",
        kind="numeric",
    )


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
