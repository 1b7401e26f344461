"""The fill-reducing ordering that a sparse pattern alone decides, and the gather that applies it to values.

SuperLU repeats its symbolic work in every factorization; the ordering is the part of it that can
be saved. With it, permuting new values is one `take`.
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from scipy.sparse import coo_array, csc_array, csr_array, diags_array
from scipy.sparse.linalg import spilu

from backsolve.errors import InvalidPatternError, NotSupportedError, SingularMatrixError
from backsolve.pattern import AnyPattern, IndexArray, Pattern
from backsolve.types import Array

from ..base import Symbolic
from ..structure import inspect_pattern

_INT_MAX = int(np.iinfo(np.intc).max)


@final
@dataclass(frozen=True, eq=False)
class Ordering(Symbolic):
    """A symmetric permutation of one pattern: `B[i, j] = A[order[i], order[j]]`.

    Attributes:
        pattern: the pattern that was analysed.
        order: `[n]` row and column of A that comes i-th.
        inverse: `[n]` place of each row of A.
        indptr, indices: B in CSC form.
        positions: `[nnz]` entry of A's values that stands at each entry of B.
        symmetric: whether an ordering of A + Aᵀ suits the pattern; if not, columns are ordered
            with the values (COLAMD) and nothing of the ordering is reused.
    """

    pattern: AnyPattern
    order: IndexArray
    inverse: IndexArray
    indptr: IndexArray
    indices: IndexArray
    positions: IndexArray
    symmetric: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the permutations, of B's pattern and of the gather."""
        arrays = (self.order, self.inverse, self.indptr, self.indices, self.positions)
        return sum(int(a.nbytes) for a in arrays)

    def permuted(self, values: Array) -> Any:
        """B in CSC form for one system's `values`, `[nnz]`."""
        b = csc_array((values.take(self.positions), self.indices, self.indptr), shape=self.pattern.shape)
        b.has_canonical_format = True
        return b


def analyze(pattern: AnyPattern, method: str) -> Ordering:
    """Order a pattern: minimum degree on A + Aᵀ, at a tenth to a third of a factorization.

    Raises:
        SingularMatrixError: no values on this pattern are invertible.
        InvalidPatternError: the pattern is dense.
        NotSupportedError: more entries than SuperLU can index.
    """
    if not isinstance(pattern, Pattern):
        raise InvalidPatternError(f"method {method!r} takes sparse matrices here: use method 'lu'")
    if pattern.nnz > _INT_MAX:
        raise NotSupportedError(f"method {method!r} takes at most {_INT_MAX} stored entries, this matrix has more")
    facts = inspect_pattern(pattern)
    if facts.structurally_singular:
        raise SingularMatrixError(
            "the pattern is structurally singular: no values on it are invertible; look for an empty row or column",
            kind="structural",
        )
    n = pattern.n
    # Without a diagonal and without symmetry, pivots leave the diagonal everywhere, and an
    # ordering of A + Aᵀ would predict nothing.
    symmetric = facts.full_diagonal or facts.symmetric_pattern
    order = _minimum_degree(pattern, facts.full_diagonal) if symmetric and n else np.arange(n, dtype=np.intc)
    inverse = np.empty_like(order)
    inverse[order] = np.arange(n, dtype=np.intc)
    counts = np.diff(pattern.indptr)
    rows = np.repeat(inverse, counts)
    # Entry numbers ride through the conversion as data (exact: they are integers).
    entries = np.arange(pattern.nnz, dtype=np.intc)
    b = coo_array((entries, (rows, inverse[pattern.indices])), shape=pattern.shape).tocsc()
    b.sort_indices()
    return Ordering(pattern, order, inverse, b.indptr.astype(np.intc), b.indices.astype(np.intc), b.data, symmetric)


def _minimum_degree(pattern: Pattern, full_diagonal: bool) -> IndexArray:
    """SuperLU's own ordering of A + Aᵀ, without a factorization.

    An incomplete factorization that drops everything runs only the ordering; values that
    dominate the diagonal keep it from pivoting.
    """
    n = pattern.n
    ones = csr_array((np.ones(pattern.nnz, dtype=np.float64), pattern.indices, pattern.indptr), shape=pattern.shape)
    if full_diagonal:
        rows = np.repeat(np.arange(n, dtype=pattern.indices.dtype), np.diff(pattern.indptr))
        ones.data[rows == pattern.indices] = 2.0 * n
        dominant = ones.tocsc()
    else:
        dominant = (ones + diags_array(np.full(n, 2.0 * n))).tocsc()
    # SuperLU reads 32-bit indices only; nnz is known to fit.
    dominant.indices, dominant.indptr = dominant.indices.astype(np.intc), dominant.indptr.astype(np.intc)
    incomplete = spilu(
        dominant,
        permc_spec="MMD_AT_PLUS_A",
        drop_tol=1e10,
        fill_factor=1,
        diag_pivot_thresh=0,
        options={"SymmetricMode": True},
    )
    order: IndexArray = np.argsort(incomplete.perm_c).astype(np.intc)
    return order
