"""Sparse Cholesky, by SuperLU in symmetric mode: pivots stay on the diagonal, so their signs decide.

A Hermitian matrix is positive definite if and only if elimination on the diagonal meets positive
pivots only; U then is D Lᴴ, and L U serves as well as L Lᴴ would. SuperLU shows its pivots only by
handing out a copy of L and U, which it then keeps. A matrix that is diagonally dominant needs no
such look: it has no negative eigenvalue (Gershgorin), and elimination itself finds a zero one.
"""

from typing import Any

import numpy as np

from backsolve.errors import NotPositiveDefiniteError, SingularMatrixError
from backsolve.types import Array

from ..base import Symbolic
from ..faults import factorize_each, not_definite, systems
from ..operand import Operand
from ..structure import diagonals, is_dominant
from ..symmetry import hermitian_systems
from .ordering import Ordering
from .superlu import SuperLuFactor, decompose, panel_size


def factorize_sparse(symbolic: Symbolic, operand: Operand) -> SuperLuFactor:
    """Factorize; unless every system is diagonally dominant, read the pivots: the factor is then held twice.

    Raises:
        NotPositiveDefiniteError: not Hermitian, or `details["column"]` has no positive pivot.
        NonfiniteInputError: the matrix holds NaN or infinity.
        MemoryBudgetError: the factor does not fit in memory.
    """
    assert isinstance(symbolic, Ordering)
    if operand.batch == 0:
        return SuperLuFactor(operand, symbolic, (), ())
    ordering, count = symbolic, systems(operand)
    hermitian = hermitian_systems(operand)
    on_diagonal = diagonals(operand).real.reshape(count, operand.n)
    dominant, panel = is_dominant(operand), panel_size(symbolic)
    permuted = ordering.each_permuted(operand.values.reshape(count, -1))

    def factorize(index: int) -> Any:
        if not hermitian[index]:
            raise not_definite(None, "cholesky", "superlu")
        _check_diagonal(on_diagonal[index])
        try:
            # Threshold 0: the diagonal is the pivot unless it is exactly zero.
            lu = decompose(permuted(index), symmetric=True, threshold=0.0, panel=panel)
        except SingularMatrixError as err:
            raise not_definite(None, "cholesky", "superlu") from err
        if lu is not None and not dominant:
            _check_pivots(lu, ordering)
        return lu

    handles, statuses = factorize_each(operand, factorize)
    return SuperLuFactor(operand, symbolic, handles, statuses, copies=1 if dominant else 2)


def _check_diagonal(entries: Array) -> None:
    bad = np.flatnonzero(~(entries > 0))
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
