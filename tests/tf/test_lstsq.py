"""Least squares on tensors, and derivatives of both orders, beside the normal equations written out."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from scipy import sparse

from backsolve import Client, Pattern
from backsolve.errors import (
    InvalidOptionError,
    InvalidPatternError,
    InvalidShapeError,
    NotConvergedError,
    NotSupportedError,
)
from backsolve.tensorflow import lstsq, splstsq
from support.tf_tensors import close, direction, gradients, numbers, places, products

SHAPES = {"tall": (7, 4), "wide": (4, 7)}


def _truth(a: Any, b: Any, damp: float = 0.0) -> Any:
    """By the pseudo-inverse of a full rank, which TensorFlow differentiates right."""
    (m, n), vectors = a.shape[-2:], b.shape.rank == a.shape.rank - 1
    b = b[..., None] if vectors else b
    adjoint = tf.linalg.adjoint(a)
    if damp or m >= n:
        gram = tf.linalg.matmul(adjoint, a) + tf.cast(damp**2, a.dtype) * tf.eye(n, dtype=a.dtype)
        x = tf.linalg.solve(gram, tf.linalg.matmul(adjoint, b))
    else:
        x = tf.linalg.matmul(adjoint, tf.linalg.solve(tf.linalg.matmul(a, adjoint), b))
    return x[..., 0] if vectors else x


def _pattern(m: int, n: int) -> Pattern:
    stored = np.random.default_rng(417_903_268).random((m, n)) < 0.6
    stored[np.arange(min(m, n)), np.arange(min(m, n))] = True
    return Pattern.from_csr(sparse.csr_array(stored.astype(float)))


def _full(values: Any, pattern: Pattern) -> Any:
    """The dense matrix, differentiably."""
    entry = np.full(pattern.shape, pattern.nnz)
    entry[pattern.rows, pattern.indices] = np.arange(pattern.nnz)
    return tf.gather(tf.concat([values, tf.zeros_like(values[..., :1])], -1), entry, axis=-1)


@pytest.mark.parametrize(("dtype", "damp"), [("float64", 0.0), ("complex128", 0.0), ("complex128", 0.6)])
@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives(shape: str, damp: float, dtype: str, embedded: Client) -> None:
    """Damped it is LSMR, which stops at its tolerance."""
    (m, n), near = SHAPES[shape], 1e-6 if damp else 1e-9
    a, b = numbers(610_223_974, (m, n), dtype), numbers(71_150_386, (m, 2), dtype)

    def ours(a: Any, b: Any) -> Any:
        return lstsq(a, b, damp=damp, rtol=1e-14 if damp else None, client=embedded)

    def truth(a: Any, b: Any) -> Any:
        return _truth(a, b, damp)

    close(ours(a, b), truth(a, b), rtol=near)
    close(gradients(ours, a, b), gradients(truth, a, b), rtol=near)
    close(products(ours, a, b), products(truth, a, b), rtol=10 * near)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["pattern", "indices"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["single", "batch"])
def test_sparse_derivatives(shape: str, form: str, batch: tuple[int, ...], embedded: Client) -> None:
    if batch and form == "indices":
        pytest.skip("a tf.SparseTensor is one matrix")
    pattern = _pattern(*SHAPES[shape])
    diagonal = tf.constant(4.0 * (pattern.rows == pattern.indices))
    values = numbers(93_415_708, (*batch, pattern.nnz)) + diagonal
    b = numbers(208_460_517, (*batch, pattern.m))

    def ours(values: Any, b: Any) -> Any:
        if form == "pattern":
            return splstsq(values, pattern, b, method="lstsq", client=embedded)
        return lstsq(tf.SparseTensor(places(pattern), values, pattern.shape), b, client=embedded)

    def truth(values: Any, b: Any) -> Any:
        return _truth(_full(values, pattern), b)

    close(ours(values, b), truth(values, b), rtol=1e-8)
    close(gradients(ours, values, b), gradients(truth, values, b), rtol=1e-7)
    close(products(ours, values, b), products(truth, values, b), rtol=1e-6)


def test_the_derivative_where_columns_depend_on_each_other(embedded: Client) -> None:
    """A = B C of rank 2, whose pseudo-inverse is C⁺ B⁺; along B and C the rank stays."""
    b, c, y = numbers(82_710_336, (6, 2)), numbers(390_146_725, (2, 5)), numbers(51_829_400, (6,))

    def ours(b: Any, c: Any, y: Any) -> Any:
        return lstsq(tf.linalg.matmul(b, c), y, client=embedded)

    def truth(b: Any, c: Any, y: Any) -> Any:
        return _truth(c, _truth(b, y))

    close(ours(b, c, y), truth(b, c, y), rtol=1e-9)
    close(gradients(ours, b, c, y), gradients(truth, b, c, y), rtol=1e-9)
    close(products(ours, b, c, y), products(truth, b, c, y), rtol=1e-8)


def test_forward_mode(embedded: Client) -> None:
    a, b = numbers(730_914_286, (6, 4)), numbers(11_830_745, (6,))

    def tangent(f: Any) -> Any:
        with tf.autodiff.ForwardAccumulator([a, b], [direction(a), direction(b)]) as accumulator:
            x = f(a, b)
        return accumulator.jvp(x)

    def ours() -> Any:
        return tangent(lambda a, b: lstsq(a, b, client=embedded))

    expected = tangent(_truth)
    close(ours(), expected, rtol=1e-9)
    close(tf.function(ours)(), expected, rtol=1e-9)


def test_a_sparse_matrix_in_a_function(embedded: Client) -> None:
    pattern = _pattern(*SHAPES["tall"])
    values, b = numbers(93_415_708, (pattern.nnz,)), numbers(208_460_517, (pattern.m,))
    values = values + tf.constant(4.0 * (pattern.rows == pattern.indices))
    traced = tf.function(lambda v, b: splstsq(v, pattern, b, method="lstsq", client=embedded))
    assert traced.get_concrete_function(values, b).outputs[0].shape == (pattern.n,)
    close(gradients(traced, values, b), gradients(lambda v, b: _truth(_full(v, pattern), b), values, b), rtol=1e-8)


@pytest.mark.parametrize("tapes", ["inside", "around"])
def test_in_a_function_of_unknown_shapes(tapes: str, embedded: Client) -> None:
    a, b = numbers(65_038_217, (6, 4)), numbers(904_712_386, (6,))
    signature = [tf.TensorSpec([None, None], a.dtype), tf.TensorSpec([None], b.dtype)]

    def ours(a: Any, b: Any) -> Any:
        return lstsq(a, b, client=embedded)

    if tapes == "inside":
        found = tf.function(lambda a, b: products(ours, a, b), input_signature=signature)(a, b)
    else:
        found = products(tf.function(ours, input_signature=signature), a, b)
    close(found, products(_truth, a, b), rtol=1e-8)


def test_what_is_told(embedded: Client) -> None:
    a, b = numbers(38_107_254, (6, 4), "float32"), numbers(610_943_270, (6,), "float32")
    seen: list[str] = []
    with tf.GradientTape() as tape:
        tape.watch(a)
        x, certificate = lstsq(a, b, client=embedded, return_stats=True, observe=lambda phase, _: seen.append(phase))
    assert x.dtype == tf.float32
    assert certificate.method == "lstsq_qr"
    assert tape.gradient(x, a).dtype == tf.float32
    assert seen == ["solve", "adjoint", "adjoint"]
    with pytest.raises(InvalidOptionError, match="use observe"):
        tf.function(lambda: lstsq(a, b, return_stats=True), autograph=False)()


def test_what_does_not_converge_is_raised_forward_and_backward(embedded: Client) -> None:
    """Of b = 0 the answer is where the iteration begins; its gradient is not."""
    a, b = numbers(570_231_894, (30, 20)), numbers(88_140_267, (30,))
    options: dict[str, Any] = {"method": "lstsq_lsmr", "rtol": 1e-13, "maxiter": 2, "client": embedded}
    with pytest.raises(NotConvergedError):
        lstsq(a, b, **options)
    with tf.GradientTape() as tape:
        tape.watch(a)
        x = lstsq(a, 0 * b, **options)
    with pytest.raises(NotConvergedError):
        tape.gradient(x, a, output_gradients=numbers(4_019_283, (20,)))


def test_bad_input_is_refused() -> None:
    a, b = tf.ones([6, 4], tf.float64), tf.ones([6], tf.float64)
    with pytest.raises(InvalidShapeError, match=r"\(6,\) for vectors"):
        lstsq(a, b[1:])
    with pytest.raises(InvalidShapeError, match=r"\[\*batch, m, n\]"):
        lstsq(b, b)
    with pytest.raises(InvalidPatternError, match="from_csr"):
        splstsq(b, None, b)  # type: ignore[call-overload]
    with pytest.raises(InvalidOptionError, match="general storage alone"):
        splstsq(tf.ones(2), Pattern([0, 1, 2], [0, 1], (2, 2), "lower"), tf.ones(2))
    with pytest.raises(InvalidOptionError, match="unknown option"):
        lstsq(a, b, tolerance=1e-3)
    with pytest.raises(NotSupportedError, match="jit_compile=True"):
        tf.function(lambda: lstsq(a, b), jit_compile=True, autograph=False)()
