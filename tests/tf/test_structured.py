"""Matrices given by parameters: derivatives of two orders, beside TensorFlow's own through the dense matrix."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from backsolve import Client
from backsolve.errors import InvalidDtypeError, InvalidOptionError, InvalidShapeError, NotSupportedError
from backsolve.tensorflow import Circulant, Kronecker, LowRankPlusDiagonal, LowRankUpdate, Toeplitz, solve
from support.fresh import new_rng
from support.tf_tensors import (
    close,
    dense,
    direction,
    gradients,
    numbers,
    places,
    products,
    reference,
    scattered,
    sparse_pattern,
    values_on,
)

N = 6
PATTERN = sparse_pattern(530_281_946, N)
TWICE = np.append(np.arange(PATTERN.nnz)[::-1], [0, 3])
"""Entries in another order than a pattern's, two of them listed twice."""
PLACE = np.arange(N)[:, None] - np.arange(N)


def _steep(dtype: str, lead: tuple[int, ...]) -> Any:
    """A first column whose first number outweighs the others."""
    return numbers(380_127_945, (*lead, N), dtype) + tf.constant(10.0 * (np.arange(N) == 0), dtype)


def _thin(seed: int, dtype: str, lead: tuple[int, ...] = ()) -> Any:
    return numbers(seed, (*lead, N, 2), dtype)


Tensors = list[Any]


def _low_rank(dtype: str, lead: tuple[int, ...]) -> Tensors:
    d = numbers(71_903_824, (*lead, N), dtype) + tf.cast(9, dtype)
    return [d, _thin(640_218_395, dtype, lead), _thin(9_034_712, dtype, lead)]


def _factors(dtype: str, lead: tuple[int, ...]) -> Tensors:
    return [dense(52_017, lead, 2, dtype), dense(918_203, lead, 3, dtype)]


def _update(dtype: str, lead: tuple[int, ...]) -> Tensors:
    return [dense(7_710_254, (), N, dtype), _thin(13_850, dtype), _thin(92_384, dtype)]


def _sparse_update(dtype: str, lead: tuple[int, ...]) -> Tensors:
    return [values_on(PATTERN, 704_183, (), dtype), *_update(dtype, ())[1:]]


def _kronecker(a: Any, b: Any) -> Any:
    return tf.reshape(tf.einsum("...ij,...kl->...ikjl", a, b), [*a.shape[:-2], N, N])


def _outer(U: Any, V: Any) -> Any:
    return tf.linalg.matmul(U, V, adjoint_b=True)


def _toeplitz(c: Any, r: Any) -> Any:
    return tf.where(PLACE >= 0, tf.gather(c, abs(PLACE), axis=-1), tf.gather(r, abs(PLACE), axis=-1))


