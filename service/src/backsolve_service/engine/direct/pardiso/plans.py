"""How to factorize one matrix with PARDISO, from the cheapest way that may work to the safest."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np

from backsolve.types import Array

from ...faults import systems
from ...operand import Operand
from ...structure import diagonals
from ...symmetry import hermitian_systems
from ...tolerance import SINGLE_EPS, epsilon
from .library import MatrixType


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """One way.

    Attributes:
        kind: what the library is told of the matrix.
        ordered: in the order that the pattern's analysis has found, without a matching of rows to
            columns, which would depend on the values.
        last: what this plan cannot factorize is singular.
    """

    kind: MatrixType
    ordered: bool
    last: bool = False

    def settings(self, single: bool) -> dict[str, int]:
        """The library's settings beside the usual ones.

        Pivots below 10^-PIVOT_PERTURBATION of A's largest entry are replaced by that. Of the last
        plan it is a few roundings: what is replaced there is zero as far as can be known.
        """
        usual, rounding = (6, 8) if single else (13, 16)
        return {
            "PIVOT_PERTURBATION": rounding if self.last else usual,
            "SCALING": int(not self.ordered),
            "MATCHING": int(not self.ordered),
        }


@final
class Plans:
    """The ways to try for each system of a matrix or a batch.

    Complex Hermitian matrices that are not definite are treated as general ones: PARDISO's own way
    (mtype -4) overwrites memory that is not its own where it replaces a pivot (MKL 2026.2).

    Args:
        operand: the matrix.
        full_diagonal: every diagonal entry is stored; else the order of the pattern alone would put
            zeros where pivots are wanted.
    """

    def __init__(self, operand: Operand, *, full_diagonal: bool) -> None:
        self._complex = operand.dtype.kind == "c"
        self.single = epsilon(operand.dtype) >= SINGLE_EPS
        self._ordered = full_diagonal
        none = np.zeros(systems(operand), dtype=bool)
        self._hermitian = self._symmetric = self._positive = none
        if full_diagonal and operand.batch != 0:
            self._hermitian = hermitian_systems(operand)
            self._positive = self._hermitian & _positive(diagonals(operand)).reshape(-1)
            if self._complex:
                self._symmetric = hermitian_systems(operand, conjugate=False)

    def of(self, index: int) -> Iterator[Plan]:
        """The plans for one system: each is judged by a probe, so a later one costs only where an earlier failed."""
        general = MatrixType.COMPLEX_GENERAL if self._complex else MatrixType.REAL_GENERAL
        if self._ordered:
            if self._positive[index]:
                definite = MatrixType.HERMITIAN_DEFINITE if self._complex else MatrixType.REAL_DEFINITE
                yield Plan(definite, ordered=True)
            yield Plan(self._indefinite(index, general), ordered=True)
        yield Plan(general, ordered=False)
        yield Plan(general, ordered=False, last=True)

    def _indefinite(self, index: int, general: MatrixType) -> MatrixType:
        if self._complex:
            return MatrixType.COMPLEX_SYMMETRIC if self._symmetric[index] else general
        return MatrixType.REAL_SYMMETRIC if self._hermitian[index] else general


def _positive(entries: Array) -> Array:
    return np.asarray((entries.real > 0).all(axis=-1))
