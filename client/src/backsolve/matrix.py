"""A matrix in canonical form: a pattern, the numbers on it, and its identity."""

from typing import TYPE_CHECKING, Any, final

import numpy as np

from .errors import InvalidDtypeError, InvalidShapeError
from .pattern import AnyPattern
from .types import DTYPES, Array, MatrixRef

if TYPE_CHECKING:
    from collections.abc import Sequence


def check_dtype(dtype: "np.dtype[Any]", what: str) -> None:
    """Refuse element types that cannot be solved in, with the cure.

    Raises:
        InvalidDtypeError: `dtype` is none of `DTYPES` in the machine's byte order.
    """
    if dtype not in DTYPES or not dtype.isnative:
        names = ", ".join(d.name for d in DTYPES)
        raise InvalidDtypeError(f"{what} is {dtype}; solves run in {names}: convert it first, e.g. to float64")


@final
class Matrix:
    """`values` on `pattern`: one matrix, or a batch of matrices on one pattern.

    Args:
        pattern: where the entries are.
        values: `[nnz]` or `[batch, nnz]` on a sparse pattern, `[m, n]` or `[batch, m, n]` on a
            dense one; one of `DTYPES`; C order. Not copied: whoever keeps the object must keep
            the array unchanged.

    Raises:
        InvalidShapeError: `values` does not fit the pattern.
        InvalidDtypeError: another element type.
    """

    __slots__ = ("_ref", "pattern", "values")

    def __init__(self, pattern: AnyPattern, values: Array) -> None:
        check_dtype(values.dtype, "A")
        entries = pattern.entries
        if values.shape[-len(entries) :] != entries or values.ndim > len(entries) + 1:
            raise InvalidShapeError(
                f"values have shape {values.shape}, the pattern needs {entries} or (batch, *{entries})"
            )
        self.pattern = pattern
        self.values: Array = np.ascontiguousarray(values)
        self._ref: MatrixRef | None = None

    @property
    def m(self) -> int:
        """Number of rows."""
        return self.pattern.m

    @property
    def n(self) -> int:
        """Number of columns."""
        return self.pattern.n

    @property
    def dtype(self) -> "np.dtype[Any]":
        """Element type of the values."""
        return self.values.dtype

    @property
    def batch(self) -> int | None:
        """Number of matrices, or None for a single one."""
        return self.values.shape[0] if self.values.ndim > len(self.pattern.entries) else None

    @property
    def systems_shape(self) -> "Sequence[int]":
        """`()`, or `(batch,)`."""
        return () if self.batch is None else (self.batch,)

    @property
    def hashed(self) -> bool:
        """Whether `ref` is known already."""
        return self._ref is not None

    @property
    def ref(self) -> MatrixRef:
        """Digests of pattern and values, computed on first use and kept with this object."""
        if self._ref is None:
            from .fingerprint import matrix_ref  # noqa: PLC0415  (the engine runs without blake3)

            self._ref = matrix_ref(self.pattern, self.values)
        return self._ref

    def is_vector(self, rhs: Array, *, of_columns: bool = False) -> bool:
        """Whether `rhs` holds one vector a system, rather than several.

        Args:
            rhs: with as many rows as A has.
            of_columns: with as many rows as A has columns: an x, or its cotangent.

        Raises:
            InvalidShapeError: it holds neither.
        """
        batch, n = tuple(self.systems_shape), self.n if of_columns else self.m
        vector = rhs.ndim == len(batch) + 1
        fits = rhs.shape[: len(batch) + 1] == (*batch, n)
        if not fits or not (vector or rhs.ndim == len(batch) + 2):
            wanted = (*batch, n)
            raise InvalidShapeError(
                f"b has shape {rhs.shape}; this matrix takes {wanted} for vectors or {(*wanted, 'k')} for k columns"
            )
        return vector
