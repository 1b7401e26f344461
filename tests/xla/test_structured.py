"""Matrices given by parameters: the gradient of each, beside JAX's own through the dense matrix."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.experimental.sparse import BCOO
from scipy import sparse

from backsolve import Client, Pattern, Status
from backsolve.errors import InvalidDtypeError, InvalidOptionError, InvalidPatternError, InvalidShapeError
from backsolve.jax import Circulant, Kronecker, LowRankPlusDiagonal, LowRankUpdate, Toeplitz, solve
from support.fresh import new_rng
from support.jaxes import close, counted, operator, reference, rhs, scalar

pytestmark = pytest.mark.usefixtures("kept")


def _dense(a: Any) -> Array:
    """All entries, written out one by one."""
    place = np.arange(6)[:, None] - np.arange(6)
    match a:
        case LowRankPlusDiagonal():
            return a.d[..., None] * jnp.eye(6) + a.U @ a.V.mT.conj()
        case Kronecker():
            first, second = a.factors
            return jnp.einsum("...ij,...kl->...ikjl", first, second).reshape((*first.shape[:-2], 6, 6))
        case Circulant():
            return a.c[..., place % 6]
        case Toeplitz():
            return jnp.where(place >= 0, a.c[..., abs(place)], a.r[..., abs(place)])
    base = jnp.zeros((6, 6), a.U.dtype).at[PATTERN.rows, PATTERN.indices].set(a.S) if a.S.ndim == 1 else a.S
    return base + a.U @ a.V.mT.conj()


def _steep(n: int, dtype: str, lead: tuple[int, ...] = ()) -> Array:
    """A first column whose first number outweighs the others."""
    return rhs(380_127_945, (*lead, n), dtype).at[..., 0].add(4.0 * n**0.5)


def _square(seed: int, n: int, dtype: str, lead: tuple[int, ...] = ()) -> Array:
    return rhs(seed, (*lead, n, n), dtype) + 3 * n**0.5 * jnp.eye(n, dtype=dtype)


MAKERS: dict[str, Callable[..., Any]] = {
    "low_rank": lambda dtype, lead=(): LowRankPlusDiagonal(
        rhs(71_903_824, (*lead, 6), dtype) + 9,
        rhs(640_218_395, (*lead, 6, 2), dtype),
        rhs(9_034_712, (*lead, 6, 2), dtype),
    ),
    "kronecker": lambda dtype, lead=(): Kronecker(_square(52_017, 2, dtype, lead), _square(918_203, 3, dtype, lead)),
    "circulant": lambda dtype, lead=(): Circulant(_steep(6, dtype, lead)),
    "toeplitz": lambda dtype, lead=(): Toeplitz(_steep(6, dtype, lead), rhs(207_461, (*lead, 6), dtype)),
    "hermitian toeplitz": lambda dtype, lead=(): Toeplitz(_steep(6, dtype, lead)),
    "update": lambda dtype, lead=(): LowRankUpdate(_square(7_710_254, 6, dtype), rhs(13_850, (6, 2), dtype)),
    "sparse update": lambda dtype, lead=(): LowRankUpdate(
        BANDED.data.astype(dtype), rhs(13_850, (6, 2), dtype), rhs(92_384, (6, 2), dtype), pattern=PATTERN
    ),
}

BANDED = sparse.csr_array(np.eye(6) * 7 + np.eye(6, k=1) - np.eye(6, k=-2))
PATTERN = Pattern.from_csr(BANDED)


@pytest.mark.parametrize(("dtype", "trans"), [("float64", "N"), ("complex128", "T"), ("complex128", "H")])
@pytest.mark.parametrize("kind", MAKERS)
def test_gradients_of_both_orders(kind: str, trans: Any, dtype: str, embedded: Client) -> None:
    a, b = MAKERS[kind](dtype), rhs(486_190_273, (6, 2), dtype)

    def derivatives(answer: Any) -> Any:
        def size(a: Any) -> Array:
            first = jax.grad(lambda a: scalar(answer(a, b)))(a)
            return sum((jnp.abs(each) ** 2).sum() for each in jax.tree.leaves(first))

        return jax.jit(lambda a: (answer(a, b), size(a), jax.grad(size)(a)))(a)

    ours = derivatives(lambda a, b: solve(a, b, trans=trans, client=embedded))
    assert isinstance(ours[2], type(a))
    close(a.to_dense(), _dense(a))
    close(ours, derivatives(lambda a, b: reference(_dense(a), b, trans)), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("kind", ["low_rank", "kronecker", "circulant", "toeplitz"])
def test_batches_are_one_request(kind: str, wrap: Any, embedded: Client) -> None:
    a, b = MAKERS[kind]("float64", (3,)), rhs(95_302_718, (3, 6))
    batched = wrap(lambda a, b: solve(a, b, client=embedded))
    assert counted(embedded, lambda: batched(a, b))["solves"] == 1
    close(batched(a, b), reference(_dense(a), b))
    mapped = wrap(jax.vmap(lambda a, b: solve(a, b, client=embedded)))
    close(mapped(a, b), reference(_dense(a), b))
    close(a @ b, (_dense(a) @ b[..., None])[..., 0])
    close(a.to_dense(), _dense(a))
    assert "batch of (3,), 6x6" in repr(a)


def test_updates_share_the_factor_of_their_base(embedded: Client) -> None:
    s = jnp.asarray(new_rng().standard_normal(BANDED.nnz) * 0.1 + BANDED.data)
    b = rhs(714_029_385, (6,))

    def gradient(u: Array) -> Any:
        return jax.grad(lambda a: scalar(solve(a, b, client=embedded)))(LowRankUpdate(s, u, pattern=PATTERN))

    first = counted(embedded, lambda: jax.jit(gradient)(rhs(6_190_352, (6, 1))))
    second = counted(embedded, lambda: gradient(rhs(83_520_617, (6, 2))))
    assert (first["factorizations"], second["factorizations"]) == (1, 0)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_mapped_updates(wrap: Any, embedded: Client) -> None:
    u, b = rhs(317_520_946, (3, 6, 2)), rhs(64_028_173, (6,))
    s = jnp.asarray(BANDED.data)

    def ours(u: Array) -> Array:
        return scalar(solve(LowRankUpdate(s, u, pattern=PATTERN), b, client=embedded))

    def truth(u: Array) -> Array:
        return scalar(reference(jnp.asarray(BANDED.toarray()) + u @ u.T, b))

    close(wrap(jax.vmap(jax.value_and_grad(ours)))(u), jax.vmap(jax.value_and_grad(truth))(u))


def test_statistics_of_mapped_updates_are_of_all(embedded: Client) -> None:
    """A request for each: nothing was factorized only where that is so of all."""
    u, b = rhs(880_216_347, (6, 1)), rhs(150_394_826, (6,))
    s = jnp.asarray(new_rng().standard_normal((2, BANDED.nnz)) * 0.1 + BANDED.data)

    def stats(s: Array) -> Any:
        return solve(LowRankUpdate(s, u, pattern=PATTERN), b, client=embedded, return_stats=True)[1]

    alone = stats(s[0])
    assert not alone.factor_hit
    some, every = jax.vmap(stats)(s), jax.vmap(stats)(s)
    assert not some.factor_hit.any()
    assert every.factor_hit.all()
    assert every.statuses == [Status.OK] * 2
    assert every.relative_residual.shape == (2,)
    assert every.method_name == alone.method_name


def test_a_sparse_base(embedded: Client) -> None:
    u, b = rhs(20_738_154, (6, 2)), rhs(731_802_946, (6,))
    a = LowRankUpdate(BCOO.from_scipy_sparse(BANDED), u)
    close(solve(a, b, client=embedded), reference(jnp.asarray(BANDED.toarray()) + u @ u.T, b))
    close(operator(a.to_dense(), "N"), jnp.asarray(BANDED.toarray()) + u @ u.T)


def test_what_is_refused() -> None:
    one, two = jnp.ones((4, 1)), jnp.ones((4, 2))
    for call, error, text in (
        (lambda: LowRankPlusDiagonal(jnp.ones(3), two), InvalidShapeError, "d has shape"),
        (lambda: LowRankPlusDiagonal(jnp.ones(4), two, one), InvalidShapeError, "V"),
        (lambda: LowRankPlusDiagonal(jnp.ones(4, "float32"), two), InvalidDtypeError, "U is float64"),
        (lambda: LowRankPlusDiagonal([1.0], one), InvalidDtypeError, "d must be an array"),
        (lambda: Circulant(jnp.ones(())), InvalidShapeError, "c must be of 1"),
        (Kronecker, InvalidPatternError, "factors"),
        (lambda: Kronecker(two), InvalidShapeError, "square"),
        (lambda: Kronecker(jnp.ones((2, 2, 2)), jnp.ones((2, 2))), InvalidShapeError, "batch axes"),
        (lambda: Toeplitz(jnp.ones(3), jnp.ones(2)), InvalidShapeError, "alike"),
        (lambda: LowRankUpdate(jnp.eye(3), two), InvalidShapeError, "S has shape"),
        (lambda: LowRankUpdate(jnp.ones((2, 4, 4)), two), InvalidShapeError, "batch"),
        (lambda: LowRankUpdate(jnp.eye(4), jnp.ones((2, 4, 2))), InvalidShapeError, "U must be of 2"),
        (lambda: LowRankUpdate(jnp.eye(4, dtype="float32"), two), InvalidDtypeError, "S is float32"),
        (lambda: LowRankUpdate(jnp.ones(4), two, pattern=np.eye(4)), InvalidPatternError, "Pattern"),
        (lambda: LowRankUpdate(jnp.ones(4), jnp.ones((6, 1)), pattern=PATTERN), InvalidShapeError, "needs"),
        (lambda: Circulant(jnp.ones(3)) @ jnp.ones(4), InvalidShapeError, "x has shape"),
        (lambda: solve(Circulant(jnp.ones(3)), jnp.ones(3), storage="lower"), InvalidOptionError, "storage"),
    ):
        with pytest.raises(error, match=text):
            call()
