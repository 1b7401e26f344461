"""Solves in `tf.function`: unknown shapes, branches and loops, mapping, pipelines; what cannot be is refused."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import tensorflow as tf

from backsolve import Client
from backsolve.errors import InvalidShapeError, NotSupportedError
from backsolve.tensorflow import solve, spsolve
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

PATTERN = sparse_pattern(463_805_127)
INDICES = places(PATTERN)
A, B = dense(219_483_750), numbers(683_150_942, (5,))
MANY = numbers(871_205_364, (4, 5))

Function = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Form:
    """A way to give a matrix, and the dense truth."""

    operand: Any
    ours: Callable[[Client], Function]
    truth: Function


def _scattered(values: Any, b: Any) -> Any:
    return reference(scattered(values, INDICES, 5), b)


VALUES = values_on(PATTERN, 92_476_183)
FORMS = {
    "dense": Form(A, lambda client: lambda A, b: solve(A, b, client=client), reference),
    "pattern": Form(VALUES, lambda client: lambda v, b: spsolve(v, PATTERN, b, client=client), _scattered),
    "indices": Form(
        VALUES,
        lambda client: lambda v, b: solve(tf.SparseTensor(INDICES, v, [5, 5]), b, client=client),
        _scattered,
    ),
}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def _derivatives(f: Function, operand: Any, b: Any) -> list[Any]:
    return [*gradients(f, operand, b), *products(f, operand, b)]


def _unknown(tensor: Any) -> tf.TensorSpec:
    return tf.TensorSpec([None] * tensor.shape.rank, tensor.dtype)


def _pushed(f: Function, operand: Any, b: Any) -> Any:
    """The tangent of f along both operands."""
    with tf.autodiff.ForwardAccumulator([operand, b], [direction(operand), direction(b)]) as accumulator:
        x = f(operand, b)
    return accumulator.jvp(x, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def _pushed_gradients(f: Function, operand: Any, b: Any) -> Any:
    with tf.autodiff.ForwardAccumulator([operand, b], [direction(operand), direction(b)]) as accumulator:
        found = gradients(f, operand, b)
    return accumulator.jvp(found)


def _pushed_twice(f: Function, operand: Any, b: Any) -> Any:
    with tf.autodiff.ForwardAccumulator([operand, b], [b[0] * operand, direction(b)]) as accumulator:
        moved = _pushed(f, operand, b)
    return accumulator.jvp(moved)


def _pulled_tangent(f: Function, operand: Any, b: Any) -> Any:
    return gradients(lambda operand, b: _pushed(f, operand, b), operand, b)


@each_form
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("nested", [_pushed, _pushed_gradients, _pushed_twice, _pulled_tangent])
def test_forward_mode_inside(embedded: Client, form: Form, known: bool, nested: Any) -> None:
    """In a graph an accumulator takes what a custom gradient returns for a constant: its tangent would be zero."""
    signature = None if known else [_unknown(form.operand), _unknown(B)]

    def inside(f: Function) -> Any:
        return tf.function(lambda operand, b: nested(f, operand, b), input_signature=signature)(form.operand, B)

    close(inside(form.ours(embedded)), inside(form.truth), rtol=1e-9)


@pytest.mark.parametrize("trans", ["N", "T", "H"])
def test_forward_mode_inside_of_complex_columns(embedded: Client, trans: Any) -> None:
    a, b = dense(570_926_318, (3,), dtype="complex128"), numbers(114_803_962, (3, 5, 2), "complex128")
    ours = tf.function(lambda a, b: _pushed(lambda a, b: solve(a, b, trans=trans, client=embedded), a, b))
    close(ours(a, b), _pushed(lambda a, b: reference(a, b, trans), a, b))


@each_form
def test_forward_mode_around(embedded: Client, form: Form) -> None:
    f = form.ours(embedded)
    signature = [_unknown(form.operand), _unknown(B)]
    around = tf.function(f, input_signature=signature)
    branch = tf.function(lambda operand, b: tf.cond(b[0] > -9.0, lambda: f(operand, b), lambda: b))
    expected = _pushed(form.truth, form.operand, B)
    for traced in (around, branch):
        close(_pushed(traced, form.operand, B), expected)


@tf.custom_gradient
def _exponential(x: Any) -> Any:
    """TensorFlow's own kind of an operation that uses its answer in its gradient."""
    y = tf.exp(x)
    return y, lambda grad: y * grad


@pytest.mark.parametrize("of_tensorflow", [True, False], ids=["TensorFlow's", "ours"])
@pytest.mark.parametrize("around", ["branch", "loop"])
def test_forward_mode_inside_around_branches_and_loops_is_never_wrong_silently(
    embedded: Client, around: str, of_tensorflow: bool
) -> None:
    """TensorFlow fails, whoever made the operation: where it no longer does, the documentation can promise more."""
    step = _exponential if of_tensorflow else lambda b: solve(A, b, client=embedded)

    def controlled(_: Any, b: Any) -> Any:
        if around == "branch":
            return tf.cond(b[0] > -9.0, lambda: step(b), lambda: b)
        return tf.while_loop(lambda k, x: k < 2, lambda k, x: (k + 1, step(x)), (tf.constant(0), b))[1]

    with pytest.raises((AssertionError, TypeError, ValueError)):
        tf.function(lambda b: _pushed(controlled, A, b), autograph=False)(B)


