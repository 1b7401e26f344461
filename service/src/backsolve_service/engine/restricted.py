"""Any square method for matrices whose null space is the constants: the minimum-norm solution A⁺ b.

A direct method factorizes A without one row and column of each component, which is nonsingular;
an iterative one is given A itself, without nodes that have no neighbour. Right-hand sides are
projected onto the range of A, and answers onto that of Aᴴ: the complement of the constants, both.

Source: Bochev and Lehoucq, "On the finite element solution of the pure Neumann problem", SIAM
Review 47 (2005), sections 3 and 4, for what pinning a node does.
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import final

import numpy as np

from backsolve.errors import NotPositiveDefiniteError, SingularMatrixError
from backsolve.matrix import Matrix
from backsolve.pattern import AnyPattern, DensePattern, IndexArray, Pattern
from backsolve.types import Array, Trans

from .base import Controls, Factor, FactorSpec, Outcome, Solver, Symbolic
from .faults import finite_statuses, not_definite
from .nullspace import Nullspace, check_constants, nullspace_of
from .operand import Operand
from .ranged import ranged
from .registry import ROWS, solver


def solver_for(spec: FactorSpec) -> Solver:
    """The method of a spec, as its null space and the size of its numbers need it."""
    if spec.nullspace is None:
        return ranged(solver(spec.method, spec.device))
    return ranged(_restricted(spec.method, spec.device))


@cache
def _restricted(method: str, device: str) -> Solver:
    return Restricted(solver(method, device), ROWS[method].direct)


@final
@dataclass(frozen=True, eq=False)
class RestrictedSymbolic(Symbolic):
    """A pattern without some of its nodes.

    Attributes:
        pattern: the pattern that was analysed.
        nullspace: its components.
        kept: nodes that are left, ascending.
        positions: `[nnz left]` their entries among those of a sparse pattern; of a dense one, none.
        inner: what the method has prepared of the pattern that is left.
    """

    pattern: AnyPattern
    nullspace: Nullspace
    kept: IndexArray
    positions: IndexArray
    left: AnyPattern
    inner: Symbolic

    @property
    def nbytes(self) -> int:
        """Bytes of the maps, of the smaller pattern, and of what was prepared of it."""
        maps = self.kept.nbytes + self.positions.nbytes + self.left.nbytes + self.nullspace.nbytes
        return int(maps) + self.inner.nbytes

    def predicted_nbytes(self, precision: str) -> int | None:
        """As the method foretells of what is left."""
        return self.inner.predicted_nbytes(precision)

    def restrict(self, values: Array) -> Array:
        """Values of what is left, `[..., nnz left]`."""
        if isinstance(self.pattern, Pattern):
            return values[..., self.positions]
        return np.ascontiguousarray(values[..., self.kept[:, None], self.kept])


@dataclass(frozen=True, eq=False)
class RestrictedFactor(Factor):
    """A factor of what is left, and the way there and back."""

    operand: Operand
    space: Nullspace
    kept: IndexArray
    inner: Factor

    @property
    def nullspace(self) -> Nullspace | None:
        """The constants on each component."""
        return self.space

    @property
    def narrow(self) -> bool:
        """As that of what is left."""
        return self.inner.narrow

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the factor and of the values that are left."""

    @property
    def note(self) -> str | None:
        """As that of what is left."""
        return self.inner.note

    @property
    def device_nbytes(self) -> int:
        """Those of the factor of what is left."""
        return self.inner.device_nbytes

    @property
    def condition(self) -> float | None:
        """Of what is left, which has a condition number somewhat above that of A on its range."""
        return self.inner.condition

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """`op(A)⁺ rhs`: the part of `rhs` outside the range of A counts for nothing."""
        stacked = rhs if rhs.ndim == 3 else rhs[None]
        batched = self.operand.batch is not None
        projected = np.ascontiguousarray(self.space.project(stacked)[:, self.kept])
        first = controls.x0
        if first is not None:
            first = np.ascontiguousarray(first[..., self.kept, :])
        outcome = self.inner.solve(projected if batched else projected[0], trans, replace(controls, x0=first))
        left = outcome.x if batched else outcome.x[None]
        x = np.zeros(stacked.shape, dtype=rhs.dtype)
        x[:, self.kept] = left
        x = self.space.project(x)
        lost = np.asarray(np.isnan(left).any(axis=1, keepdims=True))
        x[np.broadcast_to(lost, x.shape)] = np.nan
        return Outcome(x.reshape(rhs.shape), outcome.statuses, outcome.iterations)


