"""Sparse least squares by one LU of the augmented system, whose conditioning is that of A rather than of AᴴA.

    [ alpha I        A         ] [ y ]   [ b ]
    [   Aᴴ    -(damp²/alpha) I ] [ x ] = [ 0 ],    y = (b - A x) / alpha

A right-hand side (0, -g / alpha) gives (AᴴA + damp² I)⁻¹ g in the place of x. The matrix is Hermitian
and, with damping, quasi-definite: it has an LU in every symmetric order. Of the sizes of alpha that
keep it as well-conditioned as A is, sigma_min / sqrt(2) is the best; sigma_min being unknown, alpha is
a thousandth of ||A||, and damp where that is more. Computed in double precision whatever A is stored in.

Source: Björck, "Numerical methods for least squares problems", SIAM, 1996, sections 2.5.3 (the best
alpha) and 7.7.1; Saunders, "Solution of sparse rectangular systems using LSQR and Craig", BIT 35
(1995), on quasi-definite systems.
"""

from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from scipy.sparse import coo_array

from backsolve.errors import InvalidPatternError, SingularMatrixError
from backsolve.matrix import Matrix
from backsolve.pattern import AnyPattern, IndexArray, Pattern
from backsolve.types import Array, Status, Trans

from ..base import Controls, Factor, FactorSpec, Outcome, Solver, Symbolic
from ..direct.condition import condition_number, inverse_norm
from ..direct.ordering import Ordering, predicted_fill
from ..direct.superlu import MAX_COLUMNS, SuperLu, SuperLuFactor, solve_one
from ..faults import factorize_each, systems
from ..operand import Operand
from ..scaling import exponents, shift
from .base import LeastSquaresFactor, largest_column, no_answer

_ALPHA = 1e-3
"""Of ||A||; MATLAB's `spaugment` takes the same part of the largest entry."""

_RESOLVED = 3e4
"""Rounding moves sigma² by eps alpha ||A||, and by up to 640 times that in 290 random matrices with a dependent
column (one run); what is not this many times larger may have been zero."""


@final
@dataclass(frozen=True, eq=False)
class Augmented(Symbolic):
    """The augmented pattern, and its ordering.

    Attributes:
        pattern: of A.
        whole: of the augmented matrix, its diagonal stored.
        source: `[nnz]` for each of its entries the place in (alpha of each row, A, conj(A), the lower diagonal).
        ordering: of it.
    """

    pattern: AnyPattern
    whole: Pattern
    source: IndexArray
    ordering: Ordering

    @property
    def nbytes(self) -> int:
        """Bytes of pattern, gather and ordering."""
        arrays = (self.whole.indptr, self.whole.indices, self.source)
        return sum(int(a.nbytes) for a in arrays) + self.ordering.nbytes

    def predicted_nbytes(self, precision: str) -> int | None:
        """Bytes of L and U, which are in double precision."""
        return self.ordering.predicted_nbytes("complex128" if precision.startswith("complex") else "float64")

    def predicted_fill(self) -> float | None:
        """Of the augmented matrix."""
        entries = predicted_fill(self.ordering)
        return None if entries is None else entries / max(self.whole.nnz, 1)


@final
@dataclass(frozen=True, eq=False)
class AugmentedFactor(LeastSquaresFactor):
    """LU of each augmented system; None where there is none.

    Attributes:
        inner: the factor of the augmented matrices.
        exponents: `[systems]` A is 2ᵉ times what stands in them.
        alphas: `[systems]` alpha.
        estimate: the largest condition number of Ā, from below; None: nothing to estimate.
    """

    operand: Operand
    damp: float
    inner: SuperLuFactor
    exponents: Array
    alphas: Array
    statuses: tuple[Status, ...]
    estimate: float | None

    direct = True
    anywhere = True
    independent = True
    max_columns = MAX_COLUMNS

    @property
    def nbytes(self) -> int:
        """Bytes of L and U."""
        return self.inner.nbytes

    @property
    def condition(self) -> float | None:
        """Estimated when the factor was made."""
        return self.estimate

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """Two triangular sweeps over the augmented factor."""
        del trans
        m, n = self.operand.pattern.shape
        stacked = (rhs if rhs.ndim == 3 else rhs[None]).astype(self.operand.wide_dtype, copy=False)
        x = no_answer(stacked.shape[0], n, stacked.shape[2], self.operand.wide_dtype)
        for index, handle in enumerate(self.inner.handles):
            if self.statuses[index] is not Status.OK:
                continue
            x[index] = _solved(
                handle, self.inner.ordering, stacked[index], m, float(self.alphas[index]), cotangent=controls.cotangent
            )
        x = shift(x, -(2 if controls.cotangent else 1) * self.exponents[:, None, None])
        return Outcome(x if rhs.ndim == 3 else x[0], self.statuses, (0,) * len(self.statuses))


