"""Patterns stored as Hermitian ones: gradients of two orders are those of TensorFlow's own dense solve."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from scipy import sparse

import backsolve.tensorflow as bt
from backsolve import Client, Pattern
from support.systems import random_like

N = 5
WHERE = np.ones((N, N)) - np.eye(N, k=3) - np.eye(N, k=-3)
PATTERNS = {
    "hermitian": Pattern.from_csr(sparse.csr_array(WHERE), storage="hermitian"),
    "lower": Pattern.from_csr(sparse.csr_array(np.tril(WHERE)), storage="lower"),
}


FORMS = [("pattern", dtype, trans) for dtype in ("float64", "complex128") for trans in ("N", "T", "H")]
FORMS += [(form, *of) for form in ("indices", "dense") for of in (("float32", "N"), ("complex128", "T"))]
FORMS += [("function", "complex128", "H")]


@pytest.mark.parametrize(("form", "dtype", "trans"), FORMS)
@pytest.mark.parametrize("storage", PATTERNS)
def test_derivatives(storage: Any, dtype: str, trans: Any, form: str, embedded: Client) -> None:
    pattern = PATTERNS[storage]
    free, b = (tf.constant(random_like(shape, dtype, 90_412 + len(shape))) for shape in ((N, N), (N, 2)))
    places = np.stack([pattern.rows, pattern.indices], axis=1)

    def whole(free: tf.Tensor) -> tf.Tensor:
        shifted = free + 6 * tf.eye(N, dtype=free.dtype)
        return (shifted + tf.linalg.adjoint(shifted)) * tf.cast(WHERE, free.dtype)

    def ours(free: tf.Tensor) -> tf.Tensor:
        A, options = whole(free), {"trans": trans, "client": embedded}
        values = tf.gather_nd(A, places)
        if form == "pattern":
            return bt.spsolve(values, pattern, b, **options)
        if form == "indices":
            # In another order than a pattern's.
            sparse_a = tf.SparseTensor(places[::-1], values[::-1], [N, N])
            return bt.solve(sparse_a, b, storage=storage, **options)
        if form == "dense":
            return bt.solve(A, b, storage=storage, **options)
        unknown = [tf.TensorSpec([None, None], A.dtype)] * 2
        return tf.function(lambda A, b: bt.solve(A, b, storage=storage, **options), unknown)(A, b)

    def exact(free: tf.Tensor) -> tf.Tensor:
        a = tf.transpose(whole(free)) if trans == "T" else whole(free)
        return tf.linalg.solve(a, b)

    found = []
    for solve in (ours, exact):
        with tf.GradientTape() as outer:
            outer.watch(free)
            with tf.GradientTape() as inner:
                inner.watch(free)
                loss = tf.reduce_sum(tf.abs(solve(free)) ** 2)
            first = inner.gradient(loss, free)
            size = tf.reduce_sum(tf.abs(first) ** 2)
        found.append((loss, first, outer.gradient(size, free)))
    tolerance = 1e-4 if dtype == "float32" else 1e-9
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())
