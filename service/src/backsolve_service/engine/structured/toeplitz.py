"""Toeplitz matrices by the Gohberg-Semencul formula: the inverse out of its first and last column.

With T x = e₁ and T y = eₙ, x₁ not 0, and Toeplitz matrices L (lower, first column given) and U (upper, first
row given),

    T⁻¹ = L(x / x₁) U(yₙ ... y₁) - L(0, y₁ ... yₙ₋₁) U(0, xₙ ... x₂) / x₁,

so that a solve costs six Fourier transforms of length 2n. The two columns come from an iteration
preconditioned by the nearest circulant matrix, in O(n log n) a step, or from Levinson's recursion in
O(n²); small matrices, and those on which the formula fails, are factorized as dense ones. Whether it
has failed is found by solving for a known vector, since neither recursion nor formula is stable for every T.

Sources: Gohberg and Semencul, Mat. Issled. 7 (1972); Heinig and Rost, "Algebraic methods for Toeplitz-like
matrices and operators", 1984, theorem 1.1; T. Chan, "An optimal circulant preconditioner for Toeplitz
systems", SIAM J. Sci. Stat. Comput. 9 (1988); Levinson, J. Math. Phys. 25 (1946), as in SciPy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from scipy.linalg import LinAlgError, solve_toeplitz
from scipy.sparse.linalg import LinearOperator, gmres

from backsolve.errors import NotSupportedError
from backsolve.kinds.base import NUMPY
from backsolve.kinds.fourier import back, fast_size, transform
from backsolve.pattern import StructuredPattern
from backsolve.types import Array

from .base import Prepared, StructuredSolver
from .small import SmallLu, small_lu

_DENSE_ROWS = 192
"""Up to here a dense LU solves as fast as six transforms, and is stable."""

_MOST_DENSE_ROWS = 4096
"""Up to here a dense LU takes at most a few seconds and 270 MB: the way out where the formula fails."""

_LEVINSON_ROWS = 1024
"""Up to here Levinson's recursion takes 20 ms, as an iteration does; it holds the interpreter's lock meanwhile."""

_MOST_LEVINSON_ROWS = 20_000
"""Beyond, the recursion would stop the whole process for more than a second."""

_GOOD = 1e-8
"""Error of a trial solve with which two steps of refinement reach rounding."""


@final
@dataclass(frozen=True, eq=False)
class DenseSystem(Prepared):
    """LU of all entries."""

    lu: SmallLu

    @property
    def nbytes(self) -> int:
        """Bytes of L and U."""
        return self.lu.nbytes

    def solve(self, rhs: Array, *, adjoint: bool) -> Array:
        """Two triangular sweeps."""
        return self.lu.solve(rhs, adjoint=adjoint)


@final
@dataclass(frozen=True, eq=False)
class GohbergSemencul(Prepared):
    """Transforms, `[.., 1]`, of the first columns of two lower factors, and of those of two upper ones' adjoints."""

    n: int
    size: int
    real: bool
    lower: tuple[Array, Array]
    upper: tuple[Array, Array]

    @property
    def nbytes(self) -> int:
        """Bytes of four transforms."""
        return sum(int(a.nbytes) for a in (*self.lower, *self.upper))

    def solve(self, rhs: Array, *, adjoint: bool) -> Array:
        """Six transforms of length 2n a column."""
        first, then = (self.lower, self.upper) if adjoint else (self.upper, self.lower)
        of_rhs = transform(NUMPY, rhs, self.size, real=self.real)
        total: Any = 0
        for a, b, sign in zip(first, then, (1, -1), strict=True):
            # U and Lᴴ are adjoints of lower factors: correlations, not convolutions.
            middle = back(NUMPY, np.conj(a) * of_rhs, self.size, real=self.real)[: self.n]
            total = total + sign * b * transform(NUMPY, middle, self.size, real=self.real)
        return np.asarray(back(NUMPY, total, self.size, real=self.real)[: self.n])


@final
class Toeplitz(StructuredSolver):
    """Any nonsingular Toeplitz matrix of at most 4096 rows, and larger ones on which the formula works."""

    name = "toeplitz"
    kind = "toeplitz"

    def prepare(self, pattern: StructuredPattern, parts: Mapping[str, Array]) -> Prepared:
        """Find the two columns and try the formula, or factorize all entries.

        Raises:
            SingularMatrixError: a pivot of the dense LU is exactly zero.
            NotSupportedError: too large for a dense LU, and the formula fails.
        """
        n, t = pattern.n, parts["t"]
        if n > _DENSE_ROWS:
            found = _fast(pattern, t)
            if found is not None:
                return found
        if n > _MOST_DENSE_ROWS:
            raise NotSupportedError(
                f"this Toeplitz matrix of {n} rows is singular, or too ill-conditioned for a fast method: shift its "
                "diagonal, or solve A.toarray() with method='lu'"
            )
        window = np.lib.stride_tricks.sliding_window_view(t, n)[:, ::-1] if n else np.zeros((0, 0), t.dtype)
        return DenseSystem(small_lu(np.ascontiguousarray(window)))


