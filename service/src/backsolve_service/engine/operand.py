"""A matrix as the engine computes with it: products, norms and views, made once and kept."""

from collections.abc import Iterator
from typing import Any, final

import numpy as np
from scipy.sparse import csr_array

from backsolve.errors import InvalidPatternError
from backsolve.kinds.base import NUMPY, apply
from backsolve.matrix import Matrix
from backsolve.pattern import AnyPattern, Pattern, StructuredPattern
from backsolve.storage import full, general
from backsolve.types import Array, Storage, Trans

from .direct.condition import inverse_norm
from .lazy import lazy

_MAX = float(np.finfo(np.float64).max)

_BLOCK = 1 << 19
"""Numbers looked at together: 4 MB of room, which is used again."""

_NOTHING: frozenset[Trans] = frozenset()

_EXACT_ROWS = 256
"""Up to here all entries of an update are added up: 65,000 at most."""


@final
class Operand:
    """One matrix, or a batch on one pattern, ready for products in float64.

    The certificate is computed with it, so its arithmetic is never less than double.

    Args:
        matrix: the numbers as they were sent. From here on there are all entries: what storage "lower" leaves out
            is filled in, on `pattern` and in `values`.
        base: of an update the matrix that it stands on, made ready already; by default made here.

    Attributes:
        unchanged_by: operations that are known to leave it as it is to the last bit, so that "N" stands for them;
            what `structure.inspect` has found.

    Raises:
        NotHermitianError: storage "lower" with a diagonal that is not real.
    """

    def __init__(self, matrix: Matrix, base: "Operand | None" = None) -> None:
        self.matrix = matrix
        self.base = Operand(matrix.base) if base is None and matrix.base is not None else base
        self.pattern: AnyPattern = general(matrix.pattern)
        self.values = _all_entries(matrix)
        self.stored: Storage = matrix.pattern.storage
        self.m = matrix.m
        self.n = matrix.n
        self.batch = matrix.batch
        self.dtype = matrix.dtype
        self.unchanged_by: frozenset[Trans] = _NOTHING

    @lazy
    def wide_dtype(self) -> "np.dtype[Any]":
        """float64 or complex128: what residuals are computed in."""
        return np.dtype(np.complex128 if self.dtype.kind == "c" else np.float64)

    @lazy
    def wide_values(self) -> Array:
        """The values in float64/complex128, shared with `values` if they are that already."""
        return self.values.astype(self.wide_dtype, copy=False)

    @lazy
    def wide(self) -> tuple[Any, ...]:
        """Each system in float64/complex128: `csr_array`s, 2-D arrays or parameters by name, sharing memory."""
        return tuple(self._system(values) for values in self._each(self.wide_values))

    @lazy
    def wide_transposed(self) -> tuple[Any, ...]:
        """The transpose of each of `wide`, sharing memory."""
        return tuple(a.T for a in self.wide)

    @lazy
    def systems(self) -> tuple[Any, ...]:
        """Each system in its own element type: `csr_array`s, 2-D arrays or parameters by name, sharing memory."""
        return tuple(self._system(values) for values in self._each(self.values))

    @lazy
    def norm_table(self) -> Array:
        """`[systems, 2]`: 1-norm and infinity-norm of each system; those of a structured one may be estimates."""
        with np.errstate(over="ignore"):
            if min(self.m, self.n) == 0:
                table = np.zeros((1 if self.batch is None else self.batch, 2))
            elif self.base is not None:
                table = np.array([_updated_norms(self)])
            elif isinstance(self.pattern, Pattern):
                table = np.array([_sparse_norms(a, self.pattern) for a in self.wide]).reshape(-1, 2)
            elif isinstance(self.pattern, StructuredPattern):
                table = np.array([self.pattern.kind.norms(parts) for parts in self.wide]).reshape(-1, 2)
            else:
                table = self._dense_sums[0]
        # A norm beyond the largest double would make every backward error look like zero.
        return np.minimum(table, _MAX)

    @property
    def norms(self) -> tuple[tuple[float, float], ...]:
        """(1-norm, infinity-norm) of each system."""
        return tuple((float(one), float(infinity)) for one, infinity in self.norm_table)

    @property
    def row_sums(self) -> Array:
        """`[systems, m]` sums of the magnitudes in each row, of matrices that are not structured."""
        if not isinstance(self.pattern, Pattern):
            return self._dense_sums[1]
        size = np.abs(self.wide_values)
        if self.batch is not None and np.diff(self.pattern.indptr).all():
            return np.asarray(np.add.reduceat(size, self.pattern.indptr[:-1], axis=1))
        each = [np.bincount(self.pattern.rows, weights=one, minlength=self.m) for one in self._each(size)]
        return np.array(each).reshape(-1, self.m)

    @lazy
    def _dense_sums(self) -> tuple[Array, Array]:
        with np.errstate(over="ignore"):
            return _dense_norms(self.wide_values.reshape(-1, self.m, self.n))

    @lazy
    def finite(self) -> bool:
        """Whether every value is a finite number."""
        listed = self.base is None and not isinstance(self.pattern, StructuredPattern)
        # Norms are asked for in any case, and neither NaN nor infinity gets lost in a sum of magnitudes.
        if listed and (self.norm_table < _MAX).all():
            return True
        return bool(np.isfinite(self.values).all())

    @property
    def nbytes(self) -> int:
        """Bytes of the values and of the float64 copy, if there is one; those of a base are its own."""
        copied = 0 if self.dtype == self.wide_dtype else self.values.size * self.wide_dtype.itemsize
        sent = 0 if self.values is self.matrix.values else self.matrix.values.nbytes
        return int(self.values.nbytes + sent) + copied

    def check_same_pattern(self, other: "Operand") -> None:
        """Refuse a matrix on another pattern.

        Raises:
            InvalidPatternError: it is.
        """
        if not self.pattern.same_as(other.pattern):
            raise InvalidPatternError(f"the values belong to {self.pattern}, those before to {other.pattern}")

    def hollow(self) -> "Operand":
        """Its kind and size without its numbers, for a factor that never looks at them: zeros that take no room."""
        made = object.__new__(Operand)
        made.pattern, made.n, made.batch, made.dtype = self.pattern, self.n, self.batch, self.dtype
        made.base, made.stored, made.unchanged_by = self.base, self.stored, self.unchanged_by
        made.values = np.broadcast_to(np.zeros((), dtype=self.dtype), self.values.shape)
        return made

    def product(self, index: int, x: Array, trans: Trans) -> Array:
        """`op(A) x` of one system in float64; `x` is `[n, k]` or `[n]`."""
        if isinstance(self.pattern, StructuredPattern):
            columns = x if x.ndim == 2 else x[:, None]
            own = np.asarray(apply(self.pattern.kind, NUMPY, self.wide[index], columns, trans)).reshape(x.shape)
            return own if self.base is None else own + self.base.product(index, x, trans)
        if trans == "N":
            return np.asarray(self.wide[index] @ x)
        a = self.wide_transposed[index]
        # Aᴴ x = conj(Aᵀ conj(x)): no conjugated copy of A.
        return np.conj(a @ np.conj(x)) if trans == "H" and self.dtype.kind == "c" else np.asarray(a @ x)

    def products(self, x: Array, trans: Trans) -> Array:
        """`op(A) x` of every system in float64; `x` is `[systems, n, k]`."""
        if self.pattern.layout != "dense" or self.batch is None:
            if x.shape[0] == 1:
                return self.product(0, x[0], trans)[None]
            return np.stack([self.product(index, x[index], trans) for index in range(x.shape[0])])
        if trans == "N":
            return np.asarray(self.wide_values @ x)
        a = self.wide_values.swapaxes(-1, -2)
        return np.conj(a @ np.conj(x)) if trans == "H" and self.dtype.kind == "c" else np.asarray(a @ x)

    def norm(self, index: int, trans: Trans) -> float:
        """Infinity-norm of `op(A)` of one system."""
        return float(self.norm_table[index, 1 if trans == "N" else 0])

    def _each(self, values: Array) -> Iterator[Array]:
        return iter([values] if self.batch is None else values)

    def _system(self, values: Array) -> Any:
        if isinstance(self.pattern, Pattern):
            a = csr_array((values, self.pattern.indices, self.pattern.indptr), shape=self.pattern.shape)
            a.has_canonical_format = True
            return a
        if isinstance(self.pattern, StructuredPattern):
            return self.pattern.split(values)
        return values


