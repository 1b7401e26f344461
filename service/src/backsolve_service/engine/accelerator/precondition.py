"""Preconditioners on a device: the contract, and the two that are nothing but a number for each row."""

from abc import ABC, abstractmethod
from typing import final

import torch

from backsolve.types import Trans


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
