"""A canonical matrix out of the arrays that an upload holds."""

from backsolve.canonical import canonicalise, from_compressed, native
from backsolve.errors import InvalidPatternError, InvalidShapeError, PayloadTooLargeError
from backsolve.matrix import Matrix
from backsolve.pattern import checked_shape
from backsolve.types import Array, Storage

Shape = tuple[int, int]


def dense(values: Array, storage: Storage = "general") -> Matrix:
    """A dense matrix, or a batch of them; all rows and columns are given, whatever the storage."""
    return canonicalise(values, storage=storage).matrix


def shape_of(values: Array) -> Shape:
    """Of one dense matrix; what is none is refused by `dense`."""
    return (values.shape[-2], values.shape[-1]) if values.ndim >= 2 else (0, 0)


def compressed(values: Array, indices: Array, indptr: Array, shape: Shape, storage: Storage = "general") -> Matrix:
    """A CSR matrix, canonical or not, or a batch of values on one pattern."""
    m = checked_shape(shape)[0]
    for array in (indices, indptr):
        if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
            raise InvalidPatternError("indptr and indices must be vectors of integers")
    if indptr.size != m + 1:
        raise InvalidPatternError(f"indptr has {indptr.size} entries, a matrix of {m} rows needs {m + 1}")
    if values.ndim not in (1, 2) or values.shape[-1] != indices.size:
        raise InvalidShapeError(f"values have shape {values.shape}, indices has {indices.size} entries")
    entries = from_compressed(indptr, indices, shape)
    return Matrix(entries.pattern.stored(storage), entries.gather(native(values, "A")))


def check_size(nbytes: int, limit: int) -> None:
    """Refuse a matrix that would take more than `limit` bytes in memory, before it is made."""
    if nbytes > limit:
        raise PayloadTooLargeError(
            f"the matrix would take {nbytes} bytes, at most {limit} are accepted", limit=limit, size=nbytes
        )
