"""JAX arrays to solve with, and the dense truth beside them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from backsolve import Client, Pattern
from support.systems import random_like

COUNTED = ("factorizations", "solves", "adjoint_solves", "tangent_solves")


def dense(seed: int, batch: tuple[int, ...] = (), n: int = 6, dtype: str = "float64") -> Array:
    """`[*batch, n, n]`, nonsymmetric and well-conditioned."""
    noise = random_like((*batch, n, n), dtype, seed)
    return jnp.asarray(noise + (2 * n**0.5 * np.eye(n)).astype(dtype))


def rhs(seed: int, shape: tuple[int, ...], dtype: str = "float64") -> Array:
    """Normal numbers."""
    return jnp.asarray(random_like(shape, dtype, seed))


def sparse_pattern(seed: int, n: int = 6, density: float = 0.4) -> Pattern:
    """A nonsymmetric pattern with a full diagonal."""
    stored = np.random.default_rng(seed).random((n, n)) < density
    np.fill_diagonal(stored, True)
    rows, columns = np.nonzero(stored)
    return Pattern(np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))]), columns, (n, n))


def values_on(pattern: Pattern, seed: int, batch: tuple[int, ...] = (), dtype: str = "float64") -> Array:
    """`[*batch, nnz]` of a diagonally dominant matrix."""
    diagonal = (2 * pattern.n**0.5 * (pattern.rows == pattern.indices)).astype(dtype)
    return jnp.asarray(random_like((*batch, pattern.nnz), dtype, seed) + diagonal)


def scattered(values: Array, pattern: Pattern) -> Array:
    """The dense matrix, differentiably."""
    empty = jnp.zeros((*values.shape[:-1], pattern.n, pattern.n), values.dtype)
    return empty.at[..., pattern.rows, pattern.indices].add(values)


def operator(A: Array, trans: str) -> Array:
    """`op(A)`."""
    return {"N": A, "T": A.mT, "H": A.mT.conj()}[trans]


def reference(A: Array, b: Array, trans: str = "N") -> Array:
    """The answer by JAX's own dense solver."""
    if b.ndim == A.ndim - 1:
        return jnp.linalg.solve(operator(A, trans), b[..., None])[..., 0]
    return jnp.linalg.solve(operator(A, trans), b)


def scalar(x: Array) -> Array:
    """A real number with a different slope in every direction, not analytic in a complex x."""
    return (jnp.abs(x) ** 2).sum() + (x**3).sum().real


def close(actual: Any, expected: Any, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    """Equal to rounding, shapes and element types included, leaf by leaf."""
    mine, theirs = jax.tree.leaves(actual), jax.tree.leaves(expected)
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


def tolerance(dtype: str) -> dict[str, float]:
    """What rounding may cost in this precision."""
    return {"rtol": 1e-9, "atol": 1e-10} if np.finfo(dtype).eps < 1e-10 else {"rtol": 2e-3, "atol": 2e-4}


def counted(client: Client, action: Any) -> dict[str, float]:
    """What `action` made the engine do."""
    before = client.stats()
    jax.block_until_ready(action())
    after = client.stats()
    return {name: after[name] - before[name] for name in COUNTED}
