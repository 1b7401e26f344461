"""Sparse triangular solves in compiled code: SuperLU, told to pivot on the diagonal, adds no entry to a triangle.

A sweep then costs three to four products with the triangle's matrix, a fifteenth of SciPy's own
`spsolve_triangular`; it serves all three of "N", "T" and "H", and releases the interpreter's lock.
"""

from typing import Any, final

import numpy as np
from scipy.sparse import csc_array
from scipy.sparse.linalg import splu

from backsolve.types import Array, Trans

from .forms import no_pivot


@final
class Triangle:
    """A sparse triangular matrix ready for solving. Immutable; safe to use from several threads.

    Args:
        t: lower or upper triangular `csr_array` or `csc_array`.
        name: of the preconditioner that it is part of.

    Raises:
        SingularMatrixError: a zero on the diagonal.
    """

    def __init__(self, t: Any, name: str) -> None:
        self._lu: Any = None
        self._entry = t.dtype.itemsize + np.dtype(np.intc).itemsize
        if t.shape[0]:
            columns = csc_array(t)
            columns.sort_indices()
            how = {"SymmetricMode": True, "Equil": False}
            try:
                self._lu = splu(columns, permc_spec="NATURAL", diag_pivot_thresh=0.0, options=how)
            except RuntimeError as error:  # SciPy has no type of its own for this failure
                if "singular" not in str(error):
                    raise
                raise no_pivot(name) from error

    @property
    def nbytes(self) -> int:
        """Bytes that SuperLU holds."""
        return 0 if self._lu is None else int(self._lu.nnz) * self._entry

    def solve(self, rows: Array, trans: Trans) -> Array:
        """`op(T)⁻¹ r` for each of the rows of `[k, n]`."""
        return solve_rows(self._lu, rows, trans)


def solve_rows(lu: Any, rows: Array, trans: Trans) -> Array:
    """`op(A)⁻¹ r` for each of the rows of `[k, n]`, with SuperLU's handle of A (None where n is 0)."""
    if not rows.size:
        return rows.copy()
    if rows.shape[0] == 1:
        return np.asarray(lu.solve(np.ascontiguousarray(rows[0]), trans))[None]
    # SuperLU works on columns in Fortran order, which is what contiguous rows are.
    return np.ascontiguousarray(lu.solve(np.asfortranarray(rows.T), trans).T)
