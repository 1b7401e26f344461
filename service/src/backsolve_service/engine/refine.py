"""Iterative refinement: solve for the true residual with the same factor, and keep what it improves."""

from collections.abc import Callable

import numpy as np

from backsolve.types import Array, Trans

from .base import Controls, Factor
from .certify import Evidence, Reference, measure

Unmet = Callable[[Evidence], Array]
"""Which columns of which systems are not good enough yet: `[systems, k]` of booleans."""


def refine(
    factor: Factor, against: Reference, x: Array, evidence: Evidence, trans: Trans, unmet: Unmet, limit: int
) -> tuple[Array, Evidence, int]:
    """Improve the columns that are not good enough.

    Args:
        factor: a direct factor.
        against: the right-hand sides.
        x: `[systems, n, k]` answers; not modified.
        evidence: of `x`.
        trans: which operator.
        unmet: the criterion.
        limit: most steps; a step that improves no column is the last.

    Returns:
        The answers, their evidence, and the steps that improved something.

    Source: Skeel, "Iterative refinement implies numerical stability for Gaussian elimination",
    Math. Comp. 35 (1980): with the residual in at least the factor's precision, one step makes
    the backward error small.
    """
    taken = 0
    for _ in range(limit):
        # A column that is infinitely bad has no digits that could be improved.
        wanting = unmet(evidence) & np.isfinite(evidence.relative)
        columns = np.flatnonzero(wanting.any(axis=0))
        if not columns.size:
            break
        some = against.columns(columns)
        with np.errstate(all="ignore"):
            candidate = x[:, :, columns] + _correction(factor, evidence.residual[:, :, columns], x, trans)
        trial = measure(factor.operand, some, candidate, trans)
        better = wanting[:, columns] & (trial.relative < evidence.relative[:, columns])
        if not better.any():
            break
        x, evidence = _merge(x, evidence, candidate, trial, columns, better)
        taken += 1
    return x, evidence, taken


def _correction(factor: Factor, residual: Array, x: Array, trans: Trans) -> Array:
    rhs = residual.astype(x.dtype)
    if factor.operand.batch is None:
        return factor.solve(rhs[0], trans, Controls()).x[None]
    return factor.solve(rhs, trans, Controls()).x


def _merge(
    x: Array, evidence: Evidence, candidate: Array, trial: Evidence, columns: Array, better: Array
) -> tuple[Array, Evidence]:
    """Take over the improved columns, in copies."""

    def merged(old: Array, new: Array) -> Array:
        out = old.copy()
        keep = better if new.ndim == 2 else better[:, None, :]
        out[..., columns] = np.where(keep, new, old[..., columns])
        return out

    fields = ("residual", "two", "relative", "backward", "condition")
    return merged(x, candidate), Evidence(*(merged(getattr(evidence, f), getattr(trial, f)) for f in fields))
