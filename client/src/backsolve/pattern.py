"""Where the stored entries of a matrix are: canonical CSR patterns, the trivial dense one, and structured ones."""

from collections.abc import Sequence
from math import prod
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._dlpack import read
from .errors import InvalidOptionError, InvalidPatternError, InvalidShapeError
from .kinds import UPDATE
from .kinds import kind as kind_of
from .kinds.base import Kind, Numbers, split
from .types import STORAGES, Storage

INT32_MAX = 2**31 - 1

_CONVERTED = (np.ndarray, np.generic, float)
"""Sizes of other types than Python's integers, the symbolic ones of a compiler aside."""

IndexArray = NDArray[Any]
"""int32 or int64, one-dimensional."""


class CsrMatrix(Protocol):
    """What `Pattern.from_csr` needs of a SciPy CSR matrix or array."""

    @property
    def indptr(self) -> Any: ...  # noqa: D102
    @property
    def indices(self) -> Any: ...  # noqa: D102
    @property
    def shape(self) -> Any: ...  # noqa: D102


def index_dtype(n: int, nnz: int) -> np.dtype[Any]:
    """int32 while it can hold every index and offset, else int64."""
    return np.dtype(np.int32 if max(n, nnz) <= INT32_MAX else np.int64)


@final
class Pattern:
    """The stored entries of a sparse matrix, in canonical CSR form.

    Rows sorted, no duplicates; explicit zeros count as stored. The object owns its copy of
    the arrays, which are read-only, so its digest is computed once.

    Args:
        indptr: `[m + 1]` row offsets.
        indices: `[nnz]` columns, strictly increasing in each row.
        shape: `(m, n)`; only least squares takes m and n that differ.
        storage: "general", or of matrices that equal their conjugate transpose: "hermitian" (every entry
            is stored) or "lower" (those on and below the diagonal alone); see `backsolve.storage`.

    Raises:
        InvalidPatternError: the arrays are not canonical CSR, or have entries that the storage does not. The
            text names the first fault.
        InvalidShapeError: that is no shape of a matrix, or not a square one.
        InvalidOptionError: no such storage.
    """

    __slots__ = ("__weakref__", "_digest", "_full", "_rows", "_stored", "indices", "indptr", "shape", "storage")

    layout = "csr"

    def __init__(
        self, indptr: ArrayLike, indices: ArrayLike, shape: tuple[int, int], storage: Storage = "general"
    ) -> None:
        self.shape = checked_shape(shape)
        self.storage = check_storage(storage, self.shape)
        ptr, idx = _integers(indptr, "indptr"), _integers(indices, "indices")
        _check_canonical(ptr, idx, self.shape)
        dtype = index_dtype(max(self.shape), idx.size)
        self.indptr: IndexArray = _frozen(ptr, dtype)
        self.indices: IndexArray = _frozen(idx, dtype)
        self._digest: bytes | None = None
        self._rows: IndexArray | None = None
        self._full: Any = None
        self._stored: dict[Storage, Pattern] = {}
        if storage == "lower" and np.any(self.indices > self.rows):
            raise InvalidPatternError(
                "storage 'lower' has no entries above the diagonal: pass scipy.sparse.tril(A), or storage='hermitian'"
            )

    @classmethod
    def from_csr(cls, A: CsrMatrix, storage: Storage = "general") -> "Pattern":
        """Take the pattern of a SciPy CSR matrix; `A.data` is then the matching `values`.

        Raises:
            InvalidPatternError: `A` is unsorted or has duplicates; call `A.sum_duplicates()`.
            InvalidOptionError: no such storage.
        """
        return cls(A.indptr, A.indices, (int(A.shape[0]), int(A.shape[1])), storage)

    def stored(self, storage: Storage) -> "Pattern":
        """The same entries under another storage; made once, so that its digest is taken once.

        Raises:
            InvalidPatternError, InvalidShapeError, InvalidOptionError: as of the constructor; or the pattern has a
                storage already, and another one.
        """
        if storage == self.storage:
            return self
        if self.storage != "general":
            raise InvalidOptionError(f"the pattern is of storage {self.storage!r} already: leave the option out")
        if storage not in self._stored:
            self._stored[storage] = Pattern(self.indptr, self.indices, self.shape, storage)
        return self._stored[storage]

    @classmethod
    def received(
        cls, indptr: IndexArray, indices: IndexArray, shape: tuple[int, int], storage: Storage = "general"
    ) -> "Pattern":
        """A pattern from the wire, where nothing is converted: digests cover the index type too.

        Raises:
            InvalidPatternError: not canonical, or of another index type than its size asks for.
        """
        wanted = index_dtype(max(shape, default=0), indices.size)
        if indptr.dtype != wanted or indices.dtype != wanted:
            raise InvalidPatternError(f"indptr and indices of this size must be {wanted.name}: convert them")
        return cls(indptr, indices, shape, storage)

    @property
    def m(self) -> int:
        """Number of rows."""
        return self.shape[0]

    @property
    def n(self) -> int:
        """Number of columns."""
        return self.shape[1]

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return int(self.indices.size)

    @property
    def entries(self) -> tuple[int, ...]:
        """Shape of the values of one matrix on this pattern."""
        return (self.nnz,)

    @property
    def rows(self) -> IndexArray:
        """`[nnz]` row of each stored entry (computed once)."""
        if self._rows is None:
            counts = np.diff(self.indptr)
            rows = np.repeat(np.arange(self.m, dtype=self.indices.dtype), counts)
            rows.flags.writeable = False
            self._rows = rows
        return self._rows

    @property
    def nbytes(self) -> int:
        """Bytes of the index arrays."""
        return int(self.indptr.nbytes + self.indices.nbytes)

    def same_as(self, other: object) -> bool:
        """Whether both have the same entries."""
        return self is other or (
            isinstance(other, Pattern)
            and (self.shape, self.storage) == (other.shape, other.storage)
            and np.array_equal(self.indptr, other.indptr)
            and np.array_equal(self.indices, other.indices)
        )

    def __repr__(self) -> str:
        return f"Pattern({self.m}x{self.n}, nnz={self.nnz}{_told(self.storage)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Pattern, (self.indptr, self.indices, self.shape, self.storage))


