"""A polynomial in A: nothing but products with A, so it runs as fast as those do."""

from typing import Any, final

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal

from backsolve.types import Array

from .base import Preconditioner
from .forms import unit_diagonal

_STEPS = 12
"""Of Lanczos, for the lower end of the spectrum: rough will do, any end keeps M definite."""

_SEED = 240_917_553


@final
class Chebyshev(Preconditioner):
    """M⁻¹ = D^(-1/2) p(S) D^(-1/2), where S is A with unit diagonal and p(λ) nearly 1/λ.

    1 - λ p(λ) is the Chebyshev polynomial of degree `degree` + 1 that is smallest on [low, high] and
    1 at 0. It is below 1 for λ in (0, high] and above 1 for λ < 0, so p is positive on all of
    (-∞, high]; `high` is a bound of the spectrum that holds for certain (norms of S). Hence M is
    positive definite by construction. `low` comes from a few Lanczos steps and decides only how
    good M is. An application costs `degree` products with A.

    Args:
        a: Hermitian with a positive diagonal.
        degree: of p.

    Attributes:
        scaling: `[n]` of D^(-1/2).
        matrix: S.
        steps: of the recurrence, the first without a step before it.

    Raises:
        NotPositiveDefiniteError: not Hermitian, or a diagonal entry is not positive.

    Source: Saad, "Iterative methods for sparse linear systems", sections 12.3.2 and 12.3.3.
    """

    def __init__(self, a: Any, degree: int) -> None:
        self.scaling, self.matrix = unit_diagonal(a, "chebyshev")
        self._low, self._high = _interval(self.matrix)
        self.steps = _steps(self._low, self._high, degree)

    @property
    def nbytes(self) -> int:
        """Bytes of S and its scaling; the pattern is A's own."""
        values = self.matrix if isinstance(self.matrix, np.ndarray) else self.matrix.data
        return int(self.scaling.nbytes + values.nbytes)

    def apply(self, residuals: Array) -> Array:
        """`M⁻¹ r` for each of the rows of `residuals`, `[k, n]`."""
        r = residuals * self.scaling
        step = self.steps[0][1] * r
        x = step.copy()
        for before, now in self.steps[1:]:
            r = r - _times(self.matrix, step)
            step = before * step + now * r
            x += step
        return x * self.scaling

    def apply_adjoint(self, residuals: Array) -> Array:
        """M is Hermitian."""
        return self.apply(residuals)


def _steps(low: float, high: float, degree: int) -> tuple[tuple[float, float], ...]:
    """The recurrence of p: each step is the one before times the first number, plus the residual times the second."""
    centre, radius = (high + low) / 2, (high - low) / 2
    sigma = radius / centre
    rho, found = sigma, [(0.0, 1 / centre)]
    for _ in range(degree):
        following = 1 / (2 / sigma - rho) if sigma else 0.0
        # Where low = high one step solves exactly: r is zero already.
        found.append((following * rho, 2 * following / radius if radius else 1 / centre))
        rho = following
    return tuple(found)


def _interval(matrix: Any) -> tuple[float, float]:
    """An estimate of the smallest eigenvalue and a bound of the largest."""
    n = matrix.shape[0]
    if n == 0:
        return 1.0, 1.0
    size = abs(matrix)
    frobenius = float(np.sqrt(np.sum(np.square(size if isinstance(size, np.ndarray) else size.data))))
    # A few units in the last place, so that rounding in the norms cannot undercut an eigenvalue.
    high = min(float(size.sum(axis=1).max()), frobenius) * (1 + 1e-12)
    return min(max(_lowest(matrix), 1e-8 * high), high), high


def _lowest(matrix: Any) -> float:
    """The smallest Ritz value of a few Lanczos steps; 0 or less where A is not definite."""
    n = matrix.shape[0]
    v = np.random.default_rng(_SEED).standard_normal((1, n)).astype(matrix.dtype)
    v /= np.linalg.norm(v)
    before, beta = np.zeros_like(v), 0.0
    alphas: list[float] = []
    betas: list[float] = []
    for _ in range(min(_STEPS, n)):
        w = _times(matrix, v) - beta * before
        alphas.append(float(np.vdot(v, w).real))
        w -= alphas[-1] * v
        beta = float(np.linalg.norm(w))
        # An invariant subspace: what follows would be rounding noise.
        if beta <= 1e-10:
            break
        betas.append(beta)
        before, v = v, w / beta
    return float(eigvalsh_tridiagonal(np.array(alphas), np.array(betas[: len(alphas) - 1]))[0])


def _times(matrix: Any, rows: Array) -> Array:
    return np.ascontiguousarray((matrix @ rows.T).T)