@each_form
@pytest.mark.parametrize("columns", [(), (2,)], ids=["vector", "columns"])
def test_unknown_shapes(embedded: Client, form: Form, columns: tuple[int, ...]) -> None:
    """One trace whatever the sizes, with the tapes inside of the function or around it."""
    b = numbers(315_086_249, (5, *columns))
    f = form.ours(embedded)
    signature = [_unknown(form.operand), _unknown(b)]
    inside = tf.function(lambda operand, b: _derivatives(f, operand, b), input_signature=signature)
    around = tf.function(f, input_signature=signature)
    expected = _derivatives(form.truth, form.operand, b)
    close(inside(form.operand, b), expected, rtol=1e-9)
    close(_derivatives(around, form.operand, b), expected, rtol=1e-9)
    assert around.experimental_get_tracing_count() == 1


def test_one_trace_for_every_size(embedded: Client) -> None:
    signature = [tf.TensorSpec([None, None], tf.float64), tf.TensorSpec([None], tf.float64)]
    traced = tf.function(lambda A, b: solve(A, b, client=embedded), input_signature=signature)
    for n in (1, 3, 8):
        a, b = dense(704_981_263 + n, n=n), numbers(38_517_264, (n,))
        close(gradients(traced, a, b), gradients(reference, a, b))
    assert traced.experimental_get_tracing_count() == 1


def test_a_sparse_tensor_as_an_argument(embedded: Client) -> None:
    """Its indices are known only when the graph runs."""
    signature = [tf.SparseTensorSpec([None, None], tf.float64), tf.TensorSpec([None], tf.float64)]
    traced = tf.function(lambda S, b: solve(S, b, client=embedded), input_signature=signature)

    def ours(values: Any, b: Any) -> Any:
        return traced(tf.SparseTensor(INDICES, values, [5, 5]), b)

    close(_derivatives(ours, VALUES, B), _derivatives(_scattered, VALUES, B), rtol=1e-9)
    other = sparse_pattern(150_937_264, 7)
    values, b = values_on(other, 729_460_185), numbers(501_728_364, (7,))
    x = traced(tf.SparseTensor(places(other), values, [7, 7]), b)
    close(x, reference(scattered(values, places(other), 7), b))
    assert traced.experimental_get_tracing_count() == 1


@each_form
def test_branches_and_loops(embedded: Client, form: Form) -> None:
    """A gradient's rule finds its operands in the graph of its own branch or body."""

    def stepped(f: Function) -> Function:
        @tf.function
        def run(operand: Any, b: Any) -> Any:
            x = b
            for _ in tf.range(2):
                if x[0] > 0.0:  # noqa: SIM108  (AutoGraph makes a branch of it)
                    x = 5.0 * f(operand, tf.sin(x))
                else:
                    x = 5.0 * f(operand, x + 1.0)
            return x

        return run

    ours, truth = stepped(form.ours(embedded)), stepped(form.truth)
    expected = products(truth, form.operand, B)
    close(products(ours, form.operand, B), expected, rtol=1e-9)
    inside = tf.function(lambda operand, b: products(ours, operand, b))
    close(inside(form.operand, B), expected, rtol=1e-9)


def test_hessian(embedded: Client) -> None:
    def hessian(f: Function) -> Any:
        return tf.function(lambda b: tf.hessians(tf.reduce_sum(f(A, b) ** 3), b)[0])(B)

    close(hessian(lambda A, b: solve(A, b, client=embedded)), hessian(reference))


@each_form
def test_map_fn(embedded: Client, form: Form) -> None:
    def mapped(f: Function) -> Function:
        return lambda operand, many: tf.map_fn(lambda b: f(operand, b), many)

    def stacked(operand: Any, many: Any) -> Any:
        return tf.stack([form.truth(operand, b) for b in tf.unstack(many)])

    ours = mapped(form.ours(embedded))
    close(_derivatives(ours, form.operand, MANY), _derivatives(stacked, form.operand, MANY), rtol=1e-9)


def test_vectorized_map(embedded: Client) -> None:
    """Right as far as TensorFlow keeps the rule of the gradient, and an error where it drops it."""

    def ours(A: Any, b: Any) -> Any:
        return solve(A, b, client=embedded)

    close(tf.vectorized_map(lambda b: ours(A, b), MANY), tf.vectorized_map(lambda b: reference(A, b), MANY))
    within = [tf.vectorized_map(lambda b, f=f: gradients(f, A, b), MANY) for f in (ours, reference)]
    close(*within)
    with pytest.raises(LookupError, match=r"dropped the gradient of a solve.*map_fn"):
        gradients(lambda A, many: tf.vectorized_map(lambda b: ours(A, b), many), A, MANY)


