"""Patterns stored as Hermitian ones: gradients of two orders are those of TensorFlow's own dense solve."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import sparse

import backsolve.tensorflow as bt
from backsolve import Pattern
from support.systems import random_like

N = 5
WHERE = np.ones((N, N)) - np.eye(N, k=3) - np.eye(N, k=-3)
PATTERNS = {
    "hermitian": Pattern.from_csr(sparse.csr_array(WHERE), storage="hermitian"),
    "lower": Pattern.from_csr(sparse.csr_array(np.tril(WHERE)), storage="lower"),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.parametrize("storage", PATTERNS)
@pytest.mark.parametrize("trans", ["N", "T", "H"])
def test_derivatives(storage: str, dtype: str, trans: str) -> None:
    pattern = PATTERNS[storage]
    free, b = (tf.constant(random_like(shape, dtype, 90_412 + len(shape))) for shape in ((N, N), (N, 2)))
    places = np.stack([pattern.rows, pattern.indices], axis=1)

    def whole(free: tf.Tensor) -> tf.Tensor:
        shifted = free + 6 * tf.eye(N, dtype=free.dtype)
        return (shifted + tf.linalg.adjoint(shifted)) * tf.cast(WHERE, free.dtype)

    def ours(free: tf.Tensor) -> tf.Tensor:
        return bt.spsolve(tf.gather_nd(whole(free), places), pattern, b, trans=trans)

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
