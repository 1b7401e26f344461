"""How many entries the factors of a sparse matrix will have, from its pattern and an ordering alone."""

from dataclasses import dataclass
from typing import final

import numpy as np

from backsolve.pattern import IndexArray
from backsolve.types import Array

from .graph import Graph

_LEAST_SHARE = 0.08
"""Of the vertices left: a round of elimination that takes fewer costs more than the loop it spares."""


@final
@dataclass(frozen=True, eq=False)
class Edges:
    """Entries below the diagonal of a reordered matrix: `columns < rows`, perhaps repeated."""

    rows: IndexArray
    columns: IndexArray


def column_counts(graph: Graph, order: IndexArray) -> Array:
    """Entries of each column of the Cholesky factor of a matrix on `graph`, the diagonal counted.

    Exact if nothing cancels. LU with pivots on the diagonal has as many in L and again in U for a
    symmetric pattern, and at most as many for another one.

    First whole generations of leaves of the elimination tree are taken away, vectorised: the
    column of a leaf is known, and what it leaves behind is its parent's. The counts of the rest
    come from the elimination tree, whose construction is a loop in Python.

    Args:
        graph: symmetric, with a full diagonal.
        order: `[n]` vertex that is eliminated i-th.

    Returns:
        `[n]` int64, in elimination order.

    Source: George and Liu, "An optimal algorithm for symbolic factorization of symmetric
    matrices", SIAM J. Comput. 9 (1980), for the first part; Gilbert, Ng and Peyton, "An efficient
    algorithm to compute row and column counts for sparse Cholesky factorization", SIAM J. Matrix
    Anal. Appl. 15 (1994), section 3, for the second.
    """
    n = graph.n
    counts = np.zeros(n, dtype=np.int64)
    left = np.ones(n, dtype=bool)
    edges = _lower(graph, order)
    remaining = n
    while remaining:
        leaves = left.copy()
        leaves[edges.rows] = False
        taken = int(np.count_nonzero(leaves))
        if taken < _LEAST_SHARE * remaining:
            break
        edges = _without(edges, leaves, counts)
        left &= ~leaves
        remaining -= taken
    if remaining:
        number = np.cumsum(left) - 1
        counts[left] = _counts(Edges(*_distinct(number[edges.rows], number[edges.columns], n)), remaining)
    return counts


def _lower(graph: Graph, order: IndexArray) -> Edges:
    inverse = np.empty(graph.n, dtype=np.int64)
    inverse[order] = np.arange(graph.n)
    rows = np.repeat(inverse, np.diff(graph.indptr))
    columns = inverse[graph.indices]
    below = rows > columns
    return Edges(rows[below], columns[below])


def _without(edges: Edges, leaves: Array, counts: Array) -> Edges:
    """The edges that are left when `leaves` are eliminated, whose `counts` are filled in."""
    n = counts.size
    of_leaf = leaves[edges.columns]
    columns, rows = _distinct(edges.columns[of_leaf], edges.rows[of_leaf], n)
    counts[leaves] = 1 + np.bincount(columns, minlength=n)[leaves]
    # The first row of a column is its parent in the tree; it inherits the others.
    first = np.diff(columns, prepend=-1) > 0
    parents = rows[first][np.cumsum(first) - 1]
    kept = ~of_leaf
    return Edges(
        np.concatenate([edges.rows[kept], rows[~first]]), np.concatenate([edges.columns[kept], parents[~first]])
    )


def _distinct(first: IndexArray, second: IndexArray, n: int) -> tuple[IndexArray, IndexArray]:
    """Pairs of numbers below n, by the first and then by the second, each once."""
    bits = n.bit_length()
    key = np.sort((first << bits) | second)
    key = key[np.diff(key, prepend=-1) > 0]
    return key >> bits, key & ((1 << bits) - 1)


def _counts(edges: Edges, n: int) -> Array:
    """Column counts from the elimination tree; `edges` sorted by row and then by column."""
    place, first, parent = _postorder(_elimination_tree(edges, n), n)
    edges = Edges(*_distinct(place[edges.rows], place[edges.columns], n))
    # The leaves of the subtree of each row: neighbours whose descendants hold no earlier one.
    begins = np.diff(edges.rows, prepend=-1) > 0
    previous = np.where(begins, -1, np.roll(edges.columns, 1))
    leaf = first[edges.columns] > previous
    rows, leaves = edges.rows[leaf], edges.columns[leaf]
    together = np.diff(rows) == 0
    weights = (first == np.arange(n)).astype(np.int64)
    weights += np.bincount(leaves, minlength=n)
    weights -= np.bincount(parent[parent < n], minlength=n)
    weights -= np.bincount(_common_ancestors(parent, leaves[:-1][together], leaves[1:][together]), minlength=n)
    # Subtrees are ranges of a postorder, so sums over them are differences.
    total = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(weights)])
    counts: Array = (total[1:] - total[first])[place]
    return counts


def _elimination_tree(edges: Edges, n: int) -> list[int]:
    """Parent of each vertex, n of a root.

    Source: Liu, "The role of elimination trees in sparse factorization", SIAM J. Matrix Anal.
    Appl. 11 (1990), algorithm 4.2: compressed paths to the root of each vertex so far.
    """
    parent, ancestor = [n] * n, [n] * n
    for row, column in zip(edges.rows.tolist(), edges.columns.tolist(), strict=True):
        vertex = column
        above = ancestor[vertex]
        while above < row:
            ancestor[vertex] = row
            vertex, above = above, ancestor[above]
        if above > row:
            ancestor[vertex] = parent[vertex] = row
    return parent


def _postorder(parent: list[int], n: int) -> tuple[IndexArray, IndexArray, IndexArray]:
    """Place of each vertex in a postorder; and, by place, its first descendant and its parent (n of a root)."""
    size = [1] * (n + 1)
    for vertex, above in enumerate(parent):
        size[above] += size[vertex]
    # From the root down: each vertex takes the last free range of its parent's.
    end = [0] * n + [n]
    place = [0] * (n + 1)
    place[n] = n
    for vertex in range(n - 1, -1, -1):
        above = parent[vertex]
        last = end[above]
        end[above] = last - size[vertex]
        place[vertex] = end[vertex] = last - 1
    places = np.array(place)
    first, parents = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    here = places[:n]
    first[here] = here + 1 - np.array(size[:n])
    parents[here] = places[np.array(parent, dtype=np.int64)]
    return here, first, parents


def _common_ancestors(parent: IndexArray, u: IndexArray, v: IndexArray) -> IndexArray:
    """Least common ancestor of each pair u < v of which neither descends from the other.

    In a postorder, all vertices from u to v - 1 descend from it, one of them directly: it is the
    largest parent among theirs. Maxima over ranges come from two overlapping powers of two.
    """
    found = np.empty_like(u)
    level = np.frexp((v - u).astype(np.float64))[1] - 1
    window, width = parent, 1
    for power in range(int(level.max(initial=-1)) + 1):
        here = np.flatnonzero(level == power)
        found[here] = np.maximum(window[u[here]], window[v[here] - width])
        window = np.maximum(window[:-width], window[width:])
        width *= 2
    return found
