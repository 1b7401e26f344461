"""Hessian-vector and Gauss-Newton products and Jacobians of functions that solve: right, and with few solves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tensorflow as tf

import backsolve.tensorflow as bt
from backsolve import Client
from backsolve.errors import InvalidDtypeError, InvalidOptionError, InvalidShapeError
from support.fresh import new_rng
from support.tf_tensors import close, numbers

N = 5
each_dtype = pytest.mark.parametrize("dtype", ["float64", "complex128"])
each_way = pytest.mark.parametrize("graph", [False, True], ids=["eager", "function"])


def _fresh(dtype: str = "float64") -> Any:
    """A matrix that no other test has solved with: what is factorized is counted."""
    return numbers(33_018_244, (N, N), dtype) + tf.cast(new_rng().random(), dtype)


@contextmanager
def _spent(client: Client) -> Iterator[list[int]]:
    """Solves of all kinds, and factorizations, inside of the block."""
    before, found = client.stats(), []
    yield found
    after = client.stats()
    kinds = ("solves", "adjoint_solves", "tangent_solves")
    found += [int(sum(after[k] - before[k] for k in kinds)), int(after["factorizations"] - before["factorizations"])]


def _solution(client: Client | None) -> Callable[[Any, Any], Any]:
    """x of A and b; by TensorFlow's own solve where there is no client."""

    def x(A: Any, b: Any) -> Any:
        A = A + 8 * tf.eye(N, dtype=A.dtype)
        return tf.linalg.solve(A, b[:, None])[:, 0] if client is None else bt.solve(A, b, client=client)

    return x


def _scalar(x: Any) -> Any:
    return tf.reduce_sum(tf.abs(x) ** 2 + 0.1 * tf.abs(x) ** 4)


def _loss(client: Client | None) -> Callable[[Any, Any], Any]:
    return lambda A, b: _scalar(_solution(client)(A, b))


def _second(f: Callable[..., Any], inputs: list[Any], v: list[Any]) -> list[Any]:
    with tf.GradientTape() as outer:
        outer.watch(inputs)
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            value = f(*inputs)
        gradients = inner.gradient(value, inputs)
        along = tf.add_n([tf.reduce_sum(tf.math.real(tf.math.conj(g) * d)) for g, d in zip(gradients, v, strict=True)])
    return outer.gradient(along, inputs)


@each_dtype
@each_way
def test_hvp_costs_two_further_solves(dtype: str, graph: bool, embedded: Client) -> None:
    inputs = (_fresh(dtype), numbers(71_420_938, (N,), dtype))
    v = (numbers(610_224_873, (N, N), dtype), numbers(93_018_442, (N,), dtype))
    ours, theirs = _loss(embedded), _loss(None)

    def product(*given: Any) -> Any:
        return bt.hvp(ours, given[:2], given[2:])

    product = tf.function(product) if graph else product
    with _spent(embedded) as spent:
        value, found = product(*inputs, *v)
    assert spent == [4, 1]
    close([value, *found], [theirs(*inputs), *_second(theirs, list(inputs), list(v))], rtol=1e-9)


def test_many_products_at_one_point(embedded: Client) -> None:
    A, b = _fresh(), numbers(508_213_477, (N,))
    ours, theirs = (lambda A: _loss(embedded)(A, b)), (lambda A: _loss(None)(A, b))
    with _spent(embedded) as spent:
        hessian = bt.HessianProducts(ours, A)
    assert spent == [2, 1]
    with tf.GradientTape() as tape:
        tape.watch(A)
        value = theirs(A)
    close([hessian.value, hessian.gradient], [value, tape.gradient(value, A)])
    for seed in (40_918_233, 71_834_290):
        v = numbers(seed, (N, N))
        with _spent(embedded) as spent:
            found = hessian(v)
        assert spent == [2, 0]
        close(found, _second(theirs, [A], [v])[0], rtol=1e-9)


def test_what_does_not_enter_has_a_product_of_zeros(embedded: Client) -> None:
    A, b = _fresh(), numbers(508_213_477, (N,))
    _, (of_a, of_b) = bt.hvp(lambda A, b: tf.reduce_sum(b), (A, b), (A, b))
    close([of_a, of_b], [tf.zeros_like(A), tf.zeros_like(b)])
    _, (of_a, of_b) = bt.hvp(lambda A, b: _scalar(_solution(embedded)(A, tf.ones_like(b))), (A, b), (A, b))
    assert float(tf.reduce_max(tf.abs(of_a))) > 0
    close(of_b, tf.zeros_like(b))


