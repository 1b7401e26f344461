"""Sparse LU, LDLᴴ and Cholesky on a CUDA device (cuDSS), in an order that the pattern alone decides.

cuDSS keeps analysis and factors in one object, so each factor has one of its own; what factors of
one pattern share is the permutation, by far the dearest part of an analysis. Pivots are only
searched within blocks and replaced where they vanish, so every new factor is tried on random
vectors, forward, before it is believed; where it fails, a safer plan follows.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from backsolve.errors import DeviceOutOfMemoryError, InvalidPatternError, SingularMatrixError
from backsolve.pattern import AnyPattern, IndexArray, Pattern
from backsolve.types import Array, Status, Trans

from ...accelerator.operator import DeviceOperator
from ...accelerator.pattern import DeviceSymbolic
from ...accelerator.pattern import analyze as transpose
from ...accelerator.place import fetch, torch_dtype, upload, working
from ...accelerator.proof import prove
from ...base import Controls, Factor, FactorSpec, Outcome, Solver, Symbolic
from ...certify import Proof
from ...device import CPU
from ...faults import finite_statuses, record, singular
from ...operand import Operand
from ...structure import inspect_pattern
from ...tolerance import pivoting_backward_error
from .constants import Data, MatrixType, Phase, SolveMode
from .handles import Dense, Sparse, Work, handle
from .plans import Plan, plans

MAX_COLUMNS = 64
"""A sweep reads L and U once for all columns of a block."""

_PROBE_SEED = 902_613_477

_PROBES = 3
"""One may lie nearly in the range of a singular matrix by chance; three do not."""

_SOLVED = 1e-2
"""A probe whose residual is above this part of it has not been solved for."""

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
    """

    operand: Operand
    device: str
    plan: Plan
    work: Work | None
    matrix: Sparse | None
    operators: tuple[DeviceOperator | None, ...]
    statuses: tuple[Status, ...]
    resident: int

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
            answer = _sweep(self.work, self.matrix, b, _mode(self.plan, trans))
            figures = self._figures(b, answer, "N" if self.plan.mirrored else trans)
            x = fetch(answer.mT.contiguous())
        x = np.conj(x) if conjugate else x
        x[[index for index, status in enumerate(self.statuses) if status is not Status.OK]] = np.nan
        return Outcome(x.reshape(rhs.shape), self.statuses, (0,) * count, Proof(*figures))

    def _figures(self, b: torch.Tensor, x: torch.Tensor, trans: Trans) -> Array:
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


@final
class Cudss(Solver):
    """Any square nonsingular sparse matrix, on a CUDA device."""

    name = "cudss"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Have the library order the pattern, and read its order.

        Raises:
            SingularMatrixError: no values on this pattern are invertible.
            InvalidPatternError: the pattern is dense.
        """
        if not isinstance(pattern, Pattern):
            raise InvalidPatternError("method 'cudss' takes sparse matrices: use method 'lu'")
        facts = inspect_pattern(pattern)
        if facts.structurally_singular:
            raise SingularMatrixError(
                "the pattern is structurally singular: no values on it are invertible; look for an empty row or column",
                kind="structural",
            )
        order = _order(pattern, "cuda" if spec is None else spec.device) if facts.full_diagonal and pattern.n else None
        return CudssSymbolic(pattern, order, transpose(pattern, hermitian=False))

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Factorize by the first plan that its probe confirms; where memory is short, with factors on the host.

        Raises:
            SingularMatrixError: no plan could solve with the probe; `details["pivots"]` says how many
                pivots were replaced.
            NonfiniteInputError: the matrix holds NaN or infinity.
            DeviceOutOfMemoryError: the device has no room, even with factors on the host.
            DeviceFaultError: the device failed.
        """
        symbolic.check(operand)
        assert isinstance(symbolic, CudssSymbolic)
        statuses = finite_statuses(operand)
        usable = [index for index, status in enumerate(statuses) if status is Status.OK]
        ways = plans(operand, usable, full_diagonal=symbolic.permutation is not None)
        if not usable or operand.n == 0:
            none = (None,) * len(statuses)
            return CudssFactor(operand, spec.device, ways[-1], None, None, none, tuple(statuses), 0)
        with working(spec.device):
            return _Build(symbolic, operand, spec.device, statuses, usable).first_good(ways)


