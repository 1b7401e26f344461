"""LSMR: MINRES on the normal equations without forming them; any matrix, rectangular ones included.

Of square systems it solves those that other methods break down on, at the price of a condition
number that counts twice; of inconsistent ones it finds the least squares solution.

Source: Fong and Saunders, "LSMR: an iterative algorithm for sparse least-squares problems", SIAM J.
Sci. Comput. 33 (2011), section 2.8.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np

from backsolve.types import Array

from .base import KrylovSolver
from .driver import Cycle, Start, run
from .problem import Apply, Finished, Problem, longest, norms

_PROGRESS = 0.5
_ORTHOGONAL = 1e-14
"""A residual r with ||Aᴴr|| below this part of ||A|| ||r|| is orthogonal to the range of A up to rounding."""


@final
class Lsmr(KrylovSolver):
    """Any square matrix; two products an iteration, one of them with Aᴴ; no preconditioner."""

    name = "lsmr"

    def iterate(self, problem: Problem) -> Finished:
        """Run LSMR."""
        return run(problem, _cycle, _PROGRESS)


def _cycle(problem: Problem, start: Start) -> Cycle:
    """Solve for the residual from zero, and add what is found."""
    most = np.minimum(start.limits, longest(start.r.shape[1]))
    products, open_ = np.zeros_like(most), np.ones(most.size, dtype=bool)

    def met(state: Progress) -> Array:
        nonlocal open_
        products[open_] += 1
        # Where Aᴴ r is rounding beside r, x is a least squares solution: going on changes nothing.
        least = state.normal <= _ORTHOGONAL * state.norm * state.residual
        open_ &= ~((state.residual <= start.triggers) | state.complete | least | (products >= most))
        return np.asarray(~open_)

    _, dx = least_squares(problem.multiply, problem.adjoint, start.r, 0.0, int(most.max()), met, problem.check)
    return Cycle(start.x + dx, products, np.zeros(start.r.shape[0], dtype=bool))


@final
@dataclass(frozen=True, slots=True)
class Progress:
    """What the recurrence knows of every column after a step.

    Attributes:
        residual: ||b - A x||, with the damping: of [b - A x; -damp x].
        normal: ||Aᴴ(b - A x) - damp² x||.
        norm: ||A||_F, estimated from below.
        condition: of A (with the damping: of [A; damp I]), a bound from below but for rounding.
        complete: the space is exhausted.
    """

    residual: Array
    normal: Array
    norm: Array
    condition: Array
    complete: Array


def least_squares(
    multiply: Apply,
    adjoint: Apply,
    b: Array,
    damp: float,
    limit: int,
    met: Callable[[Progress], Array],
    check: Callable[[], None],
) -> tuple[int, Array]:
    """Minimise ||b - A x||² + damp² ||x||² from x = 0, so that x is the shortest minimiser.

    Args:
        multiply: `A v` for each of the rows of `[k, n]`.
        adjoint: `Aᴴ u` for each of the rows of `[k, m]`.
        b: `[k, m]`.
        damp: of Tikhonov's regularisation, 0 or more.
        limit: most iterations.
        met: which columns are to stop, from what is known of them.
        check: raises if nobody waits; called between iterations.

    Returns:
        Iterations, and x, `[k, n]`.
    """
    state = _Bidiagonal(multiply, adjoint, b, damp)
    running = ~state.done
    while running.any() and state.steps < limit:
        check()
        state.step(running)
        running &= ~met(state.progress())
    return state.steps, state.x


@final
class _Bidiagonal:
    """Golub and Kahan's bidiagonalisation with two sets of rotations; names are the paper's."""

    def __init__(self, multiply: Apply, adjoint: Apply, b: Array, damp: float) -> None:
        self._multiply, self._adjoint, self._damp = multiply, adjoint, damp
        self.steps = 0
        self.u, self._beta = _normalised(b)
        self.v, self._alpha = _normalised(adjoint(self.u))
        self.done = (self._beta == 0) | (self._alpha == 0)
        one, zero = np.ones(b.shape[0]), np.zeros(b.shape[0])
        self._zetabar, self._alphabar = self._alpha * self._beta, self._alpha.copy()
        self._rho, self._rhobar, self._cbar, self._sbar = one.copy(), one.copy(), one.copy(), zero.copy()
        self._h, self._hbar = self.v.copy(), np.zeros_like(self.v)
        self.x = np.zeros_like(self.v)
        # For the norm of the residual.
        self._betadd, self._betad = self._beta.copy(), zero.copy()
        self._rhodold, self._tautildeold, self._thetatilde, self._zeta = (
            one.copy(),
            zero.copy(),
            zero.copy(),
            zero.copy(),
        )
        self._d, self._residual = zero.copy(), self._beta.copy()
        self._norm_squares = self._alpha**2
        # Diagonal entries of a triangle whose singular values lie between A's.
        self._largest, self._least, self._condition = zero.copy(), np.full(b.shape[0], np.inf), one.copy()

    def progress(self) -> Progress:
        """What is known now."""
        return Progress(self._residual, np.abs(self._zetabar), np.sqrt(self._norm_squares), self._condition, self.done)

    def step(self, running: Array) -> None:
        """One iteration; columns that do not run keep their x."""
        self.steps += 1
        self.u, beta = _normalised(self._multiply(self.v) - self._alpha[:, None] * self.u)
        self.v, alpha = _normalised(self._adjoint(self.u) - beta[:, None] * self.v)
        self._beta, self._alpha = beta, alpha
        self._norm_squares = self._norm_squares + beta**2 + alpha**2
        # Rotation of the damping, then the one that makes the bidiagonal upper triangular.
        alphahat = np.hypot(self._alphabar, self._damp)
        chat, shat = _over(self._alphabar, alphahat, 1.0), _over(self._damp, alphahat, 0.0)
        rhoold = self._rho
        rho = np.hypot(alphahat, beta)
        c, s = _over(alphahat, rho, 1.0), _over(beta, rho, 0.0)
        thetanew, self._alphabar = s * alpha, c * alpha
        # The second set, which makes that one lower triangular again.
        rhobarold, zetaold = self._rhobar, self._zeta
        thetabar, rhotemp = self._sbar * rho, self._cbar * rho
        rhobar = np.hypot(rhotemp, thetanew)
        self._cbar, self._sbar = _over(rhotemp, rhobar, 1.0), _over(thetanew, rhobar, 0.0)
        if self.steps > 1:
            self._largest, self._least = np.maximum(self._largest, rhobarold), np.minimum(self._least, rhobarold)
        span = _over(np.maximum(self._largest, rhotemp), np.minimum(self._least, rhotemp), 1.0)
        self._condition = np.where(running, span, self._condition)
        zeta, self._zetabar = self._cbar * self._zetabar, -self._sbar * self._zetabar
        self._rho, self._rhobar, self._zeta = rho, rhobar, zeta
        singular = (rho * rhobar == 0) | ~np.isfinite(rho * rhobar)
        self._hbar = self._h - _over(thetabar * rho, rhoold * rhobarold, 0.0)[:, None] * self._hbar
        gain = np.where(running & ~singular, _over(zeta, rho * rhobar, 0.0), 0.0)
        self.x = self.x + gain[:, None] * self._hbar
        self._h = self.v - _over(thetanew, rho, 0.0)[:, None] * self._h
        self._measure(chat, shat, c, s, thetabar, zetaold)
        self.done = self.done | singular | (beta == 0) | (alpha == 0)

    def _measure(self, chat: Array, shat: Array, c: Array, s: Array, thetabar: Array, zetaold: Array) -> None:
        """The norm of the residual (section 3.1 of the paper); `thetabar` is of this step."""
        betaacute, betacheck = chat * self._betadd, -shat * self._betadd
        betahat, self._betadd = c * betaacute, -s * betaacute
        thetatildeold = self._thetatilde
        rhotildeold = np.hypot(self._rhodold, thetabar)
        ctildeold, stildeold = _over(self._rhodold, rhotildeold, 1.0), _over(thetabar, rhotildeold, 0.0)
        self._thetatilde = stildeold * self._rhobar
        self._rhodold = ctildeold * self._rhobar
        self._betad = -stildeold * self._betad + ctildeold * betahat
        self._tautildeold = _over(zetaold - thetatildeold * self._tautildeold, rhotildeold, 0.0)
        taud = _over(self._zeta - self._thetatilde * self._tautildeold, self._rhodold, 0.0)
        self._d = self._d + betacheck**2
        self._residual = np.sqrt(self._d + (self._betad - taud) ** 2 + self._betadd**2)


def _normalised(a: Array) -> tuple[Array, Array]:
    size = norms(a)
    return a / np.where(size > 0, size, 1.0)[:, None], size


def _over(a: Array | float, b: Array, otherwise: float) -> Array:
    """A / b, and `otherwise` where b is zero."""
    zero = b == 0
    return np.asarray(np.where(zero, otherwise, a / np.where(zero, 1.0, b)))
