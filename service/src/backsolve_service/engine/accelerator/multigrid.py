"""Algebraic multigrid on a device: the host's hierarchy, with smoothers that are products and nothing else.

Gauss-Seidel sweeps, with which the host's cycle smooths, take one row after another. Here a sweep is
a polynomial in D⁻¹A, where D holds the absolute sums of A's rows or columns: whatever A is, no eigenvalue of D⁻¹A
is larger than 1 in magnitude, so nothing has to be estimated.
"""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from scipy.sparse import csr_array

from backsolve.types import Array, Trans

from ..precond.hierarchy import Hierarchy, Step, singular_level
from ..structure import diagonal
from .matrix import DeviceMatrix
from .place import upload
from .polynomial import polynomial
from .precondition import DevicePreconditioner

Steps = tuple[tuple[float, float], ...]

LARGEST = 2048
"""Rows of the coarsest matrix up to which it is inverted: 32 MB, which a device reads in about the time
of a few launches. A larger one is what was left because its rows hardly depend on each other."""

_SWEEPS = 2
"""Steps of a smoother. With one, a solve takes about as many products, and half as many reductions again."""

_LONG = 8
"""The same where nothing coarser follows."""


def fourth_kind(degree: int) -> Steps:
    """The recurrence of Chebyshev polynomials of the fourth kind on (0, 1], for `polynomial`.

    1 - λ p(λ) is below 1 in magnitude on all of it, so p is positive there; among such polynomials
    it is the best beside a coarse correction.

    Source: Lottes, "Optimal polynomial smoothers for multigrid V-cycles", Numer. Linear Algebra Appl.
    30 (2023), section 4; Phillips and Fischer, "Optimal Chebyshev smoothers and one-sided V-cycles" (2022).
    """
    return tuple(
        (0.0 if i == 1 else (2 * i - 3) / (2 * i + 1), (8 * i - 4) / (2 * i + 1)) for i in range(1, degree + 1)
    )


def _steps(count: int, *, hermitian: bool) -> Steps:
    # Eigenvalues that are not real may lie where those polynomials are large: plain Jacobi sweeps there.
    return fourth_kind(count) if hermitian else ((0.0, 1.0),) * count


@final
class _Smoother:
    """`p(D⁻¹A) D⁻¹`; the adjoint is the same polynomial of Aᴴ, with the same D.

    Source: Baker, Falgout, Kolev and Yang, "Multigrid smoothers for ultraparallel computing", SIAM J.
    Sci. Comput. 33 (2011), section 4.
    """

    def __init__(self, matrix: DeviceMatrix, weights: Array, steps: Steps, device: str) -> None:
        self.matrix, self._steps = matrix, steps
        self._weights = upload(weights, device)

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes + int(self._weights.nbytes)

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        return polynomial(self.matrix.times, lambda v: v * self._weights, rows, self._steps)


@final
class _Inverse:
    """The coarsest matrix, inverted: matrices by which rows are multiplied from the right, one after the other."""

    def __init__(self, factors: Sequence[Array], device: str) -> None:
        self._factors = [upload(factor, device) for factor in factors]

    @property
    def nbytes(self) -> int:
        return sum(int(factor.nbytes) for factor in self._factors)

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        for factor in self._factors:
            rows = rows @ factor
        return rows


@final
class _Cycle:
    """A V-cycle: each level's smoother, way down and way up, then what is done on the coarsest one."""

    def __init__(self, levels: "Sequence[tuple[_Smoother, DeviceMatrix, DeviceMatrix]]", last: Any) -> None:
        self._levels, self._last = levels, last

    @property
    def nbytes(self) -> int:
        return int(self._last.nbytes) + sum(part.nbytes for level in self._levels for part in level)

    def apply(self, rows: torch.Tensor, depth: int = 0) -> torch.Tensor:
        if depth == len(self._levels):
            solved: torch.Tensor = self._last.apply(rows)
            return solved
        smoother, down, up = self._levels[depth]
        x = smoother.apply(rows)
        coarse = down.times(rows - smoother.matrix.times(x))
        x = x + up.times(self.apply(coarse, depth + 1))
        return x + smoother.apply(rows - smoother.matrix.times(x))


