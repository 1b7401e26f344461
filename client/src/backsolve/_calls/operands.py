"""What callers hand in, made fit to be sent: A in canonical form, arrays of its type and shape, the digests."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from ..canonical import Canonical, Parametrised, PatternMemo, as_array, canonicalise, is_sparse, native
from ..errors import InvalidDtypeError, InvalidShapeError
from ..matrix import Matrix
from ..pattern import check_square
from ..retry import UNSET, Timeout
from ..types import DTYPES, Array, OnFailure, Storage


@final
@dataclass(frozen=True, slots=True)
class Terms:
    """What a call may be told beside its operands and options.

    Attributes:
        on_failure: what happens when the answer misses its tolerance, or there is none.
        timeout: seconds; by default the client's.
        storage: what the entries of A say.
    """

    on_failure: OnFailure = "raise"
    timeout: Timeout = UNSET
    storage: Storage = "general"


def common(
    memo: PatternMemo,
    A: Any,
    dtype: "np.dtype[Any] | None" = None,
    *,
    storage: Storage = "general",
    **arrays: Any,
) -> tuple[Canonical, tuple[Array | None, ...]]:
    """A and the given arrays in their common element type, and that of `dtype`; A in canonical form.

    Raises:
        InvalidDtypeError, InvalidShapeError, InvalidPatternError: as `canonicalise` and `as_array`.
    """
    given = {name: None if value is None else as_array(value, name) for name, value in arrays.items()}
    a = A if is_sparse(A) or isinstance(A, Parametrised) else as_array(A, "A")
    # Integers count as float64 here already, or float32 with int64 would not.
    own = a.dtype if a.dtype in DTYPES else native(np.empty(0, a.dtype), "A").dtype
    types = {own, *(v.dtype for v in given.values() if v is not None), *([dtype] if dtype else [])}
    wanted = own if len(types) == 1 else np.result_type(*types)
    cast = tuple(None if v is None else np.asarray(v, dtype=wanted) for v in given.values())
    return canonicalise(a, wanted, memo, storage), cast


def check_fits(matrix: Matrix, array: Array, what: str) -> None:
    """Refuse an array that is no right-hand side of a square system with this matrix.

    Raises:
        InvalidShapeError, InvalidDtypeError: it is not.
    """
    check_square(matrix.pattern)
    check_type(matrix, array, what)
    matrix.is_vector(array)


def check_type(matrix: Matrix, array: Array, what: str) -> None:
    """Refuse an array of another element type than the matrix.

    Raises:
        InvalidDtypeError: it is.
    """
    if array.dtype != matrix.dtype:
        raise InvalidDtypeError(f"{what} is {array.dtype}, A is {matrix.dtype}: convert one to the other's type")


def alike(array: Array | None, rhs: Array, what: str) -> Array | None:
    """The array in C order, of the type of `rhs`.

    Raises:
        InvalidShapeError: it is not shaped like `rhs`.
        InvalidDtypeError: it is complex and `rhs` is not.
    """
    if array is None:
        return None
    if array.dtype.kind == "c" != rhs.dtype.kind:
        raise InvalidDtypeError(f"{what} is {array.dtype}, b is {rhs.dtype}: give real numbers, e.g. {what}.real")
    if array.shape != rhs.shape:
        raise InvalidShapeError(f"{what} has shape {array.shape}, it must be shaped like b, {rhs.shape}")
    return np.ascontiguousarray(array, dtype=rhs.dtype)


def allocated(shape: int | tuple[int, ...], dtype: Any) -> "tuple[tuple[int, ...], np.dtype[Any]]":
    """Shape and type of an array that `Client.empty` makes.

    Raises:
        InvalidDtypeError, InvalidShapeError: it cannot be solved with.
    """
    sizes = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    if any(size < 0 for size in sizes):
        raise InvalidShapeError("an array has no negative sizes")
    kind = np.dtype(dtype)
    if kind not in DTYPES:
        raise InvalidDtypeError("arrays of float32, float64, complex64 and complex128 are solved with")
    return tuple(int(size) for size in sizes), kind
