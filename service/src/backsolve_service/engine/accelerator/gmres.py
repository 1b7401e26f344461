"""Restarted GMRES on a device, preconditioned from the right: the host hears of it only every few steps.

Arnoldi runs on the device without a question to the host. The entries of the Hessenberg matrices
are the record of all that happened; at a look the host reads the new ones and finds out at which
step each column converged or broke down (`hessenberg.py`). Steps beyond that are not used, so the
answer is that of a loop that looks every time.
"""

from typing import final

import numpy as np
import torch

from backsolve.types import Array, Status

from .cg import FLOOR
from .hessenberg import Hessenberg
from .place import fetch, upload
from .problem import LOOK, Iterated, Problem

PROGRESS = 0.999
"""A cycle that leaves more than this of the true residual has gained nothing."""

PATIENCE = 3
"""Cycles in a row that may gain nothing before a column is given up, as on the CPU."""

_ORTHOGONAL = 1e-10
"""A residual r with ||Aᴴr|| below this part of ||A|| ||r|| is orthogonal to the range: nothing reduces it."""


def gmres(problem: Problem, restart: int) -> Iterated:
    """Iterate until each column's true residual meets its target, or says why it cannot.

    Orthogonalization is classical Gram-Schmidt, twice: as stable as the modified one, and two
    products with the whole basis instead of one reduction for each of its vectors.

    Args:
        problem: the systems.
        restart: vectors of the basis; `restart * n` numbers a column are held.

    Raises:
        CancelledError: `problem.cancelled` said so at a look.

    Source: Saad and Schultz, "GMRES: a generalized minimal residual algorithm", SIAM J. Sci.
    Stat. Comput. 7 (1986), algorithm 4; Giraud, Langou, Rozložník and van den Eshof, "Rounding
    error analysis of the classical Gram-Schmidt orthogonalization process", Numer. Math. 101 (2005).
    """
    run = _Run(problem, restart)
    while run.going:
        run.cycle()
    return Iterated(run.x, tuple(run.statuses), int(run.took.max(initial=0)))


