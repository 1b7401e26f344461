"""What the dense methods share: arrays and torch tensors, devices, and solving with conjugation.

torch computes them: its factorizations release the interpreter's lock, are batched, and run on
CUDA devices unchanged. The number of its threads is the process's business and never set here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from backsolve.errors import DeviceOutOfMemoryError, MemoryBudgetError
from backsolve.pattern import AnyPattern
from backsolve.types import Array, Status, Trans

from ..base import FactorSpec, Outcome, Symbolic
from ..device import CPU
from ..operand import Operand
from ..spare import give_up

MAX_COLUMNS = 128
"""Blocks gain up to here: 128 columns cost 0.02 of 128 single solves at n = 1000."""


@final
@dataclass(frozen=True)
class DenseSymbolic(Symbolic):
    """Nothing but the size: a dense pattern needs no analysis.

    Attributes:
        pattern: the pattern.
        on_device: factors lie on a device, each beside the matrix.
    """

    pattern: AnyPattern
    on_device: bool = False

    @property
    def nbytes(self) -> int:
        """Nothing is held."""
        return 0

    def predicted_nbytes(self, precision: str) -> int:
        """A factor is as large as its matrix, pivots apart."""
        return (2 if self.on_device else 1) * self.pattern.nnz * np.dtype(precision).itemsize


def dense_symbolic(pattern: AnyPattern, spec: FactorSpec | None) -> DenseSymbolic:
    """What is prepared of a dense pattern for the place that a spec names."""
    return DenseSymbolic(pattern, on_device=spec is not None and spec.device != CPU)


def tensor(array: Array, device: str) -> torch.Tensor:
    """`array` on `device`; shares memory on the CPU where torch allows it."""
    usable = np.ascontiguousarray(array)
    if usable.flags.writeable:
        return torch.from_numpy(usable).to(device)
    try:
        # torch warns about read-only memory whatever one does with it, but not where it comes by DLPack.
        return from_dlpack(usable).to(device)
    except BufferError:  # NumPy before 2.1 exports no read-only memory
        return torch.from_numpy(usable.copy()).to(device)


def values_tensor(operand: Operand, statuses: list[Status], device: str) -> torch.Tensor:
    """The values, with an identity in place of each system that cannot be factorized."""
    bad = [index for index, status in enumerate(statuses) if status is not Status.OK]
    if not bad:
        return tensor(operand.values, device)
    values = operand.values.copy()
    values[bad] = np.eye(operand.n, dtype=operand.dtype)
    return tensor(values, device)


@contextmanager
def memory_guard(device: str) -> Iterator[None]:
    """Turn torch's out-of-memory failures into errors of ours; what is spare on the device then goes."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as err:
        give_up(device)
        raise DeviceOutOfMemoryError(f"{device} has no room for this matrix: use device 'cpu'", device=device) from err
    except RuntimeError as err:
        if "not enough memory" not in str(err):
            raise
        raise MemoryBudgetError("there is not enough memory for the factor of this matrix") from err


def conjugating_solve(
    solve: Callable[[torch.Tensor, bool], torch.Tensor], rhs: Array, trans: Trans, device: str, dtype: "np.dtype[Any]"
) -> Array:
    """`op(A)⁻¹ rhs`, from a `solve(b, adjoint)` that knows `A` and `Aᴴ` only.

    Aᵀ x = b is the conjugate of Aᴴ conj(x) = conj(b).
    """
    plain_transpose = trans == "T" and dtype.kind == "c"
    b = np.conj(rhs) if plain_transpose else rhs
    with memory_guard(device):
        x = solve(tensor(b.astype(dtype, copy=False), device), trans != "N").cpu().numpy()
    return np.conj(x) if plain_transpose else x


def outcome(x: Array, statuses: tuple[Status, ...], batched: bool) -> Outcome:
    """The outcome of a direct solve, NaN where a system could not be factorized."""
    if batched:
        bad = [index for index, status in enumerate(statuses) if status is not Status.OK]
        if bad:
            x[bad] = np.nan
    return Outcome(x, statuses, (0,) * len(statuses))
