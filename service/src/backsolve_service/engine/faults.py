"""Failures of single systems: an error when there is one system, a status when there is a batch."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from backsolve.errors import (
    BacksolveError,
    InvalidOptionError,
    NonfiniteInputError,
    NotPositiveDefiniteError,
    SingularMatrixError,
)
from backsolve.types import Status

from .operand import Operand

T = TypeVar("T")

_STATUS_OF: dict[type[BacksolveError], Status] = {
    NonfiniteInputError: Status.NONFINITE_INPUT,
    SingularMatrixError: Status.SINGULAR_NUMERIC,
    NotPositiveDefiniteError: Status.NOT_POSITIVE_DEFINITE,
}


def systems(operand: Operand) -> int:
    """Number of systems: the batch, or one."""
    return 1 if operand.batch is None else operand.batch


def finite_statuses(operand: Operand) -> list[Status]:
    """OK, or NONFINITE_INPUT, for each system.

    Raises:
        NonfiniteInputError: a single matrix holds NaN or infinity.
    """
    if operand.finite:
        return [Status.OK] * systems(operand)
    if operand.batch is None:
        raise NonfiniteInputError("A holds NaN or infinity: check what computed it")
    return [Status.OK if np.isfinite(values).all() else Status.NONFINITE_INPUT for values in operand.values]


def record(operand: Operand, error: BacksolveError) -> Status:
    """The status that stands for `error` in a batch; for a single system, or without one, the error is raised."""
    status = _STATUS_OF.get(type(error))
    if operand.batch is None or status is None:
        raise error
    return status


def factorize_each(operand: Operand, make: Callable[[int], T]) -> tuple[tuple[T | None, ...], tuple[Status, ...]]:
    """What `make` gives for the number of each system, None where it has no factor; and the statuses.

    Raises:
        BacksolveError: of a single matrix, what `make` raises.
        NonfiniteInputError: a single matrix holds NaN or infinity.
    """
    statuses = finite_statuses(operand)
    made: list[T | None] = []
    for index, status in enumerate(statuses):
        one = None
        if status is Status.OK:
            try:
                one = make(index)
            except BacksolveError as error:
                statuses[index] = record(operand, error)
        made.append(one)
    return tuple(made), tuple(statuses)


def singular(column: int | None = None) -> SingularMatrixError:
    """A pivot is exactly zero, in `column` where that is known: of A, or of what rounding and underflow made of it."""
    where = "" if column is None else f" in column {column}"
    fact = {} if column is None else {"column": column}
    return SingularMatrixError(
        "the matrix is exactly singular, or so near it that rounding hides the difference: "
        f"elimination met a zero pivot{where}; "
        "solve A + shift*I, or remove the dependent row",
        kind="numeric",
        **fact,
    )


def not_definite(column: int | None, method: str, other: str) -> NotPositiveDefiniteError:
    """Elimination met a pivot that is not positive in `column` of the caller's matrix."""
    where = "" if column is None else f" (found at column {column})"
    fact = {} if column is None else {"column": column}
    return NotPositiveDefiniteError(
        f"the matrix is not Hermitian positive definite{where}, which method {method!r} needs: "
        f"use method {other!r} or 'auto'",
        method=method,
        **fact,
    )


def not_hermitian(method: str, other: str) -> InvalidOptionError:
    """The method needs A = Aᴴ."""
    return InvalidOptionError(
        f"method {method!r} needs a Hermitian matrix, and this one is not: use method {other!r} or 'auto'",
        option="method",
        method=method,
    )
