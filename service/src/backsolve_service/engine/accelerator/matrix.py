"""Sparse matrices on a device, and their products with blocks of vectors, one vector a row."""

import warnings
from typing import Any, final

import torch

from backsolve.types import Array

from .place import upload


def compressed(
    indptr: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]
) -> torch.Tensor:
    """A matrix in compressed rows, on the tensors themselves."""
    # A pattern in canonical form has been checked: checking it again would synchronise.
    return torch.sparse_csr_tensor(indptr, indices, values, size=shape, check_invariants=False)


def times(a: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`A v` for each row v of `[k, n]`; a new block, `[k, m]`."""
    if rows.shape[0] == 1:
        return torch.mv(a, rows[0])[None]
    return torch.mm(a, rows.T).T.contiguous()


@final
class DeviceMatrix:
    """A sparse or full matrix of any shape on a device. Immutable; used from several threads.

    Args:
        a: `csr_array` or 2-D array.
        device: where to keep it; call inside `place.working`.
    """

    def __init__(self, a: Any, device: str) -> None:
        arrays: tuple[Array, ...] = (a.indptr, a.indices, a.data) if hasattr(a, "indptr") else (a,)
        held = [upload(array, device) for array in arrays]
        self._sparse = len(held) == 3
        self._matrix = compressed(held[0], held[1], held[2], a.shape) if self._sparse else held[0]
        self._nbytes = sum(int(t.nbytes) for t in held)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self._nbytes

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        """`A v` for each row v of `[k, n]`; a new block."""
        return times(self._matrix, rows) if self._sparse else rows @ self._matrix.T


def _meet_notice() -> None:
    """Have torch say once, and here, that its compressed tensors are in beta: it is no caller's business."""
    none = torch.zeros(1, dtype=torch.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compressed(none, none[:0], none[:0], (0, 0))


_meet_notice()
