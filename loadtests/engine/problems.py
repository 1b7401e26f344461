"""The matrices that are timed: one pattern each, with as many sets of values on it as are asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_RAILS = 8
"""Nodes of a circuit that many others are connected to, such as supply and ground."""


@final
@dataclass(frozen=True)
class Problem:
    """A family of matrices on one pattern.

    Attributes:
        name: what the report calls it.
        n: rows.
        definite: every member is symmetric positive definite.
        member: the matrix for one positive number an edge.
        edges: how many numbers that is.
    """

    name: str
    n: int
    definite: bool
    member: Callable[[Floats], csr_array]
    edges: int

    def draw(self, rng: np.random.Generator, spread: float = 0.5) -> csr_array:
        """A member with log-normal weights."""
        return self.member(np.exp(spread * rng.standard_normal(self.edges)))


def grid(sides: tuple[int, ...]) -> Problem:
    """Diffusion on a regular grid with Dirichlet walls: 5-point in the plane, 7-point in space."""
    n = int(np.prod(sides))
    cell = np.arange(n).reshape(sides)
    ends = []
    for axis in range(len(sides)):
        lower = np.take(cell, range(sides[axis] - 1), axis).ravel()
        upper = np.take(cell, range(1, sides[axis]), axis).ravel()
        ends.append(np.stack([lower, upper]).astype(np.int64))
    between = np.concatenate(ends, axis=1)
    # A conductance to the wall for every missing neighbour keeps the matrix as a Laplacian's with walls.
    missing = 2 * len(sides) - np.bincount(between.ravel(), minlength=n)
    name = f"{len(sides)}-D grid, n={_short(n)}"
    return Problem(name, n, True, _assembly(n, between, missing.astype(np.float64)), between.shape[1])


def circuit(n: int, rng: np.random.Generator) -> Problem:
    """Conductances between neighbours, some far ones, a few rails, and controlled sources that break the symmetry."""
    near = np.stack([np.arange(n - 1), np.arange(1, n)])
    far = rng.integers(0, n, size=(2, n // 20))
    far[1] = np.clip(far[0] + rng.integers(-50, 51, size=far.shape[1]), 0, n - 1)
    rails = np.stack([rng.integers(0, n, size=n // 4), rng.integers(0, _RAILS, size=n // 4)])
    between = np.concatenate([near, far, rails], axis=1)
    between = np.unique(np.sort(between[:, between[0] != between[1]], axis=0), axis=1)
    edges: int = between.shape[1]
    sources: Floats = 0.3 * rng.random(edges)
    ground = np.full(n, 1e-3, dtype=np.float64)
    return Problem(f"circuit, n={_short(n)}", n, False, _assembly(n, between, ground, sources), edges)


def _assembly(n: int, between: Ints, ground: Floats, sources: Floats | None = None) -> Callable[[Floats], csr_array]:
    """Weighted graph Laplacian plus `ground`, its pattern prepared once; `sources` make it unsymmetric."""
    tail, head = between
    rows = np.concatenate([tail, head, tail, head, np.arange(n)])
    columns = np.concatenate([head, tail, tail, head, np.arange(n)])
    order = coo_array((np.arange(rows.size) + 1.0, (rows, columns)), shape=(n, n))
    pattern = order.tocsr()
    pattern.sort_indices()
    place = _positions(pattern, rows, columns)

    def member(weights: Floats) -> csr_array:
        backward = weights if sources is None else weights * (1 - sources)
        entries = np.concatenate([-weights, -backward, weights, weights, ground])
        values = np.bincount(place, weights=entries, minlength=pattern.nnz)
        return csr_array((values, pattern.indices, pattern.indptr), shape=(n, n))

    return member


def _positions(pattern: Any, rows: Ints, columns: Ints) -> Ints:
    """Where each (row, column) stands among the stored entries."""
    n = pattern.shape[0]
    stored = np.repeat(np.arange(n), np.diff(pattern.indptr)).astype(np.int64) * n + pattern.indices
    return np.asarray(np.searchsorted(stored, rows.astype(np.int64) * n + columns), dtype=np.int64)


def _short(n: int) -> str:
    return f"{n / 1e6:g}M" if n >= 1e6 else f"{n / 1e3:.3g}k"
