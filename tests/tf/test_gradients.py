"""Derivatives against TensorFlow's own dense solve: eagerly, to the third order, backwards and forwards."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from backsolve import Client
from backsolve.tensorflow import _rules, solve, spsolve
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

each_trans = pytest.mark.parametrize("trans", ["N", "T", "H"])
each_dtype = pytest.mark.parametrize("dtype", ["float64", "complex128"])
each_shape = pytest.mark.parametrize(
    ("dtype", "batch", "columns"),
    [("float64", (), (4,)), ("complex128", (), ()), ("float64", (3,), ()), ("complex128", (2, 3), (4,))],
)

Accumulator = tf.autodiff.ForwardAccumulator


@each_trans
@each_shape
def test_dense_derivatives(
    embedded: Client, trans: Any, dtype: str, batch: tuple[int, ...], columns: tuple[int, ...]
) -> None:
    A, b = dense(558_102_917, batch, dtype=dtype), numbers(771_940_233, (*batch, 5, *columns), dtype)

    def ours(A: Any, b: Any) -> Any:
        return solve(A, b, trans=trans, client=embedded)

    def truth(A: Any, b: Any) -> Any:
        return reference(A, b, trans)

    close(ours(A, b), truth(A, b))
    close(gradients(ours, A, b), gradients(truth, A, b))
    close(products(ours, A, b), products(truth, A, b), rtol=1e-9)


@each_trans
@each_shape
def test_sparse_derivatives(
    embedded: Client, trans: Any, dtype: str, batch: tuple[int, ...], columns: tuple[int, ...]
) -> None:
    pattern = sparse_pattern(640_177_391)
    values, b = values_on(pattern, 902_551_786, batch, dtype), numbers(318_460_275, (*batch, 5, *columns), dtype)

    def ours(values: Any, b: Any) -> Any:
        return spsolve(values, pattern, b, trans=trans, client=embedded)

    def truth(values: Any, b: Any) -> Any:
        return reference(scattered(values, places(pattern), 5), b, trans)

    close(ours(values, b), truth(values, b))
    close(gradients(ours, values, b), gradients(truth, values, b))
    close(products(ours, values, b), products(truth, values, b), rtol=1e-9)


@each_trans
@each_dtype
@pytest.mark.parametrize("order", ["sorted", "shuffled", "duplicated"])
def test_sparse_tensors_in_any_order(embedded: Client, trans: Any, dtype: str, order: str) -> None:
    """The gradient has the caller's order; an entry listed twice receives it in full each time."""
    indices = places(sparse_pattern(417_935_028))
    rng = np.random.default_rng(266_093_817)
    if order != "sorted":
        indices = rng.permutation(indices)
    if order == "duplicated":
        indices = rng.permutation(np.concatenate([indices, indices[:4], indices[:2]]))
    diagonal = 10.0 * (indices[:, 0] == indices[:, 1])
    values = tf.constant(diagonal.astype(dtype)) + numbers(55_830_194, (len(indices),), dtype)
    b = numbers(190_846_327, (5, 2), dtype)

    def ours(values: Any, b: Any) -> Any:
        return solve(tf.SparseTensor(indices, values, [5, 5]), b, trans=trans, client=embedded)

    def truth(values: Any, b: Any) -> Any:
        return reference(scattered(values, indices, 5), b, trans)

    close(ours(values, b), truth(values, b))
    close(gradients(ours, values, b), gradients(truth, values, b))
    close(products(ours, values, b), products(truth, values, b), rtol=1e-9)


