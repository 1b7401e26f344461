"""Preconditioned conjugate gradients for Hermitian positive definite matrices, dense or sparse.

Computed in float64 whatever the matrix is stored in. The recurrence proposes when to stop; the
true residual b - A x decides, and where the two disagree the iteration restarts from it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from backsolve.errors import BacksolveError, CancelledError
from backsolve.pattern import AnyPattern
from backsolve.types import Array, Status, Trans

from ..base import Controls, Factor, FactorSpec, Outcome, Solver, Symbolic
from ..faults import finite_statuses, not_definite, record
from ..operand import Operand
from ..precond.base import Preconditioner
from ..registry import DEFAULT_PRECONDITIONER, precondition
from ..scaling import exponents, magnitude, shift
from ..structure import diagonal, is_hermitian
from ..tolerance import CG_LIMIT_PER_ROW, SINGLE_EPS, epsilon, iterative_rtol
from .block import Block, Failure, Stop

MAX_COLUMNS = 16
"""Columns share the passes over A, and cost their own vectors: little is gained beyond."""


@final
@dataclass(frozen=True)
class CgSymbolic(Symbolic):
    """Nothing: the pattern alone prepares nothing."""

    pattern: AnyPattern

    @property
    def nbytes(self) -> int:
        """Nothing is held."""
        return 0


@final
@dataclass(frozen=True, eq=False)
class CgFactor(Factor):
    """A preconditioner for each system; None where a system is refused."""

    operand: Operand
    preconditioners: tuple[Preconditioner | None, ...]
    statuses: tuple[Status, ...]

    direct = False
    max_columns = MAX_COLUMNS

    @property
    def nbytes(self) -> int:
        """Bytes of the preconditioners."""
        return sum(m.nbytes for m in self.preconditioners if m is not None)

    @property
    def condition(self) -> float | None:
        """Not estimated."""
        return None

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """Iterate until each column's true residual meets the tolerance, or says why it cannot.

        A is Hermitian, so "H" is "N", and "T" is the solve with conjugated data.

        Raises:
            NotPositiveDefiniteError: a single matrix has pᴴ A p <= 0 or rᴴ M⁻¹ r <= 0 for some
                vector met on the way.
            CancelledError: `controls.cancelled` said so.
        """
        conjugate = trans == "T" and self.operand.dtype.kind == "c"
        stacked = rhs if rhs.ndim == 3 else rhs[None]
        first = controls.x0
        if first is not None and first.ndim == 2:
            first = first[None]
        x = np.full(stacked.shape, np.nan, dtype=self.operand.dtype)
        statuses, iterations = list(self.statuses), [0] * len(self.statuses)
        for index, m in enumerate(self.preconditioners):
            if m is None:
                continue
            x0 = None if first is None else first[index]
            try:
                x[index], statuses[index], iterations[index] = self._one(
                    index, m, stacked[index], x0, controls, conjugate
                )
            except BacksolveError as error:
                statuses[index] = record(self.operand, error)
        return Outcome(x.reshape(rhs.shape), tuple(statuses), tuple(iterations))

    def _one(
        self, index: int, m: Preconditioner, rhs: Array, x0: Array | None, controls: Controls, conjugate: bool
    ) -> tuple[Array, Status, int]:
        """Solve with one system: `[n, k]` in, x, worst status and iterations out."""
        n, k = rhs.shape
        if n == 0 or k == 0:
            return rhs.copy(), Status.OK, 0
        b = np.ascontiguousarray(rhs.T).astype(self.operand.wide_dtype)
        start = None if x0 is None else np.ascontiguousarray(x0.T).astype(self.operand.wide_dtype)
        if conjugate:
            b, start = np.conj(b), None if start is None else np.conj(start)
        # Every column is solved at a magnitude near 1: b and 1e-200 b take the same steps.
        powers = exponents(magnitude(b, 1))[:, None]
        b = shift(b, -powers)
        if start is not None:
            start = shift(start, -powers)
        limit = controls.maxiter or CG_LIMIT_PER_ROW * n
        block = Block(_multiply(self.operand, index), m.apply, b, start, self._targets(b, powers, controls), limit)
        while block.active:
            if controls.cancelled():
                raise CancelledError("the solve was cancelled between two iterations")
            block.step()
        if block.failure is Failure.NOT_DEFINITE:
            raise not_definite(None, "cg", "lu" if isinstance(self.operand.systems[index], np.ndarray) else "superlu")
        x = shift(block.x, powers)
        with np.errstate(over="ignore"):
            narrow = (np.conj(x) if conjugate else x).T.astype(self.operand.dtype)
        return narrow, _worst(block.stops), block.iterations

    def _targets(self, b: Array, powers: Array, controls: Controls) -> Array:
        """Wanted 2-norm of each column's residual, in the scaled units."""
        rtol = controls.rtol
        if rtol is None:
            rtol = iterative_rtol(self.operand.dtype)
            if epsilon(self.operand.dtype) >= SINGLE_EPS:
                rtol /= 2  # the other half is left to rounding x to single
        size = np.linalg.norm(b, axis=1)
        if not controls.atol:
            return np.asarray(rtol * size)
        return np.asarray(np.maximum(rtol * size, shift(np.full(powers.shape, controls.atol), -powers)[:, 0]))


@final
class ConjugateGradients(Solver):
    """Hermitian positive definite matrices; what shows itself to be something else is refused."""

    name = "cg"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Nothing to prepare."""
        del spec
        return CgSymbolic(pattern)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Check what can be checked in O(nnz) and build the preconditioner.

        Raises:
            NotPositiveDefiniteError: not Hermitian, or a diagonal entry is not positive.
            NonfiniteInputError: the matrix holds NaN or infinity.
        """
        symbolic.check(operand)
        statuses = finite_statuses(operand)
        built: list[Preconditioner | None] = []
        for index, a in enumerate(operand.systems):
            m = None
            if statuses[index] is Status.OK:
                try:
                    _check_definite(a)
                    m = precondition(spec.preconditioner or DEFAULT_PRECONDITIONER, operand.wide[index])
                except BacksolveError as error:
                    statuses[index] = record(operand, error)
            built.append(m)
        return CgFactor(operand, tuple(built), tuple(statuses))


def _check_definite(a: Any) -> None:
    other = "lu" if isinstance(a, np.ndarray) else "superlu"
    if not is_hermitian(a):
        raise not_definite(None, "cg", other)
    bad = np.flatnonzero(~(diagonal(a).real > 0))
    if bad.size:
        raise not_definite(int(bad[0]), "cg", other)


def _multiply(operand: Operand, index: int) -> Callable[[Array], Array]:
    """`A v` for each of the rows of `[k, n]`."""
    a = operand.wide[index]

    def multiply(rows: Array) -> Array:
        return np.ascontiguousarray((a @ rows.T).T)

    return multiply


_STATUS_OF = {
    Stop.CONVERGED: Status.OK,
    Stop.LIMIT: Status.MAX_ITER,
    Stop.STAGNATED: Status.STAGNATION,
    Stop.BROKE_DOWN: Status.BREAKDOWN,
}
_SEVERITY = (Status.OK, Status.MAX_ITER, Status.STAGNATION, Status.BREAKDOWN)


def _worst(stops: list[Stop]) -> Status:
    return max((_STATUS_OF[stop] for stop in stops), key=_SEVERITY.index)