@final
class _Build:
    """One factorization on the way: the tensors that every plan shares."""

    def __init__(
        self, symbolic: CudssSymbolic, operand: Operand, device: str, statuses: list[Status], usable: list[int]
    ) -> None:
        self.symbolic, self.operand, self.device = symbolic, operand, device
        self.statuses, self.usable = statuses, usable
        assert isinstance(operand.pattern, Pattern)
        values = operand.values if operand.batch is not None else operand.values[None]
        if len(usable) < len(statuses):
            # A system that cannot be factorized is stood in for by one that can.
            values = values.copy()
            values[[index for index in range(len(statuses)) if index not in usable]] = values[usable[0]]
        self.tensors = (
            upload(operand.pattern.indptr, device),
            upload(operand.pattern.indices, device),
            upload(values, device),
        )
        self.operators = tuple(
            DeviceOperator(operand, index, symbolic.products, device) if index in usable else None
            for index in range(len(statuses))
        )
        vectors = np.random.default_rng(_PROBE_SEED).standard_normal((1, _PROBES, operand.n))
        self.probe = upload(np.repeat(vectors, len(statuses), axis=0).astype(operand.dtype), device)

    def first_good(self, ways: tuple[Plan, ...]) -> CudssFactor:
        """The factor of the first plan whose probe is good in every system; else the last plan's, with statuses."""
        for plan in ways:
            made, tried = self._with_room(plan)
            if tried.good:
                return made
        return self._judged(made, tried)

    def _with_room(self, plan: Plan) -> "tuple[CudssFactor, _Tried]":
        """One attempt; with factors on the host where the device has no room for them."""
        try:
            return self._attempt(plan)
        except DeviceOutOfMemoryError:
            if torch.device(self.device).type == "cuda":
                torch.cuda.empty_cache()
        return self._attempt(Plan(plan.kind, plan.ordered, hybrid=True))

    def _judged(self, made: CudssFactor, tried: "_Tried") -> CudssFactor:
        """The last plan's factor, without the systems that have shown to be singular.

        Where no pivot was replaced, a probe that went badly shows an ill-conditioned matrix, and the
        certificate of each answer will say so.
        """
        assert made.work is not None
        with made.work.handle.used():
            pivots = made.work.number(Data.CUDSS_DATA_NPIVOTS)
        bad = [index for index in self.usable if tried.lost[index] or (pivots and tried.unsolved[index])]
        statuses = list(self.statuses)
        for index in bad:
            error = singular()
            error.details["pivots"] = str(pivots)
            statuses[index] = record(self.operand, error)
        operators = tuple(None if index in bad else operator for index, operator in enumerate(made.operators))
        return CudssFactor(
            *(made.operand, made.device, made.plan, made.work, made.matrix, operators, tuple(statuses), made.resident)
        )

    def _attempt(self, plan: Plan) -> "tuple[CudssFactor, _Tried]":
        """Analyse, factorize and probe."""
        at = handle(self.device, self.tensors[2].dtype)
        matrix = Sparse(at, *self.tensors, plan.kind)
        work = Work(at, plan.settings(self.operand.batch))
        x = torch.zeros_like(self.probe)
        with at.used():
            described = (matrix, Dense(at, x), Dense(at, self.probe))
            if plan.ordered and self.symbolic.permutation is not None:
                work.permute(self.symbolic.permutation)
            work.execute(Phase.CUDSS_PHASE_ANALYSIS, *described)
            work.execute(Phase.CUDSS_PHASE_FACTORIZATION, *described)
            # Of a definite plan: some leading minor is not positive.
            failed = work.number(Data.CUDSS_DATA_INFO) != 0
            entries = work.number(Data.CUDSS_DATA_LU_NNZ)
            estimated = work.resident_bytes()
        size = estimated or entries * (self.operand.dtype.itemsize + self.tensors[1].itemsize)
        made = CudssFactor(
            *(self.operand, self.device, plan, work, matrix, self.operators, tuple(self.statuses)), resident=size
        )
        answer = _sweep(work, matrix, self.probe, SolveMode.CUDSS_SOLVE_MODE_NORMAL)
        relative, backward, _ = made._figures(self.probe, answer, "N").max(axis=2)
        finite = fetch(torch.isfinite(answer).flatten(1).all(dim=1))
        usable = np.isin(np.arange(len(self.statuses)), self.usable)
        inaccurate = usable & ~(backward <= pivoting_backward_error(self.operand.dtype))
        unsolved = usable & ~(relative < _SOLVED)
        good = not (failed or inaccurate.any() or unsolved.any())
        return made, _Tried(good, lost=usable & ~finite, unsolved=unsolved)


@final
@dataclass(frozen=True, slots=True)
class _Tried:
    """How the probe went.

    Attributes:
        good: in every system.
        lost: `[systems]` x is not finite.
        unsolved: `[systems]` A x is not b: what is random is not in the range of a singular matrix.
    """

    good: bool
    lost: Array
    unsolved: Array


def _sweep(work: Work, matrix: Sparse | None, b: torch.Tensor, mode: SolveMode) -> torch.Tensor:
    """Solve with columns `[systems, k, n]`; waits for nothing."""
    assert matrix is not None
    x = torch.empty_like(b)
    with work.handle.used():
        work.execute(Phase.CUDSS_PHASE_SOLVE, matrix, Dense(work.handle, x), Dense(work.handle, b), mode)
    return x


def _mode(plan: Plan, trans: Trans) -> SolveMode:
    return SolveMode.CUDSS_SOLVE_MODE_NORMAL if plan.mirrored else _MODES[trans]


def _order(pattern: Pattern, device: str) -> IndexArray:
    """The library's order of a pattern, which needs no values: ones stand for them."""
    with working(device):
        values = torch.ones(pattern.nnz, dtype=torch.float64, device=device)
        at = handle(device, values.dtype)
        kind = MatrixType.CUDSS_MTYPE_GENERAL
        matrix = Sparse(at, upload(pattern.indptr, device), upload(pattern.indices, device), values, kind)
        work = Work(at, Plan(kind, ordered=True).settings(None))
        vector = torch.ones(1, pattern.n, dtype=torch.float64, device=device)
        with at.used():
            work.execute(Phase.CUDSS_PHASE_REORDERING, matrix, Dense(at, torch.zeros_like(vector)), Dense(at, vector))
            return work.permutation(pattern.n, pattern.indices.dtype)
