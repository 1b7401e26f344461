"""What a matrix is: facts of the pattern, and facts of the values on it, each in one pass."""

from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from scipy.sparse import block_array, csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components, structural_rank

from backsolve.pattern import AnyPattern, Pattern, StructuredPattern
from backsolve.types import Array, Trans

from .operand import Operand
from .registry import Layout
from .symmetry import Mirrored, all_mirrored
from .tolerance import epsilon

WIDTH_FROM = 20_000
"""Rows from which on it may pay not to factorize: below, a factor is cheap whatever the pattern."""

_HUB = 12
"""So many times the mean number of entries in a row make a hub; meshes stay below 5, circuits do not."""

_BLOCK_ROWS = 256
"""Rows of a dense matrix compared with its columns at a time: a few MB at n = 1e4."""


@final
@dataclass(frozen=True, slots=True)
class PatternFacts:
    """What the pattern alone says.

    Attributes:
        n: number of columns.
        nnz: number of stored entries.
        full_diagonal: every diagonal entry is stored.
        structurally_singular: no values on this pattern are invertible.
        symmetric_pattern: (i, j) is stored if and only if (j, i) is.
        lower_bandwidth: largest i - j of a stored entry, at least 0.
        upper_bandwidth: largest j - i of a stored entry, at least 0.
        width: rows in the widest level of a breadth-first search from the pattern's rim, about the
            size of the smallest set that cuts it in two; of sparse patterns from `WIDTH_FROM` rows
            on and without hubs, else None. Of one that is not square, of the graph that joins rows with columns.
        largest_block: rows of the largest connected component, of sparse patterns; else None.
        kind: of a structured matrix, of which nothing else is known by its pattern; else None.
        square: as many rows as columns; if not, nothing else is looked for.
    """

    n: int
    nnz: int
    full_diagonal: bool
    structurally_singular: bool
    symmetric_pattern: bool
    lower_bandwidth: int
    upper_bandwidth: int
    width: int | None = None
    largest_block: int | None = None
    kind: str | None = None
    square: bool = True

    @property
    def m(self) -> int:
        """Number of rows: of a matrix that is not square, its lower bandwidth."""
        return self.n if self.square else self.lower_bandwidth

    @property
    def diagonal(self) -> bool:
        """Nothing is stored off the diagonal."""
        return max(self.lower_bandwidth, self.upper_bandwidth) == 0

    @property
    def triangular(self) -> bool:
        """Lower or upper triangular (or diagonal)."""
        return min(self.lower_bandwidth, self.upper_bandwidth) == 0


@final
@dataclass(frozen=True, slots=True)
class Structure:
    """What pattern and values say together; of a batch, what holds for every system.

    Attributes:
        facts: of the pattern.
        dense: the layout.
        batch: several systems on one pattern.
        dtype: NumPy name of the element type.
        hermitian: A = Aᴴ but for rounding (`symmetry.py`).
        symmetric: A = Aᵀ likewise; of real matrices the same.
        real_positive_diagonal: every diagonal entry is stored, real and above zero.
        triangular: lower or upper triangular, every system on the same side; of a sparse matrix by
            its pattern, of a dense one by its values.
        dominant: of a sparse matrix that may be definite: in each row the diagonal entry is at least as large as the
            others together. Of others nobody asks.
        rounded: `hermitian` or `symmetric` holds, but not to the last bit.
    """

    facts: PatternFacts
    dense: bool
    batch: bool
    dtype: str
    hermitian: bool
    symmetric: bool
    real_positive_diagonal: bool
    triangular: bool = False
    dominant: bool = False
    rounded: bool = False

    @property
    def layout(self) -> Layout:
        """How the entries are stored."""
        if self.facts.kind is not None:
            return "structured"
        return "dense" if self.dense else "csr"

    @property
    def definite_candidate(self) -> bool:
        """Nothing cheap speaks against a Hermitian positive definite matrix."""
        return self.hermitian and self.real_positive_diagonal


