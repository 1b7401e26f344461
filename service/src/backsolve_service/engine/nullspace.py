"""Matrices whose left and right null spaces are the constants on each connected component of the pattern.

Graph Laplacians and pure Neumann problems: singular, and solvable once the constants are projected
out. P below is the orthogonal projection that takes the mean of each component away.
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from backsolve.errors import InvalidOptionError
from backsolve.pattern import AnyPattern, IndexArray, Pattern
from backsolve.types import Array

from .operand import Operand
from .scaling import exponents, magnitude, shift
from .tolerance import SINGLE_EPS, epsilon


@final
@dataclass(frozen=True, eq=False)
class Nullspace:
    """The constants on each connected component.

    Attributes:
        labels: `[n]` component of each node (row, and column).
        sizes: `[components]` nodes of each.
        indicator: `[components, n]` sparse: 1 where a node belongs to a component.
        pins: `[components]` the node of each component with most stored entries.
    """

    labels: IndexArray
    sizes: IndexArray
    indicator: Any
    pins: IndexArray

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        indicator = self.indicator.data.nbytes + self.indicator.indices.nbytes + self.indicator.indptr.nbytes
        return int(self.labels.nbytes + self.sizes.nbytes + self.pins.nbytes + indicator)

    def means(self, columns: Array) -> Array:
        """`[components, k]` mean of each component of each of the columns, `[n, k]`."""
        return np.asarray((self.indicator @ columns) / self.sizes[:, None])

    def project(self, stacked: Array) -> Array:
        """`P v` for columns `[systems, n, k]`, in their element type, computed in double."""
        return self.split(stacked)[0]

    def split(self, stacked: Array) -> tuple[Array, Array]:
        """`P b`, and which columns are further from it than rounding explains.

        Returns:
            `[systems, n, k]`, and `[systems, k]` of booleans: |sum of b over some component|
            above 1e-12 ||b|| (1e-5 in single precision). What is not finite stays so, and is
            called consistent.
        """
        dtype = stacked.dtype
        wide = stacked.astype(np.complex128 if dtype.kind == "c" else np.float64, copy=False)
        projected, outside = np.empty_like(wide), np.zeros((wide.shape[0], wide.shape[2]), dtype=bool)
        limit = 1e-5 if epsilon(dtype) >= SINGLE_EPS else 1e-12
        with np.errstate(all="ignore"):
            # At magnitudes near 1 no sum and no square leaves the range.
            powers = exponents(magnitude(wide, 1))[:, None, :] if wide.size else np.zeros(1, dtype=np.int64)
            scaled = shift(wide, -powers)
            for s, columns in enumerate(scaled):
                means = self.means(columns)
                projected[s] = columns - means[self.labels]
                sums = np.abs(means) * self.sizes[:, None]
                outside[s] = np.any(sums > limit * np.linalg.norm(columns, axis=0), axis=0)
            return shift(projected, powers).astype(dtype, copy=False), outside


def nullspace_of(pattern: AnyPattern) -> Nullspace:
    """Components of a square pattern, in O(nnz); a dense one is one component."""
    n = pattern.n
    if isinstance(pattern, Pattern):
        a = csr_array((np.ones(pattern.nnz, dtype=np.int8), pattern.indices, pattern.indptr), shape=pattern.shape)
        count, labels = connected_components(a, directed=False)
        degree = np.diff(pattern.indptr) + np.bincount(pattern.indices, minlength=n)
    else:
        count, labels, degree = min(n, 1), np.zeros(n, dtype=np.int32), np.zeros(n, dtype=np.int32)
    # Last of each component in the order of degrees; a much connected node leaves least fill.
    order = np.argsort(degree, kind="stable")
    pins = np.zeros(count, dtype=np.intp)
    pins[labels[order]] = order
    indicator = csr_array((np.ones(n), (labels, np.arange(n))), shape=(count, n))
    return Nullspace(labels, np.bincount(labels, minlength=count), indicator, pins)


def check_constants(operand: Operand) -> None:
    """Refuse a matrix that does not map the constants to zero, from the left and from the right.

    Components share no entries, so that A 1 = 0 says it of each of them. A sum of m entries may
    be off by 8 m roundings of the sum of their magnitudes, in its row or in its column.

    Raises:
        InvalidOptionError: some row or column does not sum to zero.
    """
    for index, a in enumerate(operand.wide):
        if operand.batch is not None and not np.isfinite(operand.values[index]).all():
            continue  # it has a status of its own
        with np.errstate(over="ignore", invalid="ignore"):
            size = abs(a)
            count = _counts(a)
            # Half of a rounding of the larger sum shows in the other.
            bound = np.maximum(size.sum(axis=0), size.sum(axis=1)) * (8 * epsilon(operand.dtype)) * (count + 1)
            for axis, name in ((1, "row"), (0, "column")):
                bad = np.flatnonzero(~(np.abs(a.sum(axis=axis)) <= bound))
                if bad.size:
                    where = "" if operand.batch is None else f" of system {index}"
                    raise InvalidOptionError(
                        f"nullspace='constant' needs rows and columns that sum to zero, and {name} {int(bad[0])}"
                        f"{where} does not ({bad.size} {name}s in all): leave the option out, "
                        "or build the diagonal as minus the sum of the other entries",
                        option="nullspace",
                    )


def _counts(a: Any) -> Array:
    """Stored entries of each row or of each column, whichever are more."""
    if isinstance(a, np.ndarray):
        return np.full(a.shape[0], a.shape[0])
    return np.asarray(np.maximum(np.diff(a.indptr), np.bincount(a.indices, minlength=a.shape[0])))
