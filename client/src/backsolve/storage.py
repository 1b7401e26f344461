"""What the stored entries of a Hermitian matrix say of it, and what they are linear in.

    storage      stored                               gradient, with G = ∂L/∂A where every entry is free
    general      every entry                          G
    hermitian    every entry, A = Aᴴ                  (G + Gᴴ) / 2
    lower        on and below the diagonal            G + Gᴴ below it, the real part of G on it

All three agree in every direction that keeps A Hermitian, and differ as arrays. The two last ones are the same
rule: with W = w ∘ values, where the weights w are 1/2 for "hermitian", and for "lower" 1 but 1/2 on the diagonal,

    A = W + Wᴴ,    gradient = w ∘ (G + Gᴴ),

one the adjoint of the other as maps of real vector spaces. So the imaginary part of a diagonal does not enter,
a step along a gradient of "hermitian" keeps A Hermitian, and a tangent that is not Hermitian counts by its
Hermitian part. For real matrices Hermitian is symmetric; a complex symmetric matrix is stored as "general".

Source: Giles, "An extended collection of matrix derivative results for forward and reverse mode algorithmic
differentiation", 2008, section 2.2; Petersen and Pedersen, "The matrix cookbook", section 2.8.
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from .errors import NotHermitianError
from .pattern import AnyPattern, DensePattern, IndexArray, Pattern
from .types import Array

_ROUNDINGS = 8
"""Of an entry, by which it may miss its mirror image and the matrix still counts as Hermitian."""


@final
@dataclass(frozen=True, slots=True)
class Full:
    """All entries of the matrices on a pattern of storage "lower".

    Attributes:
        pattern: where they are.
        source: `[nnz]` which of the stored entries each of them is, flattened.
        mirrored: `[nnz]` whether it is that entry's conjugate.
        diagonal: which of the stored entries are on the diagonal.
    """

    pattern: Pattern | DensePattern
    source: IndexArray
    mirrored: Array
    diagonal: IndexArray

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return int(self.pattern.nbytes + self.source.nbytes + self.mirrored.nbytes + self.diagonal.nbytes)

    def expand(self, values: Array) -> Array:
        """`[..., *entries]` all entries of `[..., stored]`.

        Raises:
            NotHermitianError: an entry on the diagonal is not real; of a batch, of any system whose diagonal is finite.
        """
        if values.dtype.kind == "c":
            _check_real(values[..., self.diagonal])
        all_of_them = values[..., self.source]
        if values.dtype.kind == "c":
            np.conj(all_of_them, out=all_of_them, where=self.mirrored)
        return all_of_them.reshape(*values.shape[:-1], *self.pattern.entries)


def full(pattern: Pattern | DensePattern) -> Full:
    """All entries of a matrix on a pattern of storage "lower"; found once for each pattern."""
    triangle = pattern.triangle if isinstance(pattern, DensePattern) else pattern
    if triangle._full is None:
        rows, columns, n = triangle.rows.astype(np.int64), triangle.indices.astype(np.int64), triangle.n
        below = np.flatnonzero(rows > columns)
        key = np.concatenate([rows * n + columns, columns[below] * n + rows[below]])
        order = np.argsort(key, kind="stable")
        source = np.concatenate([np.arange(triangle.nnz), below])[order]
        mirrored = order >= triangle.nnz
        if isinstance(pattern, DensePattern):
            found: Pattern | DensePattern = DensePattern(pattern.shape)
        else:
            indptr = np.zeros(n + 1, dtype=np.int64)
            np.cumsum(np.bincount(key // max(n, 1), minlength=n), out=indptr[1:])
            found = Pattern(indptr, key[order] % max(n, 1), pattern.shape)
        triangle._full = Full(found, source, mirrored, np.flatnonzero(rows == columns))
    whole: Full = triangle._full
    return whole


def general(pattern: AnyPattern) -> AnyPattern:
    """The pattern of all entries, as a solver needs it."""
    if pattern.storage == "general" or not isinstance(pattern, Pattern | DensePattern):
        return pattern
    if pattern.storage == "lower":
        return full(pattern).pattern
    if isinstance(pattern, DensePattern):
        return DensePattern(pattern.shape)
    if pattern._full is None:
        pattern._full = Pattern(pattern.indptr, pattern.indices, pattern.shape)
    found: Pattern = pattern._full
    return found


def held_bytes(pattern: AnyPattern) -> int:
    """Bytes of a pattern's arrays, and of those that were made of them here."""
    triangle = pattern._triangle if isinstance(pattern, DensePattern) else pattern
    made = getattr(triangle, "_full", None)
    own = 0 if triangle is None else triangle.nbytes
    return max(pattern.nbytes, own) + (0 if made is None else int(made.nbytes))


def entries_of(pattern: Pattern | DensePattern) -> Pattern | DensePattern:
    """The pattern on whose entries the values lie one by one: a triangle for packed dense ones."""
    return pattern.triangle if isinstance(pattern, DensePattern) and pattern.storage == "lower" else pattern


def weights(pattern: Pattern | DensePattern, dtype: "np.dtype[Any]") -> Array:
    """W of the module's formulas, on the entries of a pattern that is not general: `[nnz]`, or one number."""
    half = np.asarray(0.5, dtype=dtype)
    if pattern.storage == "hermitian":
        return half
    triangle = entries_of(pattern)
    assert isinstance(triangle, Pattern)
    return np.where(triangle.rows == triangle.indices, half, np.asarray(1, dtype=dtype))


def packed(array: Array) -> Array:
    """The lower triangles of `[..., n, n]`, each row as far as the diagonal, as storage "lower" has them."""
    rows, columns = np.tril_indices(array.shape[-1])
    return np.ascontiguousarray(array[..., rows, columns])


def unpacked(values: Array, n: int) -> Array:
    """`[..., n, n]` with these lower triangles, and zeros above."""
    out = np.zeros((*values.shape[:-1], n, n), dtype=values.dtype)
    rows, columns = np.tril_indices(n)
    out[..., rows, columns] = values
    return out


def _check_real(diagonal: Array) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        rounding = _ROUNDINGS * np.finfo(diagonal.dtype).eps
        # What is not finite compares as false: it is refused, or excused in a batch, as that.
        bad = np.abs(diagonal.imag) > rounding * np.abs(diagonal)
    if bad.any():
        raise NotHermitianError(
            "storage 'lower' is of Hermitian matrices, and an entry on the diagonal is not real: a complex symmetric "
            "matrix is stored in full, as 'general'"
        )
