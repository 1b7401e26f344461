"""Elimination that keeps to A's own pattern: ILU(0), of which IC(0) is the Hermitian case.

Rows that do not wait for each other form a level, and all rows of a level are eliminated at once
by array operations. Grids have few levels (two or three times their side); a chain, such as a
tridiagonal matrix in its natural order, has as many as rows, and costs tens of µs for each. The
interpreter's lock is held on the way.

Source: Saad, "Iterative methods for sparse linear systems", algorithm 10.4 (in its order by
columns) and section 12.4.3 for the levels.
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from scipy.sparse import csr_array

from backsolve.types import Array

_CHUNK = 1 << 21
"""Updates prepared at a time: about 100 MB while they are."""


class PivotError(Exception):
    """A pivot that cannot be divided by.

    Attributes:
        column: its index.
    """

    def __init__(self, column: int) -> None:
        super().__init__(column)
        self.column = column


@final
@dataclass(frozen=True)
class _Layout:
    """A canonical CSR pattern with a full diagonal, as elimination walks over it.

    Attributes:
        n: rows.
        keys: `row * n + column` of each stored entry, ascending.
        rows, columns: of each stored entry.
        diagonal: position of each diagonal entry.
        right: number of entries right of it in its row, which follow it.
        below: positions of the entries below the diagonal, by columns.
        below_start: `[n + 1]`, where each column begins in `below`.
    """

    n: int
    keys: Array
    rows: Array
    columns: Array
    diagonal: Array
    right: Array
    below: Array
    below_start: Array


def eliminate(a: Any, least: float | None = None) -> Array:
    """The strictly lower part of L and the whole of U, on the pattern of A, so that `L U = A` there.

    Args:
        a: canonical `csr_array`.
        least: of a Hermitian A, pivots must be above it; None: they must not be zero.

    Raises:
        PivotError: a pivot is refused, or its entry is not stored.
    """
    layout = _layout(a)
    values: Array = a.data.copy()
    order, starts = _levels(layout)
    first = 0
    work = np.concatenate([[0], np.cumsum((np.diff(layout.below_start) * layout.right)[order])])[starts]
    # What overflows shows in the pivots.
    with np.errstate(all="ignore"):
        while first < starts.size - 1:
            last = max(int(np.searchsorted(work, work[first] + _CHUNK, "right")) - 1, first + 1)
            nodes = order[starts[first] : starts[last]]
            _run(layout, values, nodes, starts[first : last + 1] - starts[first], least)
            first = last
    return values


def _layout(a: Any) -> _Layout:
    n = a.shape[0]
    rows = np.repeat(np.arange(n, dtype=np.int64), np.diff(a.indptr))
    columns = a.indices.astype(np.int64)
    keys = rows * n + columns
    wanted = np.arange(n, dtype=np.int64) * (n + 1)
    diagonal = np.searchsorted(keys, wanted)
    missing = np.flatnonzero(np.append(keys, -1)[diagonal] != wanted)
    if missing.size:
        raise PivotError(int(missing[0]))
    lower = np.flatnonzero(rows > columns)
    below = lower[np.argsort(columns[lower], kind="stable")]
    counts = np.bincount(columns[lower], minlength=n)
    right = a.indptr[1:].astype(np.int64) - diagonal - 1
    return _Layout(n, keys, rows, columns, diagonal, right, below, np.concatenate([[0], np.cumsum(counts)]))


def _levels(layout: _Layout) -> tuple[Array, Array]:
    """Columns in an order of elimination, and where each level begins in it."""
    n = layout.n
    off = layout.rows != layout.columns
    later = np.maximum(layout.rows, layout.columns)[off]
    sooner = np.minimum(layout.rows, layout.columns)[off]
    waits = csr_array((np.ones(later.size, dtype=np.int8), (sooner, later)), shape=(n, n))
    waits.sum_duplicates()
    start, followers = waits.indptr.astype(np.int64), waits.indices
    open_ends = np.bincount(followers, minlength=n)
    ready = np.flatnonzero(open_ends == 0)
    levels: list[Array] = []
    while ready.size:
        levels.append(ready)
        met = followers[_ranges(start[ready], start[ready + 1] - start[ready])]
        np.subtract.at(open_ends, met, 1)
        ready = np.unique(met[open_ends[met] == 0])
    sizes = np.array([level.size for level in levels], dtype=np.int64)
    order = np.concatenate(levels) if levels else np.zeros(0, dtype=np.int64)
    return order, np.concatenate([[0], np.cumsum(sizes)])


def _run(layout: _Layout, values: Array, nodes: Array, starts: Array, least: float | None) -> None:
    """Eliminate the columns `nodes`, whose levels begin at `starts`."""
    counts = layout.below_start[nodes + 1] - layout.below_start[nodes]
    scaled = layout.below[_ranges(layout.below_start[nodes], counts)]
    pivots = layout.diagonal[nodes]
    divisors = np.repeat(pivots, counts)
    to_scale = np.concatenate([[0], np.cumsum(counts)])[starts]
    target, left, right, sizes = _updates(layout, nodes, counts)
    to_update = np.concatenate([[0], np.cumsum(sizes)])[starts]
    for level in range(starts.size - 1):
        own = slice(starts[level], starts[level + 1])
        _check(values[pivots[own]], nodes[own], least)
        entries = slice(to_scale[level], to_scale[level + 1])
        values[scaled[entries]] /= values[divisors[entries]]
        pairs = slice(to_update[level], to_update[level + 1])
        if pairs.stop > pairs.start:
            # Two columns of a level may change the same entry.
            np.subtract.at(values, target[pairs], values[left[pairs]] * values[right[pairs]])


def _check(pivots: Array, nodes: Array, least: float | None) -> None:
    good = pivots != 0 if least is None else pivots.real > least
    good &= np.isfinite(pivots)
    if not good.all():
        raise PivotError(int(nodes[~good][0]))


def _updates(layout: _Layout, nodes: Array, counts: Array) -> tuple[Array, Array, Array, Array]:
    """Positions `(ij, ik, kj)` of every update `a_ij -= l_ik u_kj` that stays on the pattern, and how many each k has.

    They are found among the pairs of entries below and right of the pivot; for a column so full
    that those are more than all stored entries, among the stored entries.
    """
    wide = layout.right[nodes]
    heavy = counts * wide > layout.keys.size
    found = [_by_pairs(layout, nodes[~heavy], counts[~heavy], wide[~heavy])]
    owners = [np.flatnonzero(~heavy)[found[0][3]]]
    for place in np.flatnonzero(heavy):
        found.append(_by_entries(layout, int(nodes[place])))
        owners.append(np.full(found[-1][0].size, place))
    owner = np.concatenate(owners)
    target, left, right = (np.concatenate([part[which] for part in found]) for which in range(3))
    if len(found) > 1:
        by_owner = np.argsort(owner, kind="stable")
        target, left, right = target[by_owner], left[by_owner], right[by_owner]
    return target, left, right, np.bincount(owner, minlength=nodes.size)


def _by_pairs(layout: _Layout, nodes: Array, tall: Array, wide: Array) -> tuple[Array, Array, Array, Array]:
    sizes = tall * wide
    owner = np.repeat(np.arange(nodes.size), sizes)
    place = _ranges(np.zeros(nodes.size, dtype=np.int64), sizes)
    which, across = np.divmod(place, np.maximum(wide, 1)[owner])
    left = layout.below[layout.below_start[nodes][owner] + which]
    right = layout.diagonal[nodes][owner] + 1 + across
    wanted = layout.rows[left] * layout.n + layout.columns[right]
    target = np.minimum(np.searchsorted(layout.keys, wanted), layout.keys.size - 1)
    kept = layout.keys[target] == wanted if target.size else np.zeros(0, dtype=bool)
    return target[kept], left[kept], right[kept], owner[kept]


def _by_entries(layout: _Layout, k: int) -> tuple[Array, Array, Array, Array]:
    below = layout.below[layout.below_start[k] : layout.below_start[k + 1]]
    beside = np.arange(layout.diagonal[k] + 1, layout.diagonal[k] + 1 + layout.right[k])
    by_row, by_column = np.full((2, layout.n), -1, dtype=np.int64)
    by_row[layout.rows[below]] = below
    by_column[layout.columns[beside]] = beside
    left, right = by_row[layout.rows], by_column[layout.columns]
    target = np.flatnonzero((left >= 0) & (right >= 0))
    return target, left[target], right[target], np.zeros(target.size, dtype=np.int64)


def _ranges(starts: Array, counts: Array) -> Array:
    """`starts[0], starts[0] + 1, ...` (`counts[0]` of them), then likewise for the next."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if ends.size else 0
    return np.asarray(np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - counts), counts))
