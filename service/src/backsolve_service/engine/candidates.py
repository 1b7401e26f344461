"""Which methods suit a matrix, the best first: what `method="auto"` chooses from.

The order is a judgement of cost on one core; where it rests on a measurement, the constant says so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

from .structure import Structure

NARROW_BAND = 24
"""Stored diagonals up to which a banded factorization beats a sparse one that reorders."""

SMALL_BLOCK = 64
"""Rows up to which unconnected blocks are best factorized densely, all of a size at once."""

FEW_ENTRIES = 4.6
"""Entries a row up to which a pattern may be a circuit or a network, rather than a mesh (5 in the plane)."""

NETWORK_ROWS = 2000
"""Rows from which KLU's lead on such a pattern shows in a whole call; at 1000 it is 0.4 ms of 3."""

LITTLE_FILL = 5.0
"""Entries of the factor over those of the matrix up to which KLU takes 0.1 to 0.7 of SuperLU's time for new values
and both solves; from 7 on it is no faster, at 17 it takes more than twice as long (10 000 rows)."""

SPREADING_ROWS = 40_000
"""Rows from which a factor of a spreading pattern costs seconds, and a solve with multigrid a fifth of that (35³)."""

SPREADING = 8.0
"""Squared width over rows: about 1 in the plane, where factors stay small; 17 in a cube of 30³."""

DEVICE_ROWS = 20_000
"""Rows from which a sparse factor is made on a device, where there is one. A judgement, and no measurement: below,
launches and copies are as long as what SuperLU needs (tens of milliseconds)."""


@final
@dataclass(frozen=True, slots=True)
class Candidate:
    """A method that suits.

    Attributes:
        method: a name that the registry may or may not offer here.
        reason: why it suits, for the certificate.
        name: the method in words, for the certificate of one that stands in for another.
        preconditioner: if the caller names none.
        most_fill: the pattern's analysis has to foretell no more than this (entries of the factor over those of
            the matrix), or the next candidate is taken.
    """

    method: str
    reason: str
    name: str
    preconditioner: str | None = None
    most_fill: float | None = None


def candidates(structure: Structure, asked: Sequence[str] = (), *, on_device: bool = False) -> Iterator[Candidate]:
    """Methods for a matrix of this structure, the best first; those of no use are left out.

    Args:
        structure: of the matrix.
        asked: names of the options that the caller set; iterative methods come last, and are
            reached only if such an option leaves no direct one.
        on_device: there is a CUDA device to compute on.
    """
    if structure.dense:
        yield from _dense(structure)
    else:
        yield from _sparse(structure, on_device=on_device)
    yield from _iterative(structure, f"{' and '.join(asked)} given")


def spreading(structure: Structure) -> bool:
    """Factors fill in as those of three-dimensional meshes do, and the matrix is made for multigrid."""
    return (
        structure.facts.n >= SPREADING_ROWS
        and _fills_in(structure)
        and structure.definite_candidate
        and structure.dominant
        and not structure.batch
    )


def _fills_in(structure: Structure) -> bool:
    """As meshes in space do, as far as the width tells; it is known from `WIDTH_FROM` rows on."""
    width = structure.facts.width
    return width is not None and width**2 >= SPREADING * structure.facts.n


def _dense(structure: Structure) -> Iterator[Candidate]:
    if structure.triangular:
        yield Candidate("triangular", "triangular: substitution alone", "substitution")
    if structure.definite_candidate:
        yield Candidate("cholesky", "dense, Hermitian, positive diagonal: Cholesky", "Cholesky")
    if structure.hermitian:
        yield Candidate("ldl", "dense, Hermitian, no positive diagonal: LDL", "LDL")
    elif structure.symmetric:
        yield Candidate("ldl", "dense and complex symmetric: LDL", "LDL")
    what = "Hermitian without a positive diagonal" if structure.hermitian else "not Hermitian"
    yield Candidate("lu", f"dense and {what}: LU", "LU")


def _sparse(structure: Structure, *, on_device: bool) -> Iterator[Candidate]:
    facts = structure.facts
    if facts.diagonal:
        yield Candidate("diagonal", "nothing off the diagonal", "division by the diagonal")
    elif facts.triangular:
        yield Candidate("triangular", "triangular: substitution alone", "substitution")
    if facts.largest_block is not None and facts.largest_block <= min(SMALL_BLOCK, facts.n // 4):
        yield Candidate("block_diagonal", "unconnected small blocks: each by dense LU", "LU of each block")
    if facts.lower_bandwidth + facts.upper_bandwidth < NARROW_BAND:
        yield Candidate("banded", "a narrow band: banded LU", "banded LU")
    if spreading(structure):
        reason = "large, definite and diagonally dominant, on a pattern whose factors fill in: CG with multigrid"
        yield Candidate("cg", reason, "CG", "amg")
    network = facts.nnz <= FEW_ENTRIES * facts.n
    if on_device and facts.n >= DEVICE_ROWS and not network:
        yield Candidate("cudss", "sparse and large, with a device at hand: LU by cuDSS", "LU by cuDSS")
    if _fills_in(structure) and structure.symmetric:
        yield Candidate("rslab_ldl", "symmetric, on a pattern whose factors fill in: supernodal LDL", "supernodal LDL")
    if facts.n >= NETWORK_ROWS and network:
        reason = "few entries a row and little fill, as in a circuit: KLU"
        yield Candidate("klu", reason, "KLU", most_fill=LITTLE_FILL)
    yield Candidate("superlu", "sparse: LU in the pattern's cached ordering", "sparse LU")


def _iterative(structure: Structure, why: str) -> Iterator[Candidate]:
    if structure.definite_candidate:
        yield Candidate("cg", f"Hermitian, positive diagonal, {why}: CG", "CG")
        yield Candidate("fcg", f"Hermitian, positive diagonal, {why}: flexible CG", "flexible CG")
    if structure.hermitian:
        yield Candidate("minres", f"Hermitian, {why}: MINRES", "MINRES")
    yield Candidate("gmres", f"{'Hermitian' if structure.hermitian else 'not Hermitian'}, {why}: GMRES", "GMRES")