@final
class LeastSquaresSuperLu(Solver):
    """Any sparse matrix with independent columns, or with damping."""

    name = "lstsq_superlu"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Order the augmented pattern, and predict its fill.

        Raises:
            InvalidPatternError: the matrix is dense.
        """
        if not isinstance(pattern, Pattern):
            raise InvalidPatternError("method 'lstsq_superlu' takes sparse matrices: use method 'lstsq_qr'")
        m, n = pattern.shape
        above, below = np.arange(m), np.arange(m, m + n)
        rows = np.concatenate([above, pattern.rows, m + pattern.indices, below])
        columns = np.concatenate([above, m + pattern.indices, pattern.rows, below])
        # Entry numbers ride through the conversion as data (exact: they are integers).
        whole = coo_array((np.arange(rows.size), (rows, columns)), shape=(m + n, m + n)).tocsr()
        whole.sort_indices()
        augmented = Pattern(whole.indptr, whole.indices, (m + n, m + n))
        ordering = SuperLu().analyze(augmented, spec)
        assert isinstance(ordering, Ordering)
        return Augmented(pattern, augmented, whole.data, ordering)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Scale each system, factorize it, and refuse it where its columns may be dependent.

        Raises:
            SingularMatrixError: the columns of A are linearly dependent, or so near it that the
                answer would be made of rounding errors.
            NonfiniteInputError: the matrix holds NaN or infinity.
            MemoryBudgetError: L and U do not fit in memory.
        """
        symbolic.check(operand)
        assert isinstance(symbolic, Augmented)
        m, n = operand.pattern.shape
        if m < n and not spec.damp:
            raise _dependent("A has fewer rows than columns, which are therefore linearly dependent")
        count = systems(operand)
        values, powers, alphas = _augmented(symbolic, operand, spec.damp)
        batch = values if operand.batch is not None else values[0]
        whole = Operand(Matrix(symbolic.whole, batch))
        try:
            inner = SuperLu().factorize(symbolic.ordering, whole, replace(spec, precision=whole.dtype.name))
        except SingularMatrixError:
            raise _dependent("the columns of A are linearly dependent") from None
        assert isinstance(inner, SuperLuFactor)
        estimates = np.ones(count)

        def proved(index: int) -> None:
            if inner.statuses[index] is not Status.OK or n == 0:
                return
            alpha = float(alphas[index])
            norm = largest_column(operand.wide[index], spec.damp) * 2.0 ** -int(powers[index])

            def normal(v: Array) -> Array:
                return _solved(inner.handles[index], inner.ordering, v, m, alpha, cotangent=True)

            size = inverse_norm(normal, normal, n, operand.wide_dtype)
            if size * _RESOLVED * np.finfo(np.float64).eps * alpha * norm >= 1:
                raise _dependent("the columns of A are linearly dependent, or too nearly so for this method")
            estimates[index] = condition_number(norm, float(np.sqrt(size)))

        _, statuses = factorize_each(operand, proved)
        merged = tuple(new if old is Status.OK else old for old, new in zip(inner.statuses, statuses, strict=True))
        estimate = float(estimates.max()) if n and count else None
        return AugmentedFactor(operand, spec.damp, inner, powers, alphas, merged, estimate)


def _augmented(symbolic: Augmented, operand: Operand, damp: float) -> tuple[Array, Array, Array]:
    """The augmented values of each system, its exponent, and its alpha."""
    m, n = operand.pattern.shape
    count = systems(operand)
    a = operand.wide_values.reshape(count, operand.pattern.nnz)
    values: Array = np.empty((count, symbolic.whole.nnz), dtype=operand.wide_dtype)
    powers, alphas = np.zeros(count, dtype=np.int64), np.ones(count)
    for index in range(count):
        norm = largest_column(operand.wide[index], damp) if operand.pattern.nnz else damp
        powers[index] = int(exponents(np.asarray(norm if np.isfinite(norm) else 1.0)))
        scaled = shift(a[index], np.full(1, -powers[index]))
        small = float(np.ldexp(damp, -powers[index]))
        alphas[index] = alpha = max(_ALPHA, small)
        parts = [np.full(m, alpha), scaled, scaled.conj(), np.full(n, -small * (small / alpha))]
        values[index] = np.concatenate(parts).take(symbolic.source)
    return values, powers, alphas


def _solved(handle: Any, ordering: Ordering, rhs: Array, m: int, alpha: float, *, cotangent: bool) -> Array:
    """`G Aᴴ rhs`, or with a cotangent `G rhs`, of one scaled system; `rhs` is `[m, k]` or `[n, k]`."""
    size = ordering.pattern.n
    full = np.zeros((size, rhs.shape[1]), dtype=rhs.dtype)
    if cotangent:
        full[m:] = rhs / -alpha
    else:
        full[:m] = rhs
    return solve_one(handle, ordering, full, "N")[m:]


def _dependent(what: str) -> SingularMatrixError:
    return SingularMatrixError(
        f"{what}, so that no minimiser is the only one: use method 'lstsq_lsmr' for the shortest, or damp",
        kind="numeric",
    )