def _all_entries(matrix: Matrix) -> Array:
    pattern = matrix.pattern
    if pattern.storage != "lower" or isinstance(pattern, StructuredPattern):
        return matrix.values
    return full(pattern).expand(matrix.values)


def _updated_norms(a: Operand) -> tuple[float, float]:
    """1-norm and infinity-norm of `S + U Vᴴ`.

    Not those of S and of U Vᴴ together: where an update takes away what is largest in S, a norm that
    is too large would make a bad answer look good. A large one is estimated from a handful of products,
    from below and rarely by more than a factor of 3, so that a backward error is never made smaller.
    """
    if a.n <= _EXACT_ROWS:
        size = np.abs(a.product(0, np.eye(a.n, dtype=a.wide_dtype), "N"))
        return float(size.sum(axis=0).max()), float(size.sum(axis=1).max())

    def forward(v: Array) -> Array:
        return a.product(0, v, "N")

    def adjoint(v: Array) -> Array:
        return a.product(0, v, "H")

    # The estimator takes any operator, not only an inverse.
    return inverse_norm(forward, adjoint, a.n, a.wide_dtype), inverse_norm(adjoint, forward, a.n, a.wide_dtype)


def _dense_norms(systems: Array) -> tuple[Array, Array]:
    """Norms, `[systems, 2]`, and sums of rows, `[systems, m]`; magnitudes go to one room, block by block."""
    count, m, n = systems.shape
    table, sums = np.zeros((count, 2)), np.zeros((count, m))
    rows, together = min(m, max(_BLOCK // n, 1)), max(_BLOCK // (m * n), 1)
    room = np.empty((min(together, count), rows, n))
    for first in range(0, count, together):
        some = systems[first : first + together]
        by_column = np.zeros((len(some), 1, n))
        for start in range(0, m, rows):
            block = some[:, start : start + rows]
            size = np.abs(block, out=room[: len(some), : block.shape[1]])
            # Sums as products with ones: BLAS reads memory faster than a reduction does.
            by_column += np.ones((1, block.shape[1])) @ size
            sums[first : first + together, start : start + rows] = (size @ np.ones((n, 1)))[..., 0]
        table[first : first + together, 0] = by_column.max(axis=(1, 2))
    table[:, 1] = sums.max(axis=1)
    return table, sums


def _sparse_norms(a: Any, pattern: Pattern) -> tuple[float, float]:
    size = np.abs(a.data)
    rows = pattern.rows
    by_column = np.bincount(pattern.indices, weights=size, minlength=pattern.n)
    by_row = np.bincount(rows, weights=size, minlength=pattern.m)
    return (float(by_column.max()), float(by_row.max()))