@each_way
def test_a_cotangent_of_zeros_gives_zeros_and_is_not_sent(embedded: Client, graph: bool) -> None:
    def of_nothing(A: Any, b: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([A, b])
            value = tf.reduce_sum(0 * _solution(embedded)(A, b))
        return tape.gradient(value, [A, b])

    A, b = _fresh(), numbers(940_115_276, (N,))
    with _spent(embedded) as spent:
        found = (tf.function(of_nothing) if graph else of_nothing)(A, b)
    assert spent == [1, 1]
    close(found, [tf.zeros_like(A), tf.zeros_like(b)])


def test_gradients_that_come_as_slices(embedded: Client) -> None:
    """The gradient of `tf.gather` is no tensor, and neither is the derivative of that."""
    b = numbers(61_203_498, (N,))
    A = _fresh()

    def f(b: Any, client: Client | None) -> Any:
        return _scalar(tf.gather(_solution(client)(A, tf.gather(b, [3, 0, 1, 4, 3])), [1, 1, 2]))

    hessian = bt.HessianProducts(lambda b: f(b, embedded), b)
    with tf.GradientTape() as tape:
        tape.watch(b)
        value = f(b, None)
    v = numbers(9_928_174, (N,))
    expected = _second(lambda b: f(b, None), [b], [v])[0]
    close(
        [hessian.value, hessian.gradient, hessian(v)],
        [value, tf.convert_to_tensor(tape.gradient(value, b)), tf.convert_to_tensor(expected)],
    )


@each_dtype
@pytest.mark.parametrize("squares", [True, False])
@each_way
def test_gnvp_is_a_push_and_a_pull(dtype: str, squares: bool, graph: bool, embedded: Client) -> None:
    inputs = (_fresh(dtype), numbers(71_420_938, (N,), dtype))
    v = (numbers(610_224_873, (N, N), dtype), numbers(93_018_442, (N,), dtype))
    model, exact = _solution(embedded), _solution(None)

    def product(*given: Any) -> Any:
        return bt.gnvp(model, None if squares else _scalar, given[:2], given[2:])

    product = tf.function(product) if graph else product
    with _spent(embedded) as spent:
        value, found = product(*inputs, *v)
    assert spent == [3, 1]
    with tf.autodiff.ForwardAccumulator(inputs, v) as accumulator:
        x = exact(*inputs)
    moved = accumulator.jvp(x)
    curved = moved if squares else _second(_scalar, [x], [moved])[0]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        x = exact(*inputs)
    loss = tf.reduce_sum(tf.abs(x) ** 2) / 2 if squares else _scalar(x)
    close([value, *found], [loss, *tape.gradient(x, inputs, output_gradients=curved)], rtol=1e-9)


@pytest.mark.parametrize(("mode", "requests"), [("auto", 6), ("reverse", 6), ("forward", 31)])
def test_jacobian(mode: Any, requests: int, embedded: Client) -> None:
    inputs = (_fresh(), numbers(93_018_442, (N,)))
    exact = _solution(None)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(inputs)
        x = exact(*inputs)
    expected = [x, *(tape.jacobian(x, each) for each in inputs)]
    with _spent(embedded) as spent:
        value, found = bt.jacobian(_solution(embedded), inputs, mode=mode)
    close([value, *found], expected, rtol=1e-9)
    assert spent == [requests, 1]


def test_jacobian_of_a_complex_function_of_real_numbers(embedded: Client) -> None:
    A, b = _fresh("complex128"), numbers(84_310_229, (N,))

    def f(b: Any, client: Client | None) -> Any:
        return _solution(client)(A, tf.complex(b, 2 * b))

    with tf.GradientTape(persistent=True) as tape:
        tape.watch(b)
        x = f(b, None)
        parts = tf.math.real(x), tf.math.imag(x)
    real, imaginary = (tape.jacobian(part, b) for part in parts)
    value, found = bt.jacobian(lambda b: f(b, embedded), b)
    close([value, found], [x, tf.complex(real, imaginary)])
    with pytest.raises(InvalidOptionError, match="mode='forward'"):
        bt.jacobian(lambda b: f(b, embedded), b, mode="reverse")


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_jacobian_of_several_columns(mode: Any, embedded: Client) -> None:
    A, b = _fresh(), numbers(518_204_773, (N, 2))
    full = A + 8 * tf.eye(N, dtype=A.dtype)
    value, found = bt.jacobian(lambda b: bt.solve(full, b, client=embedded), b, mode=mode)
    expected = tf.einsum("ij,kl->ikjl", tf.linalg.inv(full), tf.eye(2, dtype=A.dtype))
    close([value, found], [tf.linalg.solve(full, b), expected])


def test_jacobian_in_a_function_of_unknown_shapes(embedded: Client) -> None:
    A, b = _fresh(), numbers(330_914_268, (N,))
    signature = [tf.TensorSpec([None], b.dtype)]

    def found(mode: Any) -> Any:
        f = tf.function(lambda b: bt.jacobian(lambda b: _solution(embedded)(A, b), b, mode=mode), signature)
        return f(b)[1]

    inverse = tf.linalg.inv(A + 8 * tf.eye(N, dtype=A.dtype))
    close([found("reverse"), found("forward")], [inverse, inverse])
    with pytest.raises(InvalidShapeError, match="say mode='reverse'"):
        found("auto")


def test_bad_input_is_refused(embedded: Client) -> None:
    b = numbers(330_914_268, (N,))
    with pytest.raises(InvalidShapeError, match="f must be a real scalar"):
        bt.hvp(lambda b: b, b, b)
    with pytest.raises(InvalidShapeError, match=r"v has shapes \[\(4,\)\]"):
        bt.hvp(tf.reduce_sum, b, b[1:])
    with pytest.raises(InvalidDtypeError, match="element types of the inputs"):
        bt.gnvp(tf.identity, None, b, tf.cast(b, tf.float32))
    with pytest.raises(InvalidDtypeError, match="inputs must be a dense tensor"):
        bt.hvp(tf.reduce_sum, b.numpy(), b)
    with pytest.raises(InvalidShapeError, match="inputs is empty"):
        bt.hvp(tf.reduce_sum, (), ())
    with pytest.raises(InvalidDtypeError, match="a Jacobian is of real inputs"):
        bt.jacobian(tf.identity, tf.cast(b, tf.complex128))
    with pytest.raises(InvalidOptionError, match="mode must be"):
        bt.jacobian(tf.identity, b, mode="sideways")  # type: ignore[arg-type]
    with pytest.raises(InvalidShapeError, match="one dense tensor"):
        bt.jacobian(lambda b: (b, b), b)
