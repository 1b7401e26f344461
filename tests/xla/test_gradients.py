"""Derivatives of `backsolve.jax` beside those of JAX's own dense solver: both modes, both orders, every operator."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.experimental import sparse
from jax.test_util import check_grads

from backsolve import Client
from backsolve.jax import solve, spsolve
from support.jaxes import (
    close,
    dense,
    operator,
    reference,
    rhs,
    scalar,
    scattered,
    sparse_pattern,
    tolerance,
    values_on,
)

PATTERN = sparse_pattern(914_027_365)
# Every operator in the type that tells all of them apart; every type; with numbers and compiled.
CASES = [
    *(("complex128", trans, "jit") for trans in ("N", "T", "H")),
    ("float64", "T", "jit"),
    ("float32", "N", "jit"),
    ("complex64", "H", "jit"),
    ("complex128", "T", "eager"),
]
WRAPS: dict[str, Callable[[Any], Any]] = {"eager": lambda f: f, "jit": jax.jit}

pytestmark = pytest.mark.usefixtures("kept")


@pytest.mark.parametrize(("dtype", "trans", "wrap"), CASES)
def test_dense_gradients_in_every_type(dtype: str, trans: Any, wrap: str, embedded: Client) -> None:
    a, b = dense(380_916_274, dtype=dtype), rhs(72_910_548, (6,), dtype)
    ours = WRAPS[wrap](jax.value_and_grad(lambda a, b: scalar(solve(a, b, trans=trans, client=embedded)), (0, 1)))
    truth = jax.jit(jax.value_and_grad(lambda a, b: scalar(reference(a, b, trans)), (0, 1)))
    close(ours(a, b), truth(a, b), **tolerance(dtype))


@pytest.mark.parametrize(("dtype", "trans", "wrap"), CASES)
def test_sparse_gradients_in_every_type(dtype: str, trans: Any, wrap: str, embedded: Client) -> None:
    values, b = values_on(PATTERN, 615_829_304, dtype=dtype), rhs(408_275_196, (6, 2), dtype)
    ours = jax.value_and_grad(lambda v, b: scalar(spsolve(v, PATTERN, b, trans=trans, client=embedded)), (0, 1))
    truth = jax.jit(jax.value_and_grad(lambda v, b: scalar(reference(scattered(v, PATTERN), b, trans)), (0, 1)))
    close(WRAPS[wrap](ours)(values, b), truth(values, b), **tolerance(dtype))


@pytest.mark.parametrize(("trans", "wrap"), [("N", "jit"), ("T", "jit"), ("H", "jit"), ("H", "eager")])
def test_finite_differences_of_both_orders_in_both_modes(trans: Any, wrap: str, embedded: Client) -> None:
    dtype = "complex128"
    values, b = values_on(PATTERN, 240_871_639, dtype=dtype), rhs(819_640_273, (6,), dtype)
    f = WRAPS[wrap](lambda v, b: spsolve(v, PATTERN, b, trans=trans, client=embedded))
    check_grads(f, (values, b), order=2, modes=("fwd", "rev"))


def test_finite_differences_of_a_dense_batch(embedded: Client) -> None:
    a, b = dense(96_403_817, (2,), n=3), rhs(571_284_930, (2, 3, 2))
    check_grads(jax.jit(lambda a, b: solve(a, b, client=embedded)), (a, b), order=2)


SECOND: dict[str, Callable[[Any, Any, Any], Any]] = {
    "hessian": lambda f, x, _: jax.hessian(f)(x),
    "reverse over reverse": lambda f, x, v: jax.grad(lambda x: jnp.vdot(jax.grad(f)(x), v))(x),
    "forward over reverse": lambda f, x, v: jax.jvp(jax.grad(f), (x,), (v,))[1],
    "reverse over forward": lambda f, x, v: jax.grad(lambda x: jax.jvp(f, (x,), (v,))[1])(x),
    "forward over forward": lambda f, x, v: jax.jvp(lambda x: jax.jvp(f, (x,), (v,))[1], (x,), (v,))[1],
}


@pytest.mark.parametrize(("way", "wrap"), [*((way, "jit") for way in SECOND), ("hessian", "eager")])
def test_second_derivatives(way: str, wrap: str, embedded: Client) -> None:
    values, b, v = values_on(PATTERN, 187_036_542), rhs(940_162_835, (6,)), rhs(563_718_204, (PATTERN.nnz,))

    def ours(values: Array) -> Array:
        return scalar(spsolve(values, PATTERN, values[:6] * b, client=embedded))

    def truth(values: Array) -> Array:
        return scalar(reference(scattered(values, PATTERN), values[:6] * b))

    close(
        WRAPS[wrap](lambda x: SECOND[way](ours, x, v))(values),
        jax.jit(lambda x: SECOND[way](truth, x, v))(values),
        rtol=1e-8,
        atol=1e-10,
    )


def test_third_derivative(embedded: Client) -> None:
    a = dense(309_174_826, n=3)

    def third(f: Callable[[Array], Array]) -> Array:
        of_t = jax.grad(lambda t: f(a + t * a.mT * a))
        return jax.jit(jax.grad(jax.grad(of_t)))(0.3)

    b = rhs(81_620_457, (3,))
    close(third(lambda a: scalar(solve(a, b, client=embedded))), third(lambda a: scalar(reference(a, b))), rtol=1e-8)


@pytest.mark.parametrize("trans", ["N", "T", "H"])
def test_holomorphic_gradients_are_not_conjugated(trans: Any, embedded: Client) -> None:
    """Of an analytic function JAX's gradient is the complex derivative; "H" is not analytic in A, but it is in b."""
    a, b = dense(728_304_915, dtype="complex128"), rhs(16_485_032, (6,), "complex128")
    over_b = jax.grad(lambda b: (solve(a, b, trans=trans, client=embedded) ** 2).sum(), holomorphic=True)(b)
    close(over_b, jax.grad(lambda b: (reference(a, b, trans) ** 2).sum(), holomorphic=True)(b))
    jacobian = jax.jacfwd(lambda b: solve(a, b, trans=trans, client=embedded), holomorphic=True)(b)
    close(jacobian, jnp.linalg.inv(operator(a, trans)))
    if trans != "H":
        over_a = jax.grad(lambda a: (solve(a, b, trans=trans, client=embedded) ** 2).sum(), holomorphic=True)(a)
        close(over_a, jax.grad(lambda a: (reference(a, b, trans) ** 2).sum(), holomorphic=True)(a))


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_linear_transpose(dtype: str, embedded: Client) -> None:
    a, b, c = dense(630_275_918, dtype=dtype), rhs(4_781_923, (6,), dtype), rhs(259_403_716, (6,), dtype)
    (pulled,) = jax.linear_transpose(lambda b: solve(a, b, client=embedded), b)(c)
    close(pulled, jnp.linalg.solve(a.mT, c))


