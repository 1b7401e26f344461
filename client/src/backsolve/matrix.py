"""A matrix in canonical form: a pattern, the numbers on it, and its identity."""

from typing import TYPE_CHECKING, Any, final

import numpy as np

from .errors import InvalidDtypeError, InvalidPatternError, InvalidShapeError
from .pattern import AnyPattern, DensePattern, Pattern, StructuredPattern, parameters
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
        base: of an update `S + U Vᴴ`, whose `values` are U and V alone, the single matrix S.

    Raises:
        InvalidShapeError: `values` does not fit the pattern, or there are several on a base.
        InvalidDtypeError: another element type, or another than the base's.
        InvalidPatternError: a base where none belongs, none where one does, or one on another pattern.
    """

    __slots__ = ("_ref", "base", "pattern", "values")

    def __init__(self, pattern: AnyPattern, values: Array, base: "Matrix | None" = None) -> None:
        check_dtype(values.dtype, "A")
        entries = pattern.entries
        if values.shape[-len(entries) :] != entries or values.ndim > len(entries) + 1:
            raise InvalidShapeError(
                f"values have shape {values.shape}, the pattern needs {entries} or (batch, *{entries})"
            )
        self.pattern = pattern
        self.values: Array = np.ascontiguousarray(values)
        self.base = base
        self._ref: MatrixRef | None = None
        _check_base(self)

    @classmethod
    def of_parameters(cls, pattern: AnyPattern, flat: Array) -> "Matrix":
        """A matrix out of all that it is given by; views. The inverse of `parameters`."""
        if not isinstance(pattern, StructuredPattern) or pattern.base is None:
            return cls(pattern, flat)
        if flat.ndim != 1:
            raise InvalidShapeError("there is a batch of updates: solve them one by one, S is factorized only once")
        entries = pattern.base.entries
        size = flat.size - pattern.nnz
        return cls(pattern, flat[size:], cls(pattern.base, flat[:size].reshape(entries)))

    @property
    def parameters(self) -> Array:
        """All that the matrix is given by: `values`, behind the entries of S if it is an update."""
        return self.values if self.base is None else np.concatenate([self.base.values.reshape(-1), self.values])

    @property
    def parameters_shape(self) -> tuple[int, ...]:
        """Shape of `parameters`, and of a gradient."""
        return (*self.systems_shape, *parameters(self.pattern))

    def copy(self) -> "Matrix":
        """The same matrix in memory of its own; digests that are known are kept."""
        base = None if self.base is None else self.base.copy()
        return Matrix(self.pattern, self.values.copy(), base).named(self._ref)

    def named(self, ref: MatrixRef | None) -> "Matrix":
        """This matrix, whose digests were computed from these very numbers already."""
        self._ref = ref
        return self

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

            below = None if self.base is None else self.base.ref
            self._ref = matrix_ref(self.pattern, self.values, below)
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


def _check_base(matrix: Matrix) -> None:
    pattern, base = matrix.pattern, matrix.base
    under = pattern.base if isinstance(pattern, StructuredPattern) else None
    if (under is None) != (base is None) or (base is not None and not base.pattern.same_as(under)):
        raise InvalidPatternError("an update needs the matrix that it stands on, and nothing else does")
    if base is None:
        return
    if base.batch is not None or matrix.batch is not None:
        raise InvalidShapeError("an update is of one matrix: solve a batch one by one")
    if base.dtype != matrix.dtype:
        raise InvalidDtypeError(f"S is {base.dtype}, U and V are {matrix.dtype}: convert one to the other's type")


def standing_on(base: Matrix | None) -> Pattern | DensePattern | None:
    """The pattern of the matrix that an update stands on.

    Raises:
        InvalidPatternError: that one is structured itself.
    """
    if base is None:
        return None
    if isinstance(base.pattern, StructuredPattern):
        raise InvalidPatternError("an update stands on a dense or sparse matrix, not on a structured one")
    return base.pattern
