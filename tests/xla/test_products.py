"""Hessian-vector and Gauss-Newton products of functions that solve, in JAX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backsolve.jax as bj
from backsolve import Client
from backsolve.errors import InvalidDtypeError, InvalidShapeError
from support.fresh import new_rng
from support.systems import random_like

N = 5
each_dtype = pytest.mark.parametrize("dtype", ["float64", "complex128"])


def fresh(dtype: str) -> jax.Array:
    """A matrix that no other test has solved with: what is factorized is counted."""
    return jnp.asarray(random_like((N, N), dtype, 88_130) + new_rng().random())


def spent(client: Client, before: dict[str, float]) -> tuple[float, float]:
    after = client.stats()
    kinds = ("solves", "adjoint_solves", "tangent_solves")
    return sum(after[k] - before[k] for k in kinds), after["factorizations"] - before["factorizations"]


def dense_solve(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.linalg.solve(a, b)


@each_dtype
@pytest.mark.parametrize("compiled", [False, True])
def test_hvp(embedded: Client, dtype: str, compiled: bool) -> None:
    def made(solve: Callable[..., Any]) -> Callable[..., Any]:
        def f(a: jax.Array, b: jax.Array) -> jax.Array:
            x = solve(a + 8 * jnp.eye(N), b)
            return jnp.sum(jnp.abs(x) ** 2 + 0.1 * jnp.abs(x) ** 4)

        return f

    a, b, da, db = fresh(dtype), *(jnp.asarray(random_like(s, dtype, 91 + len(s))) for s in ((N,), (N, N), (N,)))
    ours = made(lambda a, b: bj.solve(a, b, client=embedded))
    product = jax.jit(lambda i, v: bj.hvp(ours, i, v)) if compiled else lambda i, v: bj.hvp(ours, i, v)
    before = embedded.stats()
    value, found = jax.block_until_ready(product((a, b), (da, db)))
    assert spent(embedded, before) == (4, 1)
    theirs = made(dense_solve)
    np.testing.assert_allclose(value, theirs(a, b), rtol=1e-10)
    _, exact = jax.jvp(jax.grad(theirs, (0, 1)), (a, b), (da, db))
    for one, other in zip(found, exact, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-9 * np.abs(other).max())


@each_dtype
@pytest.mark.parametrize("squares", [True, False])
def test_gnvp(embedded: Client, dtype: str, squares: bool) -> None:
    a, b, goal, v = fresh(dtype), *(jnp.asarray(random_like(s, dtype, 71 + len(s))) for s in ((N,), (N,), (N, N)))

    def loss(r: jax.Array) -> jax.Array:
        return jnp.sum(jnp.abs(r) ** 2 / 2 + (0 if squares else jnp.abs(r) ** 4))

    def model(solve: Callable[..., Any]) -> Callable[[jax.Array], jax.Array]:
        return lambda a: solve(a + 8 * jnp.eye(N), b) - goal

    before = embedded.stats()
    value, found = bj.gnvp(model(lambda a, b: bj.solve(a, b, client=embedded)), None if squares else loss, a, v)
    assert spent(embedded, before) == (3, 1)
    residual, moved = jax.jvp(model(dense_solve), (a,), (v,))
    _, curved = jax.jvp(jax.grad(loss), (residual,), (moved,))
    (exact,) = jax.vjp(model(dense_solve), a)[1](curved)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-10 * np.abs(exact).max())
    np.testing.assert_allclose(value, loss(residual), rtol=1e-12)
    # Re⟨v, conj(product)⟩, as JAX's gradients are conjugated.
    assert float(jnp.real(jnp.sum(v * found))) > 0


def test_inputs_and_outputs_may_be_trees() -> None:
    _, product = bj.gnvp(
        lambda x: (x**2, x[:1]), lambda r: jnp.sum(r[0]) + jnp.sum(r[1] ** 2), jnp.ones(2), jnp.ones(2)
    )
    np.testing.assert_allclose(product, [2.0, 0.0])
    _, product = bj.gnvp(lambda x: (x**2, x[:1]), None, jnp.ones(2), jnp.ones(2))
    np.testing.assert_allclose(product, [5.0, 4.0])
    tree = {"a": jnp.arange(3.0), "b": jnp.ones(2)}
    _, product = bj.hvp(lambda t: jnp.sum(t["a"] ** 3) * jnp.sum(t["b"]), tree, tree)
    assert set(product) == {"a", "b"}
    _, (first,) = bj.hvp(lambda x: jnp.sum(x**3), (jnp.arange(3.0),), (jnp.ones(3),))
    np.testing.assert_allclose(first, 6 * np.arange(3.0))


def test_what_is_refused() -> None:
    x = jnp.ones(3)
    with pytest.raises(InvalidShapeError, match="real scalar"):
        bj.hvp(lambda x: x, x, x)
    with pytest.raises(InvalidShapeError, match="not tuple"):
        bj.hvp(lambda x: (jnp.sum(x), x), x, x)
    with pytest.raises(InvalidDtypeError, match="not int"):
        bj.hvp(lambda x: jnp.sum(x).astype(int), x, x)
    with pytest.raises(InvalidDtypeError, match="must return a real"):
        bj.gnvp(lambda x: x, lambda r: jnp.sum(r) + 0j, x, x)
    with pytest.raises(InvalidDtypeError, match="the model must return"):
        bj.gnvp(lambda x: x.astype(int), None, x, x)
    with pytest.raises(InvalidShapeError, match="shape"):
        bj.hvp(jnp.sum, x, x[:2])
    with pytest.raises(InvalidShapeError, match="tree"):
        bj.hvp(jnp.sum, x, (x, x))
    with pytest.raises(InvalidDtypeError, match="complex128"):
        bj.gnvp(lambda x: x, None, x, x + 0j)
    with pytest.raises(InvalidDtypeError, match="floating-point"):
        bj.hvp(jnp.sum, jnp.arange(3), jnp.arange(3))
