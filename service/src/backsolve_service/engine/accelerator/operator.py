"""One matrix on a torch device: products with A, Aᵀ and Aᴴ on blocks of vectors.

Blocks are `[k, n]`, one vector a row, so that each vector is contiguous; read by columns that is
the layout in which cuSPARSE takes blocks. Arithmetic is float64 or complex128 throughout.
"""

from typing import Any, final

import numpy as np
import torch

from backsolve.pattern import Pattern
from backsolve.types import Trans

from ..operand import Operand
from .matrix import compressed, times
from .pattern import DeviceSymbolic
from .place import upload


@final
class DeviceOperator:
    """`op(A) v`. Immutable; used from several threads.

    Args:
        operand: the matrix, or a batch.
        index: which system of it.
        symbolic: of its pattern.
        device: where to keep it; call inside `place.working`.
    """

    def __init__(self, operand: Operand, index: int, symbolic: DeviceSymbolic, device: str) -> None:
        self.n = operand.n
        values = operand.wide_values if operand.batch is None else operand.wide_values[index]
        self._complex = values.dtype.kind == "c"
        self._forward: torch.Tensor = upload(values, device)
        self._transposed: torch.Tensor | None = None
        held = [self._forward]
        if isinstance(operand.pattern, Pattern):
            rows = (upload(operand.pattern.indptr, device), upload(operand.pattern.indices, device))
            held.extend(rows)
            entries = self._forward
            self._forward = compressed(*rows, entries, (self.n, self.n))
            if symbolic.transposed is not None:
                columns = (upload(symbolic.transposed.indptr, device), upload(symbolic.transposed.indices, device))
                moved = entries[upload(symbolic.transposed.positions.astype(np.int64), device)]
                held.extend((*columns, moved))
                self._transposed = compressed(*columns, moved, (self.n, self.n))
        self._sparse = isinstance(operand.pattern, Pattern)
        self._nbytes = sum(int(t.nbytes) for t in held)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self._nbytes

    def product(self, rows: torch.Tensor, trans: Trans) -> torch.Tensor:
        """`op(A) v` for each row v of `[k, n]`; a new block.

        A sparse operator that was prepared for a Hermitian matrix knows "N" only.
        """
        if trans == "H" and self._complex:
            # Aᴴ v = conj(Aᵀ conj(v)): no conjugated copy of A.
            return torch.conj_physical(self._plain(torch.conj_physical(rows), transposed=True))
        return self._plain(rows, transposed=trans != "N")

    def _plain(self, rows: torch.Tensor, *, transposed: bool) -> torch.Tensor:
        if not self._sparse:
            # (A v)ᵀ = vᵀ Aᵀ, row by row.
            return rows @ (self._forward if transposed else self._forward.T)
        a: Any = self._transposed if transposed else self._forward
        if a is None:
            raise AssertionError("this operator was prepared without its transpose")
        return times(a, rows)
