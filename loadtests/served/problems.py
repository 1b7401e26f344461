"""The systems that callers solve, and how they judge the answers without the server."""

from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array, diags_array, eye_array, kron

import backsolve

Floats = NDArray[np.float64]

TOLERANCE = 1e-9
"""Largest relative residual of a right answer; the matrices are diagonally dominant, so direct methods reach 1e-14."""


def grid(side: int) -> csr_array:
    """Diffusion on a `side` x `side` grid with a little drift: nonsymmetric, strictly diagonally dominant."""
    line = diags_array([-1.1, 2.0, -0.9], offsets=[-1, 0, 1], shape=(side, side))
    unit = eye_array(side)
    made = csr_array(kron(line, unit) + kron(unit, line) + eye_array(side * side))
    made.sort_indices()
    return made


def one_of_many(side: int, number: int, salt: int = 0) -> csr_array:
    """The grid with `side` further couplings that no other number has: a pattern of its own."""
    rng = np.random.default_rng([771_204_883, side, number, salt])
    n = side * side
    places = rng.integers(0, n, (2, side))
    extra = coo_array((np.full(side, -0.01), (places[0], places[1])), shape=(n, n))
    made = csr_array(grid(side) + csr_array(extra) + 0.01 * side * eye_array(n))
    made.sort_indices()
    return made


@final
class Changing:
    """One pattern whose values are new whenever `at` is asked for another step.

    Args:
        side: of the grid.
        stream: another one gives other values.
    """

    def __init__(self, side: int, stream: tuple[int, ...]) -> None:
        self._base = grid(side)
        rows = np.repeat(np.arange(side * side), np.diff(self._base.indptr))
        self._diagonal = np.flatnonzero(rows == self._base.indices)
        self._stream = stream

    @property
    def n(self) -> int:
        """Unknowns."""
        return int(self._base.shape[0])

    def at(self, k: int) -> csr_array:
        """The matrix of step `k`; the same for every caller with the same stream."""
        rng = np.random.default_rng([519_330_271, *self._stream, k % (1 << 32)])
        values = self._base.data.copy()
        values[self._diagonal] += rng.random(self._diagonal.size)
        return csr_array((values, self._base.indices, self._base.indptr), shape=self._base.shape)


def solves(A: csr_array, x: Floats, b: Floats) -> bool:
    """Whether `A x = b` to `TOLERANCE`; NaN does not."""
    return bool(np.linalg.norm(A @ x - b) <= TOLERANCE * np.linalg.norm(b))


def pulls(A: csr_array, x: Floats, cotangent: Floats, gradients: backsolve.Gradients) -> bool:
    """Whether gradients are those of `x = A⁻¹ b`: Aᵀ λ = cotangent, and -λ xᵀ on A's entries."""
    adjoint = np.asarray(gradients.b)
    if not solves(csr_array(A.T), adjoint, cotangent):
        return False
    rows = np.repeat(np.arange(A.shape[0]), np.diff(A.indptr))
    expected = -adjoint[rows] * x[A.indices]
    return bool(np.linalg.norm(gradients.values.data - expected) <= TOLERANCE * np.linalg.norm(expected))
