"""How to factorize one kind of matrix with cuDSS, from the cheapest way that may work to the safest."""

from dataclasses import dataclass
from typing import final

from ...operand import Operand
from ...structure import diagonal
from ...symmetry import is_hermitian
from .constants import Config, Matching, MatrixType


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """One way.

    Attributes:
        kind: what the library is told of the matrix.
        ordered: in the order that the pattern's analysis has found, without a matching of rows to
            columns, which would depend on the values.
        hybrid: factors are kept in the host's memory and visit the device piece by piece.
    """

    kind: MatrixType
    ordered: bool
    hybrid: bool = False

    @property
    def mirrored(self) -> bool:
        """A = Aᴴ, or A = Aᵀ: a transposed solve is a plain one with conjugated data."""
        return self.kind is not MatrixType.CUDSS_MTYPE_GENERAL

    @property
    def hermitian(self) -> bool:
        """Of the two, the first."""
        return self.mirrored and self.kind is not MatrixType.CUDSS_MTYPE_SYMMETRIC

    def settings(self, batch: int | None) -> dict[Config, int]:
        """The library's settings, which it wants before it analyses."""
        matching = Matching.CUDSS_MATCHING_ALG_NONE if self.ordered else Matching.CUDSS_MATCHING_ALG_AUTO
        settings = {Config.CUDSS_CONFIG_MATCHING_ALG: int(matching)}
        if self.hybrid:
            settings[Config.CUDSS_CONFIG_HYBRID_MEMORY_MODE] = 1
        if batch is not None:
            settings[Config.CUDSS_CONFIG_UBATCH_SIZE] = batch
        return settings


def plans(operand: Operand, usable: list[int], *, full_diagonal: bool) -> tuple[Plan, ...]:
    """The ways to try, in their order.

    Each is judged by a probe, so a later one costs something only where an earlier one has failed.

    Args:
        operand: the matrix, or a batch.
        usable: the systems whose values are finite.
        full_diagonal: every diagonal entry is stored; else the order of the pattern alone would
            put zeros where pivots are wanted.
    """
    found: list[Plan] = []
    systems = [operand.systems[index] for index in usable]
    if full_diagonal:
        if all(is_hermitian(a) for a in systems):
            real = operand.dtype.kind != "c"
            if all((diagonal(a).real > 0).all() for a in systems):
                found.append(Plan(MatrixType.CUDSS_MTYPE_SPD if real else MatrixType.CUDSS_MTYPE_HPD, ordered=True))
            indefinite = MatrixType.CUDSS_MTYPE_SYMMETRIC if real else MatrixType.CUDSS_MTYPE_HERMITIAN
            found.append(Plan(indefinite, ordered=True))
        found.append(Plan(MatrixType.CUDSS_MTYPE_GENERAL, ordered=True))
    return (*found, Plan(MatrixType.CUDSS_MTYPE_GENERAL, ordered=False))
