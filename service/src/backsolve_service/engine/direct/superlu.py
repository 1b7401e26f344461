"""Sparse LU on the CPU (SciPy's SuperLU) in an ordering that the pattern alone decides.

SuperLU has no symbolic phase that can be called by itself and its factors do not pickle: a
factor must be solved with in the process that made it. It releases the interpreter's lock, and
several threads may solve with one factor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from scipy.sparse.linalg import splu

from backsolve.errors import MemoryBudgetError, SingularMatrixError
from backsolve.pattern import AnyPattern, IndexArray, Pattern
from backsolve.types import Array, Status, Trans

from ..base import Controls, Factor, FactorSpec, Outcome, Solver, Symbolic
from ..faults import factorize_each, singular, systems
from ..operand import Operand
from ..tolerance import pivoting_backward_error
from .mixed import factorize_mixed, is_mixed
from .ordering import Ordering, analyze

MAX_COLUMNS = 8
"""16 columns cost .3-.7 a column forward and as much as single ones transposed: little is gained beyond 8."""

_SPARSE_FILL = 15
"""nnz(L + U) over nnz(A) up to which panels of one column are faster; at 22 they are even."""

DIAGONAL_THRESHOLD = 1e-3
"""Keeps the ordering's fill and still pivots away from tiny diagonals; hard cases stayed at 1e-15."""

_AT_ONCE = 2**20
"""Entries of a batch that are multiplied at once."""


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
    anywhere = True
    max_columns = MAX_COLUMNS

    @property
    def nbytes(self) -> int:
        """Bytes of L and U (never touch `lu.L` for this: it copies)."""
        per_entry = self.operand.dtype.itemsize + np.dtype(np.intc).itemsize
        return self.copies * sum(int(lu.nnz) * per_entry for lu in self.handles if lu is not None)

    @property
    def condition(self) -> float | None:
        """Not estimated here: `conditioning.lower_bound` asks for it, once."""
        return None

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """Two triangular sweeps.

        A transposed block of columns costs as much as its columns singly. A single column is solved faster with the
        transpose, so a matrix that is its own is taken for that.
        """
        del controls
        conjugate = trans == "H" and self.operand.dtype.kind == "c"  # Aᴴ is not A, though Aᵀ be
        if rhs.shape[-1] == 1 and "T" in self.operand.unchanged_by and not conjugate:
            trans = "T"
        x = solve_systems(self.handles, self.ordering, rhs, trans)
        return Outcome(x, self.statuses, (0,) * len(self.statuses))

    def solve_each(self, columns: Sequence[Array], trans: Trans) -> list[Array] | None:
        """SuperLU works on columns, and so do the permutations: nothing is transposed."""
        lu = self.handles[0] if len(self.handles) == 1 and self.operand.batch is None else None
        if lu is None:
            return None
        permuted = np.empty((len(columns), self.operand.n), dtype=self.operand.dtype)
        for row, column in zip(permuted, columns, strict=True):
            column.take(self.ordering.order, out=row, mode="clip")  # "raise" would go through a buffer
        return [row.take(self.ordering.inverse) for row in np.asarray(lu.solve(permuted.T, trans)).T]


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
        if operand.batch == 0:
            return SuperLuFactor(operand, symbolic, (), ())
        permuted = symbolic.each_permuted(operand.values.reshape(systems(operand), -1))
        threshold = DIAGONAL_THRESHOLD if symbolic.symmetric else 1.0
        handles, statuses = factorize_each(operand, lambda index: _decomposed(permuted(index), symbolic, threshold))
        if symbolic.symmetric:
            handles, statuses = _pivoted(operand, symbolic, handles, statuses)
        return SuperLuFactor(operand, symbolic, handles, statuses)


def _decomposed(b: Any, ordering: Ordering, threshold: float) -> Any:
    """A handle in the cached ordering; with full pivoting where that one ends at a zero pivot.

    Pivots kept near the diagonal may run out, or overflow, in a matrix that is not singular.
    """
    try:
        return decompose(b, symmetric=ordering.symmetric, threshold=threshold, panel=panel_size(ordering))
    except SingularMatrixError:
        if not ordering.symmetric:
            raise
        return decompose(b, symmetric=False, threshold=1.0)


