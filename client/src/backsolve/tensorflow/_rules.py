"""The formulas of `backsolve._adapter.rules` in TensorFlow's own operations."""

from dataclasses import dataclass
from typing import Any, Final, final
from weakref import WeakKeyDictionary

import tensorflow as tf

from .._adapter import rules
from .._adapter.rules import Algebra
from ..kinds.base import Operator
from ..pattern import AnyPattern, DensePattern, Pattern, StructuredPattern
from ..types import Storage
from ._arrays import OPS, Arraylike

Tensor = Any
"""A `tf.Tensor`; TensorFlow has no types of its own for mypy."""

_BLOCK: Final = 1 << 20
"""Products formed at a time, where shapes are known: bounds the scratch memory of a wide block of right-hand sides."""

ANY: Final = DensePattern((0, 0))
"""Stands for every pattern of entries: the formulas ask of it nothing but its storage, and a `Place` knows the rest."""

_coordinates: "WeakKeyDictionary[Pattern, tuple[Tensor, Tensor]]" = WeakKeyDictionary()


@final
@dataclass(frozen=True, slots=True)
class Place:
    """Where the stored entries of a sparse matrix are, in the order of its values; any order, duplicates allowed.

    Attributes:
        rows, columns: `[nnz]`.
        shape: `(m, n)`, numbers or scalar tensors.
        static: `(m, n)` as far as they are known before anything runs.
    """

    rows: Tensor
    columns: Tensor
    shape: tuple[Any, ...]
    static: tuple[int | None, int | None]

    def outer(self, pattern: AnyPattern, left: Tensor, right: Tensor) -> Tensor:
        """`sum_k left[r, k] conj(right[c, k])` on the stored entries."""
        parts = [
            tf.reduce_sum(tf.gather(left, r, axis=-2) * tf.math.conj(tf.gather(right, c, axis=-2)), axis=-1)
            for r, c in zip(*self._blocks(left), strict=True)
        ]
        return parts[0] if len(parts) == 1 else tf.concat(parts, axis=-1)

    def product(self, pattern: AnyPattern, values: Tensor, x: Tensor, *, transposed: bool) -> Tensor:
        """`A x`, or `Aᵀ x`, for the matrix with these values."""
        rows, columns = self._blocks(x)
        into, out_of = (columns, rows) if transposed else (rows, columns)
        size = self.shape[1] if transposed else self.shape[0]
        given = tf.split(values, [len(r) for r in rows], axis=-1) if len(rows) > 1 else [values]
        parts = [
            _summed(v[..., None] * tf.gather(x, o, axis=-2), i, size)
            for v, i, o in zip(given, into, out_of, strict=True)
        ]
        return parts[0] if len(parts) == 1 else tf.add_n(parts)

    def _blocks(self, rhs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Rows and columns in pieces that keep a piece's products below `_BLOCK`."""
        count, known = self.rows.shape[0], rhs.shape
        if count is None or not known.is_fully_defined() or not known.num_elements():
            return [self.rows], [self.columns]
        size = max(1, _BLOCK // max(1, known.num_elements() // known[-2]))
        if size >= count:
            return [self.rows], [self.columns]
        sizes = [min(size, count - start) for start in range(0, count, size)]
        return tf.split(self.rows, sizes), tf.split(self.columns, sizes)


def of_pattern(pattern: Pattern) -> Place:
    """The place of a pattern; its tensors are kept with it, outside of every graph."""
    known = _coordinates.get(pattern)
    if known is None:
        with tf.init_scope():
            known = tf.constant(pattern.rows), tf.constant(pattern.indices)
            if tf.executing_eagerly():
                _coordinates[pattern] = known
    return Place(*known, pattern.shape, pattern.shape)


def values_gradient(
    place: Place | None, storage: Storage, operator: Operator, lam: Tensor, x: Tensor, vectors: bool
) -> Tensor:
    """As `rules.values_gradient`; `place` is None for a dense matrix, of which every entry has a gradient."""
    on = algebra(place)
    found = rules.values_gradient(on, ANY, operator, lam, x, vectors)
    if storage == "general":
        return found
    # With w of `backsolve.storage`, w ∘ (G + Gᴴ); the conjugate transpose of λ xᴴ is x λᴴ.
    found = found + rules.values_gradient(on, ANY, operator, x, lam, vectors)
    half = tf.cast(0.5, found.dtype)
    if storage == "hermitian":
        return half * found
    if place is None:
        below = tf.linalg.band_part(found, -1, 0)
        return tf.linalg.set_diag(below, half * tf.linalg.diag_part(below))
    return found * tf.where(tf.equal(place.rows, place.columns), half, tf.ones_like(half))


def structured_gradient(
    pattern: StructuredPattern,
    place: Place | None,
    operator: Operator,
    lam: Tensor,
    x: Tensor,
    values: Tensor,
    vectors: bool,
) -> Tensor:
    """As `rules.values_gradient`; `place` is that of a sparse S of an update."""
    below = algebra(place)

    def outer(_: AnyPattern, left: Arraylike, right: Arraylike) -> Arraylike:
        return Arraylike(below.outer(ANY, left.tensor, right.tensor))

    on = Algebra(OPS, below.product, Arraylike.conj, below.zeros_like, outer)
    found: Arraylike = rules.values_gradient(
        on, pattern, operator, Arraylike(lam), Arraylike(x), vectors, Arraylike(values)
    )
    return found.tensor


def algebra(place: Place | None) -> Algebra:
    """The operations, for one matrix of entries."""
    if place is None:
        return Algebra(OPS, _dense_product, tf.math.conj, tf.zeros_like, _dense_outer)
    return Algebra(OPS, place.product, tf.math.conj, tf.zeros_like, place.outer)


def shaped(tensor: Tensor, shape: Any) -> Tensor:
    """A tensor of which more is known; `tf.ensure_shape` is an operation that accumulators cannot push through."""
    same = tf.identity(tensor)
    same.set_shape(shape)
    return same


def _summed(terms: Tensor, into: Tensor, size: Any) -> Tensor:
    """`[..., size, k]`, the sums of the `[..., nnz, k]` that belong to each row."""
    # Segments are summed over the leading axis alone.
    rank = terms.shape.rank
    forth = [rank - 2, *range(rank - 2), rank - 1]
    back = [*range(1, rank - 1), 0, rank - 1]
    return tf.transpose(tf.math.unsorted_segment_sum(tf.transpose(terms, forth), into, size), back)


def _dense_outer(pattern: AnyPattern, left: Tensor, right: Tensor) -> Tensor:
    return tf.linalg.matmul(left, right, adjoint_b=True)


def _dense_product(pattern: AnyPattern, values: Tensor, x: Tensor, *, transposed: bool) -> Tensor:
    return tf.linalg.matmul(values, x, transpose_a=transposed)
