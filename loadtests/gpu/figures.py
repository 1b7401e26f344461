"""The operations that are timed, each with the bytes that it cannot help moving."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array, eye_array, kron

from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern, Pattern
from backsolve.types import Trans
from backsolve_service.engine.accelerator.build import build
from backsolve_service.engine.accelerator.cg import conjugate_gradients
from backsolve_service.engine.accelerator.operator import DeviceOperator
from backsolve_service.engine.accelerator.pattern import analyze
from backsolve_service.engine.accelerator.place import upload
from backsolve_service.engine.accelerator.problem import Problem
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.direct.cudss.constants import Data, MatrixType, Phase, SolveMode
from backsolve_service.engine.direct.cudss.handles import Dense, Sparse, Work, handle
from backsolve_service.engine.direct.cudss.library import installed
from backsolve_service.engine.direct.cudss.plans import Plan
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.precond.hierarchy import hierarchy
from backsolve_service.engine.registry import solver

from .clock import seconds

SEED = 771_904_235
BLOCK = 16
"""Columns of the block that is timed beside a single vector."""

CG_VECTORS = 13
"""Vectors that an iteration moves at least: p, Ap for the first dot product; x, r, p, Ap, M in and x, r
out once the step is known; r, M, p in and p out once the direction is."""

CG_STEPS = 100

_TRANS: tuple[Trans, ...] = ("N", "T")


@final
@dataclass(frozen=True, slots=True)
class Figure:
    """One measured operation.

    Attributes:
        operation: what was done.
        n: rows of the matrix.
        seconds: median of one.
        nbytes: moved at least, or None where arithmetic or the host sets the pace.
    """

    operation: str
    n: int
    seconds: float
    nbytes: int | None


def laplacian(side: int) -> Matrix:
    """The 5-point Laplacian of a square grid: definite, and what a first user solves."""
    line = diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(side, side))
    a = csr_array(kron(line, eye_array(side)) + kron(eye_array(side), line))
    a.sum_duplicates()
    a.sort_indices()
    return Matrix(Pattern(a.indptr, a.indices, a.shape), a.data)


def sparse(side: int, device: str, rounds: int) -> Iterator[Figure]:
    """Products and an iteration of conjugate gradients."""
    m = laplacian(side)
    n, rng = m.n, np.random.default_rng(SEED)
    operator = DeviceOperator(Operand(m), 0, analyze(m.pattern, hermitian=False), device)
    stored = int(m.values.nbytes) + m.pattern.nbytes
    for k in (1, BLOCK):
        rows = upload(rng.standard_normal((k, n)), device)
        for trans in _TRANS:
            taken = seconds(partial(operator.product, rows, trans), device, rounds)
            yield Figure(f"product with {'A' if trans == 'N' else 'Aᵀ'}, {k} columns", n, taken, stored + 16 * k * n)
    inverse = upload(np.full((1, n), 0.25), device)
    for k in (1, BLOCK):
        taken = seconds(partial(_iterate, operator, inverse, n, k, device), device, max(rounds // 10, 3), warm=1)
        moved = stored + 16 * k * n + 8 * CG_VECTORS * k * n
        yield Figure(f"CG iteration, {k} columns", n, taken / CG_STEPS, moved)


def _iterate(operator: DeviceOperator, inverse: torch.Tensor, n: int, k: int, device: str) -> None:
    """A fixed number of iterations towards a target that is out of reach."""
    b = np.random.default_rng(SEED).standard_normal((k, n))
    problem = Problem(
        multiply=lambda rows: operator.product(rows, "N"),
        adjoint=lambda rows: operator.product(rows, "H"),
        precondition=lambda rows: rows * inverse,
        b=upload(b, device),
        x0=None,
        sizes=np.linalg.norm(b, axis=1),
        targets=np.zeros(k),
        limit=CG_STEPS,
        norm=8.0,
        cancelled=lambda: False,
    )
    conjugate_gradients(problem)


def preconditioners(side: int, device: str, rounds: int) -> Iterator[Figure]:
    """One application of those that are more than a number a row, and whole solves with them, from and to the host."""
    m = laplacian(side)
    operand = Operand(m)
    levels = hierarchy(operand.wide[0], "auto").steps
    stored = int(m.values.nbytes) + m.pattern.nbytes
    cycle = sum(4 * _nbytes(step.matrix) + _nbytes(step.restriction) + _nbytes(step.prolongation) for step in levels)
    for spelled, moved in (("amg", cycle), ("chebyshev(degree=4)", 4 * stored)):
        built = build(spelled, operand, 0, device)
        for k in (1, BLOCK):
            rows = torch.ones(k, m.n, dtype=torch.float64, device=device)
            taken = seconds(partial(built.apply, rows, "N"), device, rounds)
            yield Figure(f"{spelled}, {k} columns", m.n, taken, moved + 16 * k * m.n)
    for spelled in ("jacobi", "amg", "chebyshev(degree=4)"):
        chosen, spec = solver("cg", "cuda"), FactorSpec("cg", spelled, "float64", device)
        factor = chosen.factorize(chosen.analyze(m.pattern, spec), operand, spec)
        b = np.random.default_rng(SEED).standard_normal((m.n, 1))
        taken = seconds(partial(factor.solve, b, "N", Controls()), device, max(rounds // 10, 3), warm=1)
        yield Figure(f"CG with {spelled}, host to host", m.n, taken, None)


def _nbytes(a: Any) -> int:
    return int(a.data.nbytes + a.indices.nbytes + a.indptr.nbytes)


def dense(n: int, device: str, rounds: int) -> Iterator[Figure]:
    """LU of a dense matrix, and solves with it from and to the host."""
    rng = np.random.default_rng(SEED)
    a = rng.standard_normal((n, n)) + n * np.eye(n)
    m, lu = Matrix(DensePattern((n, n)), a), solver("lu", device)
    operand, spec = Operand(m), FactorSpec("lu", None, "float64", device)
    on_device = upload(a, device)
    taken = seconds(lambda: torch.linalg.lu_factor_ex(on_device), device, max(rounds // 10, 3), warm=1)
    yield Figure(f"dense LU, {2 * n**3 / 3 / taken / 1e9:.0f} GFLOP/s", n, taken, None)
    factor = lu.factorize(lu.analyze(m.pattern), operand, spec)
    for k in (1, BLOCK):
        b = rng.standard_normal((n, k))
        taken = seconds(partial(factor.solve, b, "N", Controls()), device, rounds)
        # The factor, and the matrix for the residual.
        yield Figure(f"dense solve with its proof, {k} columns, host to host", n, taken, 16 * n * n)


def cudss(side: int, device: str, rounds: int) -> Iterator[Figure]:
    """Every phase of cuDSS on one matrix; nothing where the library is not installed."""
    if not installed():
        return
    m = laplacian(side)
    assert isinstance(m.pattern, Pattern)
    n, few = m.n, max(rounds // 10, 3)
    values = upload(m.values, device)
    at = handle(device, values.dtype)
    kind = MatrixType.CUDSS_MTYPE_GENERAL
    a = Sparse(at, upload(m.pattern.indptr, device), upload(m.pattern.indices, device), values, kind)
    b, x = (Dense(at, torch.ones(1, n, dtype=values.dtype, device=device)) for _ in range(2))
    settings = Plan(kind, ordered=True).settings(None)
    with at.used():

        def phase(work: Work, which: Phase) -> None:
            work.execute(which, a, x, b)

        taken = seconds(lambda: phase(Work(at, settings), Phase.CUDSS_PHASE_ANALYSIS), device, few, warm=1)
        yield Figure("cuDSS analysis", n, taken, None)
        work = Work(at, settings)
        phase(work, Phase.CUDSS_PHASE_ANALYSIS)
        for name, which in (
            ("factorization", Phase.CUDSS_PHASE_FACTORIZATION),
            ("refactorization", Phase.CUDSS_PHASE_REFACTORIZATION),
        ):
            yield Figure(f"cuDSS {name}", n, seconds(partial(phase, work, which), device, few, warm=1), None)
        factors = work.number(Data.CUDSS_DATA_LU_NNZ) * values.itemsize
        for mode in (SolveMode.CUDSS_SOLVE_MODE_NORMAL, SolveMode.CUDSS_SOLVE_MODE_TRANSPOSE):
            for k in (1, BLOCK):
                yield _cudss_solve(work, a, n, k, mode, factors, device, rounds)


def _cudss_solve(
    work: Work, a: Sparse, n: int, k: int, mode: SolveMode, factors: int, device: str, rounds: int
) -> Figure:
    rows: Any = torch.ones(k, n, dtype=torch.float64, device=device)
    b, x = Dense(work.handle, rows), Dense(work.handle, torch.empty_like(rows))
    taken = seconds(lambda: work.execute(Phase.CUDSS_PHASE_SOLVE, a, x, b, mode), device, rounds)
    name = mode.name.removeprefix("CUDSS_SOLVE_MODE_").lower()
    return Figure(f"cuDSS solve, {name}, {k} columns", n, taken, factors + 16 * k * n)