KINDS: dict[str, tuple[Callable[..., Tensors], Callable[..., Any], Callable[..., Any]]] = {
    "low_rank": (_low_rank, LowRankPlusDiagonal, lambda d, U, V: tf.linalg.diag(d) + _outer(U, V)),
    "kronecker": (_factors, Kronecker, _kronecker),
    "circulant": (lambda *of: [_steep(*of)], Circulant, lambda c: tf.gather(c, PLACE % N, axis=-1)),
    "toeplitz": (lambda dtype, lead: [_steep(dtype, lead), numbers(20, (*lead, N), dtype)], Toeplitz, _toeplitz),
    "hermitian toeplitz": (
        lambda *of: [_steep(*of)],
        Toeplitz,
        lambda c: _toeplitz(c, tf.math.conj(c)),
    ),
    "update": (_update, LowRankUpdate, lambda S, U, V: S + _outer(U, V)),
    "sparse update": (
        _sparse_update,
        lambda v, U, V: LowRankUpdate(v, U, V, pattern=PATTERN),
        lambda v, U, V: scattered(v, places(PATTERN), N) + _outer(U, V),
    ),
    "update of a SparseTensor": (
        _sparse_update,
        lambda v, U, V: LowRankUpdate(tf.SparseTensor(places(PATTERN)[TWICE], tf.gather(v, TWICE), [N, N]), U, V),
        lambda v, U, V: scattered(tf.gather(v, TWICE), places(PATTERN)[TWICE], N) + _outer(U, V),
    ),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
@pytest.mark.parametrize(("dtype", "columns"), [("float64", ()), ("complex128", (2,))])
@pytest.mark.parametrize("trans", ["N", "T", "H"])
def test_derivatives(kind: str, dtype: str, columns: tuple[int, ...], trans: Any, embedded: Client) -> None:
    parameters, made, full = KINDS[kind]
    given = [*parameters(dtype, ()), numbers(117_390_254, (N, *columns), dtype)]

    def ours(*given: Any) -> Any:
        return solve(made(*given[:-1]), given[-1], trans=trans, client=embedded)

    def truth(*given: Any) -> Any:
        return reference(full(*given[:-1]), given[-1], trans)

    close(ours(*given), truth(*given))
    close(gradients(ours, *given), gradients(truth, *given), rtol=1e-9)
    close(products(ours, *given), products(truth, *given), rtol=1e-8)


@each_kind
def test_a_tangent_inside_of_a_function(kind: str, embedded: Client) -> None:
    parameters, made, full = KINDS[kind]
    given = [*parameters("complex128", ()), numbers(86_041_927, (N,), "complex128")]

    def tangent(f: Callable[..., Any]) -> Any:
        with tf.autodiff.ForwardAccumulator(given, [direction(each) for each in given]) as accumulator:
            x = f(*given)
        return accumulator.jvp(x)

    traced = tf.function(lambda: tangent(lambda *given: solve(made(*given[:-1]), given[-1], client=embedded)))
    close(traced(), tangent(lambda *given: reference(full(*given[:-1]), given[-1])))


@each_kind
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_products_with_it(kind: str, dtype: str) -> None:
    parameters, made, full = KINDS[kind]
    given, near = parameters(dtype, ()), 1e-4 if dtype == "float32" else 1e-12
    a, exact = made(*given), full(*given)
    assert (a.shape, a.dtype, a.batch) == ((N, N), exact.dtype, ())
    close(a.to_dense(), exact, rtol=near)
    x, many = numbers(40_281_773, (N,), dtype), numbers(99_310_284, (N, 3), dtype)
    close(a @ x, tf.linalg.matvec(exact, x), rtol=near)
    close(a.matvec(many), tf.linalg.matmul(exact, many), rtol=near)


@pytest.mark.parametrize("kind", ["low_rank", "kronecker", "circulant", "toeplitz"])
def test_a_batch_in_a_function_that_does_not_know_its_size(kind: str, embedded: Client) -> None:
    parameters, made, full = KINDS[kind]
    given = [*parameters("float64", (3,)), numbers(83_409_126, (3, N))]

    def ours(*given: Any) -> Any:
        return solve(made(*given[:-1]), given[-1], client=embedded)

    def truth(*given: Any) -> Any:
        return reference(full(*given[:-1]), given[-1])

    signature = [tf.TensorSpec([None, *each.shape[1:]], each.dtype) for each in given]
    inside = tf.function(lambda *given: gradients(ours, *given), input_signature=signature)
    close(inside(*given), gradients(truth, *given), rtol=1e-9)
    close(
        tf.function(lambda *given: made(*given).to_dense(), input_signature=signature[:-1])(*given[:-1]),
        full(*given[:-1]),
    )


def test_an_update_uses_the_factor_of_what_it_stands_on(embedded: Client) -> None:
    S = dense(61_027_843, n=N) + float(new_rng().random())
    b, U = numbers(770_214_536, (N,)), _thin(40_193_572, "float64")
    before = embedded.stats()["factorizations"]
    solve(S, b, client=embedded)
    gradients(lambda S, U: solve(LowRankUpdate(S, U), b, client=embedded), S, U)
    assert embedded.stats()["factorizations"] - before == 1


def test_bad_parameters_are_refused(embedded: Client) -> None:
    c = tf.ones([4])
    with pytest.raises(InvalidShapeError, match="must be alike"):
        Toeplitz(c, c[1:])
    with pytest.raises(InvalidShapeError, match="must be square"):
        Kronecker(tf.ones([2, 3]))
    with pytest.raises(InvalidShapeError, match="same batch axes"):
        Kronecker(tf.ones([2, 3, 3]), tf.ones([3, 3]))
    with pytest.raises(InvalidShapeError, match=r"U must be of 2 dimensions"):
        LowRankPlusDiagonal(c, c)
    with pytest.raises(InvalidShapeError, match=r"they must be \(n,\)"):
        LowRankPlusDiagonal(c, tf.ones([3, 1]))
    with pytest.raises(InvalidDtypeError, match=r"U is float64.*float32"):
        LowRankPlusDiagonal(c, tf.ones([4, 1], tf.float64))
    with pytest.raises(InvalidDtypeError, match=r"c is int32"):
        Circulant(tf.constant([1, 2]))
    with pytest.raises(InvalidShapeError, match="a batch is not taken"):
        LowRankUpdate(tf.eye(4), tf.ones([2, 4, 1]))
    with pytest.raises(InvalidShapeError, match=r"the pattern needs \(\d+,\) numbers"):
        LowRankUpdate(tf.eye(N), tf.ones([N, 1]), pattern=PATTERN)
    with pytest.raises(InvalidOptionError, match="leave it out"):
        solve(Circulant(c), c, storage="hermitian", client=embedded)
    with pytest.raises(InvalidShapeError, match=r"x has shape \(3,\)"):
        Circulant(c) @ c[1:]


def test_sizes_must_be_known_when_a_function_is_traced(embedded: Client) -> None:
    with pytest.raises(InvalidShapeError, match=r"ensure_shape\(c"):
        tf.function(
            lambda c, b: solve(Circulant(c), b), input_signature=[tf.TensorSpec([None])] * 2, autograph=False
        ).get_concrete_function()

    @tf.function(input_signature=[tf.SparseTensorSpec([N, N]), tf.TensorSpec([N, 1])], autograph=False)
    def updated(S: Any, U: Any) -> Any:
        return solve(LowRankUpdate(S, U), U[:, 0], client=embedded)

    with pytest.raises(NotSupportedError, match="give numbers and pattern"):
        updated.get_concrete_function()
