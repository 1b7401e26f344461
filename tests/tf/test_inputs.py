"""What callers may pass, and what becomes of bad input and of failures: each its own error, eagerly ours."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from scipy.sparse import csr_array, tril

import backsolve
from backsolve import Client, Pattern
from backsolve.errors import (
    BacksolveError,
    InvalidDtypeError,
    InvalidOptionError,
    InvalidPatternError,
    InvalidShapeError,
    NonfiniteInputError,
    NotConvergedError,
    NotConvergedWarning,
    NotPositiveDefiniteError,
    NotSupportedError,
    SingularMatrixError,
)
from backsolve.tensorflow import solve, spsolve
from support.tf_tensors import (
    close,
    dense,
    gradients,
    numbers,
    places,
    products,
    reference,
    scattered,
    sparse_pattern,
    values_on,
)

PATTERN = sparse_pattern(462_907_138)
A, B = dense(219_483_750), numbers(683_150_942, (5,))


def _spd() -> Any:
    noise = dense(870_265_149)
    return tf.linalg.matmul(noise, noise, transpose_b=True)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_single_precision_stays(embedded: Client, dtype: str) -> None:
    a, b = dense(150_937_264, dtype=dtype), numbers(38_517_264, (5,), dtype)
    close(solve(a, b, client=embedded), reference(a, b), rtol=1e-5)
    close(*(gradients(f, a, b) for f in (lambda a, b: solve(a, b, client=embedded), reference)), rtol=1e-4)


def test_whatever_becomes_a_tensor(embedded: Client) -> None:
    expected = reference(A, B)
    close(solve(A.numpy(), B.numpy(), client=embedded), expected)
    close(solve(tf.Variable(A), tf.Variable(B), client=embedded), expected)
    close(solve([[4.0, 0.0], [0.0, 2.0]], [2.0, 2.0], client=embedded), tf.constant([0.5, 1.0]), rtol=1e-6)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.int64, tf.bool])
def test_other_types_are_refused(dtype: Any) -> None:
    with pytest.raises(InvalidDtypeError, match=r"A is .*tf\.cast\(A, tf\.float64\)"):
        solve(tf.cast(A, dtype), tf.cast(B, dtype))
    with pytest.raises(InvalidDtypeError, match="b is"):
        solve(A, tf.cast(B, dtype))


def test_mixed_types_and_foreign_matrices_are_refused() -> None:
    with pytest.raises(InvalidDtypeError, match=r"A is float64, b is float32.*tf\.cast\(b, A\.dtype\)"):
        solve(A, tf.cast(B, tf.float32))
    with pytest.raises(InvalidDtypeError, match=r"csr_array.*tf\.SparseTensor"):
        solve(csr_array(A.numpy()), B)
    with pytest.raises(NotSupportedError, match=r"make it of tensors.*tensorflow\.LowRankPlusDiagonal"):
        solve(backsolve.LowRankPlusDiagonal(np.ones(3), np.ones((3, 1))), B[:3])
    with pytest.raises(InvalidOptionError, match=r"storage must be 'general', 'hermitian' or 'lower'"):
        solve(A, B, storage="upper")  # type: ignore[call-overload]
    with pytest.raises(InvalidShapeError, match=r"b is a SparseTensor.*to_dense"):
        solve(A, tf.sparse.from_dense(B))
    with pytest.raises(InvalidShapeError, match=r"A is a RaggedTensor.*A\.to_tensor\(\)"):
        solve(tf.RaggedTensor.from_tensor(A), B)
    with pytest.raises(InvalidShapeError, match=r"b is a IndexedSlices.*convert_to_tensor\(b\)"):
        solve(A, tf.IndexedSlices(B, tf.range(5), tf.constant([5])))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((6, 5), (6,)),
        ((6,), (6,)),
        ((6, 6), (5,)),
        ((6, 6), (2, 6)),
        ((6, 6), (2, 6, 3)),
        ((2, 6, 6), (6,)),
        ((2, 6, 6), (3, 6)),
        ((2, 6, 6), (6, 2)),
        ((2, 3, 6, 6), (3, 2, 6)),
    ],
)
def test_shapes_must_fit(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(InvalidShapeError):
        solve(tf.ones(a), tf.ones(b))


def test_sparse_operands_are_checked(embedded: Client) -> None:
    values = values_on(PATTERN, 92_476_183)
    with pytest.raises(InvalidShapeError, match="the pattern needs"):
        spsolve(values[1:], PATTERN, B)
    with pytest.raises(InvalidPatternError, match="Pattern"):
        spsolve(values, (PATTERN.indptr, PATTERN.indices), B)  # type: ignore[call-overload]
    with pytest.raises(InvalidShapeError, match="x0"):
        spsolve(values, PATTERN, B, x0=B[1:])
    with pytest.raises(InvalidShapeError, match="values is a SparseTensor"):
        spsolve(tf.sparse.from_dense(A), PATTERN, B)
    with pytest.raises(InvalidPatternError, match="outside the 5x5"):
        solve(tf.SparseTensor([[0, 0], [5, 1]], tf.constant([1.0, 2.0], tf.float64), [5, 5]), B, client=embedded)
    with pytest.raises(InvalidShapeError, match="square"):
        solve(tf.SparseTensor([[0, 0]], tf.constant([1.0], tf.float64), [5, 4]), B)
    with pytest.raises(InvalidShapeError, match=r"spsolve\(values, pattern, b\)"):
        solve(tf.SparseTensor([[0, 0, 0]], tf.constant([1.0], tf.float64), [2, 5, 5]), B)


@pytest.mark.parametrize(
    "option",
    [{"method": "no-such"}, {"trans": "X"}, {"rtol": "tight"}, {"on_failure": "ignore"}, {"maxiter": 3}, {"tol": 1}],
)
def test_options_are_checked(embedded: Client, option: dict[str, Any]) -> None:
    with pytest.raises(BacksolveError):
        solve(A, B, client=embedded, **option)


@pytest.mark.parametrize("shape", [(0,), (0, 3)])
def test_nothing_to_solve(embedded: Client, shape: tuple[int, ...]) -> None:
    a, b = tf.zeros([0, 0], tf.float64), tf.zeros(shape, tf.float64)
    of_a, of_b = gradients(lambda a, b: solve(a, b, client=embedded), a, b)
    assert of_a.shape == (0, 0)
    assert of_b.shape == shape


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("shape", [(0,), (0, 3)])
def test_nothing_to_solve_in_second_order_and_forward_mode(
    embedded: Client, shape: tuple[int, ...], compiled: bool
) -> None:
    pattern = Pattern([0], [], (0, 0))
    values, b = tf.zeros([0], tf.float64), tf.zeros(shape, tf.float64)

    def ours(values: Any, b: Any) -> Any:
        return spsolve(values, pattern, b, client=embedded)

    def of_indices(values: Any, b: Any) -> Any:
        return solve(tf.SparseTensor(tf.zeros([0, 2], tf.int64), values, [0, 0]), b, client=embedded)

    def everything(f: Any, values: Any, b: Any) -> list[Any]:
        with tf.autodiff.ForwardAccumulator([values, b], [values, b]) as accumulator:
            x, found = f(values, b), gradients(f, values, b)
        return [accumulator.jvp(x), *accumulator.jvp(found), *products(f, values, b)]

    for f in (ours, of_indices):
        signature = [tf.TensorSpec([None], tf.float64), tf.TensorSpec([None] * len(shape), tf.float64)]
        run = partial(everything, f)
        found = tf.function(run, input_signature=signature)(values, b) if compiled else run(values, b)
        assert [tuple(each.shape) for each in found] == [shape, (0,), shape, (0,), shape]


def test_no_columns_and_a_batch_of_none(embedded: Client) -> None:
    assert solve(A, tf.zeros([5, 0], tf.float64), client=embedded).shape == (5, 0)
    a, b = tf.zeros([0, 5, 5], tf.float64), tf.zeros([0, 5], tf.float64)
    assert gradients(lambda a, b: solve(a, b, client=embedded), a, b)[0].shape == a.shape


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("storage", ["hermitian", "lower"])
def test_storage_of_a_pattern(embedded: Client, storage: Any, dtype: str) -> None:
    """The gradient is that of what is stored, to the second order."""
    half = dense(529_170_846, dtype=dtype).numpy()
    full = csr_array(half + half.conj().T)
    stored = csr_array(tril(full)) if storage == "lower" else full
    pattern = Pattern.from_csr(stored, storage=storage)
    values, b = tf.constant(stored.data), numbers(601_483_927, (5,), dtype)

    def truth(values: Any, b: Any) -> Any:
        given = scattered(values, places(pattern), 5)
        weight = 0.5 if storage == "hermitian" else np.tril(np.ones((5, 5)), -1) + 0.5 * np.eye(5)
        given = given * tf.constant(weight, given.dtype)
        return reference(given + tf.linalg.adjoint(given), b, "T")

    def ours(values: Any, b: Any) -> Any:
        return spsolve(values, pattern, b, trans="T", client=embedded)

    named = spsolve(values, Pattern.from_csr(stored), b, storage=storage, trans="T", client=embedded)
    close(named, ours(values, b))
    for derivative in (gradients, products):
        close(derivative(ours, values, b), derivative(truth, values, b), rtol=1e-9)


# -- failures ------------------------------------------------------------------------------


def test_errors_of_the_system(client: Client) -> None:
    singular = tf.linalg.diag(tf.constant([1.0, 0.0, 2.0]))
    with pytest.raises(SingularMatrixError):
        solve(singular, tf.ones(3), client=client)
    with pytest.raises(NotPositiveDefiniteError):
        solve(-_spd(), B, method="cholesky", client=client)
    with pytest.raises(NonfiniteInputError):
        solve(A, B * float("nan"), client=client)


def test_a_bad_cotangent_raises_in_the_gradient(client: Client) -> None:
    with tf.GradientTape() as tape:
        tape.watch(A)
        loss = tf.reduce_sum(solve(A, B, client=client) * float("inf"))
    with pytest.raises(NonfiniteInputError):
        tape.gradient(loss, A)


def test_an_unconverged_gradient_says_so(client: Client) -> None:
    """The forward begins at its answer and needs no step; the adjoint has no such luck."""
    a = _spd()
    answer = reference(a, B)

    def gradient(on_failure: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(a)
            x = solve(a, B, x0=answer, method="cg", rtol=1e-9, maxiter=1, on_failure=on_failure, client=client)
        return tape.gradient(x, a, output_gradients=numbers(48_201_736, (5,)))

    with pytest.raises(NotConvergedError, match="backward"):
        gradient("raise")
    with pytest.warns(NotConvergedWarning, match="backward"):
        gradient("warn")
    assert np.isnan(gradient("nan").numpy()).all()


def test_each_system_of_a_batch_has_its_own_first_iterate(embedded: Client) -> None:
    """No step is allowed but the look at where the iteration begins: with the answers."""
    a = tf.stack([[_spd(), 2 * _spd()], [3 * _spd(), 4 * _spd()]])
    b = numbers(90_318_274, (2, 2, 5))
    answer = reference(a, b)
    options: dict[str, Any] = {"method": "cg", "rtol": 1e-9, "maxiter": 1, "client": embedded}
    close(solve(a, b, x0=answer, **options), answer)
    with pytest.raises(NotConvergedError):
        solve(a, b, x0=answer[::-1], **options)


def test_a_first_iterate_has_no_gradient(embedded: Client) -> None:
    a = _spd()
    with tf.GradientTape() as tape:
        tape.watch(B)
        x = solve(a, numbers(77_120_483, (5,)), x0=tf.cast(B, tf.float32), client=embedded)
    assert tape.gradient(x, B) is None


# -- statistics ----------------------------------------------------------------------------


def test_certificates(client: Client) -> None:
    seen: list[tuple[str, Any]] = []
    with tf.GradientTape() as tape:
        tape.watch(A)
        x, certificate = solve(A, B, client=client, return_stats=True, observe=lambda *event: seen.append(event))
    tape.gradient(x, A)
    assert [phase for phase, _ in seen] == ["solve", "adjoint"]
    assert seen[0][1] is certificate
    assert all(stats.relative_residual < 1e-12 for _, stats in seen)
    assert seen[1][1].factor_hit


def test_statistics_of_a_graph_are_observed(embedded: Client) -> None:
    with pytest.raises(InvalidOptionError, match="use observe"):
        tf.function(lambda A, b: solve(A, b, return_stats=True), autograph=False)(A, B)
    seen: list[str] = []
    traced = tf.function(
        lambda A, b: gradients(
            lambda A, b: solve(A, b, client=embedded, observe=lambda phase, _: seen.append(phase)), A, b
        )
    )
    for count in (1, 2):
        traced(A, B)
        assert seen == ["solve", "adjoint"] * count


def test_a_pattern_of_32_bit_indices_and_one_of_a_sparse_tensor_meet_one_factor(embedded: Client) -> None:
    """However the matrix is given, its content names it."""
    values = values_on(PATTERN, 691_720_358)
    before = embedded.stats()["factorizations"]
    x = spsolve(values, PATTERN, B, client=embedded)
    order = np.random.default_rng(34_908_127).permutation(PATTERN.nnz)
    shuffled = tf.SparseTensor(places(PATTERN)[order], tf.gather(values, order), [5, 5])
    close(solve(shuffled, B, client=embedded), x)
    close(x, reference(scattered(values, places(PATTERN), 5), B))
    assert embedded.stats()["factorizations"] - before == 1
