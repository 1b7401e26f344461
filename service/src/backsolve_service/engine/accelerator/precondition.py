"""Preconditioners on a device: those whose application is a handful of operations on whole blocks."""

from abc import ABC, abstractmethod
from typing import final

import numpy as np
import torch

from backsolve.types import Trans

from ..operand import Operand
from ..registry import precondition
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


def build(spelled: str, operand: Operand, index: int, device: str) -> DevicePreconditioner:
    """The device's form of a preconditioner whose row in the registry says `cuda`.

    It is built on the host, by the class that serves the CPU, so that both refuse the same
    matrices with the same words.

    Raises:
        NotPositiveDefiniteError, SingularMatrixError: A has no such preconditioner.
    """
    host = precondition(spelled, operand.wide[index])
    if spelled == "none":
        return DeviceIdentity()
    assert spelled == "jacobi"
    ones = np.ones((1, operand.n), dtype=operand.wide_dtype)
    return DeviceDiagonal(upload(host.apply(ones)[0], device))