def inspect_pattern(pattern: AnyPattern) -> PatternFacts:
    """Facts of a pattern in O(nnz); a matching is searched only when the diagonal is not full."""
    n = pattern.n
    if pattern.m != n:
        wide = None
        if isinstance(pattern, Pattern) and pattern.nnz:
            wide = level_width(_bipartite(pattern))
        return PatternFacts(n, pattern.nnz, False, False, False, pattern.m, n, wide, square=False)
    if not isinstance(pattern, Pattern):
        width = max(n - 1, 0)
        if isinstance(pattern, StructuredPattern):
            return PatternFacts(n, pattern.nnz, False, False, False, width, width, kind=pattern.kind.name)
        return PatternFacts(n, pattern.nnz, True, False, True, width, width)
    rows = np.repeat(np.arange(n, dtype=pattern.indices.dtype), np.diff(pattern.indptr))
    below = rows - pattern.indices
    full = int(np.count_nonzero(below == 0)) == n
    ones = csr_array((np.ones(pattern.nnz, dtype=np.int8), pattern.indices, pattern.indptr), shape=pattern.shape)
    columns = ones.tocsc()
    symmetric = np.array_equal(columns.indptr, pattern.indptr) and np.array_equal(columns.indices, pattern.indices)
    singular = not full and _rank_deficient(ones, columns)
    lower = max(int(below.max()), 0) if below.size else 0
    upper = max(-int(below.min()), 0) if below.size else 0
    widest = level_width(ones) if n >= WIDTH_FROM and not _has_hubs(pattern) else None
    _, component = connected_components(ones, directed=False)
    largest = int(np.bincount(component).max()) if n else 0
    return PatternFacts(n, pattern.nnz, full, singular, symmetric, lower, upper, widest, largest)


def _has_hubs(pattern: Pattern) -> bool:
    """Rows with many times the usual entries: every search runs through them, and its levels say nothing."""
    counts = np.diff(pattern.indptr)
    return bool(counts.max() > _HUB * max(float(counts.mean()), 1.0))


def _bipartite(pattern: Pattern) -> Any:
    """The graph of rows and columns as nodes, in which each entry joins its row and its column."""
    a = csr_array((np.ones(pattern.nnz, dtype=np.int8), pattern.indices, pattern.indptr), shape=pattern.shape)
    return csr_array(block_array([[None, a], [a.T, None]]))


def level_width(a: Any) -> int:
    """Rows in the widest level of a breadth-first search of a `csr_array`'s graph; O(nnz + n log n).

    A search is made from the last row that another one has reached, which lies at the rim
    (George and Liu's pseudo-peripheral node, after one step). Of several components, the one of row 0.
    """
    n = int(a.shape[0])
    start, widest = 0, 0
    for _ in range(2):
        order, before = breadth_first_order(a, start, directed=True, return_predecessors=True)
        depth = (before >= 0).astype(np.int64)
        parent = np.where(before < 0, np.arange(n), before)
        # Depths by doubling: each round looks twice as far towards the root.
        while True:
            farther = depth + depth[parent]
            if np.array_equal(farther, depth):
                break
            depth, parent = farther, parent[parent]
        start, widest = int(order[-1]), int(np.bincount(depth[order]).max())
    return widest


def inspect(facts: PatternFacts, operand: Operand) -> Structure:
    """Facts of the values in O(nnz); a dense matrix is left at its first unsymmetric block of rows.

    What leaves the matrix as it is gets noted on the operand as well.
    """
    if facts.kind is not None:
        # Its own method uses none of these, and no other takes it.
        return Structure(facts, False, operand.batch is not None, operand.dtype.name, False, False, False)
    sparse = operand.pattern.layout != "dense"
    positive = facts.full_diagonal and _positive(diagonals(operand))
    # What was filled in from one triangle needs no comparison.
    own: Mirrored | None = "exactly" if operand.stored == "lower" else None
    if own is None and facts.symmetric_pattern:
        own = all_mirrored(operand, conjugate=True)
    plain = own
    if operand.dtype.kind == "c":
        plain = all_mirrored(operand, conjugate=False) if facts.symmetric_pattern else None
    found: dict[Trans, Mirrored | None] = {"T": plain, "H": own}
    operand.unchanged_by = frozenset(trans for trans, how in found.items() if how == "exactly")
    return Structure(
        facts=facts,
        dense=not sparse,
        batch=operand.batch is not None,
        dtype=operand.dtype.name,
        hermitian=own is not None,
        symmetric=plain is not None,
        real_positive_diagonal=positive,
        triangular=_triangular(facts, operand),
        dominant=sparse and positive and own is not None and is_dominant(operand),
        rounded="rounded" in (own, plain),
    )