@final
class DensePattern:
    """The pattern of a dense matrix: every entry of `[m, n]`.

    Args:
        shape: of the matrix.
        storage: as of `Pattern`; of "lower" the values are the rows one after the other, each as far as the diagonal.

    Raises:
        InvalidShapeError: that is no shape of a matrix, or not a square one.
        InvalidOptionError: no such storage.
    """

    __slots__ = ("__weakref__", "_digest", "_triangle", "shape", "storage")

    layout = "dense"

    def __init__(self, shape: tuple[int, int], storage: Storage = "general") -> None:
        self.shape = checked_shape(shape)
        self.storage = check_storage(storage, self.shape)
        self._digest: bytes | None = None
        self._triangle: Pattern | None = None

    @property
    def m(self) -> int:
        """Number of rows."""
        return self.shape[0]

    @property
    def n(self) -> int:
        """Number of columns."""
        return self.shape[1]

    @property
    def nnz(self) -> int:
        """Number of entries."""
        return self.m * (self.m + 1) // 2 if self.storage == "lower" else self.m * self.n

    @property
    def entries(self) -> tuple[int, ...]:
        """Shape of the values of one matrix."""
        return (self.nnz,) if self.storage == "lower" else self.shape

    @property
    def triangle(self) -> Pattern:
        """Of storage "lower", where its values are (computed once)."""
        if self._triangle is None:
            rows = np.arange(self.n + 1, dtype=np.int64)
            indptr = rows * (rows + 1) // 2
            columns = np.arange(indptr[-1]) - np.repeat(indptr[:-1], rows[1:])
            self._triangle = Pattern(indptr, columns, self.shape, "lower")
        return self._triangle

    @property
    def nbytes(self) -> int:
        """A dense pattern stores nothing."""
        return 0

    def same_as(self, other: object) -> bool:
        """Whether both have the same entries."""
        return isinstance(other, DensePattern) and (self.shape, self.storage) == (other.shape, other.storage)

    def __repr__(self) -> str:
        return f"DensePattern({self.m}x{self.n}{_told(self.storage)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (DensePattern, (self.shape, self.storage))


