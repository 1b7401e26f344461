"""Dense least squares by QR with column pivoting, and a complete orthogonal decomposition where the rank is low.

Ā P = Q R; the rank r is the number of diagonal entries of R above rcond times the first. With all
columns independent, x = P R⁻¹ Qᴴ b. If not, the first r rows of R are reduced from the right,
R = Tᴴ Zᴴ with T upper triangular, so that Ā ≈ Q Tᴴ (P Z)ᴴ and the shortest x is P Z T⁻ᴴ Qᴴ b.

Source: Golub and Van Loan, "Matrix computations", 4th ed., sections 5.4.2 (pivoting), 5.4.7 and
5.5.2 (complete orthogonal decomposition).
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import scipy.linalg

from backsolve.errors import InvalidOptionError, InvalidPatternError
from backsolve.pattern import AnyPattern, DensePattern
from backsolve.types import Array, Status, Trans

from ..base import Controls, Factor, FactorSpec, Outcome, Solver, Symbolic
from ..faults import finite_statuses
from ..operand import Operand
from ..scaling import exponents, magnitude, shift
from ..tolerance import epsilon
from .base import LeastSquaresFactor, no_answer

MAX_COLUMNS = 64
"""Products with Q and two triangular sweeps: blocks gain as any dense ones do."""

_GAP = 1e3
"""Where the diagonal of R falls by less than this at the rank, rounding may have decided it."""

_MARGIN = 10.0
"""Where it ends within this many times of what rounding leaves, likewise."""


@final
@dataclass(frozen=True, slots=True)
class Decomposition:
    """One system, scaled by a power of two: A 2⁻ᵉ = Q T Vᴴ, V with orthonormal columns.

    Attributes:
        q: `[m, r]` the rows of Q that meet b; with damping the others meet zeros.
        triangle: `[r, r]`, upper if every column counts (V is then a permutation), else lower.
        basis: `[n, r]` V; None where it is a permutation.
        permutation: `[n]` column of A that comes i-th.
        exponent: e.
        rank: r.
        certain: the diagonal of R has a gap there, or ends well above rounding.
        condition: |R[0, 0]| / |R[r-1, r-1]|, a lower bound on the condition number.
    """

    q: Array
    triangle: Array
    basis: Array | None
    permutation: Array
    exponent: int
    rank: int
    certain: bool
    condition: float

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        basis = 0 if self.basis is None else self.basis.nbytes
        return int(self.q.nbytes + self.triangle.nbytes + basis + self.permutation.nbytes)

    def pseudoinverse(self, b: Array) -> Array:
        """`G Aᴴ b` for `[m, k]`."""
        x = self._into(self._sweep(self.q.conj().T @ b, "N"))
        return shift(x, np.full(1, -self.exponent))

    def normal(self, g: Array) -> Array:
        """`G g` for `[n, k]`."""
        coordinates = g[self.permutation] if self.basis is None else self.basis.conj().T @ g
        lam = self._into(self._sweep(self._sweep(coordinates, "C"), "N"))
        return shift(lam, np.full(1, -2 * self.exponent))

    def _sweep(self, coordinates: Array, trans: str) -> Array:
        if self.rank == 0:
            return coordinates
        lower = self.basis is not None
        return np.asarray(
            scipy.linalg.solve_triangular(self.triangle, coordinates, trans=trans, lower=lower, check_finite=False)
        )

    def _into(self, coordinates: Array) -> Array:
        if self.basis is not None:
            return np.asarray(self.basis @ coordinates)
        x = np.empty_like(coordinates)
        x[self.permutation] = coordinates
        return x


@final
@dataclass(frozen=True)
class QrSymbolic(Symbolic):
    """Nothing but the size."""

    pattern: AnyPattern

    @property
    def nbytes(self) -> int:
        """Nothing is held."""
        return 0

    def predicted_nbytes(self, precision: str) -> int:
        """Q and R."""
        least = min(self.pattern.shape)
        return (self.pattern.m + self.pattern.n) * least * np.dtype(precision).itemsize


@final
@dataclass(frozen=True, eq=False)
class QrFactor(LeastSquaresFactor):
    """The decomposition of each system; None where one is not finite."""

    operand: Operand
    damp: float
    parts: tuple[Decomposition | None, ...]
    statuses: tuple[Status, ...]

    direct = True
    max_columns = MAX_COLUMNS

    @property
    def nbytes(self) -> int:
        """Bytes of the decompositions."""
        return sum(part.nbytes for part in self.parts if part is not None)

    @property
    def condition(self) -> float | None:
        """|R[0, 0]| / |R[r-1, r-1]|, of a batch the largest: a lower bound, rarely far below."""
        return max((part.condition for part in self.parts if part is not None), default=None)

    @property
    def independent(self) -> bool:
        """Every system has full column rank."""
        return all(part is None or part.rank == self.operand.n for part in self.parts)

    @property
    def note(self) -> str | None:
        """The rank that was found."""
        ranks = sorted({part.rank for part in self.parts if part is not None})
        if not ranks:
            return None
        span = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        unsure = "" if all(part is None or part.certain for part in self.parts) else ", which rounding may have decided"
        return f"rank {span} of {self.operand.n} columns{unsure}"

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """Products with Q and one triangular sweep, or two sweeps with a cotangent."""
        del trans
        stacked = rhs if rhs.ndim == 3 else rhs[None]
        x = no_answer(stacked.shape[0], self.operand.n, stacked.shape[2], stacked.dtype)
        with np.errstate(all="ignore"):
            for index, part in enumerate(self.parts):
                if part is not None:
                    wide = stacked[index].astype(self.operand.wide_dtype, copy=False)
                    x[index] = part.normal(wide) if controls.cotangent else part.pseudoinverse(wide)
        return Outcome(x if rhs.ndim == 3 else x[0], self.statuses, (0,) * len(self.statuses))


@final
class LeastSquaresQr(Solver):
    """Any dense matrix, of any rank; computed in double precision. LAPACK runs without the interpreter's lock."""

    name = "lstsq_qr"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Nothing to prepare."""
        del spec
        if not isinstance(pattern, DensePattern):
            raise InvalidPatternError("method 'lstsq_qr' takes dense matrices: use method 'lstsq_lsmr'")
        return QrSymbolic(pattern)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Decompose; about `4 m n min(m, n)` operations, as many again for a low rank.

        Raises:
            InvalidOptionError: `damp` is so small beside A that rounding swallows it.
            NonfiniteInputError: the matrix holds NaN or infinity.
        """
        symbolic.check(operand)
        statuses = finite_statuses(operand)
        parts: list[Decomposition | None] = []
        noise = max(*operand.pattern.shape, 1) * epsilon(operand.dtype)
        for index, a in enumerate(operand.wide):
            part = None
            if statuses[index] is Status.OK:
                part = decompose(a, spec.damp, noise if spec.rcond is None else spec.rcond, noise)
                if not part.certain:
                    statuses[index] = Status.ILL_CONDITIONED
            parts.append(part)
        return QrFactor(operand, spec.damp, tuple(parts), tuple(statuses))


