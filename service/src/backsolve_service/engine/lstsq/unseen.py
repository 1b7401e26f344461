"""What LSMR does not see: directions whose singular values are so small that it stops before it has met them.

It stops once what is left of b could be explained by a perturbation of A within the tolerance. An x that lacks a
direction of a smaller singular value passes, and QR, which divides by that singular value, gives another. No residual
tells them apart. So a known random w is sent through: from A w the iteration finds w again, but for what it does not
see. That rest d, freed from what the first run left elsewhere by a second one, bounds a singular value from above by
||A d|| / ||d||: far below the tolerance it is one that counts as zero, and x the shortest answer, as it should be; in
between, the place where the iteration stops has decided.
"""

from collections.abc import Callable

import numpy as np

from backsolve.types import Array

from ..krylov.lsmr import Progress, least_squares
from ..krylov.problem import Apply, norms
from .base import Doubt

_SEEN = 1e-3
"""Part of w that may be missing where every direction was seen: a singular value just above the tolerance may stop the
iteration a little early."""

_SHARE = 0.25
"""Of the tolerance, as in a solve."""

_SEED = 640_118_573


def unseen(
    multiply: Apply,
    adjoint: Apply,
    shape: tuple[int, int],
    dtype: "np.dtype[np.generic]",
    norm: float,
    tolerance: float,
    noise: float,
    limit: int,
    check: Callable[[], None],
) -> Doubt | None:
    """Look for directions that LSMR stops short of.

    Args:
        multiply, adjoint: products with A and Aᴴ, of the rows of `[k, n]` and `[k, m]`.
        shape: of A; of a wide one Aᴴ is looked at, whose null space is not there by its shape alone.
        dtype: float64 or complex128.
        norm: a lower bound on ||A||₂.
        tolerance: of the solves.
        noise: singular values up to this part of ||A|| count as zero.
        limit: most iterations of a run.
        check: raises if nobody waits.

    Returns:
        None where w comes back.
    """
    m, n = shape
    if min(m, n) == 0 or norm == 0:
        return None
    if m < n:
        multiply, adjoint, n = adjoint, multiply, m
    rng = np.random.default_rng(_SEED)
    w = rng.standard_normal((1, n)).astype(dtype)
    if w.dtype.kind == "c":
        w = w + 1j * rng.standard_normal((1, n))

    def rest(v: Array) -> Array:
        target = multiply(v)
        size = norms(target)

        def met(state: Progress) -> Array:
            small = state.normal <= _SHARE * tolerance * norm * state.residual
            return np.asarray(small | (state.residual <= _SHARE * tolerance * size) | state.complete)

        return np.asarray(v - least_squares(multiply, adjoint, target, 0.0, limit, met, check)[1])

    with np.errstate(all="ignore"):
        d = rest(w)
        if not norms(d)[0] > _SEEN * norms(w)[0]:
            return None
        d = rest(d)
        sigma = float(norms(multiply(d))[0] / norms(d)[0] / norm)
    if not sigma <= tolerance:
        return Doubt(1 / sigma if sigma > 0 else 1.0, False, "it converges slowly: the condition number is large")
    if sigma <= noise:
        return Doubt(1.0, False, "columns are dependent to rounding: x is the shortest of the minimisers")
    return Doubt(
        1 / sigma,
        True,
        f"x lacks directions whose singular values are below {tolerance:.0e} of the largest, down to {sigma:.0e} at "
        "least; give the matrix densely to have them in, or rcond or damp to say that they do not count",
    )
