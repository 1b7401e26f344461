"""Conjugate gradients on a block of columns, each with scalars of its own.

The columns share every pass over A and nothing else: no column's answer depends on which others
came along. A column leaves the block as soon as it is decided.
"""

from typing import final

import numpy as np

from backsolve.types import Array

from .problem import Apply, Failure, Stop

_FLOOR = 1e-20
"""Where the recurrence says so little remains of b, the true residual has long stopped falling.

Going on would only underflow: pᴴ A p would come out as 0, and look like an indefinite matrix.
"""

_PATIENCE = 2
"""Restarts that may fail to halve the true residual before a column counts as stagnated."""


@final
class Block:
    """The state of one run; `step` until nothing is `active`.

    Args:
        multiply: `A v` for each of the rows of `[k, n]`.
        precondition: `M⁻¹ r` likewise.
        b: `[k, n]` right-hand sides, one a row so that each is contiguous; magnitudes near 1.
        x0: `[k, n]` first iterates, or None for zero.
        targets: `[k]` wanted 2-norm of each residual.
        limit: most iterations.

    Source: Hestenes and Stiefel, "Methods of conjugate gradients for solving linear systems",
    J. Res. NBS 49 (1952); Saad, "Iterative methods for sparse linear systems", algorithm 9.1.
    """

    def __init__(
        self, multiply: Apply, precondition: Apply, b: Array, x0: Array | None, targets: Array, limit: int
    ) -> None:
        self.x: Array = np.zeros_like(b) if x0 is None else x0.copy()
        self.stops: list[Stop] = [Stop.LIMIT] * b.shape[0]
        self.iterations = 0
        self.failure: Failure | None = None
        self._multiply, self._precondition, self._limit = multiply, precondition, limit
        self._b, self._targets = b, targets
        self._triggers = np.maximum(targets, _FLOOR * _norms(b))
        self._restarts = np.zeros(b.shape[0], dtype=np.int64)
        # Where b = 0 the answer is 0, whatever x0 was.
        self.x[~b.any(axis=1)] = 0
        self._columns = np.arange(b.shape[0])
        self._p: Array
        self._rho: Array
        residual = b - multiply(self.x) if x0 is not None else b.copy()
        self._best = _norms(residual)
        self._begin(self._columns, residual)
        self._settle()

    @property
    def active(self) -> bool:
        """Whether another step is wanted."""
        return self.failure is None and self._columns.size > 0 and self.iterations < self._limit

    def step(self) -> None:
        """One iteration of every undecided column."""
        self.iterations += 1
        with np.errstate(all="ignore"):
            product = self._multiply(self._p)
            curvature = _dots(self._p, product)  # pᴴ A p
            if np.any(curvature <= 0):
                self.failure = Failure.NOT_DEFINITE
                return
            alpha = (self._rho / curvature)[:, None]
            self._x += alpha * self._p
            self._r -= alpha * product
            z = self._precondition(self._r)
            rho = _dots(self._r, z)
            norms = _norms(self._r)
            if np.any((rho <= 0) & (norms > 0)):
                self.failure = Failure.NOT_DEFINITE
                return
            self._p = z + (rho / self._rho)[:, None] * self._p
            self._rho = rho
            if np.any(norms <= self._triggers[self._columns]) or not np.all(np.isfinite(rho + norms)):
                self._settle(norms)
        if not self.active:
            self.x[self._columns] = self._x

    def _begin(self, columns: Array, residual: Array) -> None:
        """Start the recurrence of `columns` from their true residual."""
        self._columns = columns
        self._x, self._r = self.x[columns], residual
        z = self._precondition(residual)
        # Row indexing and arithmetic copy; the identity preconditioner returns its argument.
        self._p = z.copy()
        self._rho = _dots(residual, z)
        if np.any((self._rho <= 0) & (_norms(residual) > 0)):
            self.failure = Failure.NOT_DEFINITE

    def _settle(self, norms: Array | None = None) -> None:
        """Decide the columns that seem finished by their true residual, and restart those that are not."""
        if self.failure is not None:
            return
        norms = _norms(self._r) if norms is None else norms
        columns = self._columns
        broken = ~np.isfinite(norms + self._rho)
        done = broken | (norms <= self._triggers[columns])
        if not done.any():
            return
        self.x[columns[~broken]] = self._x[~broken]
        for column in columns[broken]:
            self.stops[column] = Stop.BROKE_DOWN
        again: list[int] = []
        finished = columns[done & ~broken]
        true_residual = self._b[finished] - self._multiply(self.x[finished]) if finished.size else self._b[finished]
        for column, size in zip(finished, _norms(true_residual), strict=True):
            if size <= self._targets[column]:
                self.stops[column] = Stop.CONVERGED
                continue
            self._restarts[column] = 0 if size <= self._best[column] / 2 else self._restarts[column] + 1
            self._best[column] = min(size, self._best[column])
            if self._restarts[column] >= _PATIENCE:
                self.stops[column] = Stop.STAGNATED
            else:
                again.append(column)
        self._keep(~done, np.array(again, dtype=columns.dtype), finished, true_residual)

    def _keep(self, going: Array, again: Array, finished: Array, residual: Array) -> None:
        """Go on with the columns that were not touched, and anew with those that restart."""
        state = (self._columns[going], self._x[going], self._r[going], self._p[going], self._rho[going])
        self._columns, self._x, self._r, self._p, self._rho = state
        if not again.size:
            return
        self._begin(again, residual[np.isin(finished, again)])
        if self.failure is None:
            fresh = (self._columns, self._x, self._r, self._p, self._rho)
            joined = [np.concatenate(pair) for pair in zip(state, fresh, strict=True)]
            self._columns, self._x, self._r, self._p, self._rho = joined


def _dots(a: Array, b: Array) -> Array:
    """Real part of `aᴴ b` for each row."""
    # conj copies even what is real already.
    return np.asarray(np.einsum("kn,kn->k", np.conj(a) if a.dtype.kind == "c" else a, b).real)


def _norms(a: Array) -> Array:
    """2-norm of each row."""
    return np.sqrt(_dots(a, a))
