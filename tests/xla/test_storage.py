"""Matrices stored as Hermitian ones: gradients of two orders are those of JAX's own dense solver."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from jax import Array
from jax.experimental.sparse import BCOO
from scipy import sparse

from backsolve import Client, Pattern
from backsolve.errors import InvalidOptionError
from backsolve.jax import solve, spsolve
from backsolve.jax.lineax import Backsolve, SparseLinearOperator
from support.jaxes import close, operator, reference, rhs, scalar, tolerance

N = 5
WHERE = np.ones((N, N)) - np.eye(N, k=3) - np.eye(N, k=-3)
PATTERNS = {
    "hermitian": Pattern.from_csr(sparse.csr_array(WHERE), storage="hermitian"),
    "lower": Pattern.from_csr(sparse.csr_array(np.tril(WHERE)), storage="lower"),
}

pytestmark = pytest.mark.usefixtures("kept")


def _whole(free: Array) -> Array:
    shifted = free + 6 * jnp.eye(N, dtype=free.dtype)
    return (shifted + shifted.mT.conj()) * WHERE.astype(free.dtype)


def _derivatives(answer: Any, dtype: str) -> Any:
    free, b = rhs(490_617_238, (N, N), dtype), rhs(75_302_916, (N, 2), dtype)

    def size(free: Array) -> Array:
        return scalar(jax.grad(lambda free: scalar(answer(_whole(free), b)))(free))

    return jax.jit(lambda free: (answer(_whole(free), b), jax.value_and_grad(size)(free)))(free)


@cache
def _truth(trans: str, dtype: str) -> Any:
    return _derivatives(lambda a, b: reference(a, b, trans), dtype)


def _answers(ours: Any, trans: str, dtype: str) -> None:
    close(_derivatives(ours, dtype), _truth(trans, dtype), **tolerance(dtype))


@pytest.mark.parametrize(
    ("dtype", "trans"),
    [("float32", "N"), ("float64", "T"), ("complex128", "N"), ("complex128", "T"), ("complex128", "H")],
)
@pytest.mark.parametrize("storage", PATTERNS)
def test_derivatives_on_a_pattern(storage: str, trans: Any, dtype: str, embedded: Client) -> None:
    pattern = PATTERNS[storage]

    def ours(a: Array, b: Array) -> Array:
        return spsolve(a[pattern.rows, pattern.indices], pattern, b, trans=trans, client=embedded)

    _answers(ours, trans, dtype)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("storage", PATTERNS)
def test_derivatives_of_dense_matrices(storage: Any, dtype: str, embedded: Client) -> None:
    _answers(lambda a, b: solve(a, b, storage=storage, trans="T", client=embedded), "T", dtype)


@pytest.mark.parametrize("storage", PATTERNS)
def test_the_gradient_of_what_is_stored(storage: Any, embedded: Client) -> None:
    """A Hermitian array of "hermitian"; of "lower" both places of an entry, and nothing above the diagonal."""
    a, b = _whole(rhs(184_026_375, (N, N))), rhs(62_938_471, (N,))
    full = jax.grad(lambda a: scalar(reference(a, b)))(a)
    ours = jax.grad(lambda a: scalar(solve(a, b, storage=storage, client=embedded)))(a)
    both = full + full.T
    close(ours, both / 2 if storage == "hermitian" else jnp.tril(both) - jnp.diag(jnp.diag(full)))
    mapped = jax.vmap(lambda a: solve(a, b, storage=storage, client=embedded))(jnp.stack([a, 2 * a]))
    close(mapped, jnp.stack([reference(a, b), reference(2 * a, b)]))


def test_sparse_matrices_and_operators(embedded: Client) -> None:
    a, b = _whole(rhs(710_482_936, (N, N))), rhs(53_017_284, (N,))
    close(solve(BCOO.fromdense(jnp.tril(a)), b, storage="lower", client=embedded), reference(a, b))
    general = Pattern.from_csr(sparse.csr_array(WHERE))
    close(spsolve(a[general.rows, general.indices], general, b, storage="hermitian", client=embedded), reference(a, b))
    lower = PATTERNS["lower"]
    stored = SparseLinearOperator(a[lower.rows, lower.indices], lower, lx.symmetric_tag)
    close(stored.as_matrix(), a)
    close(stored.mv(b), a @ b)
    close(lx.linear_solve(stored, b, Backsolve(client=embedded)).value, reference(a, b))
    close(operator(a, "T"), a)
    with pytest.raises(InvalidOptionError, match="already"):
        spsolve(stored.values, lower, b, storage="hermitian", client=embedded)
