"""Matrices that fall apart into blocks: each connected part of the pattern is one small dense system.

Blocks of one size are factorized together, by torch's batched LU: a thousand blocks cost little more
than one. The rows of a block need not be neighbours.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from backsolve.errors import InvalidPatternError, MemoryBudgetError
from backsolve.pattern import AnyPattern, IndexArray, Pattern
from backsolve.types import Array, Status, Trans

from ..base import Controls, Factor, FactorSpec, Outcome, Solver, Symbolic
from ..faults import finite_statuses, record, singular, systems
from ..operand import Operand
from ..structure import inspect_pattern
from .dense import conjugating_solve, memory_guard, outcome
from .ordering import check_matching


@final
@dataclass(frozen=True, eq=False)
class Group:
    """The blocks of one size.

    Attributes:
        rows: `[blocks, size]` rows (and columns) of the matrix in each block, increasing.
        entries: which of the matrix's entries lie in these blocks.
        places: where each of them goes in `[blocks, size, size]`, counted flat.
    """

    rows: IndexArray
    entries: IndexArray
    places: IndexArray

    @property
    def nbytes(self) -> int:
        """Bytes of the index arrays."""
        return int(self.rows.nbytes + self.entries.nbytes + self.places.nbytes)


@final
@dataclass(frozen=True, eq=False)
class Blocks(Symbolic):
    """The connected parts of a pattern, by size."""

    pattern: AnyPattern
    groups: tuple[Group, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the index arrays."""
        return sum(group.nbytes for group in self.groups)

    def predicted_nbytes(self, precision: str) -> int:
        """Bytes of the blocks as full squares, and of their pivots."""
        squares = sum(int(group.rows.size) * int(group.rows.shape[1]) for group in self.groups)
        return squares * np.dtype(precision).itemsize + self.pattern.n * np.dtype(np.intc).itemsize


@final
@dataclass(frozen=True, eq=False)
class BlockDiagonalFactor(Factor):
    """`P A = L U` of every block: of each group `[systems, blocks, size, size]` and its pivots."""

    operand: Operand
    groups: tuple[Group, ...]
    factors: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    statuses: tuple[Status, ...]

    direct = True
    max_columns = 32

    @property
    def nbytes(self) -> int:
        """Bytes of the factors and pivots."""
        return sum(lu.nbytes + pivots.nbytes for lu, pivots in self.factors)

    @property
    def condition(self) -> float | None:
        """Not estimated here: `conditioning.lower_bound` asks for it, once."""
        return None

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """Two triangular sweeps in each block, the same for each `trans`."""
        del controls
        stacked = rhs if rhs.ndim == 3 else rhs[None]
        x = np.empty_like(stacked)
        for group, (lu, pivots) in zip(self.groups, self.factors, strict=True):

            def backend(
                b: torch.Tensor, adjoint: bool, lu: torch.Tensor = lu, pivots: torch.Tensor = pivots
            ) -> torch.Tensor:
                solved: torch.Tensor = torch.linalg.lu_solve(lu, pivots, b, adjoint=adjoint)
                return solved

            x[:, group.rows] = conjugating_solve(backend, stacked[:, group.rows], trans, "cpu", rhs.dtype)
        return outcome(x.reshape(rhs.shape), self.statuses, self.operand.batch is not None)


@final
class BlockDiagonal(Solver):
    """Any square nonsingular sparse matrix; worth it where the pattern falls apart into small parts."""

    name = "block_diagonal"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Find the connected parts, in O(nnz).

        Raises:
            SingularMatrixError: no values on this pattern are invertible.
            InvalidPatternError: the pattern is dense.
        """
        del spec
        if not isinstance(pattern, Pattern):
            raise InvalidPatternError("method 'block_diagonal' takes sparse matrices: use method 'lu'")
        check_matching(inspect_pattern(pattern))
        ones = csr_array((np.ones(pattern.nnz, dtype=np.int8), pattern.indices, pattern.indptr), shape=pattern.shape)
        _, part = connected_components(ones, directed=False)
        return Blocks(pattern, _groups(pattern, part))

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Factorize every block; `2/3` of the sum of cubes of their sizes multiply-adds.

        Raises:
            SingularMatrixError: a pivot is exactly zero; `details["column"]` says where.
            NonfiniteInputError: the matrix holds NaN or infinity.
            MemoryBudgetError: the blocks do not fit in memory.
        """
        del spec
        symbolic.check(operand)
        assert isinstance(symbolic, Blocks)
        statuses = finite_statuses(operand)
        count = systems(operand)
        values = operand.values.reshape(count, -1)
        factors = []
        zero_pivots = np.full(count, operand.n)
        for group in symbolic.groups:
            blocks = _filled(group, values, statuses)
            with memory_guard("cpu"):
                lu, pivots, info = torch.linalg.lu_factor_ex(torch.from_numpy(blocks))
            factors.append((lu, pivots))
            for system, block in np.argwhere(info.numpy() > 0):
                # LAPACK counts from 1: the first column whose pivot is zero.
                column = int(group.rows[block, int(info[system, block]) - 1])
                zero_pivots[system] = min(zero_pivots[system], column)
        for system in np.flatnonzero(zero_pivots < operand.n):
            statuses[system] = record(operand, singular(int(zero_pivots[system])))
        return BlockDiagonalFactor(operand, symbolic.groups, tuple(factors), tuple(statuses))


def _groups(pattern: Pattern, part: IndexArray) -> tuple[Group, ...]:
    """The parts by size; `part` numbers the part of each row."""
    sizes = np.bincount(part)
    order = np.argsort(part, kind="stable")
    begins = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])
    local = np.empty(pattern.n, dtype=np.int64)
    local[order] = np.arange(pattern.n) - begins[part[order]]
    found = []
    for size in np.unique(sizes):
        members = np.flatnonzero(sizes == size)
        number = np.full(sizes.size, -1, dtype=np.int64)
        number[members] = np.arange(members.size)
        entries = np.flatnonzero(number[part[pattern.rows]] >= 0)
        row, column = pattern.rows[entries], pattern.indices[entries]
        places = (number[part[row]] * size + local[row]) * size + local[column]
        found.append(Group(order[begins[members][:, None] + np.arange(size)], entries, places))
    return tuple(found)


def _filled(group: Group, values: Array, statuses: list[Status]) -> Array:
    """`[systems, blocks, size, size]`, with identities in place of each system that cannot be factorized."""
    blocks, size = group.rows.shape
    try:
        filled = np.zeros((values.shape[0], blocks * size * size), dtype=values.dtype)
    except MemoryError as err:
        raise MemoryBudgetError(
            "the blocks of this matrix do not fit in memory as full squares: use method 'superlu'"
        ) from err
    filled[:, group.places] = values[:, group.entries]
    square = filled.reshape(values.shape[0], blocks, size, size)
    square[[index for index, status in enumerate(statuses) if status is not Status.OK]] = np.eye(size)
    return square
