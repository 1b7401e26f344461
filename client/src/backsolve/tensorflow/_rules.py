"""The formulas of `backsolve._adapter.rules` in TensorFlow's own operations."""

from dataclasses import dataclass
from typing import Any, Final, final
from weakref import WeakKeyDictionary

import tensorflow as tf

from .._adapter import rules
from .._adapter.rules import Algebra
from ..errors import NotSupportedError
from ..kinds.base import Operator, Ops
from ..pattern import AnyPattern, DensePattern, Pattern

Tensor = Any
"""A `tf.Tensor`; TensorFlow has no types of its own for mypy."""

_BLOCK: Final = 1 << 20
"""Products formed at a time, where shapes are known: bounds the scratch memory of a wide block of right-hand sides."""

_ANY: Final = DensePattern((0, 0))
"""Stands for every pattern of general storage: the formulas ask of it nothing else, and a `Place` knows the entries."""

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
        into, out_of = (self.columns, self.rows) if transposed else (self.rows, self.columns)
        size = self.shape[1] if transposed else self.shape[0]
        terms = values[..., None] * tf.gather(x, out_of, axis=-2)
        # Segments are summed over the leading axis alone.
        rank = terms.shape.rank
        forth = [rank - 2, *range(rank - 2), rank - 1]
        back = [*range(1, rank - 1), 0, rank - 1]
        summed = tf.math.unsorted_segment_sum(tf.transpose(terms, forth), into, size)
        return tf.transpose(summed, back)

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
    place: Place | None, pattern: Pattern | None, operator: Operator, lam: Tensor, x: Tensor, vectors: bool
) -> Tensor:
    """As `rules.values_gradient`; `place` is None for a dense matrix, `pattern` where the numbers bring it."""
    return rules.values_gradient(algebra(place), pattern or _ANY, operator, lam, x, vectors)


def algebra(place: Place | None) -> Algebra:
    """The operations, for one matrix."""
    if place is None:
        return Algebra(_OPS, _dense_outer, _dense_product, tf.math.conj, tf.zeros_like)
    return Algebra(_OPS, place.outer, place.product, tf.math.conj, tf.zeros_like)


def _dense_outer(pattern: AnyPattern, left: Tensor, right: Tensor) -> Tensor:
    return tf.linalg.matmul(left, right, adjoint_b=True)


def _dense_product(pattern: AnyPattern, values: Tensor, x: Tensor, *, transposed: bool) -> Tensor:
    return tf.linalg.matmul(values, x, transpose_a=transposed)


def _concatenate(tensors: Any, axis: int) -> Tensor:
    raise NotSupportedError("structured matrices are not offered in TensorFlow")


_OPS: Final = Ops(tf.signal, _concatenate, lambda tensor: bool(tensor.dtype.is_complex))
"""Asked for by structured matrices alone."""