@final
class StructuredPattern:
    """The parameters of a matrix that is given by them: their names and shapes.

    Args:
        kind: one of `backsolve.kinds.names()`, or "update".
        dims: sizes, as the kind has them.
        base: of an update `S + U Vᴴ` the pattern of S, whose entries are not among the parameters
            here: a `Matrix` on this pattern holds U and V, and S as its `base`.

    Raises:
        InvalidPatternError: no such kind, sizes that it does not have, or a base that does not belong: that is
            not of general storage, for one.
        InvalidShapeError: S is not square, or has other rows than U.
    """

    __slots__ = ("__weakref__", "_digest", "base", "dims", "kind", "shape")

    layout = "structured"
    storage: Storage = "general"

    def __init__(self, kind: str, dims: Sequence[int], base: "Pattern | DensePattern | None" = None) -> None:
        self.kind: Kind = kind_of(kind)
        if (base is not None) != (self.kind is UPDATE):
            raise InvalidPatternError(
                "an update stands on another matrix, which an upload names as base; no other kind does"
            )
        if base is not None and base.storage != "general":
            raise InvalidPatternError(
                f"an update stands on a matrix of general storage, this is {base.storage!r}: store all entries of S"
            )
        self.dims = tuple(int(size) for size in dims)
        if any(size < 0 for size in self.dims):
            raise InvalidPatternError("dims must not be negative")
        self.kind.check(self.dims)
        n = self.kind.rows(self.dims)
        if n > INT32_MAX:
            raise InvalidPatternError(f"a structured matrix has at most {INT32_MAX} rows")
        self.shape = (n, n)
        if base is not None and base.shape != self.shape:
            raise InvalidShapeError(f"S has shape {base.shape}, U and V have {n} rows: S must be square, of as many")
        self.base = base
        self._digest: bytes | None = None

    @property
    def m(self) -> int:
        """Number of rows."""
        return self.shape[0]

    @property
    def n(self) -> int:
        """Number of columns."""
        return self.shape[1]

    @property
    def nnz(self) -> int:
        """Number of parameters."""
        return sum(prod(shape) for _, shape in self.parts)

    @property
    def entries(self) -> tuple[int, ...]:
        """Shape of the values of one matrix: all parameters in one vector."""
        return (self.nnz,)

    @property
    def parts(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Name and shape of each parameter, in the order in which they lie in the values."""
        return self.kind.parts(self.dims)

    def split(self, values: Numbers) -> dict[str, Numbers]:
        """The parameters in `values`, `[..., count]`, by name; views."""
        return split(self.parts, values)

    @property
    def nbytes(self) -> int:
        """A structured pattern stores nothing."""
        return 0

    def same_as(self, other: object) -> bool:
        """Whether both have the same parameters."""
        if not isinstance(other, StructuredPattern) or (self.kind.name, self.dims) != (other.kind.name, other.dims):
            return False
        return self.base is None or self.base.same_as(other.base)

    def __repr__(self) -> str:
        return f"StructuredPattern({self.kind.name!r}, {self.dims})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (StructuredPattern, (self.kind.name, self.dims, self.base))


AnyPattern = Pattern | DensePattern | StructuredPattern


def parameters(pattern: AnyPattern) -> tuple[int, ...]:
    """Shape of all that one matrix on this pattern is given by, and of its gradient.

    The entries; of an update those of S, in one row with U and V.
    """
    if isinstance(pattern, StructuredPattern) and pattern.base is not None:
        return (prod(pattern.base.entries) + pattern.nnz,)
    return pattern.entries


def checked_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """The shape, if it is that of a matrix."""
    if len(shape) != 2 or min(shape) < 0:
        raise InvalidShapeError(f"A must be a matrix of rows and columns, its shape is {tuple(shape)}")
    return (_size(shape[0]), _size(shape[1]))


def _size(size: int) -> int:
    """A size as Python's own integer; one that a compiler keeps symbolic stays so, or each n would be compiled for."""
    return int(size) if isinstance(size, _CONVERTED) else size


def check_storage(storage: str, shape: tuple[int, int]) -> Storage:
    """The storage, if there is such a one and a matrix of this shape can have it.

    Raises:
        InvalidOptionError: there is none of that name.
        InvalidShapeError: of Hermitian matrices, and this is not square.
    """
    for name in STORAGES:
        if storage == name:
            if name != "general" and shape[0] != shape[1]:
                raise InvalidShapeError(f"storage {name!r} is of square matrices, the shape is {shape}")
            return name
    raise InvalidOptionError("storage must be 'general', 'hermitian' or 'lower'", option="storage")


def check_general(pattern: "AnyPattern", what: str) -> None:
    """Refuse a storage where only all entries of a general matrix are taken.

    Raises:
        InvalidOptionError: the storage is another one.
    """
    if pattern.storage != "general":
        raise InvalidOptionError(
            f"{what} takes general storage alone, not {pattern.storage!r}: store all entries", option="storage"
        )


def _told(storage: Storage) -> str:
    return "" if storage == "general" else f", {storage}"


def check_square(pattern: "AnyPattern") -> None:
    """Refuse to solve with a matrix that is not square.

    Raises:
        InvalidShapeError: it is not.
    """
    if pattern.m != pattern.n:
        raise InvalidShapeError(f"A must be square, its shape is {pattern.shape}; use lstsq for other shapes")


def _integers(values: ArrayLike, name: str) -> IndexArray:
    array = read(values, name)
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or array.size == 0):
        raise InvalidPatternError(f"{name} must be a vector of integers, not {array.dtype} of {array.ndim} dimensions")
    return array


