"""The contract of every solver: `analyze(pattern) → factorize(values) → solve(rhs, trans)`.

Three objects, each immutable once built: what the pattern alone decides (`Symbolic`), what the
values add (`Factor`), and what one solve gives (`Outcome`). Classes are abstract or final.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from backsolve.errors import InvalidPatternError
from backsolve.pattern import AnyPattern
from backsolve.types import Array, Status, Trans

from .certify import Proof
from .nullspace import Nullspace
from .operand import Operand


@dataclass(frozen=True, slots=True)
class FactorSpec:
    """What changes a factor, and nothing else: the part of a request that enters the cache key.

    Attributes:
        method: a row of the registry, never "auto"; "update(...)" around it for an update on a factor by that row.
        preconditioner: of an iterative method, with all its parameters spelled out
            (`precond/parameters.py`), else None.
        precision: NumPy name of the type the factor is computed in.
        device: "cpu", or a CUDA device such as "cuda:0".
        ordering: of a sparse direct method, else None.
        nullspace: what the matrix is known to map to zero, or None.
        damp: of least squares, or 0.
        rcond: of least squares, or None for the method's own.
    """

    method: str
    preconditioner: str | None
    precision: str
    device: str
    ordering: str | None = None
    nullspace: str | None = None
    damp: float = 0.0
    rcond: float | None = None

    @property
    def analysis(self) -> tuple[str | None, ...]:
        """What of the spec decides the `Symbolic` of a pattern: its key beside the pattern."""
        return (self.method, self.ordering, self.device, self.nullspace)


Pivots = Literal["new", "kept", "refused"]
"""Where a factor's pivots come from: chosen for its values; taken over from other values on the pattern, and
proved; or chosen after those of other values had been tried and were not good enough."""


def never() -> bool:
    """The `cancelled` of a solve that nobody can cancel."""
    return False


@dataclass(frozen=True, slots=True)
class Controls:
    """What changes an answer, never the factor (the solve spec without `trans`).

    Attributes:
        rtol, atol: the answer is wanted with ||b - op(A)x|| <= max(rtol ||b||, atol) in each
            column; None: the method's default (see `tolerance.py`).
        maxiter: most products with op(A) that the recurrence of an iterative method may take for each column;
            of BiCGStab an iteration has two.
        restart: of GMRES.
        refine: most refinement steps of a direct method.
        x0: first iterate, `[n, k]` (`[batch, n, k]`).
        cotangent: the right-hand side is a cotangent. Least squares then gives (AᴴA + damp² I)⁺ times
            it (`lstsq/base.py`); of a matrix with a known null space, what of
            it lies outside the range is projected out, and is no inconsistency.
        condition: an estimate of the condition number is wanted even where it costs solves.
        recycle: what is kept of earlier solves on the pattern (`krylov/recycling.py`), to be used and renewed.
        cancelled: asked between iterations; true stops the solve with `CancelledError`.
    """

    rtol: float | None = None
    atol: float | None = None
    maxiter: int | None = None
    restart: int | None = None
    refine: int | None = None
    condition: bool = False
    x0: Array | None = None
    cotangent: bool = False
    recycle: "Symbolic | None" = None
    cancelled: Callable[[], bool] = field(default=never, compare=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one solve gave, in most cases before its residual is measured.

    Attributes:
        x: shaped like the right-hand side; NaN where a system of a batch has no answer.
        statuses: one a system (a single matrix is one system).
        iterations: one a system, 0 for direct methods; the largest of its columns, counted as `maxiter` counts.
        condition: a bound from below on the condition number that the iteration has met; None: it has not looked.
        note: what the caller should know of this one solve: said at the end of the certificate's reason.
        proof: the figures of x, where the method has measured them itself because x came from
            elsewhere, such as a device; None: they are measured here.
    """

    x: Array
    statuses: tuple[Status, ...]
    iterations: tuple[int, ...]
    proof: Proof | None = None
    condition: float | None = None
    note: str | None = None


