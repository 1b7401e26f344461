"""From what callers have to the canonical form, and back again for gradients.

Only this side of the wire converts: CSC, COO, unsorted, duplicated, strided and integer input
becomes sorted CSR (or C-ordered dense) here, and a gradient on the canonical entries returns to
the caller's own layout and order. The server refuses anything that is not canonical.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import Any, final

import numpy as np

from ._dlpack import read
from .errors import (
    InvalidDtypeError,
    InvalidInputError,
    InvalidOptionError,
    InvalidPatternError,
    InvalidShapeError,
    PayloadTooLargeError,
)
from .matrix import Matrix, check_dtype
from .pattern import DensePattern, IndexArray, Pattern, checked_shape
from .storage import packed, unpacked
from .types import Array, Storage

_MOST_ROWS = 2**31 - 1
"""Row and column of an entry are sorted as one 64-bit number, and no direct method goes further."""


@final
@dataclass(frozen=True, slots=True)
class Entries:
    """How a caller's stored entries lie in a canonical pattern.

    Attributes:
        pattern: the canonical pattern.
        position: `[caller's nnz]` canonical index of each of the caller's entries; None when
            they already are canonical.
    """

    pattern: Pattern
    position: IndexArray | None

    def gather(self, values: Array) -> Array:
        """Canonical values `[..., nnz]` of the caller's; duplicated entries are summed."""
        if self.position is None:
            return np.ascontiguousarray(values)
        out = np.zeros((*values.shape[:-1], self.pattern.nnz), dtype=values.dtype)
        flat, source = out.reshape(-1, self.pattern.nnz), values.reshape(-1, values.shape[-1])
        with np.errstate(over="ignore", invalid="ignore"):  # a sum that is not finite is refused as such
            for row, entries in zip(flat, source, strict=True):
                np.add.at(row, self.position, entries)
        return out

    def scatter(self, gradient: Array) -> Array:
        """The caller's gradient of a canonical one: each duplicate receives it in full."""
        return gradient if self.position is None else gradient[..., self.position]


