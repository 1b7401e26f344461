"""Sparse LU by KLU, for circuits and other matrices with little fill (LGPL-2.1+; extra "klu").

The binding `nbklu` holds the interpreter's lock during every call, so the method runs in a process
of its own. The analysis is kept per pattern and every factorization pivots anew: reusing the
pivots of other values (KLU's refactorization) halves its time, but needs a factor that may be
overwritten, and loses digits where the values have moved far.

Source: Davis and Palamadai Natarajan, "Algorithm 907: KLU, a direct sparse solver for circuit
simulation problems", ACM Transactions on Mathematical Software 37 (2010).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from nbklu import _ext as library

from backsolve.errors import MemoryBudgetError, NotSupportedError
from backsolve.pattern import AnyPattern
from backsolve.types import Array, Status, Trans

from ..base import Controls, Factor, FactorSpec, Outcome, Solver, Symbolic
from ..faults import factorize_each, singular
from ..operand import Operand
from ..tolerance import pivoting_backward_error
from .columns import Columns, by_columns, solve_each
from .probe import probe

MAX_COLUMNS = 16
"""A column of 16 costs .3-.5 of one alone."""

_BYTES_PER_INDEX = 8
"""KLU stores an index in the room of a number."""


@final
class Held:
    """An object of the library, freed with this one: the binding frees nothing by itself."""

    def __init__(self, made: Any, free: Callable[[Any, Any], int]) -> None:
        self.made = made
        self._free = free
        self._common = _common()  # made now: when the interpreter ends, nothing can be looked up any more

    def __del__(self) -> None:
        self._free(self.made, self._common)


@final
@dataclass(frozen=True, eq=False)
class KluSymbolic(Symbolic):
    """The block triangular form of a pattern and the order within its blocks.

    Attributes:
        pattern: the pattern.
        columns: the pattern by columns.
        handle: KLU's; None when n is 0.
    """

    pattern: AnyPattern
    columns: Columns
    handle: Held | None

    @property
    def nbytes(self) -> int:
        """Bytes of the analysis (six vectors) and of the gather."""
        return self.columns.nbytes + 6 * 4 * self.pattern.n

    def predicted_nbytes(self, precision: str) -> int | None:
        """As much as L and U have at least, if every pivot is on the diagonal."""
        if self.handle is None:
            return 0
        made = self.handle.made
        entries = int(max(made.lnz, 0) + max(made.unz, 0)) + int(made.nzoff)
        return entries * (np.dtype(precision).itemsize + _BYTES_PER_INDEX)


@final
@dataclass(frozen=True, eq=False)
class KluFactor(Factor):
    """L, U and the entries above the diagonal blocks; None where a system has no factor."""

    operand: Operand
    symbolic: KluSymbolic
    handles: tuple[Held | None, ...]
    statuses: tuple[Status, ...]

    direct = True
    max_columns = MAX_COLUMNS

    @property
    def nbytes(self) -> int:
        """Bytes of the factors' entries with their indices."""
        per_entry = self.operand.wide_dtype.itemsize + _BYTES_PER_INDEX
        made = [handle.made for handle in self.handles if handle is not None]
        return sum((int(each.lnz) + int(each.unz) + int(each.nzoff)) * per_entry for each in made)

    @property
    def condition(self) -> float | None:
        """Not estimated: KLU's own estimate costs solves. The certificate has a free lower bound."""
        return None

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """Two triangular sweeps a block, in double precision."""
        del controls
        x = solve_each(self.handles, rhs, lambda handle, b: solve_one(self.symbolic, handle, b, trans))
        return Outcome(x, self.statuses, (0,) * len(self.statuses))


@final
class Klu(Solver):
    """Any square nonsingular sparse matrix; computed in double precision."""

    name = "klu"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Find the block triangular form, and order each block by minimum degree."""
        del spec
        columns = by_columns(pattern, self.name)
        handle = None
        if pattern.n:
            common = _common()
            made = library.analyze(pattern.n, columns.indptr, columns.indices, common)
            _check(common)
            handle = Held(made, library.free_symbolic)
        return KluSymbolic(pattern, columns, handle)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Factorize with pivots near the diagonal, and with full pivoting where a probe shows that it must be.

        Raises:
            SingularMatrixError: a pivot is exactly zero.
            NonfiniteInputError: the matrix holds NaN or infinity.
            MemoryBudgetError: L and U do not fit in memory.
        """
        del spec
        symbolic.check(operand)
        assert isinstance(symbolic, KluSymbolic)
        handles, statuses = factorize_each(operand, lambda index: _one(symbolic, operand, index))
        return KluFactor(operand, symbolic, handles, statuses)


def _one(symbolic: KluSymbolic, operand: Operand, index: int) -> Held | None:
    if symbolic.handle is None:
        return None
    values = operand.wide[index].data.take(symbolic.columns.positions)
    handle = _numeric(symbolic, values, None if symbolic.columns.full_diagonal else 1.0)
    limit = pivoting_backward_error(operand.dtype)
    if probe(lambda b: solve_one(symbolic, handle, b, "N"), operand, index) <= limit:
        return handle
    return _numeric(symbolic, values, 1.0)


def _numeric(symbolic: KluSymbolic, values: Array, tolerance: float | None) -> Held:
    """Factorize; the diagonal stays the pivot above `tolerance` of its column's largest entry (KLU's own: 0.001)."""
    assert symbolic.handle is not None
    columns, common = symbolic.columns, _common()
    if tolerance is not None:
        common.tol = tolerance
    factor, free = library.factor, library.free_numeric
    if values.dtype.kind == "c":
        factor, free = library.z_factor, library.z_free_numeric
    made = factor(columns.indptr, columns.indices, values, symbolic.handle.made, common)
    _check(common)  # before anything else: of a failure, what the binding returns holds a null pointer
    return Held(made, free)


def _common() -> Any:
    """KLU's settings and status; the binding leaves them all zero, which among other things means no pivoting."""
    common = library.Common()
    common.defaults()
    return common


def _check(common: Any) -> None:
    """Raise what the status of the last call says."""
    if common.status == library.KLU_OK:
        return
    if common.status == library.KLU_SINGULAR:
        raise singular()
    if common.status == library.KLU_OUT_OF_MEMORY:
        raise MemoryBudgetError("the factors L and U do not fit in memory: try method 'cg' if A is definite")
    if common.status == library.KLU_TOO_LARGE:
        raise NotSupportedError("the factors are larger than 32-bit indices reach: use method 'superlu'")
    raise RuntimeError(f"KLU returned status {common.status}")


def solve_one(symbolic: KluSymbolic, handle: Held, b: Array, trans: Trans) -> Array:
    """`op(A)⁻¹ b` of one system, `[n, k]`, in b's element type."""
    assert symbolic.handle is not None
    n, k = b.shape
    complex_ = b.dtype.kind == "c"
    # KLU solves in place, column by column in memory.
    x: Any = np.array(b.T, dtype=np.complex128 if complex_ else np.float64, order="C", copy=True)
    common = _common()
    if trans == "N":
        solve = library.z_solve if complex_ else library.solve
        solve(symbolic.handle.made, handle.made, n, k, x, common)
    elif complex_:
        library.z_tsolve(symbolic.handle.made, handle.made, n, k, x, int(trans == "H"), common)
    else:
        library.tsolve(symbolic.handle.made, handle.made, n, k, x, common)
    _check(common)
    return np.asarray(x.T.astype(b.dtype))