def test_jacobian_of_a_jacobian(embedded: Client) -> None:
    """Vectorised, the outer one would miss the rule of the inner one's solves."""

    def second(f: Function, pfor: bool) -> Any:
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(A)
            with tf.GradientTape(persistent=True) as inner:
                inner.watch(A)
                x = f(A, B)
            first = inner.jacobian(x, A, experimental_use_pfor=pfor)
        return outer.jacobian(first, A, experimental_use_pfor=False)

    def ours(A: Any, b: Any) -> Any:
        return solve(A, b, client=embedded)

    # A LookupError, but AutoGraph, which pfor runs in, puts it into a class of its own.
    with pytest.raises(Exception, match=r"dropped the gradient of a solve.*experimental_use_pfor=False"):
        second(ours, True)
    close(second(ours, False), second(reference, False), rtol=1e-9)


def test_data_pipeline(embedded: Client) -> None:
    data = tf.data.Dataset.from_tensor_slices(MANY).repeat(4)
    mapped = data.map(lambda b: solve(A, b, client=embedded), num_parallel_calls=4).batch(16)
    (x,) = mapped
    close(x, tf.tile(tf.stack([reference(A, b) for b in tf.unstack(MANY)]), [4, 1]))


# -- refusals ------------------------------------------------------------------------------


def _directly(A: Any, b: Any) -> Any:
    return solve(A, b)


def _in_a_function(A: Any, b: Any) -> Any:
    return tf.function(_directly, autograph=False)(A, b)


def _in_a_loop(A: Any, b: Any) -> Any:
    return tf.while_loop(lambda k, x: k < 2, lambda k, x: (k + 1, solve(A, x)), (tf.constant(0), b))[1]


@pytest.mark.parametrize("body", [_directly, _in_a_function, _in_a_loop])
def test_compilation_by_xla_is_refused(body: Function) -> None:
    with pytest.raises(NotSupportedError, match="leave jit_compile=True out"):
        tf.function(body, jit_compile=True, autograph=False)(A, B)


def test_what_a_solve_calls_may_be_compiled(embedded: Client) -> None:
    doubled = tf.function(lambda x: 2.0 * x, jit_compile=True)
    close(tf.function(lambda A, b: doubled(solve(A, doubled(b), client=embedded)))(A, B), 4.0 * reference(A, B))


def test_errors_of_a_graph_tell_ours(client: Client) -> None:
    """TensorFlow raises its own classes; name and text of ours are in theirs."""
    traced = tf.function(lambda A, b: solve(A, b, client=client))
    with pytest.raises(tf.errors.OpError, match=r"SingularMatrixError: .*singular.*shift"):
        traced(tf.zeros([5, 5], tf.float64), B)
    with pytest.raises(tf.errors.OpError, match=r"NonfiniteInputError: A holds NaN"):
        traced(A * float("nan"), B)
    unknown = tf.function(lambda A, b: gradients(lambda A, b: solve(A, b, client=client), A, b))
    unknown = unknown.get_concrete_function(_unknown(A), _unknown(B))
    with pytest.raises(tf.errors.OpError, match=r"InvalidShapeError: b has shape \(4,\)"):
        unknown(A, B[1:])
    with pytest.raises(tf.errors.OpError, match=r"InvalidShapeError: A must be square"):
        unknown(A[:, 1:], B)


def test_errors_of_a_gradient_in_a_graph(embedded: Client) -> None:
    @tf.function
    def traced(A: Any, b: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(A)
            loss = tf.reduce_sum(solve(A, b, client=embedded) * float("inf"))
        return tape.gradient(loss, A)

    with pytest.raises(tf.errors.OpError, match="NonfiniteInputError"):
        traced(A, B)


def test_shapes_are_checked_while_a_function_is_traced() -> None:
    with pytest.raises(InvalidShapeError, match=r"\(5,\) for vectors"):
        tf.function(_directly, autograph=False)(A, B[1:])
    with pytest.raises(InvalidShapeError, match="ensure_shape"):
        tf.function(_directly, input_signature=[tf.TensorSpec(None, A.dtype)] * 2, autograph=False)(A, B)


def test_a_graph_of_another_process_is_recognised(embedded: Client) -> None:
    """TensorFlow numbers Python functions: a loaded graph may meet another solve under its number."""
    concrete = tf.function(lambda A, b: solve(A, b, client=embedded)).get_concrete_function(A, B)
    definition = concrete.graph.as_graph_def()
    (call,) = [node for node in definition.node if node.op == "PyFuncStateless"]
    (mark,) = [node for node in definition.node if node.name == call.input[0]]
    names = [tensor.name for tensor in (*concrete.inputs, concrete.outputs[0])]

    def loaded() -> Any:
        imported = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(definition, name=""), [])
        return imported.prune(names[:2], names[2])

    close(loaded()(A, B), reference(A, B))
    mark.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(tf.zeros([16], tf.uint8)))
    with pytest.raises(tf.errors.OpError, match=r"NotSupportedError: this graph was saved in another process"):
        loaded()(A, B)
