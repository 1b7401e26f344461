"""How a factor is made with cuDSS: refactorized or from the beginning, by the first plan that its probe confirms."""

import weakref
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch

from backsolve.errors import BacksolveError, DeviceOutOfMemoryError
from backsolve.pattern import Pattern
from backsolve.types import Array, Status

from ...accelerator.faults import DeviceFaultError
from ...accelerator.operator import DeviceOperator
from ...accelerator.place import fetch, upload
from ...base import Pivots
from ...faults import record, singular
from ...operand import Operand
from ...spare import give_up, keep, take
from ...tolerance import pivoting_backward_error
from .constants import Data, Phase, SolveMode
from .factor import CudssFactor, CudssSymbolic, sweep
from .handles import Dense, Sparse, Work, handle
from .plans import Plan

_PROBE_SEED = 902_613_477

_PROBES = 3
"""One may lie nearly in the range of a singular matrix by chance; three do not."""

_SOLVED = 1e-2
"""A probe whose residual is above this part of it has not been solved for."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class Kept:
    """What a factor that was dropped has left.

    Attributes:
        symbolic: of its pattern, while that lives.
        plan, dtype, batch: what its object was prepared for.
        work: the object.
        matrix: its description of A, whose values are overwritten.
    """

    symbolic: "weakref.ref[CudssSymbolic]"
    plan: Plan
    dtype: "np.dtype[Any]"
    batch: int | None
    work: Work
    matrix: Sparse

    def fits(self, symbolic: CudssSymbolic, plan: Plan, operand: Operand) -> bool:
        """Whether values can take its place; of a pattern whose factors had no room on the device, there as well."""
        same = (replace(self.plan, hybrid=False), self.dtype, self.batch) == (plan, operand.dtype, operand.batch)
        return same and self.symbolic() is symbolic


@final
class Build:
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
        refused = False
        for plan in ways:
            renewed = self._renewed(plan)
            if renewed is not None and renewed[1].good:
                return self._lasting(renewed[0])
            refused = refused or renewed is not None
            del renewed
            made, tried = self._with_room(plan)
            if tried.good:
                return self._lasting(replace(made, pivots="refused" if refused else "new"))
        return self._judged(made, tried)

    def _renewed(self, plan: Plan) -> "tuple[CudssFactor, _Tried] | None":
        """These values in the object of a factor that was dropped, where there is one of this pattern and plan."""
        kept = take(self.device, Kept, lambda kept: kept.fits(self.symbolic, plan, self.operand))
        if kept is None:
            return None
        try:
            with kept.work.handle.used():
                kept.matrix.tensors[2].copy_(self.tensors[2])
                described = self._described(kept.work, kept.matrix)
                kept.work.execute(Phase.CUDSS_PHASE_REFACTORIZATION, *described)
        except DeviceFaultError:
            raise
        except BacksolveError:
            return None  # a factorization from the beginning will say what is wrong, if anything is
        return self._probed(kept.plan, kept.work, kept.matrix, pivots="kept")

    def _lasting(self, made: CudssFactor) -> CudssFactor:
        """A factor that has been believed, whose object outlives it."""
        if made.plan.ordered and made.work is not None and made.matrix is not None:
            kept = Kept(
                weakref.ref(self.symbolic), made.plan, self.operand.dtype, self.operand.batch, made.work, made.matrix
            )
            weakref.finalize(made, keep, self.device, kept).atexit = False
        return made

    def _with_room(self, plan: Plan) -> "tuple[CudssFactor, _Tried]":
        """One attempt; without what is spare there, then with factors on the host, where the device has no room."""
        try:
            return self._attempt(plan)
        except DeviceOutOfMemoryError:
            spare = give_up(self.device)
            if torch.device(self.device).type == "cuda":
                torch.cuda.empty_cache()
        if spare:
            return self._with_room(plan)
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
        with at.used():
            described = self._described(work, matrix)
            if plan.ordered and self.symbolic.permutation is not None:
                work.permute(self.symbolic.permutation)
            work.execute(Phase.CUDSS_PHASE_ANALYSIS, *described)
            work.execute(Phase.CUDSS_PHASE_FACTORIZATION, *described)
        return self._probed(plan, work, matrix, pivots="new")

    def _described(self, work: Work, matrix: Sparse) -> tuple[Sparse, Dense, Dense]:
        """What the library wants to be told of a system, before there is one to be solved."""
        return matrix, Dense(work.handle, torch.zeros_like(self.probe)), Dense(work.handle, self.probe)

    def _probed(self, plan: Plan, work: Work, matrix: Sparse, *, pivots: Pivots) -> "tuple[CudssFactor, _Tried]":
        """What has been factorized, and how it solves."""
        with work.handle.used():
            # Of a definite plan: some leading minor is not positive.
            failed = work.number(Data.CUDSS_DATA_INFO) != 0
            entries = work.number(Data.CUDSS_DATA_LU_NNZ)
            estimated = work.resident_bytes()
        size = estimated or entries * (self.operand.dtype.itemsize + self.tensors[1].itemsize)
        made = CudssFactor(
            *(self.operand, self.device, plan, work, matrix, self.operators, tuple(self.statuses)),
            resident=size,
            pivots=pivots,
        )
        answer = sweep(work, matrix, self.probe, SolveMode.CUDSS_SOLVE_MODE_NORMAL)
        relative, backward, _ = made.figures(self.probe, answer, "N").max(axis=2)
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
