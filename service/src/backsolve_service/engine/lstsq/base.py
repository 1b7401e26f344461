"""The contract of a least-squares method: min ||b - A x||² + damp² ||x||², the shortest x where there are several.

Ā below is A with damp times the identity under it, and G = (AᴴA + damp² I)⁺: the answer is
x = G Aᴴ b, and every derivative of it is made of products with A and of G applied to a vector.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from backsolve.types import Array, Trans

from ..base import Controls, Factor, Outcome
from ..scaling import exponents


@final
@dataclass(frozen=True, slots=True)
class Doubt:
    """What an iteration that has converged cannot see of its matrix.

    Attributes:
        condition: a lower bound on the condition number, on the range where columns are dependent to rounding.
        undecided: there are directions in which x is decided by where the iteration stops.
        note: the same in words, for the certificate.
    """

    condition: float
    undecided: bool
    note: str


class LeastSquaresFactor(Factor):
    """What a method prepares of one rectangular matrix, or of each of a batch.

    Attributes:
        damp: of the penalty, 0 or more.
    """

    damp: float

    @property
    @abstractmethod
    def independent(self) -> bool:
        """The columns of Ā are known to be linearly independent, so that G has an inverse."""

    def doubt(self, controls: Controls, iterations: int) -> Doubt | None:
        """What its own answers do not show; None: nothing was found, or everything shows.

        Args:
            controls: of the solve that asks.
            iterations: that it has taken.
        """
        del controls, iterations
        return None

    @abstractmethod
    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """`x = G Aᴴ rhs` for `rhs` with A's rows, or with `controls.cotangent` `G rhs` for A's columns.

        Args:
            rhs: `[m, k]` (`[n, k]` with `controls.cotangent`), with the batch axis if there is one.
            trans: "N" alone.
            controls: those that the method uses.
        """


def no_answer(systems: int, n: int, k: int, dtype: "np.dtype[np.generic]") -> Array:
    """NaN for every system, to be written over."""
    return np.full((systems, n, k), np.nan, dtype=dtype)


def largest_column(a: Any, damp: float) -> float:
    """The largest 2-norm of a column of Ā: between ||Ā||₂ / sqrt(n) and ||Ā||₂."""
    size = abs(a)
    largest = float(size.max()) if 0 not in size.shape else 0.0
    if not 0 < largest < np.inf:
        return max(largest, damp)
    power = int(exponents(np.asarray(largest)))
    columns = (size * 2.0 ** -min(max(power, -1000), 1000)) ** 2
    column = float(np.ldexp(np.sqrt(columns.sum(axis=0).max()), min(max(power, -1000), 1000)))
    return float(np.hypot(column, damp))