@final
class _Run:
    """The state of one run."""

    def __init__(self, problem: Problem, restart: int) -> None:
        k, n = problem.b.shape
        self.problem = problem
        self.statuses: list[Status] = [Status.MAX_ITER] * k
        self.took: Array = np.zeros(k, dtype=np.int64)
        self._width = max(1, min(restart, n, problem.limit))
        self._triggers = np.maximum(problem.targets, FLOOR * problem.sizes)
        self._fruitless = np.zeros(k, dtype=np.int64)
        self._device = str(problem.b.device)
        self.x = torch.zeros_like(problem.b)
        self._r = problem.b
        self._norms: Array = problem.sizes.copy()
        if problem.x0 is not None:
            # Where b = 0 the answer is 0, whatever x0 was.
            self.x = torch.where(upload(problem.sizes > 0, self._device)[:, None], problem.x0, 0.0)
            self._r, self._norms = self._residual()
        self._open: Array = np.ones(k, dtype=bool)
        self._decide(np.zeros(k, dtype=bool))

    @property
    def going(self) -> bool:
        """Whether some column wants another cycle."""
        return bool(self._open.any())

    def cycle(self) -> None:
        """Build a basis for the open columns, take the best of it, and judge by the true residual."""
        columns = np.flatnonzero(self._open)
        chosen = upload(columns, self._device)
        width = int(min(self._width, self.problem.limit - self.took[columns].min()))
        small = self._small(columns, width)
        basis = self._arnoldi(self._r[chosen], self._norms[columns], small, width)
        small.used = np.minimum(small.used, self.problem.limit - self.took[columns])
        y = upload(small.solve(small.steps), self._device)
        step = torch.bmm(y[:, None, :], basis[:, : small.steps])[:, 0]
        self.took[columns] += np.maximum(small.used, 1)
        self._take_over(self.x.index_add(0, chosen, self.problem.precondition(step)))
        stuck = np.zeros_like(self._open)
        stuck[columns] = small.broken | small.exhausted
        self._decide(stuck)

    def _small(self, columns: Array, width: int) -> Hessenberg:
        dtype = np.dtype(np.complex128 if self.problem.b.is_complex() else np.float64)
        return Hessenberg(self._norms[columns], self._triggers[columns], width, dtype)

    def _arnoldi(self, residual: torch.Tensor, norms: Array, small: Hessenberg, width: int) -> torch.Tensor:
        """Extend the basis until every column is decided or it has `width` vectors; `[k, width + 1, n]`."""
        k, n = residual.shape
        basis = torch.zeros(k, width + 1, n, dtype=residual.dtype, device=residual.device)
        basis[:, 0] = residual / upload(norms[:, None], self._device)
        h = torch.zeros(k, width, width + 1, dtype=residual.dtype, device=residual.device)
        while small.steps < width and not small.decided.all():
            self.problem.check_wanted()
            begun, until = small.steps, min(small.steps + LOOK, width)
            for j in range(begun, until):
                self._step(basis, h, j)
            small.extend(fetch(h[:, begun:until]))
        return basis

    def _step(self, basis: torch.Tensor, h: torch.Tensor, j: int) -> None:
        """Vector `j + 1` of each basis and column `j` of each Hessenberg matrix; waits for nothing."""
        w = self.problem.multiply(self.problem.precondition(basis[:, j].contiguous()))
        known = basis[:, : j + 1]
        for _ in range(2):
            part = torch.bmm(known.conj(), w[:, :, None])
            w = w - torch.bmm(part.mT, known)[:, 0]
            h[:, j, : j + 1] += part[:, :, 0]
        norm = torch.linalg.vector_norm(w, dim=1)
        h[:, j, j + 1] = norm
        # A space that is exhausted goes on with zeros, which the host sees and cuts off.
        basis[:, j + 1] = torch.where(norm[:, None] > 0, w / norm[:, None], 0.0)

    def _take_over(self, x: torch.Tensor) -> None:
        """Keep what a cycle improved, and count where it gained nothing."""
        residual = self.problem.b - self.problem.multiply(x)
        size = torch.linalg.vector_norm(residual, dim=1)
        better = size < upload(self._norms, self._device)  # false for what is not a number
        self.x = torch.where(better[:, None], x, self.x)
        self._r = torch.where(better[:, None], residual, self._r)
        now = fetch(size)
        gained = now <= PROGRESS * self._norms
        self._fruitless = np.where(gained, 0, self._fruitless + self._open)
        self._norms = np.where(now < self._norms, now, self._norms)

    def _residual(self) -> tuple[torch.Tensor, Array]:
        residual = self.problem.b - self.problem.multiply(self.x)
        return residual, fetch(torch.linalg.vector_norm(residual, dim=1))

    def _decide(self, stuck: Array) -> None:
        """Close the columns that have their answer, or that gain nothing any more."""
        for column in np.flatnonzero(self._open).tolist():
            size = self._norms[column]
            if size <= self.problem.targets[column]:
                self._close(column, Status.OK)
            elif not np.isfinite(size):
                self._close(column, Status.BREAKDOWN)
            elif self.took[column] >= self.problem.limit:
                self._close(column, Status.MAX_ITER)
            elif self._fruitless[column] >= PATIENCE:
                self._close(column, self._spent(column, stuck=bool(stuck[column])))

    def _spent(self, column: int, *, stuck: bool) -> Status:
        """Why a column gains nothing: its residual is orthogonal to the range of A, or the method is at its end."""
        seen = fetch(torch.linalg.vector_norm(self.problem.adjoint(self._r[column : column + 1])))
        if seen <= _ORTHOGONAL * self.problem.norm * self._norms[column]:
            return Status.INCONSISTENT
        return Status.BREAKDOWN if stuck else Status.STAGNATION

    def _close(self, column: int, status: Status) -> None:
        self.statuses[column] = status
        self._open[column] = False