def _fast(pattern: StructuredPattern, t: Array) -> Prepared | None:
    """The formula, if it works."""
    n = pattern.n
    largest = float(np.abs(t).max())
    if largest == 0:
        return None
    # Of size 1, whatever the units: the columns of the inverse may else leave the range.
    scaled = t / largest
    ways: tuple[Callable[[StructuredPattern, Array], Array | None], ...] = (_iterated, _levinson)
    if n <= _LEVINSON_ROWS:
        ways = (_levinson,)
    with np.errstate(all="ignore"):
        for way in ways:
            columns = way(pattern, scaled)
            if columns is None or columns[0, 0] == 0 or not np.isfinite(columns).all():
                continue
            system = _formula(n, columns / columns[0, 0], columns[:, 1], largest)
            if _works(pattern, t, system):
                return system
    return None


def _formula(n: int, x: Array, y: Array, largest: float) -> Prepared:
    """Build it from `x / x₁` and y of `t / largest`."""
    x, y = x[:, :1], y[:, None] / largest
    size, real, zero = fast_size(2 * n - 1), x.dtype.kind != "c", np.zeros((1, 1), dtype=x.dtype)
    lower = (x, np.concatenate([zero, y[:-1]]))
    # An upper factor with first row u is the adjoint of the lower one with first column conj(u).
    upper = (np.conj(y[::-1]), np.concatenate([zero, np.conj(x[:0:-1])]))
    of_lower, of_upper = ([transform(NUMPY, a, size, real=real) for a in pair] for pair in (lower, upper))
    return GohbergSemencul(n, size, real, (of_lower[0], of_lower[1]), (of_upper[0], of_upper[1]))


def _works(pattern: StructuredPattern, t: Array, system: Prepared) -> bool:
    """Solve for a known vector, both ways."""
    n = pattern.n
    known = np.cos(np.arange(n, dtype=t.real.dtype) ** 2 % 1009)[:, None].astype(t.dtype)
    for adjoint in (False, True):
        rhs = pattern.kind.product(NUMPY, {"t": t}, known, adjoint=adjoint)
        x = system.solve(rhs, adjoint=adjoint)
        # One more step shows whether refinement would converge.
        x = x + system.solve(rhs - pattern.kind.product(NUMPY, {"t": t}, x, adjoint=adjoint), adjoint=adjoint)
        residual = rhs - pattern.kind.product(NUMPY, {"t": t}, x, adjoint=adjoint)
        size = pattern.kind.norms({"t": t})[0] * float(np.abs(x).max()) + float(np.abs(rhs).max())
        if not float(np.abs(residual).max()) <= _GOOD * size:
            return False
    return True


def _ends(n: int, dtype: "np.dtype[Any]") -> Array:
    ends = np.zeros((n, 2), dtype=dtype)
    ends[0, 0] = ends[-1, 1] = 1
    return ends


def _levinson(pattern: StructuredPattern, t: Array) -> Array | None:
    """First and last column of the inverse by Levinson's recursion; None where it breaks down."""
    n = pattern.n
    if n > _MOST_LEVINSON_ROWS:
        return None
    try:
        return np.asarray(solve_toeplitz((t[n - 1 :], t[n - 1 :: -1]), _ends(n, t.dtype), check_finite=False))
    except LinAlgError:
        return None


def _iterated(pattern: StructuredPattern, t: Array) -> Array | None:
    """The same by GMRES, preconditioned by the nearest circulant matrix; None where it does not converge."""
    n, real = pattern.n, t.dtype.kind != "c"
    below, above = t[n - 1 :], np.concatenate([t[:1] * 0, t[: n - 1]])
    index = np.arange(n)
    nearest = ((n - index) * below + index * above) / n
    eigenvalues = transform(NUMPY, nearest[:, None], n, real=real)
    if not np.abs(eigenvalues).min() > 0:
        return None

    def precondition(v: Array) -> Array:
        return np.asarray(back(NUMPY, transform(NUMPY, v.reshape(-1, 1), n, real=real) / eigenvalues, n, real=real))[
            :, 0
        ]

    def product(v: Array) -> Array:
        return np.asarray(pattern.kind.product(NUMPY, {"t": t}, v.reshape(-1, 1), adjoint=False))[:, 0]

    a, m = (LinearOperator((n, n), matvec=f, dtype=t.dtype) for f in (product, precondition))
    columns = []
    for end in _ends(n, t.dtype).T:
        x, unfinished = gmres(a, end, rtol=1e-13, atol=0.0, restart=30, maxiter=4, M=m)
        residual = float(np.abs(end - product(x)).max())
        if unfinished and not residual <= _GOOD:
            return None
        columns.append(x)
    return np.stack(columns, axis=1)
