"""Checks of what callers pass, and batches brought to one leading dimension."""

import math
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from .._adapter.shapes import leading
from ..errors import InvalidDtypeError, InvalidOptionError, InvalidShapeError, NotSupportedError
from ..pattern import DensePattern
from ..types import Storage
from ._numbers import check_numbers

_TYPES: Final = (torch.float32, torch.float64, torch.complex64, torch.complex128)
_HALF: Final = (torch.float16, torch.bfloat16)


@final
@dataclass(frozen=True, slots=True)
class Batch:
    """Operands with at most one leading batch dimension, and the shape to give back."""

    values: Tensor
    rhs: Tensor
    x0: Tensor | None
    shape: tuple[int, ...]

    def restore(self, x: Tensor) -> Tensor:
        """The answer with the caller's batch dimensions."""
        return x if x.shape == self.shape else x.reshape(self.shape)


def tensor(value: object, name: str) -> Tensor:
    """A tensor that can be solved with.

    Inside an autocast region half precision becomes float32, as for PyTorch's own operations
    that need it; elsewhere it is refused.

    Raises:
        InvalidDtypeError: not a tensor, or of another element type.
        NotSupportedError: a nested tensor.
    """
    if hasattr(value, "tocsr"):
        raise InvalidDtypeError(
            f"{name} is a {type(value).__name__} of SciPy: with A = {name}.tocsr() call "
            "spsolve(torch.from_numpy(A.data), Pattern.from_csr(A), b), or Client.solve(A, b) for arrays all through"
        )
    if not isinstance(value, Tensor):
        raise InvalidDtypeError(
            f"{name} must be a torch.Tensor; for arrays use backsolve.Client.solve, or torch.as_tensor({name})"
        )
    if value.is_nested:
        check_numbers(value)  # it has no shape to look at
    if value.dtype in _HALF and torch.is_autocast_enabled(value.device.type):
        return value.float()
    if value.dtype not in _TYPES:
        raise InvalidDtypeError(
            f"{name} is {value.dtype}; solves run in float32, float64, complex64 and complex128: convert it first, "
            f"e.g. {name}.to(torch.float64)"
        )
    return value


def pair(values: Tensor, b: Tensor, name: str) -> None:
    """Refuse operands that differ in element type or device, and a sparse b.

    Raises:
        InvalidDtypeError: the element types differ.
        InvalidOptionError: the devices differ.
        InvalidShapeError: b is sparse.
    """
    if b.layout is not torch.strided:
        raise InvalidShapeError("b is sparse; pass a dense right-hand side, e.g. b.to_dense()")
    if values.dtype != b.dtype:
        raise InvalidDtypeError(f"{name} is {values.dtype}, b is {b.dtype}: convert one, e.g. b.to({name}.dtype)")
    if values.device != b.device:
        raise InvalidOptionError(f"{name} is on {values.device}, b on {b.device}: move one of them")


def first_iterate(x0: object, b: Tensor) -> Tensor:
    """Where an iteration begins: of b's type and device, and detached, since the answer does not depend on it.

    Raises:
        InvalidDtypeError: no tensor, of another element type, or complex where b is real.
    """
    start = tensor(x0, "x0").detach()
    if start.is_complex() and not b.is_complex():
        raise InvalidDtypeError(f"x0 is {start.dtype}, b is {b.dtype}: begin at a real one, e.g. x0.real")
    return start.to(b)


def dense_pattern(A: Tensor, storage: Storage = "general") -> DensePattern:
    """That of a dense matrix, or of a batch of them.

    Raises:
        NotSupportedError: PyTorch traces the call for TorchScript, where sizes are tensors.
    """
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    if tracing and not torch.compiler.is_compiling():
        raise NotSupportedError(
            "torch.jit.trace cannot hold a solve with a dense matrix, whose sizes are no numbers there: use "
            "torch.compile or torch.export"
        )
    return DensePattern((A.shape[-2], A.shape[-1]), storage)


def packed(A: Tensor) -> Tensor:
    """The lower triangles of `[*batch, n, n]`, each row as far as the diagonal, as storage "lower" has them."""
    rows, columns = torch.tril_indices(A.shape[-2], A.shape[-1], device=A.device)
    return A[..., rows, columns]


def batch(values: Tensor, b: Tensor, x0: Tensor | None, entries: tuple[int, ...], n: int, name: str) -> Batch:
    """Fold any number of leading batch dimensions into one.

    Args:
        values: `[*batch, *entries]`.
        b: `[*batch, n]` or `[*batch, n, k]`.
        x0: shaped like b.
        entries: shape of one matrix's values.
        n: rows of one matrix.
        name: how the caller knows `values`.

    Raises:
        InvalidShapeError: shapes do not fit each other.
    """
    lead = leading(values.shape, b.shape, None if x0 is None else x0.shape, entries, n, name)
    shape = tuple(b.shape)
    if len(lead) > 1:
        size = math.prod(lead)
        values = values.reshape(size, *entries)
        b = b.reshape(size, *shape[len(lead) :])
        x0 = None if x0 is None else x0.reshape(b.shape)
    return Batch(values.contiguous(), b, x0, shape)
