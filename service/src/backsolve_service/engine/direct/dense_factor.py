"""The factor of every dense method: what its factorization has left, and one way to solve with it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Self, final

import torch

from backsolve.types import Array, Status, Trans

from ..base import Controls, Factor, Outcome
from ..device import CPU
from ..faults import record, singular
from ..operand import Operand
from .condition import condition_number, inverse_norm
from .dense import MAX_COLUMNS, conjugating_solve, memory_guard, outcome


@dataclass(frozen=True, eq=False)
class Form(ABC):
    """A factorization of one matrix or of each of a batch, as torch left it: a dataclass of its tensors."""

    @abstractmethod
    def solve(self, b: torch.Tensor, *, adjoint: bool) -> torch.Tensor:
        """`A⁻¹ b`, or with `adjoint` `A⁻ᴴ b`, for `[n, k]` or `[batch, n, k]`."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def to(self, device: str) -> Self:
        """The same numbers on another device, bit for bit."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, torch.Tensor]:
        held = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in held if isinstance(value, torch.Tensor)}


@final
@dataclass(frozen=True, eq=False)
class DenseFactor(Factor):
    """A factorization with the status of each system, made by `dense_factor`."""

    operand: Operand
    device: str
    form: Form
    statuses: tuple[Status, ...]
    estimate: float | None

    direct = True
    movable = True
    max_columns = MAX_COLUMNS

    @property
    def nbytes(self) -> int:
        """Bytes of the factorization."""
        return self.form.nbytes

    @property
    def device_nbytes(self) -> int:
        """All of them, where they are not on the CPU."""
        return 0 if self.device == CPU else self.nbytes

    def moved(self, device: str) -> "DenseFactor":
        """The same factor on another device, bit for bit."""
        with memory_guard(device):
            return replace(self, device=device, form=self.form.to(device))

    @property
    def condition(self) -> float | None:
        """1-norm condition number, estimated when the factor was made; None for a batch."""
        return self.estimate

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """As the form does it, at the same cost for each `trans`."""
        del controls
        x = _solve(self.form, rhs, trans, self.device, self.operand)
        return outcome(x, self.statuses, self.operand.batch is not None)


def dense_factor(operand: Operand, device: str, form: Form, statuses: list[Status]) -> DenseFactor:
    """A factor of what was factorized; costs a few solves for the condition estimate of a single matrix."""
    estimate = None
    if operand.batch is None and operand.n:
        inverse = inverse_norm(
            lambda v: _solve(form, v, "N", device, operand),
            lambda v: _solve(form, v, "H", device, operand),
            operand.n,
            operand.dtype,
        )
        estimate = condition_number(operand.norms[0][0], inverse)
    return DenseFactor(operand, device, form, tuple(statuses), estimate)


def record_zero_pivots(operand: Operand, statuses: list[Status], info: torch.Tensor) -> None:
    """Take the systems down as singular in which LAPACK has met a zero pivot, by its `info` of each.

    Raises:
        SingularMatrixError: a single matrix is; `details["column"]` says where.
    """
    # LAPACK counts from 1.
    for index, column in enumerate(info.reshape(-1).tolist()):
        if column:
            statuses[index] = record(operand, singular(column - 1))


def _solve(form: Form, rhs: Array, trans: Trans, device: str, operand: Operand) -> Array:
    return conjugating_solve(lambda b, adjoint: form.solve(b, adjoint=adjoint), rhs, trans, device, operand.dtype)
