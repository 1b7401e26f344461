"""One system sent to one method, and what became of it, judged by an answer's true backward error."""

import warnings
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from scipy.sparse import csr_array

from backsolve import Client
from backsolve.errors import BacksolveError, InternalError, NotConvergedError
from backsolve.types import Array, Solution, Status

from .systems import System

WRONG = "wrong"
OK = Status.OK.name

_LIMIT = {"float32": 1e-3, "complex64": 1e-3, "float64": 1e-6, "complex128": 1e-6}
"""Backward error above which an answer is wrong rather than inaccurate."""


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """What one method made of one system.

    Attributes:
        outcome: the status, the name of the error, or `WRONG` for an answer that is wrong and says it is good.
        backward_error: the true one of an answer, else NaN.
    """

    outcome: str
    backward_error: float


def judge(client: Client, system: System, layout: str, method: str, preconditioner: str | None = None) -> Verdict:
    """Solve and look.

    Raises:
        InternalError: what failed is none of the errors that a caller may be shown; or anything else that
            is not of `backsolve.errors`.
    """
    options: dict[str, Any] = {} if preconditioner is None else {"preconditioner": preconditioner}
    a: Any = system.a if layout == "dense" else csr_array(system.a)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a status says the same
            solution = client.solve(a, system.b, method=method, trans=system.trans, **options)
    except InternalError:
        raise
    except NotConvergedError as error:
        if error.solution is None:
            raise
        return Verdict(error.solution.status.name, _error(system, error.solution))
    except BacksolveError as error:
        return Verdict(type(error).__name__, float("nan"))
    found = _error(system, solution)
    good = found <= _LIMIT[system.a.dtype.name]
    return Verdict(solution.status.name if good or solution.status is not Status.OK else WRONG, found)


def _error(system: System, solution: Solution) -> float:
    return backward_error(system.a, system.b, solution.x, system.trans)


def backward_error(a: Array, b: Array, x: Array, trans: str) -> float:
    """||b - op(A) x|| / (||A|| ||x|| + ||b||) in the maximum norm, of the worst column, in extended precision.

    Extended numbers also have the range that products of the largest doubles need.
    """
    if x.size == 0:
        return 0.0
    wide = np.clongdouble if a.dtype.kind == "c" else np.longdouble
    full = a.astype(wide)
    full = {"N": full, "T": full.T, "H": full.conj().T}[trans]
    right, answer = (v.astype(wide).reshape(a.shape[0], -1) for v in (b, x))
    if not np.isfinite(answer).all():
        return float("inf")
    residual = np.abs(right - full @ answer).max(axis=0)
    size = np.abs(full).sum(axis=1).max() * np.abs(answer).max(axis=0) + np.abs(right).max(axis=0)
    return float(np.max(np.where(residual == 0, 0, residual / np.where(size == 0, 1, size))))
