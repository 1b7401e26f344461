"""Flexible conjugate gradients: A Hermitian positive definite, the preconditioner whatever it is.

Source: Notay, "Flexible conjugate gradients", SIAM J. Sci. Comput. 22 (2000), FCG(1): the new direction
is made A-orthogonal to the last one explicitly, which Fletcher and Reeves' formula presumes.
"""

from typing import final

import numpy as np

from backsolve.types import Array

from .base import KrylovSolver
from .driver import Cycle, Start, run
from .problem import Finished, NotDefiniteError, Problem, dots, longest, norms, real_dots

_PROGRESS = 0.5
_DESCENT = 1e-3
"""A preconditioned residual whose cosine with the residual is below this is replaced by the residual itself."""


@final
class FlexibleConjugateGradients(KrylovSolver):
    """Hermitian positive definite matrices with a preconditioner that may vary, or be indefinite."""

    name = "fcg"
    hermitian = True
    definite = True

    def iterate(self, problem: Problem) -> Finished:
        """Run FCG(1).

        Raises:
            NotDefiniteError: pᴴ A p <= 0 for some direction.
        """
        return run(problem, _cycle, _PROGRESS)


def _cycle(problem: Problem, start: Start) -> Cycle:
    """From a residual until every column's recurrence proposes to stop."""
    out, x, r = start.x.copy(), start.x.copy(), start.r.copy()
    live: Array = np.arange(r.shape[0])
    p, ap = np.zeros_like(r), np.zeros_like(r)
    curvature: Array = np.ones(live.size)
    products = np.zeros(live.size, dtype=np.int64)
    most = np.minimum(start.limits, longest(r.shape[1]))
    while live.size:
        problem.check()
        products[live] += 1
        z = problem.precondition(r)
        downhill = real_dots(z, r) > _DESCENT * norms(z) * norms(r)
        z = np.where(downhill[:, None], z, r)
        beta = dots(ap, z) / curvature
        p = z - beta[:, None] * p
        ap = problem.multiply(p)
        curvature = real_dots(p, ap)
        if np.any((curvature <= 0) & p.any(axis=1)):
            raise NotDefiniteError
        curvature = np.where(curvature > 0, curvature, 1.0)
        alpha = dots(p, r) / curvature
        x = x + alpha[:, None] * p
        r = r - alpha[:, None] * ap
        # What is not a number is done as well.
        done = ~(norms(r) > start.triggers[live]) | (products[live] >= most[live])
        if done.any():
            good = done & np.isfinite(x).all(axis=1)
            out[live[good]] = x[good]
            live, x, r, p, ap, curvature = (a[~done] for a in (live, x, r, p, ap, curvature))
    return Cycle(out, products, np.zeros(out.shape[0], dtype=bool))
