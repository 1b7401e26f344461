"""One system sent to one method, and what became of it, judged by an answer's true backward error."""

import warnings
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from scipy.sparse import csr_array

from backsolve import Client
from backsolve.errors import BacksolveError, InternalError, NotConvergedError
from backsolve.types import Array, Solution, Status
from backsolve_service.engine.registry import ROWS

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
        return Verdict(error.solution.status.name, _error(method, system, error.solution))
    except BacksolveError as error:
        return Verdict(type(error).__name__, float("nan"))
    found = _error(method, system, solution)
    good = found <= _LIMIT[system.a.dtype.name]
    return Verdict(solution.status.name if good or solution.status is not Status.OK else WRONG, found)


def _error(method: str, system: System, solution: Solution) -> float:
    return error_of(method, system.a, system.b, solution.x, system.trans)


def error_of(method: str, a: Array, b: Array, x: Array, trans: str) -> float:
    """The backward error of a solution, or how far a least-squares answer is from a minimum."""
    least_squares = method in ROWS and ROWS[method].least_squares
    return optimality_error(a, b, x, trans) if least_squares else backward_error(a, b, x, trans)


def backward_error(a: Array, b: Array, x: Array, trans: str) -> float:
    """||b - op(A) x|| / (||A|| ||x|| + ||b||) in the maximum norm, of the worst column, in extended precision.

    Extended numbers also have the range that products of the largest doubles need.
    """
    if x.size == 0:
        return 0.0
    _, residual, size = _residual(a, b, x, trans)
    return _worst(np.abs(residual).max(axis=0), size)


def optimality_error(a: Array, b: Array, x: Array, trans: str) -> float:
    """||op(A)ᴴ r|| / (||A|| (||A|| ||x|| + ||b||)) likewise: 0 where r = b - op(A) x is as small as can be."""
    if x.size == 0:
        return 0.0
    full, residual, size = _residual(a, b, x, trans)
    with np.errstate(all="ignore"):
        return _worst(np.abs(full.conj().T @ residual).max(axis=0), size * np.abs(full).sum(axis=0).max())


def _residual(a: Array, b: Array, x: Array, trans: str) -> tuple[Array, Array, Array]:
    """op(A), b - op(A) x and ||A|| ||x|| + ||b|| of each column, in extended precision."""
    wide = np.clongdouble if a.dtype.kind == "c" else np.longdouble
    full = a.astype(wide)
    full = {"N": full, "T": full.T, "H": full.conj().T}[trans]
    right, answer = (v.astype(wide).reshape(len(v), -1) for v in (b, x))
    with np.errstate(all="ignore"):  # an answer that is not finite has no finite residual
        size = np.abs(full).sum(axis=1).max() * np.abs(answer).max(axis=0) + np.abs(right).max(axis=0)
        return full, right - full @ answer, size


def _worst(error: Array, size: Array) -> float:
    with np.errstate(all="ignore"):
        found = np.where(error == 0, 0, error / np.where(size == 0, 1, size))
    return float(np.max(np.where(np.isnan(found), np.inf, found)))
