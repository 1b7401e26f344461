"""The contract of a least-squares method: min ||b - A x||² + damp² ||x||², the shortest x where there are several.

Ā below is A with damp times the identity under it, and G = (AᴴA + damp² I)⁺: the answer is
x = G Aᴴ b, and every derivative of it is made of products with A and of G applied to a vector.
"""

from abc import abstractmethod

import numpy as np

from backsolve.types import Array, Trans

from ..base import Controls, Factor, Outcome


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
