"""MINRES: Hermitian matrices, definite or not, with a definite preconditioner.

Source: Paige and Saunders, "Solution of sparse indefinite systems of linear equations", SIAM J. Numer.
Anal. 12 (1975), section 6; with a preconditioner as Choi, "Iterative methods for singular linear
equations and least-squares problems", Stanford, 2006, table 3.5.
"""

from typing import final

import numpy as np

from backsolve.types import Array

from .base import KrylovSolver
from .driver import Cycle, Start, run
from .problem import Finished, NotDefiniteError, Problem, longest, norms, real_dots

_PROGRESS = 0.5
_HAPPY = 1e-14
"""A Lanczos coefficient this small against the others is rounding: the space is complete."""

_ORTHOGONAL = 1e-11
"""A residual r with ||A r|| below this part of ||A|| ||r|| counts as orthogonal to the range."""


@final
class MinRes(KrylovSolver):
    """Hermitian matrices; one product an iteration, the residual (in the norm of M⁻¹) never grows."""

    name = "minres"
    hermitian = True

    def iterate(self, problem: Problem) -> Finished:
        """Run MINRES.

        Raises:
            NotDefiniteError: the preconditioner is not positive definite.
        """
        return run(problem, _cycle, _PROGRESS)


def _cycle(problem: Problem, start: Start) -> Cycle:
    """From a residual until every column's recurrence proposes to stop or its space is complete."""
    lanczos = _Lanczos(problem, start)
    while lanczos.live.size:
        problem.check()
        lanczos.step()
    return lanczos.end()


@final
class _Lanczos:
    """Three-term recurrences of a block of columns, with the true residual carried along.

    Names are those of Elman, Silvester and Wathen, "Finite elements and fast iterative solvers", 2nd ed.,
    algorithm 4.1: v the Lanczos vectors (of M-norm gamma), z = M⁻¹ v, w the search directions, eta what
    is left of the residual's norm.
    """

    def __init__(self, problem: Problem, start: Start) -> None:
        self._problem, self._triggers = problem, start.triggers
        self.live = np.arange(start.r.shape[0])
        self._products = np.zeros(start.r.shape[0], dtype=np.int64)
        self._most = np.minimum(start.limits, longest(start.r.shape[1]))
        self._out = start.x.copy()
        self._broke = np.zeros(start.r.shape[0], dtype=bool)
        self._x, self._r, self._v = start.x.copy(), start.r.copy(), start.r.copy()
        self._z = problem.precondition(self._v)
        self._gamma = _m_norm(self._v, self._z)
        self._v_old, self._w, self._w_old = (np.zeros_like(self._v) for _ in range(3))
        one, zero = np.ones(self.live.size), np.zeros(self.live.size)
        self._gamma_old, self._eta, self._scale = one, self._gamma.copy(), zero.copy()
        self._cosine, self._cosine_old, self._sine, self._sine_old = one.copy(), one.copy(), zero.copy(), zero.copy()

    def step(self) -> None:
        """One iteration of every live column."""
        self._products[self.live] += 1
        unit = self._z / self._gamma[:, None]
        product = self._problem.multiply(unit)
        delta = real_dots(unit, product)
        v = product - (delta / self._gamma)[:, None] * self._v - (self._gamma / self._gamma_old)[:, None] * self._v_old
        z = self._problem.precondition(v)
        gamma = _m_norm(v, z)
        self._scale = np.maximum(self._scale, np.maximum(np.abs(delta), gamma))
        complete = ~(gamma > _HAPPY * self._scale)
        kept = np.where(complete, 0.0, gamma)
        # Column j of the tridiagonal matrix under the last two rotations, then the one that ends it.
        diagonal = self._cosine * delta - self._cosine_old * self._sine * self._gamma
        above = self._sine * delta + self._cosine_old * self._cosine * self._gamma
        far_above = self._sine_old * self._gamma
        size = np.hypot(diagonal, kept)
        # ||A r|| over ||r|| before this step (Choi, section 2.2.4): no step reduces a residual that A maps to zero.
        singular = ~(np.hypot(diagonal, self._cosine * gamma) > _ORTHOGONAL * self._scale)
        safe = np.where(singular, 1.0, size)
        cosine, sine = diagonal / safe, kept / safe
        w = (unit - far_above[:, None] * self._w_old - above[:, None] * self._w) / safe[:, None]
        self._x = self._x + np.where(singular, 0.0, cosine * self._eta)[:, None] * w
        eta = -sine * self._eta
        ahead = cosine * eta / np.where(complete, 1.0, gamma)
        self._r = np.where(singular, 1.0, sine**2)[:, None] * self._r + np.where(complete, 0.0, ahead)[:, None] * v
        self._v_old, self._v, self._z = self._v, v, z
        self._w_old, self._w = self._w, w
        self._gamma_old, self._gamma, self._eta = self._gamma, np.where(complete, 1.0, gamma), eta
        self._cosine_old, self._cosine, self._sine_old, self._sine = self._cosine, cosine, self._sine, sine
        self._retire(complete | singular)

    def _retire(self, spent: Array) -> None:
        """Let go of the columns that propose to stop, whose space is complete, or that may go no further."""
        size = norms(self._r)
        done = (size <= self._triggers[self.live]) | ~np.isfinite(size)
        ended = done | spent | (self._products[self.live] >= self._most[self.live])
        if not ended.any():
            return
        good = ended & np.isfinite(self._x).all(axis=1)
        self._out[self.live[good]] = self._x[good]
        self._broke[self.live[spent & ~done]] = True
        keep = ~ended
        self.live = self.live[keep]
        for name in _STATE:
            setattr(self, name, getattr(self, name)[keep])

    def end(self) -> Cycle:
        """The iterates of all columns, none of which is live."""
        return Cycle(self._out, self._products, self._broke)


_STATE = (
    *("_x", "_r", "_v", "_v_old", "_z", "_w", "_w_old"),
    *("_gamma", "_gamma_old", "_eta", "_cosine", "_cosine_old", "_sine", "_sine_old", "_scale"),
)


def _m_norm(v: Array, z: Array) -> Array:
    """sqrt(vᴴ M⁻¹ v) for each row."""
    squares = real_dots(v, z)
    if np.any((squares < 0) | ((squares == 0) & v.any(axis=1))):
        raise NotDefiniteError
    return np.sqrt(squares)
