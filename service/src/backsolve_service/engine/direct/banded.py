"""Band matrices by LAPACK: `n` times the widths of the band in memory, with their product in work.

Three ways, the cheapest that fits: tridiagonal LU (gttrf), Cholesky (pbtrf) where a Hermitian matrix
turns out positive definite, else LU with partial pivoting (gbtrf). No row is moved beforehand.
LAPACK is called under the interpreter's lock: 50 ms for 20 000 rows with 150 diagonals on each side.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from scipy.linalg import get_lapack_funcs

from backsolve.errors import InvalidPatternError, MemoryBudgetError
from backsolve.pattern import AnyPattern, Pattern
from backsolve.types import TRANS, Array, Status, Trans

from ..base import Controls, Factor, FactorSpec, Outcome, Solver, Symbolic
from ..faults import factorize_each, singular
from ..operand import Operand
from ..structure import inspect_pattern
from ..symmetry import is_hermitian
from .ordering import check_matching


@final
@dataclass(frozen=True)
class Band(Symbolic):
    """The widths of a band.

    Attributes:
        lower, upper: diagonals below and above the main one.
    """

    pattern: AnyPattern
    lower: int
    upper: int

    @property
    def nbytes(self) -> int:
        """Nothing is held."""
        return 0

    @property
    def height(self) -> int:
        """Diagonals that LU with pivoting may fill."""
        return 2 * self.lower + self.upper + 1

    @property
    def tridiagonal(self) -> bool:
        """One diagonal on each side; below three rows LAPACK's interface has no room for the second."""
        return self.lower <= 1 and self.upper <= 1 and self.pattern.n >= 3

    def predicted_nbytes(self, precision: str) -> int:
        """Bytes of LU with pivoting."""
        n, size = self.pattern.n, np.dtype(precision).itemsize
        return n * ((4 if self.tridiagonal else self.height) * size + np.dtype(np.intc).itemsize)


class Sweeps(ABC):
    """A factor of one band matrix."""

    nbytes: int

    @abstractmethod
    def solve(self, rhs: Array, trans: Trans) -> Array:
        """`op(A)⁻¹ rhs` for `[n, k]`."""


@final
class TridiagonalLu(Sweeps):
    """`P A = L U` with one diagonal in L and up to three in U."""

    def __init__(self, a: Any) -> None:
        factorize, self._sweeps = get_lapack_funcs(("gttrf", "gttrs"), dtype=a.dtype)
        *self._factors, info = factorize(a.diagonal(-1), a.diagonal(), a.diagonal(1))
        if info > 0:
            raise singular(int(info) - 1)
        self.nbytes = sum(int(part.nbytes) for part in self._factors)

    def solve(self, rhs: Array, trans: Trans) -> Array:
        """Two sweeps."""
        letter = "C" if trans == "H" else trans
        return np.asarray(self._sweeps(*self._factors, rhs, trans=letter)[0])


@final
class BandCholesky(Sweeps):
    """`A = L Lᴴ` of a Hermitian positive definite band matrix.

    Raises:
        ArithmeticError: it is not positive definite.
    """

    def __init__(self, a: Any, band: Band) -> None:
        factorize, self._sweeps = get_lapack_funcs(("pbtrf", "pbtrs"), dtype=a.dtype)
        stored = _diagonals(a, above=0, height=band.lower + 1)
        self._lower, info = factorize(stored, lower=1, overwrite_ab=1)
        if info > 0:
            raise ArithmeticError
        self.nbytes = int(self._lower.nbytes)

    def solve(self, rhs: Array, trans: Trans) -> Array:
        """Two sweeps, the same for "N" and "H"."""
        if trans == "T" and rhs.dtype.kind == "c":
            # Aᵀ is the conjugate of A.
            return np.asarray(np.conj(self._sweeps(self._lower, np.conj(rhs), lower=1)[0]))
        return np.asarray(self._sweeps(self._lower, rhs, lower=1)[0])


