"""Sparse Cholesky by CHOLMOD (Debian's libcholmod3), in dense blocks where there is much fill, else by columns.

The analysis is kept per pattern; each factor is made on a copy of it. The library is the system's, with
the system's BLAS, and runs in a process of its own: that BLAS may be one that only one thread may use,
and whoever shares it would be given wrong numbers. What CHOLMOD does by columns is under the LGPL-2.1+,
what it does by dense blocks under the GPL-2+.

Source: Chen, Davis, Hager and Rajamanickam, "Algorithm 887: CHOLMOD, supernodal sparse Cholesky
factorization and update/downdate", ACM Transactions on Mathematical Software 35 (2008).
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import final

import numpy as np

from backsolve.errors import InvalidOptionError, NotSupportedError
from backsolve.pattern import AnyPattern, IndexArray
from backsolve.types import Array, Status, Trans

from ...base import Controls, Factor, FactorSpec, Outcome, Solver, Symbolic
from ...faults import factorize_each, not_definite
from ...operand import Operand
from ...symmetry import hermitian_systems
from ..columns import by_columns, checked, solve_each
from ..graph import graph_of, nested_dissection
from ..ordering import dissection_nanoseconds
from .numeric import Analysis, Numeric

MAX_COLUMNS = 16
"""A column of 16 costs .40 to .67 of one alone; more columns gain nothing."""

_NS_PER_ENTRY, _NS_PER_OPERATION = 60.0, 0.12
"""CHOLMOD's time in the entries of L and in operations, with OpenBLAS: right within 1.6 on meshes of 8000 to 100 000
rows in the plane and in space. With the reference BLAS an operation takes four times as long."""


@final
@dataclass(frozen=True, eq=False)
class CholmodSymbolic(Symbolic):
    """What CHOLMOD has found of a pattern.

    Attributes:
        pattern: the pattern.
        indptr, indices: its lower triangle by columns, int64.
        positions: which entry of the canonical values stands at each entry of that.
        kind: of the ordering, "mmd" (approximate minimum degree) or "nd".
        analysis: CHOLMOD's; None when n is 0.
    """

    pattern: AnyPattern
    indptr: IndexArray
    indices: IndexArray
    positions: IndexArray
    kind: str
    analysis: Analysis | None

    def triangle(self, values: Array) -> Array:
        """The lower triangle of one system; its diagonal real, since a rounding beside that is no positive pivot."""
        lower = values.take(self.positions)
        if lower.dtype.kind == "c":
            columns = np.flatnonzero(np.diff(self.indptr))
            first = self.indptr[columns]  # entries are sorted within a column, so a diagonal one comes first
            first = first[self.indices[first] == columns]
            lower[first] = lower[first].real
        return lower

    @property
    def nbytes(self) -> int:
        """Bytes of the analysis, of the triangle and of the gather."""
        own = 0 if self.analysis is None else self.analysis.nbytes
        return own + int(self.indptr.nbytes + self.indices.nbytes + self.positions.nbytes)

    def predicted_nbytes(self, precision: str) -> int | None:
        """Bytes of L, which has no pivots to choose: exactly what it will hold."""
        return 0 if self.analysis is None else self.analysis.factor_nbytes(complex_=np.dtype(precision).kind == "c")


@final
@dataclass(frozen=True, eq=False)
class CholmodFactor(Factor):
    """L of each system in double precision; None where a system has no factor."""

    operand: Operand
    handles: tuple[Numeric | None, ...]
    statuses: tuple[Status, ...]

    direct = True
    max_columns = MAX_COLUMNS

    @property
    def nbytes(self) -> int:
        """Bytes of L."""
        return sum(handle.nbytes for handle in self.handles if handle is not None)

    @property
    def condition(self) -> float | None:
        """Not estimated: CHOLMOD's own figure compares pivots, and sees less than the certificate's lower bound."""
        return None

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """Two triangular sweeps, in double precision."""
        del controls
        x = solve_each(self.handles, rhs, lambda handle, b: _solved(handle, b, trans))
        return Outcome(x, self.statuses, (0,) * len(self.statuses))


def _solved(handle: Numeric, b: Array, trans: Trans) -> Array:
    """`op(A)⁻¹ b`, where Aᴴ is A and so Aᵀ its conjugate."""
    conjugate = trans == "T" and b.dtype.kind == "c"
    wide = np.complex128 if b.dtype.kind == "c" else np.float64
    given = np.asfortranarray(np.conj(b) if conjugate else b, dtype=wide)
    x = handle.solve(given)
    return (np.conj(x) if conjugate else x).astype(b.dtype, copy=False)


@final
class Cholmod(Solver):
    """Hermitian positive definite sparse matrices; anything else is refused, with the column that shows it."""

    name = "cholmod"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Order the pattern, and count what the factor will hold.

        Args:
            pattern: where the entries are.
            spec: whose `ordering` is "mmd" (the library's approximate minimum degree), "nd", or "auto": nested
                dissection where finding it should take less time than one factorization, and costs less.

        Raises:
            SingularMatrixError: no values on this pattern are invertible.
            InvalidPatternError: the pattern is dense.
            InvalidOptionError: an ordering of matrices that are not symmetric.
            NotSupportedError: it has more entries than 32-bit indices reach, or the library cannot be used.
            MemoryBudgetError: the analysis does not fit in memory.
        """
        wanted = (spec and spec.ordering) or "auto"
        if wanted == "colamd":
            raise InvalidOptionError(
                "method 'cholmod' keeps rows and columns in one order, and ordering 'colamd' is of columns alone: "
                "use 'mmd' or 'nd'",
                option="ordering",
                method=self.name,
            )
        columns = by_columns(pattern, self.name, lower=True)
        indptr, indices = columns.indptr.astype(np.int64), columns.indices.astype(np.int64)
        kind, analysis = "mmd", None
        if pattern.n:
            kind, analysis = _ordered(pattern, indptr, indices, wanted)
        return CholmodSymbolic(pattern, indptr, indices, columns.positions, kind, analysis)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Factorize on copies of the analysis.

        Raises:
            NotPositiveDefiniteError: not Hermitian, or `details["column"]` has no positive pivot.
            NonfiniteInputError: the matrix holds NaN or infinity.
            MemoryBudgetError: L does not fit in memory.
        """
        del spec
        symbolic.check(operand)
        assert isinstance(symbolic, CholmodSymbolic)
        hermitian = hermitian_systems(operand) if operand.batch != 0 else np.zeros(0, dtype=bool)

        def factorize(index: int) -> Numeric | None:
            if not hermitian[index]:
                raise not_definite(None, self.name, "superlu")
            if symbolic.analysis is None:
                return None
            return symbolic.analysis.factorized(symbolic.triangle(operand.wide[index].data))

        return CholmodFactor(operand, *factorize_each(operand, factorize))


def _ordered(of: AnyPattern, indptr: IndexArray, indices: IndexArray, wanted: str) -> tuple[str, Analysis]:
    """The kind of ordering, and the analysis in it."""
    pattern, facts = checked(of, Cholmod.name)
    n = pattern.n

    def dissected() -> Analysis:
        return Analysis(n, indptr, indices, nested_dissection(graph_of(pattern, facts)))

    if wanted == "nd":
        return "nd", dissected()
    found = Analysis(n, indptr, indices, None)
    if wanted == "auto" and _nanoseconds(found) > dissection_nanoseconds(pattern.nnz):
        with suppress(NotSupportedError):  # no process can be started here: what was found serves as well
            other = dissected()
            if _nanoseconds(other) < _nanoseconds(found):
                return "nd", other
    return "mmd", found


def _nanoseconds(analysis: Analysis) -> float:
    """About what a factorization takes: good for comparisons."""
    return _NS_PER_ENTRY * analysis.entries + _NS_PER_OPERATION * analysis.operations
