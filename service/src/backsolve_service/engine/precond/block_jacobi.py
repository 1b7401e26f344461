"""Block Jacobi: the diagonal blocks of A, inverted."""

from typing import Any, final

import numpy as np

from backsolve.types import Array

from .base import Preconditioner
from .forms import no_pivot


@final
class BlockJacobi(Preconditioner):
    """M is A within consecutive blocks of `size` rows, and zero elsewhere.

    Blocks that are Hermitian positive definite, which those of such a matrix are, are kept as
    inverted Cholesky factors, so that M is definite in floating point as well; any others as inverses.
    Built in n size² flops; an application costs 2 n size for each row.

    Args:
        a: any square matrix.
        size: rows of a block; the last block has what is left.

    Attributes:
        inverse: `[blocks, size, size]`; of definite blocks their inverted Cholesky factors.
        definite: all of them are Hermitian positive definite.

    Raises:
        SingularMatrixError: a block is exactly singular.
    """

    def __init__(self, a: Any, size: int) -> None:
        self._n = a.shape[0]
        self._size = max(min(size, self._n), 1)
        blocks = _blocks(a, self._size)
        self.definite = False
        self.inverse: Array
        if np.allclose(blocks, np.conj(blocks.swapaxes(1, 2)), rtol=1e-14, atol=0):
            try:
                self.inverse = np.linalg.inv(np.linalg.cholesky(blocks))
                self.definite = bool(np.isfinite(self.inverse).all())
            except np.linalg.LinAlgError:
                pass
        if not self.definite:
            try:
                self.inverse = np.linalg.inv(blocks)
            except np.linalg.LinAlgError:
                raise no_pivot("block_jacobi") from None

    @property
    def nbytes(self) -> int:
        """Bytes of the inverted blocks."""
        return int(self.inverse.nbytes)

    def apply(self, residuals: Array) -> Array:
        """`M⁻¹ r` for each of the rows of `residuals`, `[k, n]`."""
        if not self.definite:
            return self._product(self.inverse, residuals)
        half = self._product(self.inverse, residuals)
        return self._product(np.conj(self.inverse.swapaxes(1, 2)), half)

    def apply_adjoint(self, residuals: Array) -> Array:
        """`M⁻ᴴ r` likewise."""
        if self.definite:
            return self.apply(residuals)
        return self._product(np.conj(self.inverse.swapaxes(1, 2)), residuals)

    def _product(self, blocks: Array, rows: Array) -> Array:
        k, count = rows.shape[0], blocks.shape[0]
        padded = np.zeros((k, count * self._size), dtype=rows.dtype)
        padded[:, : self._n] = rows
        columns = padded.reshape(k, count, self._size).transpose(1, 2, 0)
        out = (blocks @ columns).transpose(2, 0, 1).reshape(k, count * self._size)
        return np.ascontiguousarray(out[:, : self._n])


def _blocks(a: Any, size: int) -> Array:
    """`[blocks, size, size]`; the identity beyond the last row of A."""
    n = a.shape[0]
    count = -(-n // size)
    blocks = np.zeros((count, size, size), dtype=a.dtype)
    beyond = np.arange(n - (count - 1) * size, size) if count else np.zeros(0, dtype=np.int64)
    if isinstance(a, np.ndarray):
        for index in range(count):
            part = a[index * size : (index + 1) * size, index * size : (index + 1) * size]
            blocks[index, : part.shape[0], : part.shape[1]] = part
    else:
        rows = np.repeat(np.arange(n), np.diff(a.indptr))
        inside = rows // size == a.indices // size
        rows, columns = rows[inside], a.indices[inside]
        blocks[rows // size, rows % size, columns % size] = a.data[inside]
    blocks[-1:, beyond, beyond] = 1
    return blocks
