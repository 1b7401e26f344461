"""What every recurrence is given, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import final

import numpy as np

from backsolve.types import Array

from ..base import Symbolic

Apply = Callable[[Array], Array]


class Stop(Enum):
    """Why a column stopped."""

    CONVERGED = auto()
    LIMIT = auto()
    STAGNATED = auto()
    BROKE_DOWN = auto()
    INCONSISTENT = auto()


class Failure(Enum):
    """What ends a whole block."""

    NOT_DEFINITE = auto()


class NotDefiniteError(Exception):
    """A, or M, has shown a vector v with vᴴAv <= 0; whoever runs the method says what to use instead."""


@final
@dataclass(frozen=True, slots=True)
class Problem:
    """`op(A) x = b` for a block of columns, one a row so that each is contiguous; magnitudes of b near 1.

    Attributes:
        multiply: `op(A) v` for each of the rows of `[k, n]`.
        adjoint: `op(A)ᴴ v` likewise.
        precondition: `op(M)⁻¹ v` likewise; may return its argument.
        b: `[k, n]` right-hand sides.
        x0: `[k, n]` first iterates, or None for zero.
        targets: `[k]` wanted 2-norm of each residual.
        limit: most products with op(A) of each column. Products with op(A)ᴴ, and those that compute
            a true residual to check what a recurrence says, are not counted.
        restart: longest basis of the methods that keep one.
        norm: of op(A), in the infinity-norm.
        check: raises `CancelledError` once nobody waits; called between iterations.
        recycle: what is kept of earlier solves on the pattern (`recycling.py`), or None.
    """

    multiply: Apply
    adjoint: Apply
    precondition: Apply
    b: Array
    x0: Array | None
    targets: Array
    limit: int
    restart: int
    norm: float
    check: Callable[[], None]
    recycle: Symbolic | None = None


@final
@dataclass(frozen=True, slots=True)
class Finished:
    """What a run gave: `[k, n]` answers, why each stopped, and the products of the column that took most."""

    x: Array
    stops: list[Stop]
    iterations: int


def longest(n: int) -> int:
    """Steps after which rounding has spoilt short recurrences: a new start from the true residual gains more."""
    return 2 * n + 20


def dots(a: Array, b: Array) -> Array:
    """`aᴴ b` for each row."""
    # conj copies even what is real already.
    return np.asarray(np.einsum("kn,kn->k", np.conj(a) if a.dtype.kind == "c" else a, b))


def real_dots(a: Array, b: Array) -> Array:
    """Real part of `aᴴ b` for each row."""
    return np.asarray(dots(a, b).real)


def norms(a: Array) -> Array:
    """2-norm of each row."""
    return np.sqrt(real_dots(a, a))