def decompose(a: Array, damp: float, rcond: float, noise: float) -> Decomposition:
    """Decompose one system.

    Args:
        a: `[m, n]` in double precision, finite.
        damp: of the penalty.
        rcond: entries of R's diagonal up to this part of the first count as zero.
        noise: what rounding may leave there, in the same unit.

    Raises:
        InvalidOptionError: as `LeastSquaresQr.factorize`.
    """
    m, n = a.shape
    if n == 0 or (m == 0 and not damp):
        empty = np.zeros((0, 0), dtype=a.dtype)
        return Decomposition(np.zeros((m, 0), a.dtype), empty, np.zeros((n, 0), a.dtype), np.arange(n), 0, 0, True, 1.0)
    largest = max(float(magnitude(a.reshape(-1), 0)) if m else 0.0, damp)
    exponent = int(exponents(np.asarray(largest)))
    scaled = shift(a, np.full(1, -exponent))
    if damp:
        scaled = np.concatenate([scaled, np.ldexp(damp, -exponent) * np.eye(n, dtype=a.dtype)])
    q, r, permutation = scipy.linalg.qr(scaled, mode="economic", pivoting=True, check_finite=False)
    diagonal = np.abs(np.diagonal(r))
    rank = int(np.argmax(np.append(diagonal <= rcond * diagonal[0], True)))
    if damp and rank < n:
        raise InvalidOptionError(
            "damp is so small beside A that rounding swallows it: leave it out, or raise it", option="damp"
        )
    condition = float(diagonal[0] / diagonal[rank - 1]) if rank else 1.0
    # Below the rank there must be a gap; without anything below it, room above rounding.
    least = _GAP * diagonal[rank] if rank < diagonal.size else _MARGIN * noise * diagonal[0]
    certain = rank == 0 or bool(diagonal[rank - 1] >= least)
    basis, triangle = None, r[:rank, :rank]
    if rank < n:
        z, upper = scipy.linalg.qr(r[:rank].conj().T, mode="economic", check_finite=False)
        basis = np.empty_like(z)
        basis[permutation] = z
        triangle = np.ascontiguousarray(upper.conj().T)
    rows = np.ascontiguousarray(q[:m, :rank])
    return Decomposition(rows, np.asfortranarray(triangle), basis, permutation, exponent, rank, certain, condition)
