"""Which column of a sparse matrix depends on others, once a factorization has found that one does.

Most libraries say no more than that a pivot was zero, and those that name one name a place in their own order. A
column without entries, or one that no row is left for, is found by matching; else a null vector v, from one more
factorization of the shifted matrix: A v = 0 says that each column j with v_j != 0 is a combination of the others
with v != 0, and the one with the largest is named.
"""

import numpy as np
from scipy.sparse import csc_array, eye_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.sparse.linalg import splu

from backsolve.errors import SingularMatrixError
from backsolve.pattern import Pattern
from backsolve.types import Array

from ..operand import Operand

_SHIFT = 3e-11
"""Of the equilibrated matrix: far above rounding, far below what tells columns apart."""

_DEPENDENT = 1e-7
"""||A v|| over ||v||, both of the equilibrated matrix, up to which v is called a null vector."""

_TAKES_PART = 1e-4
"""Part of the largest entry of v from which a column belongs to the combination."""

_ROUNDS = 12
"""Of equilibration: each halves the distance of the largest entries to 1, in orders of magnitude."""

_STEPS = 3
"""Of inverse iteration; one is enough unless the start is unlucky."""


def named(error: SingularMatrixError, operand: Operand) -> SingularMatrixError:
    """The error with the column, where it names none and one can be found; else the error itself."""
    if error.details.get("kind") != "numeric" or "column" in error.details or operand.batch is not None:
        return error
    if not isinstance(operand.pattern, Pattern) or operand.m != operand.n or not operand.finite:
        return error
    found = dependent_column(csc_array(operand.wide[0]))
    if found is None:
        return error
    column, others = found
    # A null vector is one to within rounding.
    hidden = ", or so near it that rounding hides the difference" if others > 0 else ""
    how = "nothing but zeros" if not others else f"a linear combination of others (about {others})"
    if others == 1:
        how = "a multiple of another column"
    elif others < 0:
        how = "one of a set of columns whose entries lie in fewer rows"
    return SingularMatrixError(
        f"the matrix is singular{hidden}: elimination met a zero pivot, and column {column} is {how}; "
        "solve A + shift*I, or remove the dependent column",
        kind="numeric",
        column=column,
    )


def dependent_column(a: csc_array) -> tuple[int, int] | None:
    """A column that depends on others, and on how many: 0 of a zero column, -1 where the pattern alone says it.

    Args:
        a: `[n, n]`, float64 or complex128, finite.

    Returns:
        None if no column could be named.
    """
    a = a.copy()
    a.eliminate_zeros()
    size = abs(a)
    largest = np.asarray(size.max(axis=0).todense()).reshape(-1)
    if not largest.all():
        return int(np.flatnonzero(largest == 0)[0]), 0
    match = maximum_bipartite_matching(a.tocsr(), perm_type="row")
    if (match < 0).any():
        return int(np.flatnonzero(match < 0)[0]), -1
    return _by_null_vector(_equilibrated(a))


def _equilibrated(a: csc_array) -> csc_array:
    """Rows and columns brought to largest entries near 1.

    Source: Ruiz, "A scaling algorithm to equilibrate both rows and columns norms in matrices", RAL-TR-2001-034.
    """
    places, counts = a.indices, np.diff(a.indptr)
    for _ in range(_ROUNDS):
        size = np.abs(a.data)
        columns = np.maximum.reduceat(size, a.indptr[:-1])
        rows = np.zeros(a.shape[0])
        np.maximum.at(rows, places, size)
        a.data = a.data / np.sqrt(np.repeat(columns, counts)) / np.sqrt(rows[places])
    return a


def _by_null_vector(a: csc_array) -> tuple[int, int] | None:
    n = a.shape[0]
    try:
        lu = splu((a + _SHIFT * eye_array(n, format="csc", dtype=a.dtype)).tocsc())
    except (RuntimeError, MemoryError):
        return None
    v: Array = np.cos(np.arange(n) * 2.39996).astype(a.dtype)
    for _ in range(_STEPS):
        # Towards the smallest singular vector, not the eigenvector: of a defective matrix that would come slowly.
        with np.errstate(all="ignore"):
            v = lu.solve(lu.solve(v / np.linalg.norm(v), trans="H"))
        if not np.isfinite(v).all():
            return None
    v = v / np.linalg.norm(v)
    if not np.linalg.norm(a @ v) <= _DEPENDENT:
        return None
    part = np.abs(v)
    column = int(part.argmax())
    return column, max(int(np.count_nonzero(part > _TAKES_PART * part[column])) - 1, 1)
