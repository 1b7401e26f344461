"""Sparse Cholesky, by SuperLU in symmetric mode: pivots stay on the diagonal, so their signs decide.

A Hermitian matrix is positive definite if and only if elimination on the diagonal meets positive
pivots only; U then is D Lᴴ, and L U serves as well as L Lᴴ would.
"""

from typing import Any

import numpy as np

from backsolve.errors import NotPositiveDefiniteError, SingularMatrixError
from backsolve.types import Array

from ..base import Symbolic
from ..faults import factorize_each, not_definite
from ..operand import Operand
from ..structure import is_hermitian
from .ordering import Ordering
from .superlu import SuperLuFactor, decompose


def factorize_sparse(symbolic: Symbolic, operand: Operand) -> SuperLuFactor:
    """Factorize and read the pivots: SuperLU then holds its factor twice, and so it is counted.

    Raises:
        NotPositiveDefiniteError: not Hermitian, or `details["column"]` has no positive pivot.
        NonfiniteInputError: the matrix holds NaN or infinity.
        MemoryBudgetError: the factor does not fit in memory.
    """
    assert isinstance(symbolic, Ordering)
    handles, statuses = factorize_each(operand, lambda index: _factorize(symbolic, operand.systems[index]))
    return SuperLuFactor(operand, symbolic, handles, statuses, copies=2)


def _factorize(ordering: Ordering, a: Any) -> Any:
    if not is_hermitian(a):
        raise not_definite(None, "cholesky", "superlu")
    _check_diagonal(a)
    try:
        # Threshold 0: the diagonal is the pivot unless it is exactly zero.
        lu = decompose(ordering.permuted(a.data), symmetric=True, threshold=0.0)
    except SingularMatrixError as err:
        raise not_definite(None, "cholesky", "superlu") from err
    if lu is not None:
        _check_pivots(lu, ordering)
    return lu


def _check_diagonal(a: Any) -> None:
    bad = np.flatnonzero(~(a.diagonal().real > 0))
    if bad.size:
        raise not_definite(int(bad[0]), "cholesky", "superlu")


def _check_pivots(lu: Any, ordering: Ordering) -> None:
    """Positive pivots, each on the diagonal, or the first column where that fails."""
    pivots: Array = lu.U.diagonal()
    # Place j of the permuted matrix is eliminated as number perm_c[j].
    place = np.argsort(lu.perm_c)
    moved = lu.perm_r[place] != np.arange(place.size)
    bad = np.flatnonzero(moved | ~(pivots.real > 0))
    if bad.size:
        error: NotPositiveDefiniteError = not_definite(int(ordering.order[place[bad[0]]]), "cholesky", "superlu")
        raise error