def from_coordinates(rows: IndexArray, columns: IndexArray, shape: tuple[int, int]) -> Entries:
    """Entries of a matrix given by row and column of each, in any order, duplicates allowed.

    Args:
        rows, columns: `[nnz]` integers.
        shape: `(m, n)`.

    Raises:
        InvalidPatternError: an index lies outside the matrix.
        PayloadTooLargeError: more rows than can be handled.
    """
    m, n = checked_shape(shape)
    size = max(m, n)
    if size > _MOST_ROWS:
        raise PayloadTooLargeError(
            f"a matrix of {m} rows and {n} columns is too large: at most {_MOST_ROWS} of each",
            size=size,
            limit=_MOST_ROWS,
        )
    rows, columns = np.asarray(rows), np.asarray(columns)
    if rows.shape != columns.shape or rows.ndim != 1:
        raise InvalidPatternError(f"row and column indices have shapes {rows.shape} and {columns.shape}")
    for index, end in ((rows, m), (columns, n)):
        if index.size and (index.min() < 0 or index.max() >= end):
            raise InvalidPatternError(f"indices point outside the {m}x{n} matrix")
    key = rows.astype(np.int64) * n + columns
    unique, position = np.unique(key, return_inverse=True)
    indptr = np.zeros(m + 1, dtype=np.int64)
    if n:
        np.cumsum(np.bincount(unique // n, minlength=m), out=indptr[1:])
    pattern = Pattern(indptr, unique % n if n else unique, shape)
    in_order = unique.size == key.size and bool(np.all(key[1:] > key[:-1]))
    return Entries(pattern, None if in_order else position.reshape(-1))


def from_compressed(indptr: IndexArray, indices: IndexArray, shape: tuple[int, int]) -> Entries:
    """Entries of a CSR matrix, canonical or not.

    Raises:
        InvalidPatternError: `indptr` is not the row structure of `indices`.
    """
    try:
        return Entries(Pattern(indptr, indices, shape), None)
    except InvalidPatternError:
        return from_coordinates(
            _expand(np.asarray(indptr), np.asarray(indices), checked_shape(shape)[0]), indices, shape
        )


def _expand(indptr: IndexArray, indices: IndexArray, n: int) -> IndexArray:
    """Row of each entry; refuses an `indptr` that does not describe n rows."""
    if indptr.shape != (n + 1,):
        raise InvalidPatternError(f"indptr has shape {indptr.shape}, {n} rows need ({n + 1},)")
    steps = np.diff(indptr)
    if indptr[0] != 0 or np.any(steps < 0) or indptr[-1] != indices.size:
        raise InvalidPatternError("indptr must begin with 0, never decrease, and end at the number of indices")
    return np.repeat(np.arange(n), steps)


class Parametrised(ABC):
    """A matrix that is given by parameters, as callers hold it (`backsolve.structured`)."""

    @property
    @abstractmethod
    def dtype(self) -> "np.dtype[Any]":
        """Common element type of the parameters."""

    @abstractmethod
    def matrix(self, dtype: "np.dtype[Any] | None" = None, memo: "PatternMemo | None" = None) -> Matrix:
        """The canonical matrix, its parameters in one vector; `dtype` is by default its own.

        Args:
            dtype: of the values.
            memo: where to look for a sparse pattern met before.
        """

    @abstractmethod
    def like(self, gradient: Array) -> Any:
        """An object of the same class that holds the gradient of each parameter."""


@final
@dataclass(frozen=True, slots=True)
class Canonical:
    """A caller's matrix in canonical form.

    Attributes:
        matrix: the canonical matrix; its values may share memory with the caller's.
        entries: the map of a sparse matrix's entries, None for a dense one.
        template: the caller's object, whose layout gradients take.
    """

    matrix: Matrix
    entries: Entries | None
    template: Any

    def like_caller(self, gradient: Array) -> Any:
        """A gradient on the canonical entries, in the caller's layout and order."""
        if isinstance(self.template, Parametrised):
            return self.template.like(gradient)
        if self.entries is None:
            packs = self.matrix.pattern.storage == "lower"
            return unpacked(gradient, self.matrix.n) if packs else gradient
        a = self.template
        if a.format == "coo":
            return type(a)((self.entries.scatter(gradient), (a.row, a.col)), shape=a.shape)
        if a.format in ("csr", "csc"):
            return type(a)((self.entries.scatter(gradient), a.indices, a.indptr), shape=a.shape)
        if a.format == "dia":
            return self._like_diagonals(gradient)
        csr = a.tocsr()
        return type(csr)((gradient, self.matrix.pattern.indices, self.matrix.pattern.indptr), shape=a.shape).asformat(  # type: ignore[union-attr]
            a.format
        )

    def _like_diagonals(self, gradient: Array) -> Any:
        assert self.entries is not None
        a = self.template
        data = np.zeros(a.data.shape, dtype=gradient.dtype)
        data[_diagonal_places(a)[2]] = self.entries.scatter(gradient)
        return type(a)((data, a.offsets), shape=a.shape)


class PatternMemo:
    """The patterns a client has met last, so that an unchanged one is neither checked nor hashed again.

    Found by comparing the arrays themselves (memory speed), never by identity: the caller may
    have written to them.
    """

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._lock = Lock()
        self._known: OrderedDict[tuple[int, int, int, bool], Entries] = OrderedDict()
        self._sources: dict[tuple[int, int, int, bool], tuple[IndexArray, IndexArray]] = {}

    def compressed(self, indptr: IndexArray, indices: IndexArray, shape: tuple[int, int], by_column: bool) -> Entries:
        """Entries of a CSR (`by_column`: CSC) matrix."""
        key = (*shape, int(np.size(indices)), by_column)
        with self._lock:
            known, source = self._known.get(key), self._sources.get(key)
        if known and source and np.array_equal(source[0], indptr) and np.array_equal(source[1], indices):
            return known
        if by_column:
            entries = from_coordinates(indices, _expand(indptr, indices, shape[1]), shape)
        else:
            entries = from_compressed(indptr, indices, shape)
        own = (indptr.copy(), indices.copy()) if entries.position is not None else _owned(entries.pattern)
        with self._lock:
            self._known[key], self._sources[key] = entries, own
            self._known.move_to_end(key)
            while len(self._known) > self._size:
                oldest, _ = self._known.popitem(last=False)
                del self._sources[oldest]
        return entries

    def forget_locks(self) -> None:
        """In a forked child: another thread of the parent may have held the lock."""
        self._lock = Lock()


def _owned(pattern: Pattern) -> tuple[IndexArray, IndexArray]:
    return pattern.indptr, pattern.indices


def is_sparse(A: Any) -> bool:
    """Whether `A` is a SciPy sparse matrix or array (SciPy itself is not imported)."""
    return hasattr(A, "tocsr") and hasattr(A, "format")


def as_array(values: Any, what: str) -> Array:
    """A NumPy array of one of `DTYPES`; integers become float64, as in NumPy's own solvers.

    Raises:
        InvalidDtypeError: the element type cannot be solved in.
    """
    if is_sparse(values):
        raise InvalidShapeError(f"{what} is sparse; pass a dense array, e.g. {what}.toarray()")
    if values is None:
        raise InvalidDtypeError(f"{what} is None; pass an array, e.g. of float64")
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise InvalidDtypeError(f"{what} has masked entries; fill them first, e.g. {what}.filled(0.0) of float64")
    try:
        array = read(values, what)
    except InvalidInputError:
        raise
    except (TypeError, ValueError, RuntimeError) as err:
        raise InvalidDtypeError(
            f"{what} is no array of numbers (rows of one length, float64 or the like); "
            "tensors of PyTorch go to backsolve.torch.solve"
        ) from err
    return native(array, what)


def native(array: Array, what: str) -> Array:
    """Integers to float64, foreign byte order to the machine's; anything else is refused."""
    if array.dtype.kind in "biu":
        return array.astype(np.float64)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        raise InvalidDtypeError(f"{what} is {array.dtype}; extended precision is not available: use float64")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    check_dtype(array.dtype, what)
    return array


def canonicalise(
    A: Any,
    dtype: "np.dtype[Any] | None" = None,
    memo: PatternMemo | None = None,
    storage: Storage = "general",
) -> Canonical:
    """Bring a NumPy array, a SciPy sparse matrix or a structured one into canonical form.

    Args:
        A: `[m, n]` or `[batch, m, n]` dense, any SciPy sparse format, or a `Parametrised` matrix.
        dtype: convert the values to this type (the common one of A and b).
        memo: where to look for a pattern met before.
        storage: what the entries say; of a dense array the part above the diagonal is not read with "lower".

    Raises:
        InvalidShapeError: no matrix, or one that cannot have this storage.
        InvalidDtypeError: an element type that cannot be solved in.
        InvalidPatternError: broken index arrays, or entries above the diagonal with "lower".
        InvalidOptionError: no such storage, or one where A is given by parameters.
    """
    if isinstance(A, Parametrised):
        if storage != "general":
            raise InvalidOptionError(
                "storage is of dense and sparse matrices; this one is given by parameters: leave it out",
                option="storage",
            )
        return Canonical(A.matrix(dtype, memo), None, A)
    if not is_sparse(A):
        values = as_array(A, "A")
        if values.ndim not in (2, 3):
            raise InvalidShapeError(
                f"A must be [n, n] or [batch, n, n] ([m, n] for least squares); it has {values.ndim} dimensions"
            )
        pattern = DensePattern((values.shape[-2], values.shape[-1]), storage)
        stored = packed(values) if storage == "lower" else values
        return Canonical(Matrix(pattern, _cast(stored, dtype)), None, A)
    shape = checked_shape(tuple(A.shape))
    memo = memo or PatternMemo(1)
    if A.format == "dia":
        return _diagonals(A, shape, dtype, storage)
    source = A if A.format in ("csr", "csc", "coo") else A.tocsr()
    values = _cast(native(read(source.data, "A"), "A"), dtype)
    if source.format == "coo":
        entries = from_coordinates(source.row, source.col, shape)
    else:
        entries = memo.compressed(source.indptr, source.indices, shape, by_column=source.format == "csc")
    if values.shape != (source.indices.size if source.format != "coo" else source.row.size,):
        raise InvalidPatternError("A has another number of values than of indices")
    return Canonical(Matrix(entries.pattern.stored(storage), entries.gather(values)), entries, A)


def _diagonal_places(A: Any) -> tuple[IndexArray, IndexArray, Array]:
    """Row and column of each number of a DIA matrix, and whether that is inside the matrix."""
    columns = np.broadcast_to(np.arange(A.data.shape[1]), A.data.shape)
    rows = columns - np.asarray(A.offsets)[:, None]
    return rows, columns, (rows >= 0) & (rows < A.shape[0]) & (columns < A.shape[1])


def _diagonals(A: Any, shape: tuple[int, int], dtype: "np.dtype[Any] | None", storage: Storage) -> Canonical:
    """A matrix of stored diagonals; its stored zeros count, which SciPy's own conversion drops."""
    rows, columns, inside = _diagonal_places(A)
    entries = from_coordinates(rows[inside], columns[inside], shape)
    values = _cast(native(read(A.data, "A"), "A"), dtype)[inside]
    return Canonical(Matrix(entries.pattern.stored(storage), entries.gather(values)), entries, A)


def _cast(values: Array, dtype: "np.dtype[Any] | None") -> Array:
    return values if dtype is None or values.dtype == dtype else values.astype(dtype)
