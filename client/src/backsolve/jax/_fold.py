"""How a vmapped solve becomes one request.

Where only right-hand sides are mapped they become columns of one block: one matrix, one factor.
Where the values are mapped too they become a batch of matrices on one pattern.
"""

import jax.numpy as jnp
from jax import Array


def lead(array: Array, dim: int | None, size: int) -> Array:
    """The array with its mapped dimension in front."""
    return jnp.broadcast_to(array, (size, *array.shape)) if dim is None else jnp.moveaxis(array, dim, 0)


def to_columns(mapped: Array, systems: int) -> Array:
    """`[v, (batch,) n(, k)]` to `[(batch,) n, v(*k)]`; `systems` is 1 where there is a batch."""
    moved = jnp.moveaxis(mapped, 0, systems + 1)
    if moved.ndim == systems + 2:
        return moved
    # Not -1, which has no answer where the system has no rows, or the batch none of them.
    return moved.reshape((*moved.shape[: systems + 1], moved.shape[-2] * moved.shape[-1]))


def from_columns(flat: Array, mapped: Array, systems: int) -> Array:
    """The inverse of `to_columns`."""
    if mapped.ndim == systems + 2:
        return jnp.moveaxis(flat, systems + 1, 0)
    split = flat.reshape((*flat.shape[:-1], mapped.shape[0], mapped.shape[-1]))
    return jnp.moveaxis(split, systems + 1, 0)


def joined(mapped: Array) -> Array:
    """`[v, batch, ...]` to `[v * batch, ...]`."""
    return mapped.reshape((mapped.shape[0] * mapped.shape[1], *mapped.shape[2:]))
