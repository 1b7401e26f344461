"""BiCGStab, preconditioned from the right: any square matrix, few vectors, no guarantee on the way.

Source: van der Vorst, "Bi-CGSTAB", SIAM J. Sci. Stat. Comput. 13 (1992), the preconditioned algorithm
of section 4; Sleijpen and van der Vorst, "Reliable updated residuals in hybrid Bi-CG methods",
Computing 56 (1996), section 3: after a peak of the residual, whose rounding stays in the recurrence,
the residual is computed anew and the iteration flies on with it.
"""

from typing import final

import numpy as np

from backsolve.types import Array

from .base import KrylovSolver
from .driver import Cycle, Start, run
from .problem import Finished, Problem, dots, norms

_PROGRESS = 0.5
_ORTHOGONAL = 1e-14
"""A cosine this small is rounding: what is divided by it has no digit left, and a new start gains more."""
_LAST_RESORT = 1e-30
"""Where new starts gained nothing the iteration goes on through such cosines: at times it recovers."""
_LONGEST = 6
"""Iterations of a cycle in units of n: through its peaks BiCGStab takes longer than other recurrences."""
_FALLEN = 1e-2
"""The residual is computed anew once it has fallen to this part of a peak; the paper's delta."""
_SHADOW_SEED = 208_871_554


@final
class BiCgStab(KrylovSolver):
    """Any square matrix; two products an iteration, which `maxiter` counts one by one."""

    name = "bicgstab"

    def iterate(self, problem: Problem) -> Finished:
        """Run BiCGStab; after a breakdown with another shadow residual."""
        return run(problem, _cycle, _PROGRESS, varies=True)


def _cycle(problem: Problem, start: Start) -> Cycle:
    """From a residual until every column's recurrence proposes to stop or breaks down."""
    state = _State(problem, start)
    while state.live.size:
        problem.check()
        state.step()
    return state.end()


@final
class _State:
    """A block of columns; names are van der Vorst's.

    `x` is what has been found since the residual was last computed, when it was `anchor` and the
    iterate was `base`.
    """

    def __init__(self, problem: Problem, start: Start) -> None:
        c, n = start.r.shape
        self.live: Array = np.arange(c)
        self._problem, self._triggers = problem, start.triggers
        self._out, self._broke = start.x.copy(), np.zeros(c, dtype=bool)
        self._products = np.zeros(c, dtype=np.int64)
        self._most = np.minimum(start.limits, 2 * (_LONGEST * n + 20))
        self._base, self._x = start.x.copy(), np.zeros_like(start.r)
        self._anchor, self._r, self._p = start.r.copy(), start.r.copy(), start.r.copy()
        self._shadow = _shadow(start)
        self._shadow_size = norms(self._shadow)
        self._least = np.where(start.attempts == 0, _ORTHOGONAL, _LAST_RESORT)  # of a cosine
        self._rho = dots(self._shadow, self._r)
        self._last = norms(self._r)  # when it was computed last
        self._peak = self._last.copy()

    def step(self) -> None:
        """One iteration of every live column."""
        p_hat = self._problem.precondition(self._p)
        v = self._problem.multiply(p_hat)
        self._products[self.live] += 1
        sigma = dots(self._shadow, v)
        least = self._least * self._shadow_size
        lost = ~((np.abs(sigma) > least * norms(v)) & (np.abs(self._rho) > least * norms(self._r)))
        alpha = np.where(lost, 0.0, self._rho / np.where(lost, 1.0, sigma))
        self._x = self._x + alpha[:, None] * p_hat
        self._r = self._r - alpha[:, None] * v  # s
        # Half an iteration may have been enough, or the last that was allowed.
        keep = self._leave(lost, norms(self._r))
        if not keep.any():
            return
        v, alpha = v[keep], alpha[keep]
        s = self._r
        s_hat = self._problem.precondition(s)
        t = self._problem.multiply(s_hat)
        self._products[self.live] += 1
        along, squares = dots(t, s), np.square(norms(t))
        lost = ~(np.abs(along) > self._least * np.sqrt(squares) * norms(s))
        omega = np.where(lost, 0.0, along / np.where(squares > 0, squares, 1.0))
        self._x = self._x + omega[:, None] * s_hat
        self._r = s - omega[:, None] * t
        self._renew()
        rho = dots(self._shadow, self._r)
        beta = rho / self._rho * (alpha / np.where(lost, 1.0, omega))
        self._p = self._r + beta[:, None] * (self._p - omega[:, None] * v)
        self._rho = rho
        self._leave(lost, norms(self._r))

    def end(self) -> Cycle:
        """The iterates of all columns, none of which is live."""
        return Cycle(self._out, self._products, self._broke)

    def _renew(self) -> None:
        """Compute the residual anew where it has come down from a peak above where it started."""
        size = norms(self._r)
        self._peak = np.maximum(self._peak, size)
        fallen = (size <= _FALLEN * self._peak) & (self._peak > self._last)
        if not fallen.any():
            return
        fresh = self._anchor[fallen] - self._problem.multiply(self._x[fallen])
        self._base[fallen] += self._x[fallen]
        self._x[fallen] = 0
        self._anchor[fallen] = fresh
        self._r[fallen] = fresh
        self._last[fallen] = self._peak[fallen] = norms(fresh)

    def _leave(self, lost: Array, size: Array) -> Array:
        """Let go of the columns that propose to stop, break down or may go no further; the mask of the others."""
        done = ~(size > self._triggers[self.live])  # what is not a number is done as well
        ended = done | lost | (self._products[self.live] >= self._most[self.live])
        if ended.any():
            found = self._base + self._x
            good = ended & np.isfinite(found).all(axis=1)
            self._out[self.live[good]] = found[good]
            self._broke[self.live[lost & ~done]] = True
            self.live = self.live[~ended]
            for name in _STATE:
                setattr(self, name, getattr(self, name)[~ended])
        return np.asarray(~ended)


_STATE = ("_base", "_x", "_anchor", "_r", "_p", "_shadow", "_shadow_size", "_least", "_rho", "_last", "_peak")


def _shadow(start: Start) -> Array:
    """The residual itself; after a cycle that gained nothing, turned at random, for each column alike."""
    shadow = start.r.copy()
    for column in np.flatnonzero(start.attempts):
        noise = np.random.default_rng(_SHADOW_SEED + int(start.attempts[column])).standard_normal(shadow.shape[1])
        shadow[column] += noise * (np.linalg.norm(shadow[column]) / np.linalg.norm(noise))
    return shadow
