"""Sparse LU on the CPU (SciPy's SuperLU) in an ordering that the pattern alone decides.

SuperLU has no symbolic phase that can be called by itself and its factors do not pickle: a
factor must be solved with in the process that made it. It releases the interpreter's lock, and
several threads may solve with one factor.
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from scipy.sparse.linalg import splu

from backsolve.errors import MemoryBudgetError
from backsolve.pattern import AnyPattern, IndexArray
from backsolve.types import Array, Status, Trans

from ..base import Controls, Factor, FactorSpec, Outcome, Solver, Symbolic
from ..faults import factorize_each, singular
from ..operand import Operand
from ..tolerance import pivoting_backward_error
from .mixed import factorize_mixed, is_mixed
from .ordering import Ordering, analyze

MAX_COLUMNS = 8
"""16 columns cost .3-.7 a column forward and as much as single ones transposed: little is gained beyond 8."""

DIAGONAL_THRESHOLD = 1e-3
"""Keeps the ordering's fill and still pivots away from tiny diagonals; hard cases stayed at 1e-15."""

_PROBE_SEED = 615_730_284


@final
@dataclass(frozen=True, eq=False)
class SuperLuFactor(Factor):
    """`L U` of the permuted matrix, or of each of a batch; None where a system has no factor.

    Attributes:
        copies: how often SuperLU holds L and U: twice once anybody has read `lu.L` or `lu.U`,
            since it keeps what it hands out.
    """

    operand: Operand
    ordering: Ordering
    handles: tuple[Any, ...]
    statuses: tuple[Status, ...]
    copies: int = 1

    direct = True
    max_columns = MAX_COLUMNS

    @property
    def nbytes(self) -> int:
        """Bytes of L and U (never touch `lu.L` for this: it copies)."""
        per_entry = self.operand.dtype.itemsize + np.dtype(np.intc).itemsize
        return self.copies * sum(int(lu.nnz) * per_entry for lu in self.handles if lu is not None)

    @property
    def condition(self) -> float | None:
        """Not estimated: it would cost several solves. The certificate has a free lower bound."""
        return None

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """Two triangular sweeps; a transposed block of columns costs as much as its columns singly."""
        del controls
        x = solve_systems(self.handles, self.ordering, rhs, trans)
        return Outcome(x, self.statuses, (0,) * len(self.statuses))


@final
class SuperLu(Solver):
    """Any square nonsingular sparse matrix."""

    name = "superlu"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Order the pattern, and predict the fill."""
        return analyze(pattern, self.name, spec)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Factorize in the cached ordering, and with full pivoting where a probe solve shows that it must be.

        Raises:
            SingularMatrixError: a pivot is exactly zero (SuperLU does not say which).
            NonfiniteInputError: the matrix holds NaN or infinity.
            MemoryBudgetError: L and U do not fit in memory.
        """
        symbolic.check(operand)
        if is_mixed(operand, spec):
            return factorize_mixed(self, symbolic, operand, spec, symmetric=False)
        assert isinstance(symbolic, Ordering)
        handles, statuses = factorize_each(
            operand, lambda index: _factorize(symbolic, operand, index, operand.systems[index].data)
        )
        return SuperLuFactor(operand, symbolic, handles, statuses)


def decompose(b: Any, *, symmetric: bool, threshold: float) -> Any:
    """SuperLU's handle of one permuted matrix; None when n is 0.

    Args:
        b: CSC, in the cached ordering.
        symmetric: keep that ordering and prefer pivots on the diagonal; else order columns
            anew (COLAMD) and pivot fully.
        threshold: of the column's largest entry, above which the diagonal stays the pivot.

    Raises:
        SingularMatrixError, MemoryBudgetError: as `SuperLu.factorize`.
    """
    if b.shape[0] == 0:
        return None
    how = {"permc_spec": "NATURAL" if symmetric else "COLAMD", "diag_pivot_thresh": threshold}
    try:
        return splu(b, **how, options={"SymmetricMode": symmetric})
    except RuntimeError as err:  # SciPy has no type of its own for this failure
        if "singular" not in str(err):
            raise
        raise singular() from err
    except MemoryError as err:
        raise MemoryBudgetError("the factors L and U do not fit in memory: try method 'cg' if A is definite") from err


def solve_systems(handles: tuple[Any, ...], ordering: Ordering, rhs: Array, trans: Trans) -> Array:
    """`op(A)⁻¹ rhs` for each system; NaN where there is no factor."""
    if rhs.ndim == 2:
        return solve_one(handles[0], ordering, rhs, trans)
    x = np.full(rhs.shape, np.nan, dtype=rhs.dtype)
    for index, lu in enumerate(handles):
        if lu is not None or ordering.pattern.n == 0:
            x[index] = solve_one(lu, ordering, rhs[index], trans)
    return x


def solve_one(lu: Any, ordering: Ordering, rhs: Array, trans: Trans) -> Array:
    """`op(A)⁻¹ rhs` of one system, `[n, k]`."""
    n, k = rhs.shape
    if n == 0 or k == 0:
        return rhs.copy()
    order: IndexArray = ordering.order
    inverse: IndexArray = ordering.inverse
    if k == 1:
        return np.asarray(lu.solve(rhs.reshape(n).take(order), trans)).take(inverse).reshape(n, 1)
    # SuperLU works on columns: Fortran order spares its copy.
    return np.asarray(lu.solve(np.asfortranarray(rhs.take(order, axis=0)), trans)).take(inverse, axis=0)


def _factorize(ordering: Ordering, operand: Operand, index: int, values: Array) -> Any:
    permuted = ordering.permuted(values)
    lu = decompose(permuted, symmetric=ordering.symmetric, threshold=DIAGONAL_THRESHOLD if ordering.symmetric else 1.0)
    if lu is None or not ordering.symmetric:
        return lu
    limit = pivoting_backward_error(operand.dtype)
    if _probe(lu, ordering, operand, index) <= limit:
        return lu
    return decompose(permuted, symmetric=False, threshold=1.0)


def _probe(lu: Any, ordering: Ordering, operand: Operand, index: int) -> float:
    """Backward error of one solve, to see whether pivots on the diagonal were good enough; infinite if meaningless."""
    signs = np.random.default_rng(_PROBE_SEED).integers(0, 2, size=(operand.n, 1)) * 2 - 1
    b = signs.astype(operand.dtype)
    x = solve_one(lu, ordering, b, "N").astype(operand.wide_dtype)
    with np.errstate(all="ignore"):
        residual = float(np.abs(b - operand.product(index, x, "N")).max())
        size = float(np.abs(x).max())
    # Not a number (an overflow on the way) is as bad as it gets.
    if not (residual < np.inf and 0 < size < np.inf):
        return float("inf")
    return residual / size / (operand.norm(index, "N") + 1.0 / size)