@final
class BandLu(Sweeps):
    """`P A = L U` of any band matrix."""

    def __init__(self, a: Any, band: Band) -> None:
        factorize, self._sweeps = get_lapack_funcs(("gbtrf", "gbtrs"), dtype=a.dtype)
        self._widths = (band.lower, band.upper)
        stored = _diagonals(a, above=band.lower + band.upper, height=band.height)
        self._lu, self._pivots, info = factorize(stored, *self._widths, overwrite_ab=1)
        if info > 0:
            raise singular(int(info) - 1)
        self.nbytes = int(self._lu.nbytes + self._pivots.nbytes)

    def solve(self, rhs: Array, trans: Trans) -> Array:
        """Two sweeps."""
        return np.asarray(self._sweeps(self._lu, *self._widths, rhs, self._pivots, trans=TRANS.index(trans))[0])


@final
@dataclass(frozen=True, eq=False)
class BandedFactor(Factor):
    """Factors of one matrix, or of each of a batch; None where a system has none."""

    operand: Operand
    sweeps: tuple[Sweeps | None, ...]
    statuses: tuple[Status, ...]

    direct = True
    anywhere = True
    max_columns = 32

    @property
    def nbytes(self) -> int:
        """Bytes of the factors."""
        return sum(one.nbytes for one in self.sweeps if one is not None)

    @property
    def condition(self) -> float | None:
        """Not estimated here: `conditioning.lower_bound` asks for it, once."""
        return None

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """Two sweeps along the band, the same for each `trans`."""
        del controls
        stacked = rhs if rhs.ndim == 3 else rhs[None]
        x = np.full(stacked.shape, np.nan, dtype=rhs.dtype)
        for index, one in enumerate(self.sweeps):
            if one is not None and stacked[index].size:
                x[index] = one.solve(stacked[index], trans)
        return Outcome(x.reshape(rhs.shape), self.statuses, (0,) * len(self.statuses))


@final
class Banded(Solver):
    """Any square nonsingular sparse matrix; worth it where all entries are near the diagonal."""

    name = "banded"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Measure the band.

        Raises:
            SingularMatrixError: no values on this pattern are invertible.
            InvalidPatternError: the pattern is dense.
        """
        del spec
        if not isinstance(pattern, Pattern):
            raise InvalidPatternError("method 'banded' takes sparse matrices: use method 'lu'")
        facts = inspect_pattern(pattern)
        check_matching(facts)
        return Band(pattern, facts.lower_bandwidth, facts.upper_bandwidth)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Factorize; about `2 n lower (lower + upper)` operations, a quarter of that where Cholesky goes through.

        Raises:
            SingularMatrixError: a pivot is exactly zero; `details["column"]` says where.
            NonfiniteInputError: the matrix holds NaN or infinity.
            MemoryBudgetError: the band does not fit in memory.
        """
        del spec
        symbolic.check(operand)
        assert isinstance(symbolic, Band)
        band = symbolic
        try:
            sweeps, statuses = factorize_each(operand, lambda index: _factorize(operand.systems[index], band))
        except MemoryError as err:
            raise MemoryBudgetError(
                "the band of this matrix does not fit in memory: use method 'superlu', whose order of rows keeps "
                "the factor small"
            ) from err
        return BandedFactor(operand, sweeps, statuses)


def _factorize(a: Any, band: Band) -> Sweeps | None:
    if a.shape[0] == 0:
        return None
    if band.tridiagonal:
        return TridiagonalLu(a)
    if band.lower == band.upper and bool(np.all(a.diagonal().real > 0)) and is_hermitian(a):
        try:
            return BandCholesky(a, band)
        except ArithmeticError:
            pass  # Hermitian, but not positive definite
    return BandLu(a, band)


def _diagonals(a: Any, *, above: int, height: int) -> Array:
    """LAPACK's storage: column j of A along column j, the main diagonal in row `above`."""
    n = a.shape[0]
    rows = np.repeat(np.arange(n), np.diff(a.indptr))
    stored = np.zeros((n, height), dtype=a.dtype)
    down = above + rows - a.indices
    kept = down >= 0
    stored[a.indices[kept], down[kept]] = a.data[kept]
    return stored.T