def test_third_derivative(embedded: Client) -> None:
    A, b = dense(815_236_004), numbers(377_914_520, (5,))

    def third(f: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(A)
            along = tf.reduce_sum(products(lambda A: f(A, b), A)[0] ** 2)
        return tape.gradient(along, A)

    close(third(lambda A, b: solve(A, b, client=embedded)), third(reference), rtol=1e-9)


def test_many_blocks_of_entries(embedded: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide block of right-hand sides is taken in pieces; the pieces make the same gradient."""
    pattern = sparse_pattern(729_183_046, 9)
    values, b = values_on(pattern, 118_704_935), numbers(503_662_781, (9, 7))

    def ours(values: Any, b: Any) -> Any:
        return spsolve(values, pattern, b, client=embedded)

    whole = gradients(ours, values, b)
    monkeypatch.setattr("backsolve.tensorflow._rules._BLOCK", 35)
    close(gradients(ours, values, b), whole)
    place = _rules.of_pattern(pattern)
    for piece in (
        lambda values, b: place.product(_rules.ANY, values, b, transposed=True),
        lambda values, b: place.outer(_rules.ANY, b, b),
    ):
        graph = tf.function(piece).get_concrete_function(values, b).graph
        sizes = [each.outputs[0].shape.num_elements() for each in graph.get_operations() if each.type == "Mul"]
        assert len(sizes) > 1
        assert max(sizes) <= 35


def test_only_one_operand_is_watched(embedded: Client) -> None:
    A, b = dense(936_150_472), numbers(240_591_863, (5,))
    for operand in (0, 1):
        results = []
        for f in (lambda A, b: solve(A, b, client=embedded), reference):
            with tf.GradientTape() as tape:
                tape.watch((A, b)[operand])
                loss = tf.reduce_sum(f(A, b) ** 3)
            results.append(tape.gradient(loss, [A, b]))
        assert results[0][1 - operand] is None
        close(results[0][operand], results[1][operand])


def test_persistent_tape_and_variables(embedded: Client) -> None:
    A, b = tf.Variable(dense(608_312_594)), tf.Variable(numbers(871_620_435, (5,)))

    def found(f: Any) -> list[Any]:
        with tf.GradientTape(persistent=True) as tape:
            x = f(A, b)
            first, second = tf.reduce_sum(x**2), tf.reduce_sum(tf.sin(x))
        return [*tape.gradient(first, [A, b]), *tape.gradient(second, [A, b])]

    close(found(lambda A, b: solve(A, b, client=embedded)), found(lambda A, b: reference(A + 0.0, b + 0.0)))


def test_a_cotangent_that_comes_as_slices(embedded: Client) -> None:
    """The gradient of `tf.gather` is no tensor."""
    A, b = dense(330_714_968), numbers(489_203_157, (5, 2))
    close(*(gradients(lambda A, b, f=f: tf.gather(f(A, b), [3, 1, 3]), A, b) for f in (_of(embedded), reference)))
    close(*(products(lambda A, b, f=f: tf.gather(f(A, b), [3, 1, 3]), A, b) for f in (_of(embedded), reference)))


def test_slices_without_the_shape_of_the_whole(embedded: Client) -> None:
    """TensorFlow's own conversion refuses them; here it is known."""

    @tf.custom_gradient
    def some_rows(x: Any) -> Any:
        return tf.gather(x, [3, 1, 3]), lambda grad: tf.IndexedSlices(grad, tf.constant([3, 1, 3]))

    A, b = dense(51_482_096), numbers(317_906_225, (5, 2))
    expected = gradients(lambda A, b: tf.gather(reference(A, b), [3, 1, 3]), A, b)
    for wrap in (lambda f: f, tf.function):
        close(gradients(wrap(lambda A, b: some_rows(_of(embedded)(A, b))), A, b), expected)


@each_trans
@each_dtype
def test_forward_mode(embedded: Client, trans: Any, dtype: str) -> None:
    A, b = dense(660_184_257, dtype=dtype), numbers(128_739_405, (5, 2), dtype)
    for moved in ([A], [b], [A, b]):
        tangents = []
        for f in (_of(embedded, trans=trans), lambda A, b: reference(A, b, trans)):
            with Accumulator(moved, [direction(t) for t in moved]) as accumulator:
                x = f(A, b)
            tangents.append(accumulator.jvp(x))
        close(*tangents)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_forward_and_reverse_in_each_other(embedded: Client, sparse: bool) -> None:
    pattern = sparse_pattern(932_745_610)
    A = values_on(pattern, 79_354_182) if sparse else dense(286_031_574)
    b = numbers(745_109_382, (5,))

    def ours(A: Any, b: Any) -> Any:
        return spsolve(A, pattern, b, client=embedded) if sparse else solve(A, b, client=embedded)

    def truth(A: Any, b: Any) -> Any:
        return reference(scattered(A, places(pattern), 5) if sparse else A, b)

    def tangent(f: Any) -> Any:
        with Accumulator([A, b], [direction(A), direction(b)]) as accumulator:
            x = f(A, b)
        return accumulator.jvp(x)

    def forward_of_reverse(f: Any) -> list[Any]:
        with Accumulator([A, b], [direction(A), direction(b)]) as accumulator:
            found = gradients(f, A, b)
        return [accumulator.jvp(g) for g in found]

    def reverse_of_forward(f: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch([A, b])
            loss = tf.reduce_sum(tangent(f) ** 2)
        return tape.gradient(loss, [A, b])

    def forward_of_forward(f: Any) -> Any:
        with Accumulator([A, b], [2 * direction(A), b]) as accumulator:
            moved = tangent(f)
        return [accumulator.jvp(moved)]

    for nested in (forward_of_reverse, reverse_of_forward, forward_of_forward):
        close(nested(ours), nested(truth), rtol=1e-9)


@pytest.mark.parametrize("pfor", [True, False])
def test_jacobian(embedded: Client, pfor: bool) -> None:
    A, b = dense(214_890_637), numbers(997_216_408, (5,))

    def jacobians(f: Any) -> list[Any]:
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([A, b])
            x = f(A, b)
        return [tape.jacobian(x, t, experimental_use_pfor=pfor) for t in (A, b)]

    close(jacobians(_of(embedded)), jacobians(reference))


def _of(client: Client, **options: Any) -> Any:
    return lambda A, b: solve(A, b, client=client, **options)