class Symbolic(ABC):
    """What a solver prepares from a pattern alone."""

    pattern: AnyPattern

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held beside the pattern itself."""

    def predicted_nbytes(self, precision: str) -> int | None:
        """Bytes that the factor of one matrix on this pattern will hold; None where nothing foretells it.

        Args:
            precision: NumPy name of the type the factor is computed in.
        """
        del precision
        return None

    def predicted_fill(self) -> float | None:
        """Entries of a factor over those of the matrix; None where nothing foretells it."""
        return None

    def check(self, operand: Operand) -> None:
        """Refuse values of another pattern (a silent wrong result in many libraries).

        Raises:
            InvalidPatternError: `operand` is not on the analysed pattern.
        """
        if not self.pattern.same_as(operand.pattern):
            raise InvalidPatternError(f"the values belong to {operand.pattern}, {self.pattern} was analysed")


class Factor(ABC):
    """What a solver prepares from the values: a factorization, or a preconditioner.

    Never modified after `factorize`; may be solved with from several threads at once.
    """

    operand: Operand
    direct: ClassVar[bool]
    movable: ClassVar[bool] = False
    """Its numbers can be copied between a device and the host; else it is built again."""
    anywhere: ClassVar[bool] = False
    """Any thread may solve with it, whatever modes of a library its owner has set there (torch's, for one)."""

    @property
    @abstractmethod
    def max_columns(self) -> int:
        """Widest block of columns that gains over narrower ones and finds memory; the scheduler's cap."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held beside the matrix itself."""

    @property
    def nullspace(self) -> Nullspace | None:
        """Of a singular matrix: `solve` then gives the minimum-norm solution for `rhs` projected onto the range."""
        return None

    @property
    def narrow(self) -> bool:
        """Its solves have single precision only, of a double matrix, and are to be refined to double."""
        return False

    @property
    def note(self) -> str | None:
        """What the caller should know of this factor: said after the reason in the certificate."""
        return None

    @property
    def pivoting(self) -> Pivots:
        """Where its pivots come from."""
        return "new"

    @property
    def device_nbytes(self) -> int:
        """Those of `nbytes` that lie on a device other than the CPU."""
        return 0

    def solve_each(self, columns: Sequence[Array], trans: Trans) -> "list[Array] | None":
        """Solve for right-hand sides `[n]` of a single matrix as a block, each answer in memory of its own.

        None: it gains nothing by that over `solve` for the block.
        """
        del columns, trans
        return None

    def moved(self, device: str) -> "Factor":
        """The same factor with its numbers on another device; itself where it is not `movable`.

        Raises:
            DeviceOutOfMemoryError, MemoryBudgetError: there is no room for them.
        """
        del device
        return self

    @property
    @abstractmethod
    def condition(self) -> float | None:
        """Estimate of the 1-norm condition number where the factor makes it cheap, else None."""

    @abstractmethod
    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """Solve `op(A) x = rhs` once, unrefined.

        Args:
            rhs: `[n, k]`, or `[batch, n, k]` when the operand is a batch; not modified.
            trans: "N", "T" or "H".
            controls: those that the method uses.
        """


class Solver(ABC):
    """One method: a row of the registry."""

    name: ClassVar[str]

    @abstractmethod
    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Prepare what the pattern alone decides.

        Args:
            pattern: where the entries are.
            spec: only what `FactorSpec.analysis` holds may be used of it; None: the method's defaults.

        Raises:
            SingularMatrixError: no values on this pattern are invertible.
        """

    @abstractmethod
    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Prepare the values for solving.

        Of a batch, a system that cannot be factorized is not an error: its status appears in
        every later `Outcome`.

        Raises:
            SingularMatrixError: a pivot is exactly zero.
            NotPositiveDefiniteError: the method needs a Hermitian positive definite matrix.
            InvalidPatternError: `operand` is not on the pattern that was analysed.
        """
