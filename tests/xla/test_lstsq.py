"""Least squares on arrays, and its derivatives of both orders."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.experimental.sparse import BCOO
from jax.test_util import check_grads
from scipy import sparse

from backsolve import Client, Pattern, Status
from backsolve.errors import InvalidOptionError, InvalidPatternError, InvalidShapeError, NonfiniteInputError
from backsolve.jax import lstsq, splstsq
from backsolve.jax._asked import Asked, key_of
from backsolve.jax._least_squares import normal_p
from backsolve.jax._operation import bind
from backsolve.pattern import DensePattern
from backsolve.retry import UNSET
from backsolve.types import Options
from support.fresh import new_rng
from support.jaxes import close, counted, rhs, scalar

SHAPES = {"tall": (7, 4), "wide": (4, 7)}

pytestmark = pytest.mark.usefixtures("kept")


def _truth(a: Array, b: Array, damp: float = 0.0) -> Array:
    """By the pseudo-inverse of a full rank, written out, which JAX differentiates right."""
    m, n = a.shape
    adjoint = a.mT.conj()
    if damp or m >= n:
        return jnp.linalg.solve(adjoint @ a + damp**2 * jnp.eye(n), adjoint @ b)
    return adjoint @ jnp.linalg.solve(a @ adjoint, b)


def _pattern(m: int, n: int) -> Pattern:
    stored = np.random.default_rng(417_903_268).random((m, n)) < 0.6
    stored[np.arange(min(m, n)), np.arange(min(m, n))] = True
    return Pattern.from_csr(sparse.csr_array(stored.astype(float)))


@pytest.mark.parametrize(("dtype", "damp"), [("float64", 0.0), ("complex128", 0.0), ("complex128", 0.6)])
@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives_beside_jax(shape: str, damp: float, dtype: str, embedded: Client) -> None:
    (m, n), columns = SHAPES[shape], 2
    a, b = rhs(610_223_974, (m, n), dtype), rhs(71_150_386, (m, columns), dtype)
    moves = rhs(903_417_265, (m, n), dtype), rhs(28_603_194, (m, columns), dtype)

    def derivatives(answer: Any) -> Any:
        def loss(a: Array, b: Array) -> Array:
            return scalar(answer(a, b))

        def gradient(a: Array, b: Array) -> Any:
            return jax.grad(loss, (0, 1))(a, b)

        def first(a: Array, b: Array) -> Any:
            return answer(a, b), gradient(a, b), jax.grad(loss, 1)(a, b)

        return jax.jit(lambda a, b: (first(a, b), jax.jvp(gradient, (a, b), moves)[1]))(a, b)

    ours = derivatives(lambda a, b: lstsq(a, b, damp=damp, client=embedded))
    close(ours, derivatives(lambda a, b: _truth(a, b, damp)), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("damp", [0.0, 0.6], ids=["plain", "damped"])
def test_both_orders_in_both_modes_of_a_low_rank(damp: float, embedded: Client) -> None:
    """A = L R keeps its rank, whatever L and R are."""
    dtype = "complex128"
    left, right = rhs(40_112_873, (6, 2), dtype), rhs(40_112_874, (2, 5), dtype)
    b = rhs(40_112_875, (6,), dtype)
    f = jax.jit(lambda tall, wide, b: lstsq(tall @ wide, b, damp=damp, client=embedded))
    check_grads(f, (left, right, b), order=2, atol=1e-4, rtol=1e-4, eps=1e-5)


@pytest.mark.parametrize("damp", [0.0, 0.6], ids=["plain", "damped"])
def test_the_normal_inverse_of_a_low_rank(damp: float, embedded: Client) -> None:
    """The operation by itself meets cotangents outside the row space, which none of `lstsq` are."""
    left, right, g = (rhs(seed, shape) for seed, shape in ((1_903_827, (6, 2)), (738_201, (2, 5)), (55_018, (5, 2))))
    pattern = DensePattern((6, 5))
    options = Options(method="lstsq", damp=damp or None)
    asked = Asked(key_of(pattern), pattern, options, embedded, UNSET, None, None)
    f = jax.jit(lambda tall, wide, g: bind(normal_p, tall @ wide, g, None, None, asked)[0])
    check_grads(f, (left, right, g), order=2, atol=1e-4, rtol=1e-4, eps=1e-5)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("damp", [0.0, 0.6], ids=["plain", "damped"])
def test_sparse_values_and_batches(damp: float, wrap: Any, embedded: Client) -> None:
    pattern = _pattern(7, 4)
    values, b = rhs(384_021_957, (3, pattern.nnz)), rhs(619_375_024, (3, 7))

    def full(v: Array) -> Array:
        return jnp.zeros(pattern.shape).at[pattern.rows, pattern.indices].set(v)

    def ours(v: Array, b: Array) -> Array:
        return scalar(splstsq(v, pattern, b, damp=damp, method="lstsq_superlu", client=embedded))

    truth = jax.vmap(jax.grad(lambda v, b: scalar(_truth(full(v), b, damp)), (0, 1)))(values, b)
    close(wrap(jax.grad(ours, (0, 1)))(values, b), truth, rtol=1e-8, atol=1e-10)
    close(wrap(jax.vmap(jax.grad(ours, (0, 1))))(values, b), truth, rtol=1e-8, atol=1e-10)
    stored = BCOO.fromdense(full(values[0]))
    close(lstsq(stored, b[0], damp=damp, client=embedded), _truth(full(values[0]), b[0], damp), rtol=1e-6)


@pytest.mark.parametrize(("damp", "adjoint"), [(0.0, 2), (0.6, 1)])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_what_a_gradient_costs(damp: float, adjoint: int, wrap: Any, embedded: Client) -> None:
    """One more request, two without damping; of b alone one; of 64 mapped right-hand sides as many as of one."""
    # Numbers that no cache has met.
    a = rhs(927_310_485, (9, 4)) + 1e-3 * new_rng().standard_normal((9, 4))
    b = rhs(35_170_924, (64, 9))

    def loss(a: Array, b: Array) -> Array:
        return scalar(lstsq(a, b, damp=damp, client=embedded))

    cost = {"factorizations": 1, "solves": 1, "adjoint_solves": adjoint, "tangent_solves": 0}
    gradient = wrap(jax.vmap(jax.grad(loss, (0, 1)), (None, 0)))
    assert counted(embedded, lambda: gradient(a, b)) == cost
    assert counted(embedded, lambda: wrap(jax.grad(loss, 1))(a, b[0])) == cost | {
        "factorizations": 0,
        "adjoint_solves": 1,
    }
    truth = jax.vmap(jax.grad(lambda a, b: scalar(_truth(a, b, damp)), (0, 1)), (None, 0))(a, b)
    close(gradient(a, b), truth, rtol=1e-8, atol=1e-10)


def test_failures(embedded: Client) -> None:
    a, b = rhs(74_012_936, (6, 3)), rhs(581_620_397, (6, 3)).at[2, 1].set(jnp.nan)
    with pytest.raises(NonfiniteInputError):
        lstsq(a, b, client=embedded)
    x, stats = jax.jit(lambda a, b: lstsq(a, b, client=embedded, return_stats=True))(a, b)
    assert stats.worst is Status.NONFINITE_INPUT
    close(x[:, ::2], _truth(a, b[:, ::2]))
    assert jnp.isnan(x[:, 1]).all()
    gradient = jax.jit(jax.grad(lambda b: lstsq(a, b, client=embedded).sum()))(b)
    assert jnp.isfinite(gradient).all()
    for call, error, text in (
        (lambda: lstsq(a, b[1:]), InvalidShapeError, r"\(6,\) for vectors"),
        (lambda: lstsq(a[0], b), InvalidShapeError, "m, n"),
        (lambda: lstsq(a, b, storage="lower"), InvalidOptionError, "storage"),
        (lambda: lstsq(a, b, dampp=1), InvalidOptionError, "did you mean 'damp'"),
        (lambda: splstsq(a, a, b), InvalidPatternError, "Pattern"),
        (lambda: lstsq(a, BCOO.fromdense(b)), InvalidShapeError, "todense"),
        (lambda: lstsq(a, b, on_failure="x"), InvalidOptionError, "on_failure"),
    ):
        with pytest.raises(error, match=text):
            call()