@final
class PinnedFactor(RestrictedFactor):
    """Of a direct method: one node of each component is pinned to zero, and the mean taken away later."""

    direct = True
    max_columns = 16

    @property
    def nbytes(self) -> int:
        """Bytes of the factor and of the values that are left."""
        return self.inner.nbytes + self.inner.operand.nbytes


@final
class ProjectedFactor(RestrictedFactor):
    """Of an iterative method: it iterates with A itself, in the complement of the constants."""

    direct = False
    max_columns = 16

    @property
    def nbytes(self) -> int:
        """Bytes of the preconditioner and of the values that are left."""
        return self.inner.nbytes + self.inner.operand.nbytes


@final
class Restricted(Solver):
    """A square method, for matrices that are singular by constants alone."""

    name = "restricted"

    def __init__(self, inner: Solver, direct: bool) -> None:
        self._inner, self._direct = inner, direct

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Find the components, and analyse what is left of the pattern.

        Raises:
            SingularMatrixError: even that is structurally singular.
        """
        space = nullspace_of(pattern)
        keep = space.sizes[space.labels] > 1
        if self._direct:
            keep[space.pins] = False
        kept = np.flatnonzero(keep)
        left, positions = _left(pattern, keep, kept)
        with _explained(kept, left):
            inner = self._inner.analyze(left, spec and replace(spec, nullspace=None))
        return RestrictedSymbolic(pattern, space, kept, positions, left, inner)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Check that the constants are mapped to zero, and factorize what is left.

        Raises:
            InvalidOptionError: some row or column does not sum to zero.
            SingularMatrixError: the null space is larger than the constants.
            NotPositiveDefiniteError, NonfiniteInputError: as of the method.
        """
        symbolic.check(operand)
        assert isinstance(symbolic, RestrictedSymbolic)
        finite_statuses(operand)
        check_constants(operand)
        left = Operand(Matrix(symbolic.left, symbolic.restrict(operand.values)))
        with _explained(symbolic.kept, symbolic.left):
            inner = self._inner.factorize(symbolic.inner, left, replace(spec, nullspace=None))
        made = PinnedFactor if self._direct else ProjectedFactor
        return made(operand, symbolic.nullspace, symbolic.kept, inner)


def _left(pattern: AnyPattern, keep: Array, kept: IndexArray) -> tuple[AnyPattern, IndexArray]:
    """The pattern on the nodes that are left, and its entries among the pattern's own."""
    n = kept.size
    if not isinstance(pattern, Pattern):
        return DensePattern((n, n)), np.zeros(0, dtype=np.intp)
    positions = np.flatnonzero(keep[pattern.rows] & keep[pattern.indices])
    place = np.cumsum(keep) - 1
    indptr = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(place[pattern.rows[positions]], minlength=n), out=indptr[1:])
    return Pattern(indptr, place[pattern.indices[positions]], (n, n)), positions


@contextmanager
def _explained(kept: IndexArray, left: AnyPattern) -> Iterator[None]:
    """Errors of what is left, as errors of the caller's matrix."""
    try:
        yield
    except SingularMatrixError as error:
        raise SingularMatrixError(
            "the null space is larger than the constants on each connected component of the pattern: look for stored "
            "zeros that split a component, or leave nullspace out",
            kind=error.details.get("kind", "numeric"),
        ) from error
    except NotPositiveDefiniteError as error:
        column, method = error.details.get("column"), error.details.get("method", "cholesky")
        if column is None:
            raise
        raise not_definite(int(kept[int(column)]), method, "superlu" if isinstance(left, Pattern) else "lu") from error
