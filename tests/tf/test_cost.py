"""What derivatives cost: requests and factorizations, eagerly and in graphs."""

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tensorflow as tf

from backsolve import Client
from backsolve.tensorflow import solve, spsolve
from support.fresh import new_rng
from support.tf_tensors import (
    close,
    dense,
    direction,
    gradients,
    numbers,
    products,
    reference,
    sparse_pattern,
    values_on,
)

COUNTED = ("factorizations", "solves", "adjoint_solves", "tangent_solves")

each_way = pytest.mark.parametrize("graph", [False, True], ids=["eager", "function"])


def _counted(client: Client, action: Callable[[], Any]) -> tuple[int, ...]:
    before = client.stats()
    action()
    after = client.stats()
    return tuple(int(after[name] - before[name]) for name in COUNTED)


def _fresh(seed: int) -> Any:
    """A matrix that no cache has met, whatever ran before on the same server."""
    return dense(seed) + 1e-3 * new_rng().standard_normal((5, 5))


@each_way
def test_one_factorization_and_one_solve_for_each_derivative(client: Client, graph: bool) -> None:
    """1 forward, 1 gradient, 2 Hessian-vector product; the factor is built once."""
    b = numbers(551_098_743, (5,))

    def f(A: Any, b: Any) -> Any:
        return solve(A, b, client=client)

    wrapped = tf.function if graph else (lambda function: function)
    first, second = wrapped(lambda A: gradients(f, A, b)), wrapped(lambda A: products(f, A, b))
    for action in (first, second):  # built, and its constants folded, before anything is counted
        action(_fresh(286_401_937))
    assert _counted(client, lambda: first(_fresh(894_217_306))) == (1, 1, 1, 0)
    assert _counted(client, lambda: second(_fresh(137_420_985))) == (1, 2, 2, 0)


def test_a_tape_around_a_function_costs_no_more(client: Client) -> None:
    """x and the digests are outputs of the traced function; its gradient asks for neither again."""
    traced = tf.function(lambda A, b: solve(A, b, client=client))
    b = numbers(651_907_238, (5,))
    products(traced, _fresh(24_178_360), b)
    assert _counted(client, lambda: gradients(traced, _fresh(403_918_275), b)) == (1, 1, 1, 0)
    assert _counted(client, lambda: products(traced, _fresh(905_316_248), b)) == (1, 2, 2, 0)
    assert traced.experimental_get_tracing_count() == 1


def test_a_tangent_is_the_transpose_of_the_gradient(client: Client) -> None:
    """TensorFlow has no forward rule for such operations: it transposes the gradient's, in two solves."""
    A, b = _fresh(70_981_325), numbers(439_105_827, (5,))

    def tangent() -> Any:
        with tf.autodiff.ForwardAccumulator(A, direction(A)) as accumulator:
            return accumulator.jvp(solve(A, b, client=client))

    assert _counted(client, tangent) == (1, 2, 1, 0)
    A = _fresh(812_650_394)
    assert _counted(client, tf.function(tangent)) == (1, 2, 1, 0)


def test_nothing_is_hashed_twice(embedded: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digests of the forward travel to its derivatives, through a graph as well."""
    import backsolve.fingerprint

    hashed: list[Any] = []
    original = backsolve.fingerprint.matrix_ref

    def counted(*given: Any) -> Any:
        hashed.append(given)
        return original(*given)

    monkeypatch.setattr(backsolve.fingerprint, "matrix_ref", counted)
    pattern = sparse_pattern(184_920_573)
    values, b = values_on(pattern, 268_394_107), numbers(58_130_274, (5,))

    def f(values: Any, b: Any) -> Any:
        return spsolve(values, pattern, b, client=embedded)

    products(f, values, b)
    assert len(hashed) == 1
    traced = tf.function(lambda values, b: products(f, values, b))
    traced(values, b)
    hashed.clear()
    traced(values, b)
    assert len(hashed) == 1


def test_the_method_of_the_forward_serves_the_gradient(embedded: Client) -> None:
    """Only the forward has x0; the adjoint must meet the forward's factor all the same."""
    half = dense(911_408_236)
    A = tf.linalg.matmul(half, half, transpose_b=True) + tf.eye(5, dtype=half.dtype)
    b = numbers(340_177_925, (5,))
    seen: list[str] = []

    def f(A: Any) -> Any:
        return solve(A, b, x0=b, client=embedded, observe=lambda _, certificate: seen.append(certificate.method))

    for found in (lambda A: gradients(f, A), tf.function(lambda A: gradients(f, A))):
        seen.clear()
        found(A)
        assert seen == ["cg", "cg"]


def test_one_trace_runs_many_times_at_once(embedded: Client) -> None:
    """What belongs to one execution is kept in its tensors, not in the traced function."""
    traced = tf.function(lambda A, b: gradients(lambda A, b: solve(A, b, client=embedded), A, b))
    b = numbers(76_503_918, (5,))
    systems = [dense(500_000 + 977 * k) for k in range(24)]
    traced(systems[0], b)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda A: traced(A, b), systems))
    for A, mine in zip(systems, found, strict=True):
        close(mine, gradients(reference, A, b))
    assert traced.experimental_get_tracing_count() == 1


def test_an_answer_that_nobody_needs_is_not_asked_for(embedded: Client) -> None:
    """A graph drops a solve whose answer does not reach its outputs."""

    @tf.function
    def f(A: Any, b: Any) -> Any:
        solve(A, b, client=embedded)
        return b + 1.0

    A, b = dense(820_165_743), numbers(36_954_018, (5,))
    f(A, b)
    assert _counted(embedded, lambda: f(A, b)) == (0, 0, 0, 0)


def test_a_finished_tape_is_freed_at_once(embedded: Client) -> None:
    """No reference cycle holds the matrix until the garbage collector comes."""

    class Watched:
        def __call__(self, *_: Any) -> None: ...

    watched = Watched()
    freed: list[bool] = []
    weakref.finalize(watched, freed.append, True)
    gc.disable()
    try:
        A, b = dense(640_218_375), numbers(193_572_408, (5,))
        with tf.GradientTape() as tape:
            tape.watch(A)
            x = solve(A, b, client=embedded, observe=watched)
        del watched
        assert not freed
        tape.gradient(x, A)
        assert freed
    finally:
        gc.enable()