def triangle(a: Array) -> Literal["lower", "upper", "diagonal"] | None:
    """Which side of its diagonal a full array `[n, n]` has nonzeros on; None: on both."""
    lower, upper = not a[:1, 1:].any(), not a[1:, :1].any()
    for start in range(0, a.shape[0], _BLOCK_ROWS):
        if not (lower or upper):
            return None
        rows = a[start : start + _BLOCK_ROWS]
        lower = lower and not np.triu(rows, start + 1).any()
        upper = upper and not np.tril(rows, start - 1).any()
    if lower and upper:
        return "diagonal"
    return "lower" if lower else "upper" if upper else None


def _triangular(facts: PatternFacts, operand: Operand) -> bool:
    if not facts.square:
        return False
    if isinstance(operand.pattern, Pattern):
        return facts.triangular
    return common_triangle(operand) is not None


def common_triangle(operand: Operand) -> Literal["lower", "upper", "diagonal"] | None:
    """Which side of the diagonal the nonzeros of every dense system are on; of no system on neither."""
    if operand.batch is None:
        return triangle(operand.values)
    # Most batches that are not triangular show it at once.
    if operand.batch == 0 or triangle(operand.values[0]) is None:
        return None if operand.batch else "diagonal"
    return triangle(np.asarray(operand.values.any(axis=0)))


def diagonal(a: Any) -> Array:
    """Diagonal of one system (`csr_array` or 2-D array); zero where nothing is stored."""
    return np.asarray(a.diagonal())


def diagonals(operand: Operand) -> Array:
    """`[n]`, or `[batch, n]`; zero where nothing is stored."""
    pattern = operand.pattern
    if not isinstance(pattern, Pattern):
        return np.diagonal(operand.values, axis1=-2, axis2=-1)
    stored = np.flatnonzero(pattern.rows == pattern.indices)
    found = np.zeros((*operand.values.shape[:-1], pattern.n), dtype=operand.dtype)
    found[..., pattern.rows[stored]] = operand.values[..., stored]
    return found


def _positive(entries: Array) -> bool:
    rounding = 8 * epsilon(entries.dtype)
    return bool(np.all(entries.real > 0) and np.all(np.abs(entries.imag) <= rounding * entries.real))


def is_dominant(operand: Operand) -> bool:
    """Weak diagonal dominance of every system, up to the rounding of a row's sum; no row may be empty."""
    size = np.abs(operand.values)
    if size.size == 0:
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(operand.pattern, Pattern):
            rows = np.add.reduceat(size, operand.pattern.indptr[:-1], axis=-1)
        else:
            rows = size.sum(axis=-1)
        own = np.abs(diagonals(operand))
        return bool(np.all(rows - own <= own * (1 + 8 * epsilon(operand.dtype))))


def _rank_deficient(rows: Any, columns: Any) -> bool:
    if rows.shape[0] == 0:
        return False
    if np.any(np.diff(rows.indptr) == 0) or np.any(np.diff(columns.indptr) == 0):
        return True
    # SciPy 1.13 asks for index arrays that it may write to, which a pattern's are not.
    own = csr_array((rows.data, rows.indices.copy(), rows.indptr.copy()), shape=rows.shape)
    rank: int = structural_rank(own)
    return rank < int(rows.shape[0])
