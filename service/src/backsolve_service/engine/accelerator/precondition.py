"""Preconditioners on a device: the contract, and those that take rows apart."""

from abc import ABC, abstractmethod
from typing import final

import torch

from backsolve.types import Trans

from ..precond.block_jacobi import BlockJacobi
from .place import upload


class DevicePreconditioner(ABC):
    """M⁻¹ on a device. Immutable; used from several threads."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes on the device."""

    @abstractmethod
    def apply(self, rows: torch.Tensor, trans: Trans) -> torch.Tensor:
        """`op(M)⁻¹ r` for each row of `[k, n]`; may return its argument."""


@final
class DeviceIdentity(DevicePreconditioner):
    """M = I."""

    @property
    def nbytes(self) -> int:
        """Nothing is held."""
        return 0

    def apply(self, rows: torch.Tensor, trans: Trans) -> torch.Tensor:
        """The rows themselves."""
        del trans
        return rows


@final
class DeviceDiagonal(DevicePreconditioner):
    """M is a diagonal."""

    def __init__(self, inverse: torch.Tensor) -> None:
        self._inverse = inverse

    @property
    def nbytes(self) -> int:
        """Bytes of the inverted diagonal."""
        return int(self._inverse.nbytes)

    def apply(self, rows: torch.Tensor, trans: Trans) -> torch.Tensor:
        """One multiplication a number; the transpose is M itself."""
        return rows * (self._inverse.conj() if trans == "H" else self._inverse)


@final
class DeviceBlockJacobi(DevicePreconditioner):
    """The host's `BlockJacobi`: one product of a batch of blocks for each half of an inverse."""

    def __init__(self, host: BlockJacobi, device: str) -> None:
        self._inverse = upload(host.inverse, device)
        self._definite = host.definite

    @property
    def nbytes(self) -> int:
        """Bytes of the inverted blocks."""
        return int(self._inverse.nbytes)

    def apply(self, rows: torch.Tensor, trans: Trans) -> torch.Tensor:
        """As many numbers as the blocks have are read once, or twice where they are kept in halves."""
        if trans == "T" and rows.is_complex():
            return torch.conj_physical(self.apply(torch.conj_physical(rows), "H"))
        count, size, _ = self._inverse.shape
        k, n = rows.shape
        padded = torch.zeros(k, count * size, dtype=rows.dtype, device=rows.device)
        padded[:, :n] = rows
        parts = padded.reshape(k, count, size).permute(1, 2, 0)
        if self._definite:
            parts = torch.bmm(self._inverse.mH, torch.bmm(self._inverse, parts))
        else:
            parts = torch.bmm(self._inverse if trans == "N" else self._inverse.mH, parts)
        return parts.permute(2, 0, 1).reshape(k, count * size)[:, :n].contiguous()
