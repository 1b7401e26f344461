"""What all iterative methods share: columns at a magnitude near 1, operators, preconditioners, statuses.

Computed in float64 whatever the matrix is stored in. A method adds its recurrence alone.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import numpy as np

from backsolve.errors import BacksolveError, CancelledError, InvalidOptionError
from backsolve.pattern import AnyPattern
from backsolve.types import Array, Status, Trans

from ..base import Controls, Factor, FactorSpec, Outcome, Solver, Symbolic
from ..faults import finite_statuses, not_definite, not_hermitian, record
from ..operand import Operand
from ..precond.base import Preconditioner
from ..registry import NO_PRECONDITIONER, precondition
from ..scaling import exponents, magnitude, shift
from ..structure import diagonal
from ..symmetry import is_hermitian, wide_system
from ..tolerance import ITERATIONS_PER_ROW, SINGLE_EPS, epsilon, iterative_rtol
from .basis import BASES, RESTART, basis_bytes, columns_at_once, groups
from .first import useful
from .problem import Apply, Finished, NotDefiniteError, Problem, Stop

MAX_COLUMNS = 16
"""Columns share the passes over A, and cost their own vectors: little is gained beyond."""

_SAFE_NORM = 1e60
"""Squares of what an operator within this makes of vectors near 1 stay far from the ends of the range."""


@final
@dataclass(frozen=True)
class KrylovSymbolic(Symbolic):
    """Nothing: the pattern alone prepares nothing."""

    pattern: AnyPattern

    @property
    def nbytes(self) -> int:
        """Nothing is held."""
        return 0


class KrylovSolver(Solver):
    """A Krylov method; classes below add the recurrence."""

    hermitian: ClassVar[bool] = False
    """A = Aᴴ is required, so that no product with Aᴴ is."""
    definite: ClassVar[bool] = False
    """A must be positive definite as well."""

    @abstractmethod
    def iterate(self, problem: Problem) -> Finished:
        """Solve one system for a block of columns.

        Raises:
            NotDefiniteError: A or M has shown that it is not what the method needs.
            CancelledError: out of `problem.check`.
        """

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Nothing to prepare."""
        del spec
        return KrylovSymbolic(pattern)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Check what can be checked in O(nnz) and build the preconditioner.

        Raises:
            NotPositiveDefiniteError: not Hermitian, or a diagonal entry is not positive, where
                the method or the preconditioner needs it.
            SingularMatrixError: the preconditioner would be singular.
            NonfiniteInputError: the matrix holds NaN or infinity.
        """
        symbolic.check(operand)
        statuses = finite_statuses(operand)
        built: list[Preconditioner | None] = []
        for index, a in enumerate(operand.systems):
            m = None
            if statuses[index] is Status.OK:
                try:
                    self._admit(a)
                    m = precondition(spec.preconditioner or NO_PRECONDITIONER, wide_system(operand, index))
                except BacksolveError as error:
                    statuses[index] = record(operand, error)
            built.append(m)
        return KrylovFactor(operand, self, tuple(built), tuple(statuses))

    def _admit(self, a: Any) -> None:
        """Refuse a system that shows at once that it is not what the method needs."""
        other = _other(a)
        if self.hermitian and not is_hermitian(a):
            raise not_definite(None, self.name, other) if self.definite else not_hermitian(self.name, other)
        if self.definite:
            bad = np.flatnonzero(~(diagonal(a).real > 0))
            if bad.size:
                raise not_definite(int(bad[0]), self.name, other)


@final
@dataclass(frozen=True, eq=False)
class KrylovFactor(Factor):
    """A method and a preconditioner for each system; None where a system is refused."""

    operand: Operand
    method: KrylovSolver
    preconditioners: tuple[Preconditioner | None, ...]
    statuses: tuple[Status, ...]

    direct = False

    @property
    def max_columns(self) -> int:
        """Fewer of a large matrix where each column keeps a basis."""
        return min(MAX_COLUMNS, self._at_once(RESTART) or MAX_COLUMNS)

    @property
    def nbytes(self) -> int:
        """Bytes of the preconditioners."""
        return sum(m.nbytes for m in self.preconditioners if m is not None)

    @property
    def note(self) -> str | None:
        """What the preconditioners say of themselves; of a batch, the first that says anything, and of how many."""
        notes = [m.note for m in self.preconditioners if m is not None and m.note is not None]
        if not notes or self.operand.batch is None:
            return notes[0] if notes else None
        return f"{notes[0]} ({len(notes)} of {len(self.preconditioners)} systems)"

    @property
    def condition(self) -> float | None:
        """Not estimated."""
        return None

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """Iterate until each column's true residual meets the tolerance, or says why it cannot.

        "T" is the solve with Aᴴ (for a Hermitian A with A itself) on conjugated data.

        Raises:
            NotPositiveDefiniteError: a single matrix, or its preconditioner, shows on the way
                that it is not definite, where the method needs that.
            CancelledError: `controls.cancelled` said so.
        """
        stacked = rhs if rhs.ndim == 3 else rhs[None]
        first = controls.x0
        if first is not None and first.ndim == 2:
            first = first[None]
        first, note = useful(self.operand, first, stacked, trans)
        x = np.full(stacked.shape, np.nan, dtype=self.operand.dtype)
        statuses, iterations = list(self.statuses), [0] * len(self.statuses)
        for index, m in enumerate(self.preconditioners):
            if m is None:
                continue
            x0 = None if first is None else first[index]
            try:
                for group in groups(rhs.shape[-1], self._at_once(controls.restart or RESTART)):
                    start = None if x0 is None else x0[:, group]
                    solved = self._one(index, m, stacked[index, :, group], start, trans, controls)
                    x[index, :, group], status, taken = solved
                    statuses[index] = max(statuses[index], status, key=_SEVERITY.index)
                    iterations[index] = max(iterations[index], taken)
            except BacksolveError as error:
                statuses[index] = record(self.operand, error)
        return Outcome(x.reshape(rhs.shape), tuple(statuses), tuple(iterations), note=note)

    def _at_once(self, restart: int) -> int | None:
        """How many columns are solved together, where that is limited."""
        itemsize = self.operand.wide_dtype.itemsize
        return columns_at_once(basis_bytes(self.operand.n, itemsize, restart, BASES.get(self.method.name, 0)))

    def _one(
        self, index: int, m: Preconditioner, rhs: Array, x0: Array | None, trans: Trans, controls: Controls
    ) -> tuple[Array, Status, int]:
        """Solve with one system: `[n, k]` in, x, worst status and iterations out."""
        n, k = rhs.shape
        if n == 0 or k == 0:
            return rhs.copy(), Status.OK, 0
        conjugate = trans == "T" and self.operand.dtype.kind == "c"
        b = np.ascontiguousarray(rhs.T).astype(self.operand.wide_dtype)
        start = None if x0 is None else np.ascontiguousarray(x0.T).astype(self.operand.wide_dtype)
        if conjugate:
            b, start = np.conj(b), None if start is None else np.conj(start)
        # Every column is solved at a magnitude near 1: b and 1e-200 b take the same steps.
        powers = exponents(magnitude(b, 1))[:, None]
        b = shift(b, -powers)
        size = _far(self.operand.norm(index, trans))
        if start is not None:
            start = shift(start, size - powers)
        problem = self._problem(index, m, b, start, self._targets(b, powers, controls), trans, controls)
        if size:
            problem = _scaled(problem, size)
        try:
            with np.errstate(all="ignore"):
                got = self.method.iterate(problem)
        except NotDefiniteError:
            raise self._unfit(index) from None
        x = shift(got.x, powers - size)
        with np.errstate(over="ignore"):
            narrow = (np.conj(x) if conjugate else x).T.astype(self.operand.dtype)
        return narrow, _worst(got.stops), got.iterations

    def _unfit(self, index: int) -> BacksolveError:
        """What it was that is not definite."""
        name = self.method.name
        if self.method.definite:
            return not_definite(None, name, _other(self.operand.systems[index]))
        return InvalidOptionError(
            f"the preconditioner is not positive definite for this matrix, which method {name!r} needs: "
            "use preconditioner 'jacobi', or method 'gmres'",
            option="preconditioner",
        )

    def _problem(
        self,
        index: int,
        m: Preconditioner,
        b: Array,
        x0: Array | None,
        targets: Array,
        trans: Trans,
        controls: Controls,
    ) -> Problem:
        def check() -> None:
            if controls.cancelled():
                raise CancelledError("the solve was cancelled between two iterations")

        plain, adjoint = _multiply(self.operand, index), _multiply_adjoint(self.operand, index)
        swapped = trans != "N" and not self.method.hermitian
        return Problem(
            multiply=adjoint if swapped else plain,
            adjoint=plain if swapped else adjoint,
            precondition=m.apply_adjoint if swapped else m.apply,
            b=b,
            x0=x0,
            targets=targets,
            limit=controls.maxiter or ITERATIONS_PER_ROW * b.shape[1],
            restart=controls.restart or RESTART,
            norm=self.operand.norm(index, trans),
            check=check,
            recycle=controls.recycle,
        )

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


def _other(a: Any) -> str:
    """The direct method to advise."""
    return "lu" if isinstance(a, np.ndarray) else "superlu"


def _multiply(operand: Operand, index: int) -> Apply:
    """`A v` for each of the rows of `[k, n]`."""
    a = operand.wide[index]

    def multiply(rows: Array) -> Array:
        return np.ascontiguousarray((a @ rows.T).T)

    return multiply


def _multiply_adjoint(operand: Operand, index: int) -> Callable[[Array], Array]:
    """`Aᴴ v` likewise; Aᴴ v = conj(Aᵀ conj(v)) needs no conjugated copy of A."""

    def multiply(rows: Array) -> Array:
        a = operand.wide_transposed[index]
        if rows.dtype.kind != "c":
            return np.ascontiguousarray((a @ rows.T).T)
        return np.ascontiguousarray(np.conj(a @ np.conj(rows.T)).T)

    return multiply


def _far(norm: float) -> int:
    """Power of two to divide A by where squares of its products would leave the range, else 0."""
    return 0 if norm == 0 or 1 / _SAFE_NORM <= norm <= _SAFE_NORM else int(np.frexp(norm)[1])


def _scaled(problem: Problem, power: int) -> Problem:
    """The problem of `2**-power A`, whose answer is `2**power x`, with M scaled to do little to a vector's size."""
    sizes = exponents(magnitude(problem.precondition(problem.b), 1)[problem.b.any(axis=1)])
    # One number for all columns: M is one matrix.
    size = int(sizes.max()) if sizes.size else 0

    def by(apply: Apply, exponent: int) -> Apply:
        return lambda rows: shift(apply(rows), np.array(-exponent))

    return replace(
        problem,
        multiply=by(problem.multiply, power),
        adjoint=by(problem.adjoint, power),
        precondition=by(problem.precondition, size),
        norm=float(np.ldexp(problem.norm, -power)),
    )


_STATUS_OF = {
    Stop.CONVERGED: Status.OK,
    Stop.LIMIT: Status.MAX_ITER,
    Stop.STAGNATED: Status.STAGNATION,
    Stop.BROKE_DOWN: Status.BREAKDOWN,
    Stop.INCONSISTENT: Status.INCONSISTENT,
}
_SEVERITY = (Status.OK, Status.MAX_ITER, Status.STAGNATION, Status.BREAKDOWN, Status.INCONSISTENT)


def _worst(stops: list[Stop]) -> Status:
    return max((_STATUS_OF[stop] for stop in stops), key=_SEVERITY.index)
