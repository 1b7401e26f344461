"""A sparse pattern and its transpose, laid out for products on a device.

A transposed product of compressed rows scatters, which on a device means atomic additions; the
transpose as rows of its own gathers. Where its entries come from is decided by the pattern alone,
so it is worked out once a pattern, and new values cost one gather.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.sparse import csr_array

from backsolve.pattern import AnyPattern, IndexArray, Pattern

from ..base import Symbolic


@final
@dataclass(frozen=True, eq=False)
class Transposed:
    """The transpose of a sparse pattern in compressed rows.

    Attributes:
        indptr, indices: its rows.
        positions: `[nnz]` entry of A's values that stands at each entry of the transpose.
    """

    indptr: IndexArray
    indices: IndexArray
    positions: IndexArray


@final
@dataclass(frozen=True, eq=False)
class DeviceSymbolic(Symbolic):
    """What products with A and its transpose need of the pattern; arrays of the host.

    Attributes:
        pattern: the pattern.
        transposed: None where it is never needed: dense, or A = Aᴴ.
    """

    pattern: AnyPattern
    transposed: Transposed | None

    @property
    def nbytes(self) -> int:
        """Bytes of the transpose."""
        if self.transposed is None:
            return 0
        arrays = (self.transposed.indptr, self.transposed.indices, self.transposed.positions)
        return sum(int(a.nbytes) for a in arrays)


def analyze(pattern: AnyPattern, *, hermitian: bool) -> DeviceSymbolic:
    """Prepare products; O(nnz) where a transpose is needed."""
    if hermitian or not isinstance(pattern, Pattern):
        return DeviceSymbolic(pattern, None)
    entries = np.arange(pattern.nnz, dtype=pattern.indices.dtype)
    columns = csr_array((entries, pattern.indices, pattern.indptr), shape=pattern.shape).tocsc()
    kind = pattern.indices.dtype
    return DeviceSymbolic(
        pattern,
        Transposed(columns.indptr.astype(kind, copy=False), columns.indices.astype(kind, copy=False), columns.data),
    )
