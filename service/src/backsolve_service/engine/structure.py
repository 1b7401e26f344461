"""What a matrix is: facts of the pattern, and facts of the values on it, each in one pass."""

from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components, structural_rank

from backsolve.pattern import AnyPattern, Pattern, StructuredPattern
from backsolve.types import Array

from .operand import Operand
from .registry import Layout
from .tolerance import epsilon

WIDTH_FROM = 20_000
"""Rows from which on it may pay not to factorize: below, a factor is cheap whatever the pattern."""

_HUB = 12
"""So many times the mean number of entries in a row make a hub; meshes stay below 5, circuits do not."""

_MANY = 2**20
"""Numbers compared at once where systems are small."""

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
            on and without hubs, else None.
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
        hermitian: A = Aᴴ up to rounding of the single entry.
        symmetric: A = Aᵀ likewise; of real matrices the same.
        real_positive_diagonal: every diagonal entry is stored, real and above zero.
        triangular: lower or upper triangular, every system on the same side; of a sparse matrix by
            its pattern, of a dense one by its values.
        dominant: in each row the diagonal entry is at least as large as the others together.
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
        return PatternFacts(n, pattern.nnz, False, False, False, pattern.m, n, square=False)
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
    """Facts of the values in O(nnz); a dense matrix is left at its first unsymmetric block of rows."""
    if facts.kind is not None:
        # Its own method uses none of these, and no other takes it.
        return Structure(facts, False, operand.batch is not None, operand.dtype.name, False, False, False)
    positive = facts.full_diagonal and _positive(diagonals(operand))
    # What was filled in from one triangle needs no comparison.
    hermitian = operand.stored == "lower" or (facts.symmetric_pattern and _all_hermitian(operand, conjugate=True))
    real = operand.dtype.kind != "c"
    symmetric = hermitian if real else facts.symmetric_pattern and _all_hermitian(operand, conjugate=False)
    return Structure(
        facts=facts,
        dense=operand.pattern.layout == "dense",
        batch=operand.batch is not None,
        dtype=operand.dtype.name,
        hermitian=hermitian,
        symmetric=symmetric,
        real_positive_diagonal=positive,
        triangular=_triangular(facts, operand),
        dominant=facts.full_diagonal and is_dominant(operand),
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


def is_hermitian(a: Any, *, conjugate: bool = True) -> bool:
    """Whether one system equals its conjugate transpose, entry by entry within a few roundings.

    Entry by entry and not in a norm: a badly scaled matrix must not hide an unsymmetric corner.
    With `conjugate=False` it is compared with its plain transpose.
    """
    if isinstance(a, np.ndarray):
        for start in range(0, a.shape[0], _BLOCK_ROWS):
            stop = start + _BLOCK_ROWS
            # Rows left of the block were compared when they were columns.
            if not _mirrored(a[start:stop, start:], a[start:, start:stop].T, conjugate):
                return False
        return True
    columns = a.tocsc()
    if not (np.array_equal(columns.indptr, a.indptr) and np.array_equal(columns.indices, a.indices)):
        return False
    return _mirrored(a.data, columns.data, conjugate)


def hermitian_systems(operand: Operand, *, conjugate: bool = True) -> Array:
    """`is_hermitian` of each system: many small ones at once."""
    count = 1 if operand.batch is None else operand.batch
    entries = operand.values.size // max(count, 1)
    if operand.batch is None or entries > _MANY:
        return np.array([is_hermitian(a, conjugate=conjugate) for a in operand.systems], dtype=bool)
    across = _transposition(operand.pattern)
    if across is None:
        return np.zeros(count, dtype=bool)
    values = operand.values.reshape(count, entries)
    found = np.ones(count, dtype=bool)
    step = max(_MANY // max(entries, 1), 1)
    for start in range(0, count, step):
        some = values[start : start + step]
        found[start : start + step] = _agree(some, some[:, across], conjugate).all(axis=1)
    return found


def _all_hermitian(operand: Operand, *, conjugate: bool) -> bool:
    if operand.batch is None:
        return is_hermitian(operand.systems[0], conjugate=conjugate)
    # Most batches that are not Hermitian show it at once.
    first = operand.batch == 0 or is_hermitian(operand.systems[0], conjugate=conjugate)
    return first and bool(hermitian_systems(operand, conjugate=conjugate).all())


def _transposition(pattern: AnyPattern) -> Array | None:
    """Of each entry, the number of the one across the diagonal; None where the pattern is not symmetric."""
    n = pattern.n
    if not isinstance(pattern, Pattern):
        return np.arange(n * n).reshape(n, n).T.reshape(-1)
    numbers = csr_array((np.arange(pattern.nnz), pattern.indices, pattern.indptr), shape=pattern.shape).tocsc()
    if not (np.array_equal(numbers.indptr, pattern.indptr) and np.array_equal(numbers.indices, pattern.indices)):
        return None
    return np.asarray(numbers.data)


def _mirrored(entries: Array, mirror: Array, conjugate: bool) -> bool:
    if conjugate and mirror.dtype.kind == "c":
        mirror = np.conj(mirror)
    return bool(np.array_equal(entries, mirror)) or bool(_agree(entries, mirror, conjugate=False).all())


def _agree(entries: Array, mirror: Array, conjugate: bool) -> Array:
    if conjugate and mirror.dtype.kind == "c":
        mirror = np.conj(mirror)
    with np.errstate(over="ignore", invalid="ignore"):
        gap = np.abs(entries - mirror)
        return np.asarray((entries == mirror) | (gap <= 8 * epsilon(entries.dtype) * np.abs(entries)))


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
