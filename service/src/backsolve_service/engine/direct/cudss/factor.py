"""A factor in a data object of cuDSS: solves with it, and what they prove."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from backsolve.pattern import AnyPattern, IndexArray
from backsolve.types import Array, Status, Trans

from ...accelerator.operator import DeviceOperator
from ...accelerator.pattern import DeviceSymbolic
from ...accelerator.place import fetch, torch_dtype, upload, working
from ...accelerator.proof import prove
from ...base import Controls, Factor, Outcome, Pivots, Symbolic
from ...certify import Proof
from ...device import CPU
from ...operand import Operand
from .constants import Phase, SolveMode
from .handles import Dense, Sparse, Work
from .plans import Plan

MAX_COLUMNS = 64
"""A sweep reads L and U once for all columns of a block."""

_MODES: dict[Trans, SolveMode] = {
    "N": SolveMode.CUDSS_SOLVE_MODE_NORMAL,
    "T": SolveMode.CUDSS_SOLVE_MODE_TRANSPOSE,
    "H": SolveMode.CUDSS_SOLVE_MODE_CONJUGATE_TRANSPOSE,
}


@final
@dataclass(frozen=True, eq=False)
class CudssSymbolic(Symbolic):
    """What the pattern decides; arrays of the host.

    Attributes:
        pattern: the pattern.
        permutation: cuDSS's fill-reducing order of rows and columns; None without a full diagonal.
        products: for the residual.
    """

    pattern: AnyPattern
    permutation: IndexArray | None
    products: DeviceSymbolic

    @property
    def nbytes(self) -> int:
        """Bytes of the permutation and of the transposed pattern."""
        return self.products.nbytes + (0 if self.permutation is None else int(self.permutation.nbytes))


@final
@dataclass(frozen=True, eq=False)
class CudssFactor(Factor):
    """A factorization on a device, of one matrix or of a batch on one pattern.

    Attributes:
        work: the library's object; None where there is nothing to solve.
        matrix: its description of A, with the tensors that it reads.
        operators: A for residuals, for each system.
        pivots: as of `Factor.pivoting`.
    """

    operand: Operand
    device: str
    plan: Plan
    work: Work | None
    matrix: Sparse | None
    operators: tuple[DeviceOperator | None, ...]
    statuses: tuple[Status, ...]
    resident: int
    pivots: Pivots = "new"

    direct = True
    max_columns = MAX_COLUMNS

    @property
    def nbytes(self) -> int:
        """Bytes on the device: factors as the library estimates them, and A twice, for it and for residuals."""
        stored = 0 if self.matrix is None else sum(int(t.nbytes) for t in self.matrix.tensors)
        return self.resident + stored + sum(operator.nbytes for operator in self.operators if operator is not None)

    @property
    def device_nbytes(self) -> int:
        """All of them; in hybrid mode too, where the library does not tell its two parts apart."""
        return 0 if self.device == CPU else self.nbytes

    @property
    def condition(self) -> float | None:
        """Not estimated here: `conditioning.lower_bound` asks for it, once."""
        return None

    @property
    def pivoting(self) -> Pivots:
        """Whether the library's object was made for other values, and refactorized."""
        return self.pivots

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """Two triangular sweeps on the device and one product for the proof; x comes back in one copy.

        Raises:
            NotSupportedError: the library has no such transposed solve for this kind of factor.
            DeviceOutOfMemoryError: there is no room for the columns.
            DeviceFaultError: the device failed.
        """
        del controls
        stacked = rhs if rhs.ndim == 3 else rhs[None]
        count, n, k = stacked.shape
        if self.work is None or n == 0 or k == 0:
            x = np.full(stacked.shape, np.nan, dtype=rhs.dtype)
            return Outcome(x.reshape(rhs.shape), self.statuses, (0,) * count)
        # Of A = Aᴴ, "T" is the plain solve with conjugated data; of A = Aᵀ, "H" is.
        conjugate = self.plan.mirrored and trans == ("T" if self.plan.hermitian else "H") and rhs.dtype.kind == "c"
        rows = np.ascontiguousarray(stacked.swapaxes(1, 2))
        with working(self.device):
            b = upload(np.conj(rows) if conjugate else rows, self.device)
            answer = sweep(self.work, self.matrix, b, _mode(self.plan, trans))
            figures = self.figures(b, answer, "N" if self.plan.mirrored else trans)
            x = fetch(answer.mT.contiguous())
        x = np.conj(x) if conjugate else x
        x[[index for index, status in enumerate(self.statuses) if status is not Status.OK]] = np.nan
        return Outcome(x.reshape(rhs.shape), self.statuses, (0,) * count, Proof(*figures))

    def figures(self, b: torch.Tensor, x: torch.Tensor, trans: Trans) -> Array:
        """`[3, systems, k]` of the proof, in one copy; infinite where a system has no factor."""
        wide = torch_dtype(self.operand.wide_dtype)
        none = torch.full((3, b.shape[1]), torch.inf, dtype=torch.float64, device=b.device)
        figures = [
            none
            if operator is None
            else prove(operator, b[index].to(wide), x[index].to(wide), trans, self.operand.norm(index, trans))
            for index, operator in enumerate(self.operators)
        ]
        return fetch(torch.stack(figures, dim=1))


def sweep(work: Work, matrix: Sparse | None, b: torch.Tensor, mode: SolveMode) -> torch.Tensor:
    """Solve with columns `[systems, k, n]`; waits for nothing."""
    assert matrix is not None
    x = torch.empty_like(b)
    with work.handle.used():
        work.execute(Phase.CUDSS_PHASE_SOLVE, matrix, Dense(work.handle, x), Dense(work.handle, b), mode)
    return x


def _mode(plan: Plan, trans: Trans) -> SolveMode:
    return SolveMode.CUDSS_SOLVE_MODE_NORMAL if plan.mirrored else _MODES[trans]