def _shuffled(dense_: Array, seed: int) -> sparse.BCOO:
    """Every entry stored twice, in no order, with three entries outside of the matrix, with which JAX fills up."""
    stored = sparse.BCOO.fromdense(dense_)
    order = np.random.default_rng(seed).permutation(2 * stored.nse)
    data = jnp.concatenate([stored.data * 0.25, stored.data * 0.75])[order]
    indices = jnp.concatenate([stored.indices] * 2)[order]
    outside = jnp.asarray([dense_.shape, (0, dense_.shape[1]), (dense_.shape[0], 0)], indices.dtype)
    return sparse.BCOO(
        (jnp.append(data, jnp.asarray([3.0, 5.0, 7.0], data.dtype)), jnp.concatenate([indices, outside])),
        shape=dense_.shape,
    )


def test_unsorted_and_duplicated_bcoo(embedded: Client) -> None:
    dtype = "complex128"
    full, b = scattered(values_on(PATTERN, 52_930_748, dtype=dtype), PATTERN), rhs(901_374_628, (6,), dtype)
    stored = _shuffled(full, 170_362_945)
    close(solve(stored, b, client=embedded), reference(full, b), **tolerance(dtype))
    ours = sparse.grad(lambda m: scalar(solve(m, b, client=embedded)))(stored)
    truth = jax.jit(jax.grad(lambda a: scalar(reference(a, b))))(full)
    rows, columns = stored.indices[:-3].T
    close(ours.data[:-3], truth[rows, columns], **tolerance(dtype))
    assert not ours.data[-3:].any()
    assert (ours.indices == stored.indices).all()


def test_bcsr_and_its_second_derivative(embedded: Client) -> None:
    full, b = scattered(values_on(PATTERN, 465_017_382), PATTERN), rhs(328_519_076, (6,))
    stored = sparse.BCSR.fromdense(full)

    def ours(data: Array) -> Array:
        return scalar(solve(sparse.BCSR((data, stored.indices, stored.indptr), shape=full.shape), b, client=embedded))

    def truth(data: Array) -> Array:
        return scalar(reference(jnp.zeros_like(full).at[PATTERN.rows, PATTERN.indices].set(data), b))

    close(jax.jit(jax.hessian(ours))(stored.data), jax.jit(jax.hessian(truth))(stored.data), rtol=1e-8, atol=1e-10)
    close(jax.jit(jax.grad(ours))(stored.data), jax.jit(jax.grad(truth))(stored.data))


@pytest.mark.parametrize("batch", [(), (2,)])
def test_a_bcsr_that_jax_has_filled_up(batch: tuple[int, ...], embedded: Client) -> None:
    """`BCSR.fromdense(A, nse=...)` stores more than there is, behind the last row."""
    full, b = scattered(values_on(PATTERN, 361_820_947, batch), PATTERN), rhs(70_915_348, (*batch, 6))
    stored = sparse.BCSR.fromdense(full, nse=PATTERN.nnz + 4, n_batch=len(batch))
    close(solve(stored, b, client=embedded), reference(full, b))
    ours = sparse.grad(lambda m: scalar(solve(m, b, client=embedded)))(stored)
    truth = jax.jit(jax.grad(lambda a: scalar(reference(a, b))))(full)
    close(ours.data[..., : PATTERN.nnz], truth[..., PATTERN.rows, PATTERN.indices])
    assert not ours.data[..., PATTERN.nnz :].any()


@pytest.mark.parametrize("layout", [sparse.BCOO, sparse.BCSR])
def test_a_sparse_batch_on_one_pattern(layout: Any, embedded: Client) -> None:
    full = scattered(values_on(PATTERN, 837_250_164, (3,)), PATTERN)
    b = rhs(94_731_605, (3, 6))
    stored = layout.fromdense(full, n_batch=1, nse=PATTERN.nnz)
    close(solve(stored, b, client=embedded), reference(full, b))
    ours = sparse.grad(lambda m: scalar(solve(m, b, client=embedded)))(stored)
    truth = jax.jit(jax.grad(lambda a: scalar(reference(a, b))))(full)
    close(ours.data, truth[:, PATTERN.rows, PATTERN.indices])
