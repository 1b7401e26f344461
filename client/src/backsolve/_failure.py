"""What the caller has asked to happen when a solve ran and its answer is not good enough."""

from dataclasses import replace

import numpy as np

from ._protocol import Steps, Warn
from .errors import (
    IllConditionedWarning,
    InconsistentError,
    InvalidOptionError,
    NotConvergedError,
    NotConvergedWarning,
    NotPositiveDefiniteError,
    SingularMatrixError,
    SolveError,
)
from .types import Array, Certificate, OnFailure, Solution, Status, Timings

_ERRORS: dict[Status, type[SolveError]] = {
    Status.MAX_ITER: NotConvergedError,
    Status.STAGNATION: NotConvergedError,
    Status.BREAKDOWN: NotConvergedError,
    Status.SINGULAR_STRUCTURAL: SingularMatrixError,
    Status.SINGULAR_NUMERIC: SingularMatrixError,
    Status.NOT_POSITIVE_DEFINITE: NotPositiveDefiniteError,
    Status.NONFINITE_INPUT: NotConvergedError,
    Status.INCONSISTENT: InconsistentError,
    Status.OUT_OF_RANGE: NotConvergedError,
}

_CHOICES = ("raise", "warn", "nan")


def check_choice(on_failure: str) -> None:
    """Refuse an unknown choice before anything is solved."""
    if on_failure not in _CHOICES:
        raise InvalidOptionError(f"on_failure must be one of {', '.join(map(repr, _CHOICES))}")


def settle(solution: Solution, on_failure: OnFailure, what: str) -> Steps[Solution]:
    """Pass a good answer on; raise, warn about or blank out one that is not.

    Args:
        solution: as the server gave it.
        on_failure: the caller's choice.
        what: "solve" or "adjoint solve": named in the text.

    Raises:
        NotConvergedError, InconsistentError, SingularMatrixError, NotPositiveDefiniteError:
            with `on_failure="raise"`, by the worst status; `.solution` has the answer.
    """
    status = solution.status
    if status is Status.OK:
        return solution
    if status is Status.ILL_CONDITIONED:
        yield Warn(_text(solution, what), IllConditionedWarning)
        return solution
    if on_failure == "raise":
        raise _error(solution, what)
    if on_failure == "warn":
        yield Warn(_text(solution, what), NotConvergedWarning)
        return solution
    return replace(solution, x=_blanked(solution))


def without_answer(error: SolveError, rhs: Array, method: str, on_failure: OnFailure, what: str) -> Steps[Solution]:
    """The solution in place of an error that has no x: all NaN, with its status.

    For `on_failure` "warn" and "nan"; with "raise" the caller lets the error pass.
    """
    if on_failure == "warn":
        yield Warn(f"{what}: {error}", NotConvergedWarning)
    if isinstance(error, NotPositiveDefiniteError):
        status = Status.NOT_POSITIVE_DEFINITE
    elif error.details.get("kind") == "structural":
        status = Status.SINGULAR_STRUCTURAL
    else:
        status = Status.SINGULAR_NUMERIC
    stats = Certificate(
        status=status,
        method=method,
        reason=str(error),
        precision=rhs.dtype.name,
        iterations=0,
        relative_residual=float("nan"),
        backward_error=float("nan"),
        condition_estimate=None,
        symbolic_hit=False,
        factor_hit=False,
        seconds=Timings(),
        instance="",
    )
    return Solution(np.full_like(rhs, np.nan), status, stats)


def _error(solution: Solution, what: str) -> SolveError:
    error = _ERRORS[solution.status](_text(solution, what))
    error.solution = solution
    return error


def _text(solution: Solution, what: str) -> str:
    stats = solution.stats
    bad = [index for index, element in enumerate(stats.elements) if element.status is solution.status]
    where = f" (system {bad[0]} of {len(stats.elements)}, {len(bad)} in all)" if bad else ""
    return (
        f"{what} by {stats.method}{where}: {solution.status.advice}. "
        f"Relative residual {stats.relative_residual:.1e}, backward error {stats.backward_error:.1e}, "
        f"{stats.iterations} iterations."
    )


def _blanked(solution: Solution) -> Array:
    elements = solution.stats.elements
    x = solution.x.copy()
    if not elements:
        x[...] = np.nan
    for index, element in enumerate(elements):
        if element.status not in (Status.OK, Status.ILL_CONDITIONED):
            x[index] = np.nan
    return x