def panel_size(ordering: Ordering) -> int | None:
    """Columns that SuperLU eliminates together; None: its own choice.

    Panels pay where columns share most of their entries. Factors with little fill share few: one
    column at a time takes .60 to .77 of the time on plane meshes and circuits, up to 1.8 on cubes.
    """
    if ordering.fill is None or ordering.fill.entries > _SPARSE_FILL * max(ordering.pattern.nnz, 1):
        return None
    return 1


def decompose(b: Any, *, symmetric: bool, threshold: float, panel: int | None = None) -> Any:
    """SuperLU's handle of one permuted matrix; None when n is 0.

    Args:
        b: CSC, in the cached ordering.
        symmetric: keep that ordering and prefer pivots on the diagonal; else order columns
            anew (COLAMD) and pivot fully.
        threshold: of the column's largest entry, above which the diagonal stays the pivot.
        panel: as `panel_size` has it.

    Raises:
        SingularMatrixError, MemoryBudgetError: as `SuperLu.factorize`.
    """
    if b.shape[0] == 0:
        return None
    how = {"permc_spec": "NATURAL" if symmetric else "COLAMD", "diag_pivot_thresh": threshold}
    try:
        return splu(b, **how, panel_size=panel, options={"SymmetricMode": symmetric})
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


def _pivoted(
    operand: Operand, ordering: Ordering, handles: tuple[Any, ...], statuses: tuple[Status, ...]
) -> tuple[tuple[Any, ...], tuple[Status, ...]]:
    """Full pivoting for the systems in which pivots on the diagonal turn out not to be good enough."""
    weak = _backward_errors(operand, ordering, handles) > pivoting_backward_error(operand.dtype)
    if not weak.any():
        return handles, statuses
    permuted = ordering.each_permuted(operand.values.reshape(systems(operand), -1))

    def again(index: int) -> Any:
        return decompose(permuted(index), symmetric=False, threshold=1.0) if weak[index] else handles[index]

    anew, found = factorize_each(operand, again)
    # What had no factor before was not tried again.
    return anew, tuple(old if old is not Status.OK else new for old, new in zip(statuses, found, strict=True))


def _backward_errors(operand: Operand, ordering: Ordering, handles: tuple[Any, ...]) -> Array:
    """Of one solve with each factor, `[systems]`; 0 without a factor, infinite if meaningless."""
    n = operand.n
    made = np.array([lu is not None for lu in handles], dtype=bool)
    errors = np.zeros(made.size)
    if n == 0 or not made.any():
        return errors
    # Signs without a pattern of their own: the top bits of multiples of an odd number.
    multiples = np.arange(n, dtype=np.uint32) * np.uint32(2_654_435_769)
    b = np.where(multiples >> 31, 1, -1).astype(operand.dtype)
    permuted = b.take(ordering.order)
    x = np.stack([lu.solve(permuted) for lu in handles if lu is not None]).take(ordering.inverse, axis=1)
    x = x.astype(operand.wide_dtype, copy=False)
    with np.errstate(all="ignore"):
        residual = np.abs(b - _products(operand, np.flatnonzero(made), x)).max(axis=1)
        size = np.abs(x).max(axis=1)
        found = residual / size / (operand.norm_table[made, 1] + 1.0 / size)
        # Not a number (an overflow on the way) is as bad as it gets.
        errors[made] = np.where((residual < np.inf) & (size > 0) & (size < np.inf), found, np.inf)
    return errors


def _products(operand: Operand, which: Array, x: Array) -> Array:
    """`A x` of some systems in float64, `[some, n]`."""
    if operand.batch is None:
        return operand.product(0, x[0][:, None], "N")[:, 0][None]
    pattern = operand.pattern
    assert isinstance(pattern, Pattern)
    product = np.empty_like(x)
    step = max(_AT_ONCE // pattern.nnz, 1)
    for start in range(0, which.size, step):
        some = slice(start, start + step)
        terms = operand.wide_values[which[some]] * x[some].take(pattern.indices, axis=1)
        # No row is empty: the pattern is not structurally singular.
        product[some] = np.add.reduceat(terms, pattern.indptr[:-1], axis=1)
    return product
