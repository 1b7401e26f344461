"""The fill-reducing ordering that a sparse pattern alone decides, and the gather that applies it to values.

SuperLU repeats its symbolic work in every factorization; the ordering is the part of it that can
be saved. With it, permuting new values is one `take`, and the size of the factor is known before
it is made.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from scipy.sparse import coo_array, csc_array

from backsolve.errors import InvalidPatternError, NotSupportedError, SingularMatrixError
from backsolve.pattern import AnyPattern, IndexArray, Pattern
from backsolve.types import Array

from ..base import FactorSpec, Symbolic
from ..structure import PatternFacts, inspect_pattern
from .fill import column_counts
from .graph import Graph, graph_of, minimum_degree, nested_dissection

_INT_MAX = int(np.iinfo(np.intc).max)

_NS_PER_ENTRY, _NS_PER_OPERATION = 50.0, 0.15
"""SuperLU's time in the entries of its factor and in multiply-adds: right within 1.6 on meshes in two
and three dimensions, circuits and random graphs, n = 1e3 to 1e5."""
_DISSECTION_NS_PER_ENTRY = 900.0
"""METIS's time, likewise."""

_PROCESS_NS = 3e8
"""Starting the process that METIS runs in."""


@final
@dataclass(frozen=True, slots=True)
class Fill:
    """What elimination on the diagonal costs in some ordering.

    Attributes:
        entries: nnz(L + U), the unit diagonal of L counted as SuperLU stores it.
        operations: multiply-adds.
    """

    entries: int
    operations: float

    @property
    def nanoseconds(self) -> float:
        """About what SuperLU takes: good for comparisons."""
        return _NS_PER_ENTRY * self.entries + _NS_PER_OPERATION * self.operations


def dissection_nanoseconds(entries: int) -> float:
    """About what finding a nested dissection takes, the process that it is found in included.

    Args:
        entries: of the graph.
    """
    return _PROCESS_NS + _DISSECTION_NS_PER_ENTRY * entries


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
        symmetric: an ordering of A + Aᵀ is kept; if not, columns are ordered with the values
            (COLAMD) and nothing of the ordering is reused.
        kind: which ordering it is: "mmd", "nd", "colamd", or "natural" where there is nothing to reduce.
        fill: of that ordering; None where pivoting decides it.
        copies: how often SuperLU may come to hold the factor.
    """

    pattern: AnyPattern
    order: IndexArray
    inverse: IndexArray
    indptr: IndexArray
    indices: IndexArray
    positions: IndexArray
    symmetric: bool
    kind: str
    fill: Fill | None
    copies: int = 1

    @property
    def nbytes(self) -> int:
        """Bytes of the permutations, of B's pattern and of the gather."""
        arrays = (self.order, self.inverse, self.indptr, self.indices, self.positions)
        return sum(int(a.nbytes) for a in arrays)

    def predicted_nbytes(self, precision: str) -> int | None:
        """Bytes of L and U, or of twice that where a method may have to read them; None with `colamd`.

        What SuperLU holds is that within 1 % on large symmetric patterns while pivots stay on the
        diagonal, and 0.8 to 1.1 times that on circuits and patterns without symmetry. Of a few
        dozen rows it may be 1.7 times as much: small columns are stored together, with zeros.
        """
        if self.fill is None:
            return None
        return self.copies * self.fill.entries * (np.dtype(precision).itemsize + np.dtype(np.intc).itemsize)

    def permuted(self, values: Array) -> Any:
        """B in CSC form for one system's `values`, `[nnz]`."""
        b = csc_array((values.take(self.positions), self.indices, self.indptr), shape=self.pattern.shape)
        b.has_canonical_format = True
        return b

    def each_permuted(self, values: Array) -> Callable[[int], Any]:
        """B of the i-th of `values`, `[systems, nnz]`: one object, whose numbers change from call to call."""
        b = self.permuted(values[0])

        def of(index: int) -> Any:
            b.data = values[index].take(self.positions)
            return b

        return of


def predicted_fill(symbolic: Ordering) -> int | None:
    """nnz(L + U) before anything is factorized; None where pivoting decides it (`colamd`)."""
    return None if symbolic.fill is None else symbolic.fill.entries


def analyze(pattern: AnyPattern, method: str, spec: FactorSpec | None) -> Ordering:
    """Order a pattern, at a tenth to a third of a factorization with minimum degree, and predict its fill.

    Args:
        pattern: where the entries are.
        method: for messages.
        spec: whose `ordering` is "mmd", "nd", "colamd" or "auto": minimum degree, and nested
            dissection where finding it should take less time than one factorization, and the
            fill that it gives costs less.

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
    check_matching(facts)
    return arranged(pattern, *_ordered(pattern, facts, (spec and spec.ordering) or "auto"))


def check_matching(facts: PatternFacts) -> None:
    """Refuse a pattern that admits no nonzero diagonal in any order.

    Raises:
        SingularMatrixError: no values on this pattern are invertible.
    """
    if facts.structurally_singular:
        raise SingularMatrixError(
            "the pattern is structurally singular: no values on it are invertible; look for an empty row or column",
            kind="structural",
        )


def arranged(pattern: Pattern, kind: str, order: IndexArray, fill: Fill | None) -> Ordering:
    """What is kept of an order: its inverse, the permuted pattern, and the gather for values."""
    inverse = np.empty_like(order)
    inverse[order] = np.arange(pattern.n, dtype=np.intc)
    rows = np.repeat(inverse, np.diff(pattern.indptr))
    # Entry numbers ride through the conversion as data (exact: they are integers).
    entries = np.arange(pattern.nnz, dtype=np.intc)
    b = coo_array((entries, (rows, inverse[pattern.indices])), shape=pattern.shape).tocsc()
    b.sort_indices()
    indptr, indices = b.indptr.astype(np.intc), b.indices.astype(np.intc)
    return Ordering(pattern, order, inverse, indptr, indices, b.data, kind != "colamd", kind, fill)


def _ordered(pattern: Pattern, facts: PatternFacts, wanted: str) -> tuple[str, IndexArray, Fill | None]:
    """The kind of ordering, the ordering, and its fill."""
    # Without a diagonal and without symmetry, pivots leave the diagonal everywhere, and an
    # ordering of A + Aᵀ would predict nothing.
    if wanted == "colamd" or (wanted == "auto" and not (facts.full_diagonal or facts.symmetric_pattern)):
        return "colamd", np.arange(pattern.n, dtype=np.intc), None
    graph = graph_of(pattern, facts)
    if wanted == "nd":
        return _measured("nd", graph)
    found = _measured("mmd", graph)
    if wanted == "auto" and found[2].nanoseconds > dissection_nanoseconds(graph.indices.size):
        with suppress(NotSupportedError):  # no process can be started here: what was found serves as well
            return min(found, _measured("nd", graph), key=lambda candidate: candidate[2].nanoseconds)
    return found


def _measured(kind: str, graph: Graph) -> tuple[str, IndexArray, Fill]:
    order = nested_dissection(graph) if kind == "nd" else minimum_degree(graph)
    counts = column_counts(graph, order)
    wide = counts.astype(np.float64)
    return kind, order, Fill(2 * int(counts.sum()), float(wide @ wide))
