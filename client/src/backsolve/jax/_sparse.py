"""From a sparse matrix of `jax.experimental.sparse` to values on a canonical pattern."""

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.sparse import BCOO, BCSR

from .._fork import renew_after_fork
from ..canonical import Entries, PatternMemo
from ..errors import InvalidPatternError, InvalidShapeError, NotSupportedError
from ..pattern import Pattern
from . import _inputs

_memo: Final = PatternMemo()
renew_after_fork(_memo, PatternMemo.forget_locks)


def extract(A: BCOO | BCSR) -> tuple[Array, Pattern]:
    """Values of a sparse matrix on its canonical pattern.

    Entries may be unsorted and duplicated; those with which JAX fills up do not count: of a BCOO outside of the matrix,
    of a BCSR behind its last row. A gradient has A's own entries in A's own order: duplicates receive it in full,
    what does not count zero.

    Args:
        A: `[n, n]`, or `[batch, n, n]` with `n_batch` 1 and the same indices in every matrix; no dense dimensions.

    Returns:
        `[(batch,) nnz]` canonical values, computed differentiably from `A.data`, and the pattern.

    Raises:
        InvalidShapeError: other dimensions.
        InvalidPatternError: broken indices, or several patterns in one batch.
        NotSupportedError: indices without numbers: an argument of a jitted function, or NumPy's, wrapped inside of one.
    """
    if A.n_dense or A.n_batch > 1 or A.ndim != A.n_batch + 2:
        raise InvalidShapeError(
            f"a sparse A must be [n, n], or [batch, n, n] with n_batch=1, and n_dense=0; its shape is {tuple(A.shape)} "
            f"with n_batch={A.n_batch}, n_dense={A.n_dense}: use spsolve(values, pattern, b) for other batches"
        )
    indices = (A.indices,) if isinstance(A, BCOO) else (A.indptr, A.indices)
    first, *second = (_only(_known(each), A.n_batch) for each in indices)
    shape = (int(A.shape[-2]), int(A.shape[-1]))
    data = _inputs.array(A.data, "A")
    # A batch of one may stand for all.
    data = jnp.broadcast_to(data, (*A.shape[: A.n_batch], data.shape[-1]))
    if isinstance(A, BCSR):
        stored = int(first[-1]) if first.size else 0
        return _gathered(data[..., :stored], _memo.compressed(first, second[0][:stored], shape, by_column=False))
    rows, columns = first[:, 0], first[:, 1]
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    if not inside.all():
        data, rows, columns = data[..., np.flatnonzero(inside)], rows[inside], columns[inside]
    return _gathered(data, coordinates(rows, columns, shape))


def coordinates(rows: Any, columns: Any, shape: tuple[int, int]) -> Entries:
    """Entries by row and column, with a pattern that is the same object for the same indices."""
    order = np.lexsort((columns, rows))
    indptr = np.zeros(shape[0] + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=shape[0]), out=indptr[1:])
    sorted_ = _memo.compressed(indptr, columns[order], shape, by_column=False)
    place = np.empty(rows.size, np.int64)
    place[order] = np.arange(rows.size) if sorted_.position is None else sorted_.position
    in_order = sorted_.position is None and bool((order == np.arange(rows.size)).all())
    return Entries(sorted_.pattern, None if in_order else place)


def _gathered(data: Array, entries: Entries) -> tuple[Array, Pattern]:
    """`Entries.gather` in JAX's operations."""
    if entries.position is None:
        return data, entries.pattern
    empty = jnp.zeros((*data.shape[:-1], entries.pattern.nnz), data.dtype)
    return empty.at[..., entries.position].add(data), entries.pattern


def _known(indices: Any) -> Any:
    """The numbers of an index array: those of a derivative's argument too, which JAX has wrapped."""
    traced = isinstance(indices, jax.core.Tracer)
    found = indices.to_concrete_value() if traced else indices
    if found is None:
        raise NotSupportedError(
            "the indices of A have no numbers while the function is traced: they are an argument of it, or an array of "
            "NumPy that JAX has wrapped there; build A from index arrays of JAX's that were made outside of the "
            "function, jnp.asarray(indices), or use spsolve(values, pattern, b)"
        )
    return np.asarray(found)


def _only(indices: Any, n_batch: int) -> Any:
    """The indices that all matrices of a batch share."""
    if not n_batch:
        return indices
    if not (indices == indices[:1]).all():
        raise InvalidPatternError(
            "the matrices of the batch have different entries: solve them one by one, or store their zeros too"
        )
    if not len(indices):
        raise InvalidShapeError("a batch of no sparse matrices has no pattern: use spsolve(values, pattern, b)")
    return indices[0]
