"""The formulas of `backsolve._adapter.rules` in JAX's own operations.

Tangents alone: JAX transposes them, and so has each gradient in its own convention.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec, reshard

from .._adapter import rules
from .._adapter.rules import Algebra
from ..kinds.base import Operator, Ops, apply
from ..pattern import AnyPattern, Pattern, StructuredPattern, parameters

_MOST: Final = 1 << 20
"""Products formed at a time: bounds the scratch memory of a wide block of right-hand sides."""


def _concatenate(arrays: Sequence[Array], axis: int) -> Array:
    return jnp.concatenate(list(arrays), axis)


def _conj(a: Array) -> Array:
    return a.conj() if jnp.iscomplexobj(a) else a


OPS: Final = Ops(jnp.fft, _concatenate, jnp.iscomplexobj)


def product(pattern: AnyPattern, values: Array, x: Array, *, transposed: bool) -> Array:
    """`A x`, or `Aᵀ x`, for the matrix with these values, `[m, n]`."""
    if not isinstance(pattern, Pattern):
        return jnp.matmul(values.swapaxes(-1, -2) if transposed else values, x, precision=lax.Precision.HIGHEST)
    into, out_of = (pattern.indices, pattern.rows) if transposed else (pattern.rows, pattern.indices)
    size = pattern.n if transposed else pattern.m

    def column(given: Array) -> Array:
        terms = values * given[..., out_of]
        return jnp.zeros((*terms.shape[:-1], size), terms.dtype).at[..., into].add(terms)

    if pattern.nnz * _systems(x) * x.shape[-1] > _MOST:
        return jnp.moveaxis(lax.map(column, jnp.moveaxis(x, -1, 0)), 0, -1)
    terms = values[..., None] * x[..., out_of, :]
    return jnp.zeros((*terms.shape[:-2], size, terms.shape[-1]), terms.dtype).at[..., into, :].add(terms)


def _systems(x: Array) -> int:
    return max(1, x.size // max(1, x.shape[-1] * x.shape[-2]))


ALGEBRA: Final[Algebra] = Algebra(OPS, product, _conj, jnp.zeros_like)


def tangent_rhs(
    pattern: AnyPattern, operator: Operator, dvalues: Array | None, x: Array, db: Array | None, values: Array
) -> Array:
    """As `rules.tangent_rhs`, where one of the tangents is there; every step is linear in them to JAX too.

    That of a structured matrix is JAX's own: what a kind has for it may be a product of two things that both move.
    """
    vectors = x.ndim == values.ndim - len(parameters(pattern)) + 1
    if dvalues is None or not isinstance(pattern, StructuredPattern):
        plain: Array = rules.tangent_rhs(ALGEBRA, pattern, operator, dvalues, x, db, vectors, values)
        return plain
    block = rules.columns(x, vectors)
    _, moved = jax.jvp(lambda given: _structured(pattern, operator, given, block), (values,), (dvalues,))
    change: Array = moved[..., 0] if vectors else moved
    return -change if db is None else db - change


def _structured(pattern: StructuredPattern, operator: Operator, values: Array, x: Array) -> Array:
    """`op(A) x` of all parameters of a structured A; x is `[..., n, k]`."""
    size = 0 if pattern.base is None else prod(pattern.base.entries)
    found: Array = apply(pattern.kind, OPS, pattern.split(values[..., size:]), x, operator)
    if pattern.base is None:
        return found
    of_base = values[..., :size].reshape((*values.shape[:-1], *pattern.base.entries))
    total: Array = found + rules.operated(ALGEBRA, pattern.base, operator, of_base, x)
    return total


def varying_alike(*arrays: Array) -> tuple[Array, ...]:
    """Inside `shard_map` JAX tracks over which axes each array varies; an operation wants them all alike."""
    axes = [_varying(a) for a in arrays]
    together = frozenset[Any]().union(*axes)
    return tuple(_vary(a, tuple(together - own)) for a, own in zip(arrays, axes, strict=True))


def whole(*arrays: Array) -> tuple[Array, ...]:
    """Where the types of arrays say how they are spread over a mesh (axes of it are explicit), the same in one piece.

    A request goes out from one place, and what comes back is typed so. JAX spreads the cotangents again.
    """
    return tuple(_whole(a) for a in arrays)


def _whole(a: Array) -> Array:
    sharding: Any = jax.typeof(a).sharding
    if not any(sharding.spec):
        return a
    spread_over_nothing = PartitionSpec(*(None,) * a.ndim)  # type: ignore[no-untyped-call]
    collected: Array = reshard(a, NamedSharding(sharding.mesh, spread_over_nothing))  # type: ignore[no-untyped-call]
    return collected


def _varying(a: Array) -> frozenset[Any]:
    kind: Any = jax.typeof(a)
    found: frozenset[Any] = kind.vma if hasattr(kind, "vma") else kind.mat.varying
    return found


def _vary(a: Array, axes: tuple[Any, ...]) -> Array:
    if not axes:
        return a
    of_jax: Any = lax
    varying: Array = of_jax.pcast(a, axes, to="varying") if hasattr(lax, "pcast") else of_jax.pvary(a, axes)
    return varying
