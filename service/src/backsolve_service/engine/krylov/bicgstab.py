"""BiCGStab, preconditioned from the right: any square matrix, few vectors, no guarantee on the way.

Source: van der Vorst, "Bi-CGSTAB", SIAM J. Sci. Stat. Comput. 13 (1992), the preconditioned algorithm
of section 4; Sleijpen and van der Vorst, "Reliable updated residuals", Computing 56 (1996), for
going back to the true residual where the recurrence proposes to stop.
"""

from typing import final

import numpy as np

from backsolve.types import Array

from .base import KrylovSolver
from .driver import Cycle, Start, run
from .problem import Finished, Problem, dots, longest, norms

_PROGRESS = 0.5
_ORTHOGONAL = 1e-14
"""A cosine this small is rounding: the shadow residual has become useless."""
_SHADOW_SEED = 208_871_554


@final
class BiCgStab(KrylovSolver):
    """Any square matrix; two products an iteration."""

    name = "bicgstab"

    def iterate(self, problem: Problem) -> Finished:
        """Run BiCGStab; after a breakdown with another shadow residual."""
        return run(problem, _cycle, _PROGRESS)


def _cycle(problem: Problem, start: Start) -> Cycle:
    """From a residual until every column's recurrence proposes to stop or breaks down."""
    x, r = start.x.copy(), start.r.copy()
    shadow = _shadow(start)
    live = np.arange(r.shape[0])  # rows that still run; the others are final
    out, broke = x.copy(), np.zeros(r.shape[0], dtype=bool)
    rho, p = dots(shadow, r), r.copy()
    steps = 0
    most = min(start.limit, longest(r.shape[1]))
    while live.size and steps < most:
        problem.check()
        steps += 1
        p_hat = problem.precondition(p)
        v = problem.multiply(p_hat)
        sigma = dots(shadow, v)
        alpha = _quotient(rho, sigma)
        s = r - alpha[:, None] * v
        s_hat = problem.precondition(s)
        t = problem.multiply(s_hat)
        omega = _quotient(dots(t, s), dots(t, t))
        x = x + alpha[:, None] * p_hat + omega[:, None] * s_hat
        r = s - omega[:, None] * t
        size = norms(r)
        following = dots(shadow, r)
        beta = _quotient(following, rho) * _quotient(alpha, omega)
        p = r + beta[:, None] * (p - omega[:, None] * v)
        done = size <= start.triggers[live]
        lost = ~(np.abs(following) > _ORTHOGONAL * norms(shadow) * size) | ~(np.abs(omega) > 0) | ~(np.abs(sigma) > 0)
        lost &= ~done
        ended = done | lost
        if ended.any():
            good = np.isfinite(x).all(axis=1)
            out[live[ended & good]] = x[ended & good]
            broke[live[lost]] = True
            live, x, r, p, shadow, following = (a[~ended] for a in (live, x, r, p, shadow, following))
        rho = following
    if live.size:
        out[live] = x
    return Cycle(out, steps, broke)


def _shadow(start: Start) -> Array:
    """The residual itself; after a cycle that gained nothing, turned at random."""
    if not start.attempt:
        return start.r.copy()
    rng = np.random.default_rng(_SHADOW_SEED + start.attempt)
    noise = rng.standard_normal(start.r.shape)
    return start.r + noise * (norms(start.r) / norms(noise))[:, None]


def _quotient(numerator: Array, denominator: Array) -> Array:
    """Zero where the denominator is: the column counts as lost then."""
    zero = denominator == 0
    return np.asarray(np.where(zero, 0, numerator / np.where(zero, 1, denominator)))
