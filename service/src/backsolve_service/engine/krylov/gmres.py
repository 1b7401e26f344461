"""Restarted GMRES and its flexible form, preconditioned from the right: any square matrix.

Preconditioned from the right, what the recurrence minimises is the residual itself. The columns
of a block share each product; every one has a basis of its own.

Source: Saad and Schultz, "GMRES", SIAM J. Sci. Stat. Comput. 7 (1986), algorithm 4; Saad, "A flexible
inner-outer preconditioned GMRES algorithm", SIAM J. Sci. Comput. 14 (1993), algorithm 2.2.
"""

from typing import Any, final

import numpy as np

from backsolve.types import Array

from .base import KrylovSolver
from .driver import Cycle, Start, run
from .problem import Finished, Problem, norms

_PROGRESS = 0.999
"""A restarted cycle may gain little and still get there in the end; less than this it will not."""

_HAPPY = 1e-14
"""A new basis vector this much shorter than what it was orthogonalised against is rounding: the basis is complete."""


@final
class Gmres(KrylovSolver):
    """Any square matrix; the residual never grows. Keeps `restart` vectors a column."""

    name = "gmres"

    def iterate(self, problem: Problem) -> Finished:
        """Run GMRES; the preconditioner must be one fixed matrix."""
        return run(problem, lambda p, start: _cycle(p, start, flexible=False), _PROGRESS)


@final
class FlexibleGmres(KrylovSolver):
    """GMRES for preconditioners that are not one fixed matrix; keeps twice as many vectors."""

    name = "fgmres"

    def iterate(self, problem: Problem) -> Finished:
        """Run flexible GMRES."""
        return run(problem, lambda p, start: _cycle(p, start, flexible=True), _PROGRESS)


def _cycle(problem: Problem, start: Start, *, flexible: bool) -> Cycle:
    """Build one basis and minimise the residual over it."""
    arnoldi = _Arnoldi(problem, start, flexible)
    while arnoldi.steps < arnoldi.most and arnoldi.running.any():
        problem.check()
        arnoldi.step()
    return Cycle(start.x + arnoldi.correction(), arnoldi.steps, arnoldi.deficient)


@final
class _Arnoldi:
    """The basis of a block of columns, and the least squares problem over it, kept triangular."""

    def __init__(self, problem: Problem, start: Start, flexible: bool) -> None:
        c, n = start.r.shape
        self.most = max(min(problem.restart, start.limit, n), 1)
        self.steps = 0
        self.running = np.ones(c, dtype=bool)
        self.deficient = np.zeros(c, dtype=bool)
        self._problem, self._triggers = problem, start.triggers
        dtype = start.r.dtype
        self._basis = np.zeros((self.most + 1, c, n), dtype=dtype)
        self._directions = np.zeros((self.most, c, n), dtype=dtype) if flexible else None
        self._triangle = np.zeros((c, self.most + 1, self.most), dtype=dtype)
        self._cosines: list[Array] = []
        self._sines: list[Array] = []
        size = norms(start.r)
        self._basis[0] = start.r / size[:, None]
        self._residuals = np.zeros((c, self.most + 1), dtype=dtype)
        self._residuals[:, 0] = size
        self._lengths = np.full(c, self.most)

    def step(self) -> None:
        """One more basis vector of every column that runs."""
        j = self.steps
        direction = self._problem.precondition(self._basis[j])
        if self._directions is not None:
            self._directions[j] = direction
        w = self._problem.multiply(direction)
        whole = norms(w)
        column = np.zeros((w.shape[0], self.most + 1), dtype=w.dtype)
        for _ in range(2):  # once is not enough (Giraud and others, Numer. Math. 101 (2005))
            along = _along(self._basis[: j + 1], w)
            w = w - np.einsum("jk,jkn->kn", along, self._basis[: j + 1])
            column[:, : j + 1] += along.T
        rest = norms(w)
        complete = ~(rest > _HAPPY * whole)  # what is not a number is complete as well
        rest = np.where(complete, 0.0, rest)
        column[:, j + 1] = rest
        self._basis[j + 1] = w / np.where(complete, 1.0, rest)[:, None] * ~complete[:, None]
        self._rotate(column, j)
        self.steps += 1
        done = complete | (np.abs(self._residuals[:, j + 1]) <= self._triggers)
        self._lengths[self.running & done] = j + 1
        self.running &= ~done

    def correction(self) -> Array:
        """`M⁻¹ V y` (`Z y`) for the y that minimises each column's residual."""
        c = self._basis.shape[1]
        y = np.zeros((self.most, c), dtype=self._basis.dtype)
        for k in range(c):
            m = min(int(self._lengths[k]), self.steps)
            y[:m, k] = self._least(k, m)
        if self._directions is not None:
            return np.asarray(np.einsum("jk,jkn->kn", y, self._directions))
        return self._problem.precondition(np.einsum("jk,jkn->kn", y, self._basis[: self.most]))

    def _least(self, k: int, m: int) -> Array:
        """Solve a column's triangle; a singular one, of a singular A, in the least squares sense."""
        triangle, rhs = self._triangle[k, :m, :m], self._residuals[k, :m]
        pivots = np.abs(np.diag(triangle))
        if m and not pivots.min() > np.finfo(np.float64).eps * pivots.max():
            self.deficient[k] = True
            if not np.isfinite(triangle).all():
                return np.zeros(m, dtype=triangle.dtype)
            found: Array = np.linalg.lstsq(triangle, rhs, rcond=None)[0]
            return found
        solved: Array = _back_substitute(triangle, rhs)
        return solved

    def _rotate(self, column: Array, j: int) -> None:
        """Apply the earlier rotations to a new column, and the one that makes it triangular."""
        for i, (c, s) in enumerate(zip(self._cosines, self._sines, strict=True)):
            upper, lower = column[:, i].copy(), column[:, i + 1].copy()
            column[:, i] = c * upper + s * lower
            column[:, i + 1] = c * lower - np.conj(s) * upper
        a, b = column[:, j], column[:, j + 1].real
        size = np.hypot(np.abs(a), b)
        safe = np.where(size > 0, size, 1.0)
        phase = np.where(np.abs(a) > 0, a / np.where(np.abs(a) > 0, np.abs(a), 1.0), 1.0)
        cosine = np.where(size > 0, np.abs(a) / safe, 1.0)
        sine = phase * (b / safe)
        column[:, j] = phase * size
        column[:, j + 1] = 0
        top = self._residuals[:, j].copy()
        self._residuals[:, j] = cosine * top
        self._residuals[:, j + 1] = -np.conj(sine) * top
        self._cosines.append(cosine)
        self._sines.append(sine)
        self._triangle[:, :, j] = column


def _along(basis: Array, w: Array) -> Array:
    """`[j, k]` components of each row of `w` along its own basis vectors."""
    return np.asarray(np.einsum("jkn,kn->jk", np.conj(basis) if basis.dtype.kind == "c" else basis, w))


def _back_substitute(triangle: Any, rhs: Array) -> Array:
    y = rhs.copy()
    for i in range(rhs.size - 1, -1, -1):
        y[i] = (y[i] - triangle[i, i + 1 :] @ y[i + 1 :]) / triangle[i, i]
    return y
