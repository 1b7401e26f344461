"""How a vmapped solve becomes one request.

Where only right-hand sides are mapped they become columns of one block: one matrix, one factor.
Where the values are mapped too they become a batch of matrices on one pattern.
"""

from collections.abc import Callable

from torch import Tensor

Dims = tuple[int | None, ...]
Solve = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def fold(size: int, dims: Dims, entries: int, values: Tensor, rhs: Tensor, x0: Tensor | None, solve: Solve) -> Tensor:
    """Solve a mapped system by one unmapped solve.

    Args:
        size: of the mapped dimension.
        dims: where it is in values, rhs and x0; None: not mapped.
        entries: dimensions of one matrix's values (1 sparse, 2 dense).
        values, rhs, x0: the operands, each with the mapped dimension if `dims` says so.
        solve: the unmapped solve.

    Returns:
        The answer, its mapped dimension first.
    """
    values_dim, rhs_dim, x0_dim = dims
    b = _lead(rhs, rhs_dim, size)
    start = None if x0 is None else _lead(x0, x0_dim, size)
    if values_dim is None:
        systems = values.ndim - entries
        flat = solve(values, _to_columns(b, systems), None if start is None else _to_columns(start, systems))
        return _from_columns(flat, b, systems)
    batch = values.movedim(values_dim, 0)
    if batch.ndim == entries + 1:
        return solve(batch, b, start)
    joined = None if start is None else start.flatten(0, 1)
    flat = solve(batch.flatten(0, 1), b.flatten(0, 1), joined)
    return flat.reshape(size, batch.shape[1], *flat.shape[1:])


def _lead(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _to_columns(mapped: Tensor, systems: int) -> Tensor:
    """`[v, (batch,) n(, k)]` to `[(batch,) n, v(*k)]`."""
    moved = mapped.movedim(0, systems + 1)
    return moved if moved.ndim == systems + 2 else moved.flatten(systems + 1)


def _from_columns(flat: Tensor, mapped: Tensor, systems: int) -> Tensor:
    """The inverse of `_to_columns`."""
    if mapped.ndim == systems + 2:
        return flat.movedim(systems + 1, 0)
    return flat.reshape(*flat.shape[:-1], mapped.shape[0], mapped.shape[-1]).movedim(systems + 1, 0)
