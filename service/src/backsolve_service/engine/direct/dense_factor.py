"""The factor of every dense method: what its factorization has left, and one way to solve with it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Self, final

import numpy as np
import torch

from backsolve.types import Array, Status, Trans

from ..accelerator.figures import figures
from ..base import Controls, Factor, Outcome
from ..certify import Proof
from ..device import CPU
from ..faults import record, singular
from ..operand import Operand
from .condition import condition_number, inverse_norm
from .dense import MAX_COLUMNS, conjugating_solve, memory_guard, outcome, tensor

_WIDENED = 1 << 23
"""Entries of a matrix in single precision that are widened at a time: 64 MB beside it."""


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
    """A factorization with the status of each system, made by `dense_factor`.

    Attributes:
        device: where it lies.
        form: the factorization.
        estimate: of the condition number.
        proving: A beside it, where that is no CPU: residuals are measured where x is. On the host they are
            measured by whoever asked, and this is the operand's own memory. None: nobody wants them.
    """

    operand: Operand
    device: str
    form: Form
    statuses: tuple[Status, ...]
    estimate: float | None
    proving: torch.Tensor | None = None

    direct = True
    movable = True
    max_columns = MAX_COLUMNS

    @property
    def nbytes(self) -> int:
        """Bytes of the factorization, and of the matrix beside it on a device."""
        beside = 0 if self.device == CPU or self.proving is None else self.proving.nbytes
        return self.form.nbytes + beside

    @property
    def device_nbytes(self) -> int:
        """All of them, where they are not on the CPU."""
        return 0 if self.device == CPU else self.nbytes

    def moved(self, device: str) -> "DenseFactor":
        """The same factor on another device, bit for bit."""
        with memory_guard(device):
            proving = None if self.proving is None else _beside(self.operand, device)
            return replace(self, device=device, form=self.form.to(device), proving=proving)

    @property
    def condition(self) -> float | None:
        """1-norm condition number, estimated when the factor was made; None for a batch."""
        return self.estimate

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """As the form does it, at the same cost for each `trans`."""
        del controls
        if self.device != CPU and self.proving is not None and rhs.size:
            return self._proved(rhs, trans, self.proving)
        x = _solve(self.form, rhs, trans, self.device, self.operand)
        return outcome(x, self.statuses, self.operand.batch is not None)

    def _proved(self, rhs: Array, trans: Trans, matrix: torch.Tensor) -> Outcome:
        """The same with the residual measured on the device: x comes back once, with three numbers a column."""
        operand, adjoint = self.operand, trans != "N"
        plain_transpose = trans == "T" and operand.dtype.kind == "c"
        wide = getattr(torch, operand.wide_dtype.name)
        norms = [[operand.norm(index, trans)] for index in range(len(self.statuses))]
        with memory_guard(self.device):
            b = tensor((np.conj(rhs) if plain_transpose else rhs).astype(operand.dtype, copy=False), self.device)
            x = self.form.solve(b, adjoint=adjoint)
            residual = b.to(wide) - product(matrix, x.to(wide), adjoint=adjoint)
            scale = torch.tensor(norms, dtype=torch.float64, device=b.device)
            rows = [each.to(wide).mT.reshape(len(norms), *each.mT.shape[-2:]) for each in (residual, b, x)]
            measured = figures(rows[0], rows[1], rows[2], scale).cpu().numpy()
            found = x.cpu().numpy()
        measured[:, [index for index, status in enumerate(self.statuses) if status is not Status.OK]] = np.inf
        made = outcome(np.conj(found) if plain_transpose else found, self.statuses, operand.batch is not None)
        return replace(made, proof=Proof(*measured))


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
    proving = None if device == CPU else _beside(operand, device)
    return DenseFactor(operand, device, form, tuple(statuses), estimate, proving)


def product(a: torch.Tensor, x: torch.Tensor, *, adjoint: bool) -> torch.Tensor:
    """`A x` or `Aᴴ x` in x's type, `[..., n, k]`; a narrower A is widened some rows at a time, not as a whole."""
    op = a.mH if adjoint else a
    if a.dtype == x.dtype:
        return op @ x
    n = op.shape[-2]
    rows = max(1, _WIDENED // max(1, op.numel() // max(n, 1)))
    parts = [op[..., first : first + rows, :].to(x.dtype) @ x for first in range(0, n, rows)]
    return torch.cat(parts, dim=-2)


def _beside(operand: Operand, device: str) -> torch.Tensor:
    """A as it was given; on the CPU its own memory."""
    with memory_guard(device):
        return tensor(operand.values, device)


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