def _frozen(array: IndexArray, dtype: np.dtype[Any]) -> IndexArray:
    copy = np.array(array, dtype=dtype, order="C", copy=True)
    copy.flags.writeable = False
    return copy


def _check_canonical(indptr: IndexArray, indices: IndexArray, shape: tuple[int, int]) -> None:
    """Refuse anything but sorted CSR without duplicates, naming what is wrong."""
    m, n = shape
    if indptr.size != m + 1:
        raise InvalidPatternError(f"indptr has {indptr.size} entries, a matrix of {m} rows needs {m + 1}")
    if indptr[0] != 0:
        raise InvalidPatternError("indptr must begin with 0")
    if m and np.any(indptr[1:] < indptr[:-1]):
        raise InvalidPatternError("indptr decreases: each row must end where the next begins")
    if indptr[-1] != indices.size:
        raise InvalidPatternError(f"indptr does not end at the number of indices, {indices.size}")
    if indices.size == 0:
        return
    if indices.min() < 0 or indices.max() >= n:
        raise InvalidPatternError(f"indices point outside the {n} columns")
    falls = indices[1:] <= indices[:-1]
    # A fall is allowed only where the next entry begins a row.
    starts = indptr[1:-1]
    starts = starts[(starts > 0) & (starts < indices.size)]
    falls[starts - 1] = False
    if falls.any():
        raise InvalidPatternError(
            "indices are unsorted or duplicated within a row: call A.sum_duplicates(), "
            "or pass the matrix itself rather than its arrays"
        )