@final
class DeviceMultigrid(DevicePreconditioner):
    """M⁻¹ is one V-cycle on the host's hierarchy; definite where A is, as both sweeps are the same polynomial.

    Another M than the host's `AlgebraicMultigrid`, so that iterations are others, and answers the same.
    Of a matrix that is not Hermitian every level is kept twice, for the adjoint.

    Raises:
        SingularMatrixError: the coarsest matrix is exactly singular.
    """

    def __init__(self, built: Hierarchy, device: str) -> None:
        self._scaling = upload(built.scaling, device)
        self._plain = _cycle(built, device)
        self._adjoint = self._plain if built.hermitian else _cycle(_adjoint(built), device)

    @property
    def nbytes(self) -> int:
        """Bytes of all levels."""
        adjoint = 0 if self._adjoint is self._plain else self._adjoint.nbytes
        return int(self._scaling.nbytes) + self._plain.nbytes + adjoint

    def apply(self, rows: torch.Tensor, trans: Trans) -> torch.Tensor:
        """A V-cycle: on each level four products with its matrix, and two between levels."""
        if trans == "T" and rows.is_complex():
            return torch.conj_physical(self.apply(torch.conj_physical(rows), "H"))
        cycle = self._plain if trans == "N" else self._adjoint
        return cycle.apply(rows * self._scaling) * self._scaling


def _cycle(built: Hierarchy, device: str) -> _Cycle:
    levels = []
    for step in built.steps:
        smoother = _smoother(step.matrix, _SWEEPS, device, hermitian=built.hermitian)
        levels.append((smoother, DeviceMatrix(step.restriction, device), DeviceMatrix(step.prolongation, device)))
    if built.coarsest.shape[0] > LARGEST:
        return _Cycle(levels, _smoother(built.coarsest, _LONG, device, hermitian=built.hermitian))
    return _Cycle(levels, _Inverse(_inverted(built.coarsest.toarray(), hermitian=built.hermitian), device))


def _smoother(a: Any, count: int, device: str, *, hermitian: bool) -> _Smoother:
    entries = diagonal(a)
    sizes = abs(a)
    # The larger of both sums, so that D is that of Aᴴ as well.
    sums = np.maximum(*(np.asarray(sizes.sum(axis=axis)).reshape(-1) for axis in (0, 1)))
    # The sign, or phase, of the diagonal is that of a sweep.
    weights = np.conj(entries) / np.abs(entries) / sums
    return _Smoother(DeviceMatrix(a, device), weights, _steps(count, hermitian=hermitian), device)


def _inverted(a: Array, *, hermitian: bool) -> tuple[Array, ...]:
    """What rows are multiplied by; of a definite matrix in two halves, so that rounding cannot make it anything else.

    Raises:
        SingularMatrixError: exactly singular.
    """
    with np.errstate(all="ignore"):
        if hermitian:
            try:
                half = np.linalg.inv(np.linalg.cholesky(a))
            except np.linalg.LinAlgError:
                half = np.full_like(a, np.nan)
            if np.isfinite(half).all():
                return half.T, half.conj()
        try:
            inverse = np.linalg.inv(a)
        except np.linalg.LinAlgError:
            raise singular_level() from None
    if not np.isfinite(inverse).all():
        raise singular_level()
    return (inverse.T,)


def _adjoint(built: Hierarchy) -> Hierarchy:
    """The hierarchy of Aᴴ: ways up and down change places."""
    steps = [Step(_turned(step.matrix), _turned(step.prolongation), _turned(step.restriction)) for step in built.steps]
    return Hierarchy(built.scaling, built.hermitian, tuple(steps), _turned(built.coarsest))


def _turned(a: Any) -> Any:
    return csr_array(a.conj().T)
