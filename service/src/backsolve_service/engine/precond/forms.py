"""The forms of A that preconditioners are built from."""

from typing import Any

import numpy as np
from scipy.sparse import csr_array

from backsolve.errors import NotPositiveDefiniteError, SingularMatrixError
from backsolve.types import Array

from ..structure import diagonal
from ..symmetry import is_hermitian


def sparse(a: Any) -> Any:
    """A as a canonical `csr_array` with 32-bit indices where they fit; of a full array, its nonzero entries."""
    out = csr_array(a)
    if not out.has_canonical_format:
        out = out.copy()
        out.sum_duplicates()
    if out.indices.dtype != np.int32 and max(out.nnz, *out.shape) <= np.iinfo(np.int32).max:
        narrow = (out.data, out.indices.astype(np.int32), out.indptr.astype(np.int32))
        out = csr_array(narrow, shape=out.shape)
        out.has_canonical_format = True
    return out


_FAR = 1e100
"""Of a definite matrix with unit diagonal no entry is above 1; no sum of squares of what is up to here overflows."""


def unit_diagonal(a: Any, name: str) -> tuple[Array, Any]:
    """`(s, S)` with `S = diag(s) A diag(s)`, whose diagonal is one: no step on S can see the scale of A.

    Raises:
        NotPositiveDefiniteError: A is not Hermitian, or a diagonal entry is not positive.
    """
    if not is_hermitian(a):
        raise NotPositiveDefiniteError(
            f"the matrix is not Hermitian, which preconditioner {name!r} needs: use preconditioner 'ilu' or 'amg' "
            "with method 'gmres'"
        )
    entries = np.asarray(diagonal(a).real, dtype=np.float64)
    bad = np.flatnonzero(~(entries > 0))
    if bad.size:
        raise NotPositiveDefiniteError(
            f"diagonal entry {bad[0]} is not positive, which preconditioner {name!r} needs: "
            "use preconditioner 'jacobi' or a direct method",
            column=int(bad[0]),
        )
    s = 1 / np.sqrt(entries)
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(a, np.ndarray):
            scaled: Any = a * s[:, None] * s
        else:
            rows = np.repeat(s, np.diff(a.indptr))
            scaled = csr_array((a.data * rows * s[a.indices], a.indices, a.indptr), shape=a.shape)
            scaled.has_canonical_format = True
    if not np.all(np.abs(scaled if isinstance(scaled, np.ndarray) else scaled.data) <= _FAR):
        raise NotPositiveDefiniteError(
            f"an entry is beyond all bounds beside the diagonal, so the matrix is not positive definite, which "
            f"preconditioner {name!r} needs: use preconditioner 'jacobi' or a direct method"
        )
    return s, scaled


def nonzero_diagonal(a: Any, name: str) -> Array:
    """The diagonal of A.

    Raises:
        SingularMatrixError: one of its entries is zero or not stored.
    """
    entries = diagonal(a)
    bad = np.flatnonzero(entries == 0)
    if bad.size:
        raise no_pivot(name, int(bad[0]))
    return entries


def no_pivot(name: str, column: int | None = None) -> SingularMatrixError:
    """M would be singular: a pivot of it is zero, or has overflowed."""
    where = "" if column is None else f" in column {column}"
    other = "" if name == "ilut" else "preconditioner 'ilut', which pivots, or "
    return SingularMatrixError(
        f"preconditioner {name!r} would be exactly singular: it met a pivot that is zero or not finite{where}; "
        f"use {other}a direct method, or solve A + shift*I",
        kind="numeric",
        **({} if column is None else {"column": column}),
    )
