"""A canonical pattern by columns, as most sparse libraries want it, and the solves of a batch one by one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, final

import numpy as np
from scipy.sparse import coo_array

from backsolve.errors import InvalidPatternError, NotSupportedError
from backsolve.pattern import INT32_MAX, AnyPattern, IndexArray, Pattern
from backsolve.types import Array

from ..structure import PatternFacts, inspect_pattern
from .ordering import check_matching

H = TypeVar("H")


@final
@dataclass(frozen=True, eq=False, slots=True)
class Columns:
    """The same entries in CSC form.

    Attributes:
        indptr, indices: int32, sorted within a column.
        positions: which entry of the canonical values stands at each entry.
        full_diagonal: every diagonal entry is stored. Without that there is no sense in preferring
            pivots on a diagonal that some matching of the pattern has made up.
    """

    indptr: IndexArray
    indices: IndexArray
    positions: IndexArray
    full_diagonal: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return int(self.indptr.nbytes + self.indices.nbytes + self.positions.nbytes)


def by_columns(pattern: AnyPattern, method: str, *, lower: bool = False) -> Columns:
    """Arrange a pattern by columns.

    Args:
        pattern: where the entries are.
        method: for messages.
        lower: only the lower triangle, for a matrix that equals its transpose.

    Raises:
        InvalidPatternError: the pattern is dense.
        NotSupportedError: it has more entries than 32-bit indices reach.
        SingularMatrixError: no values on it are invertible.
    """
    pattern, facts = checked(pattern, method)
    entries = np.arange(pattern.nnz, dtype=np.intc)
    rows, columns = pattern.rows, pattern.indices
    if lower:
        entries = entries[rows >= columns]
        rows, columns = rows[entries], columns[entries]
    # Entry numbers ride through the conversion as data (exact: they are integers).
    arranged = coo_array((entries, (rows, columns)), shape=pattern.shape).tocsc()
    arranged.sort_indices()
    indptr, indices = arranged.indptr.astype(np.intc), arranged.indices.astype(np.intc)
    return Columns(indptr, indices, arranged.data, facts.full_diagonal)


def checked(pattern: AnyPattern, method: str) -> tuple[Pattern, PatternFacts]:
    """A pattern that a library with 32-bit indices can factorize on some values, and what it says of them.

    Raises:
        InvalidPatternError: the pattern is dense.
        NotSupportedError: it has more entries than 32-bit indices reach.
        SingularMatrixError: no values on it are invertible.
    """
    if not isinstance(pattern, Pattern):
        raise InvalidPatternError(f"method {method!r} takes sparse matrices: use method 'lu'")
    if pattern.nnz > INT32_MAX:
        raise NotSupportedError(f"method {method!r} takes at most {INT32_MAX} stored entries, this matrix has more")
    facts = inspect_pattern(pattern)
    check_matching(facts)
    return pattern, facts


def solve_each(handles: Sequence[H | None], rhs: Array, solve: Callable[[H, Array], Array]) -> Array:
    """`solve(handle, columns)` for each system of `[n, k]` or `[batch, n, k]`; NaN where there is no handle."""
    if rhs.size == 0:
        return rhs.copy()
    batch = rhs if rhs.ndim == 3 else rhs[None]
    x = np.full(batch.shape, np.nan, dtype=rhs.dtype)
    for index, handle in enumerate(handles):
        if handle is not None:
            x[index] = solve(handle, batch[index])
    return x.reshape(rhs.shape)
