"""Tensors of TensorFlow to solve with, and the dense truth beside them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from backsolve import Pattern

Tensor = Any


def dense(seed: int, batch: tuple[int, ...] = (), n: int = 5, dtype: str = "float64") -> Tensor:
    """`[*batch, n, n]`, nonsymmetric and well-conditioned."""
    return tf.constant(numbers(seed, (*batch, n, n), dtype).numpy() + (2 * n**0.5 * np.eye(n)).astype(dtype))


def numbers(seed: int, shape: tuple[int, ...], dtype: str = "float64") -> Tensor:
    """Normal numbers."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        drawn = drawn + 1j * rng.standard_normal(shape)
    return tf.constant(drawn.astype(dtype))


def sparse_pattern(seed: int, n: int = 5, density: float = 0.4) -> Pattern:
    """A nonsymmetric pattern with a full diagonal."""
    stored = np.random.default_rng(seed).random((n, n)) < density
    np.fill_diagonal(stored, True)
    rows, columns = np.nonzero(stored)
    return Pattern(np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))]), columns, (n, n))


def values_on(pattern: Pattern, seed: int, batch: tuple[int, ...] = (), dtype: str = "float64") -> Tensor:
    """`[*batch, nnz]` of a diagonally dominant matrix."""
    diagonal = 2 * pattern.n**0.5 * (pattern.rows == pattern.indices)
    return tf.constant(numbers(seed, (*batch, pattern.nnz), dtype).numpy() + diagonal.astype(dtype))


def places(pattern: Pattern) -> np.ndarray:
    """`[nnz, 2]` rows and columns."""
    return np.stack([pattern.rows, pattern.indices], axis=-1).astype(np.int64)


def scattered(values: Tensor, indices: Any, n: int) -> Tensor:
    """The dense matrix, differentiably; entries at one place are summed."""
    lead = values.shape.rank - 1
    first = tf.transpose(values, [lead, *range(lead)])
    full = tf.tensor_scatter_nd_add(tf.zeros([n, n, *values.shape[:-1]], values.dtype), indices, first)
    return tf.transpose(full, [*range(2, 2 + lead), 0, 1])


def reference(A: Tensor, b: Tensor, trans: str = "N") -> Tensor:
    """The answer by TensorFlow's dense solve."""
    op = {"N": A, "T": tf.linalg.matrix_transpose(A), "H": tf.linalg.adjoint(A)}[trans]
    if b.shape.rank == A.shape.rank:
        return tf.linalg.solve(op, b)
    return tf.linalg.solve(op, b[..., None])[..., 0]


def gradients(f: Callable[..., Tensor], *operands: Tensor) -> list[Tensor]:
    """Gradients of a function whose cotangent depends on the operands too."""
    with tf.GradientTape() as tape:
        tape.watch(operands)
        x = f(*operands)
        loss = tf.reduce_sum(tf.abs(x) ** 3) + sum(tf.reduce_sum(tf.abs(t) ** 3) for t in operands)
    return tape.gradient(loss, operands)


def products(f: Callable[..., Tensor], *operands: Tensor) -> list[Tensor]:
    """Products of the Hessian of the same function with fixed directions."""
    with tf.GradientTape() as tape:
        tape.watch(operands)
        along = [tf.reduce_sum(tf.math.real(tf.math.conj(g) * direction(g))) for g in gradients(f, *operands)]
        total = tf.add_n(along)
    return tape.gradient(total, operands)


def direction(like: Tensor) -> Tensor:
    """Fixed numbers of the shape and type of a tensor, whose shape may not be known yet."""
    real = like.dtype.real_dtype
    phase = 1.7 * tf.cast(tf.range(tf.size(like)), real) + tf.constant(0.3, real)
    drawn = tf.complex(tf.cos(phase), tf.sin(2 * phase)) if like.dtype.is_complex else tf.cos(phase)
    return tf.reshape(drawn, tf.shape(like))


def close(actual: Sequence[Tensor] | Tensor, expected: Sequence[Tensor] | Tensor, rtol: float = 1e-10) -> None:
    """Equal to rounding relative to the largest number; shapes and element types too."""
    if tf.is_tensor(actual):
        actual, expected = [actual], [expected]
    for mine, truth in zip(actual, expected, strict=True):
        assert mine.dtype == truth.dtype
        assert mine.shape == truth.shape
        largest = float(tf.reduce_max(tf.abs(truth))) if tf.size(truth) else 0.0
        np.testing.assert_allclose(mine.numpy(), truth.numpy(), rtol=rtol, atol=rtol * largest)
