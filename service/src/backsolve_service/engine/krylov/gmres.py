"""Restarted GMRES and its flexible form, preconditioned from the right: any square matrix.

Preconditioned from the right, what the recurrence minimises is the residual itself. The columns of a
block share each product and each preconditioning; every one has a basis of its own.

Source: Saad and Schultz, "GMRES", SIAM J. Sci. Stat. Comput. 7 (1986), algorithm 4; Saad, "A flexible
inner-outer preconditioned GMRES algorithm", SIAM J. Sci. Comput. 14 (1993), algorithm 2.2.
"""

import math
from typing import Any, final

import numpy as np
from scipy.linalg import solve_triangular

from backsolve.errors import MemoryBudgetError
from backsolve.types import Array

from .base import KrylovSolver
from .driver import Cycle, Start, run
from .problem import Finished, Problem

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
    """Build a basis for each column and minimise its residual over it."""
    most = np.minimum(start.limits, min(problem.restart, start.r.shape[1]))
    per_column = zip(start.r, start.triggers, most.tolist(), strict=True)
    try:
        columns = [_Arnoldi(*of_column, flexible) for of_column in per_column]
    except MemoryError as error:
        raise MemoryBudgetError(
            f"a basis of {int(most.max())} vectors does not fit in memory: ask for a shorter restart, or for method "
            "'bicgstab'"
        ) from error
    running = columns
    while running:
        problem.check()
        directions = problem.precondition(np.stack([column.tip for column in running]))
        products = problem.multiply(directions)
        for column, direction, product in zip(running, directions, products, strict=True):
            column.extend(direction, product)
        running = [column for column in running if not column.done]
    found = np.stack([column.combination() for column in columns])
    dx = found if flexible else problem.precondition(found)
    steps, deficient = ([getattr(column, name) for column in columns] for name in ("steps", "deficient"))
    return Cycle(start.x + dx, np.array(steps, dtype=np.int64), np.array(deficient, dtype=bool))


@final
class _Arnoldi:
    """The basis of one column, and the least squares problem over it, kept triangular by rotations.

    Attributes:
        steps: columns of the Hessenberg matrix so far.
        done: the residual is small enough, the basis is complete, or it may grow no longer.
        deficient: the triangle was singular, as it gets of a singular A.
    """

    def __init__(self, r: Array, trigger: float, most: int, flexible: bool) -> None:
        self.steps = 0
        self.done = self.deficient = False
        self._trigger, self._most = trigger, most
        # Memory is taken from the system only as rows are written.
        self._basis = np.empty((most + 1, r.size), dtype=r.dtype)
        self._directions = np.empty((most, r.size), dtype=r.dtype) if flexible else None
        self._triangle = np.zeros((most, most), dtype=r.dtype)
        self._rotations: list[tuple[float, Any]] = []
        size = _norm(r)
        self._basis[0] = r / size
        self._rhs: list[Any] = [size]

    @property
    def tip(self) -> Array:
        """The newest basis vector."""
        return np.asarray(self._basis[self.steps])

    def extend(self, direction: Array, w: Array) -> None:
        """Take in `w = A M⁻¹ v` of the newest basis vector v, whose `M⁻¹ v` is `direction`."""
        j = self.steps
        if self._directions is not None:
            self._directions[j] = direction
        basis, whole = self._basis[: j + 1], _norm(w)
        along = np.zeros(j + 1, dtype=w.dtype)
        for _ in range(2):  # twice is enough (Giraud, Langou, Rozloznik, van den Eshof, Numer. Math. 101 (2005))
            part = np.conj(basis @ np.conj(w))
            w = w - part @ basis
            along += part
        rest = _norm(w)
        complete = not rest > _HAPPY * whole  # what is not a number is complete as well
        if not complete:
            self._basis[j + 1] = w / rest
        self._rotate(along.tolist(), 0.0 if complete else rest)
        self.steps += 1
        self.done = complete or not abs(self._rhs[-1]) > self._trigger or self.steps == self._most

    def combination(self) -> Array:
        """`V y` (flexible: `Z y`) for the y that minimises the residual; zero where there is none."""
        m = self.steps
        triangle, rhs = self._triangle[:m, :m], np.array(self._rhs[:m], dtype=self._basis.dtype)
        pivots = np.abs(np.diag(triangle))
        # A pivot that should be zero has collected the rounding of every rotation of its column, whose entries may
        # be larger than any pivot.
        least = 4 * m * np.finfo(np.float64).eps
        self.deficient = not pivots.min() > least * np.abs(triangle).max()
        if not (np.isfinite(triangle).all() and np.isfinite(rhs).all()):
            y = np.zeros_like(rhs)
        elif self.deficient:
            y = np.linalg.lstsq(triangle, rhs, rcond=least)[0]
        else:
            y = solve_triangular(triangle, rhs, check_finite=False)
        vectors = self._basis if self._directions is None else self._directions
        return np.asarray(y @ vectors[:m])

    def _rotate(self, column: list[Any], below: float) -> None:
        """Apply the earlier rotations to a new column, and the one that makes it triangular."""
        for i, (c, s) in enumerate(self._rotations[: len(column) - 1]):
            column[i], column[i + 1] = c * column[i] + s * column[i + 1], c * column[i + 1] - _conj(s) * column[i]
        last = column[-1]
        size = math.hypot(abs(last), below)
        phase = last / abs(last) if last else 1.0
        c, s = (abs(last) / size, phase * (below / size)) if size else (1.0, 0.0)
        column[-1] = phase * size
        self._rotations.append((c, s))
        self._triangle[: len(column), len(column) - 1] = column
        top = self._rhs[-1]
        self._rhs[-1] = c * top
        self._rhs.append(-_conj(s) * top)


def _norm(a: Array) -> float:
    return math.sqrt(np.vdot(a, a).real)


def _conj(number: Any) -> Any:
    return number.conjugate()
