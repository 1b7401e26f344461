"""Conjugate gradients on a device: the host hears of them only every few iterations.

What an iteration decides, it decides on the device and by masks: a column that is done, or has
met something that is not definite, stops moving, and a flag says why. Every `LOOK` iterations
the host reads the flags in one copy, and judges columns that seem finished by their true residual.
"""

from typing import final

import numpy as np
import torch

from backsolve.types import Array, Status

from .place import fetch, upload
from .problem import LOOK, PATIENCE, Iterated, NotDefiniteError, Problem

FLOOR = 1e-20
"""Where the recurrence says so little remains of b, the true residual has long stopped falling."""


def conjugate_gradients(problem: Problem) -> Iterated:
    """Iterate until each column's true residual meets its target, or says why it cannot.

    Raises:
        NotDefiniteError: A or M is not Hermitian positive definite.
        CancelledError: `problem.cancelled` said so at a look.

    Source: Hestenes and Stiefel, "Methods of conjugate gradients for solving linear systems",
    J. Res. NBS 49 (1952); Saad, "Iterative methods for sparse linear systems", algorithm 9.1.
    """
    run = _Run(problem)
    run.look()
    while run.going:
        problem.check_wanted()
        for _ in range(LOOK):
            run.step()
        run.look()
    return Iterated(run.x, tuple(run.statuses), int(run.took.max(initial=0)))


@final
class _Run:
    """The state of one run. `[k]` tensors are columns of `[k, 1]`, to broadcast against blocks."""

    def __init__(self, problem: Problem) -> None:
        k, device = problem.b.shape[0], problem.b.device
        self.problem = problem
        self.statuses: list[Status] = [Status.MAX_ITER] * k
        self.took: Array = np.zeros(k, dtype=np.int64)
        self._undecided = np.ones(k, dtype=bool)
        self._restarts = np.zeros(k, dtype=np.int64)
        self._triggers = self._column(np.maximum(problem.targets, FLOOR * problem.sizes))
        self.x = torch.zeros_like(problem.b)
        self._r = problem.b.clone()
        if problem.x0 is not None:
            # Where b = 0 the answer is 0, whatever x0 was.
            self.x = torch.where(self._column(problem.sizes > 0), problem.x0, 0.0)
            self._r = problem.b - problem.multiply(self.x)
        self._count = torch.zeros(k, 1, dtype=torch.float64, device=device)
        self._reached, self._broken, self._indefinite = (
            torch.zeros(k, 1, dtype=torch.bool, device=device) for _ in range(3)
        )
        z = problem.precondition(self._r)
        self._p = z.clone()
        self._rho = _dots(self._r, z)
        norms = _norms(self._r)
        self._best: Array = problem.sizes.copy() if problem.x0 is None else fetch(norms)[:, 0]
        self._active = torch.ones_like(self._reached)
        self._flag(norms, self._rho)

    @property
    def going(self) -> bool:
        """Whether some column wants another step."""
        return bool(self._undecided.any())

    def step(self) -> None:
        """One iteration of every active column; nothing here waits for the device."""
        self._active = self._active & (self._count < self.problem.limit)
        product = self.problem.multiply(self._p)
        curvature = _dots(self._p, product)  # pᴴ A p
        self._indefinite |= self._active & (curvature <= 0)
        self._active = self._active & ~self._indefinite
        alpha = self._rho / curvature
        self._broken |= self._active & ~torch.isfinite(alpha)
        self._active = self._active & ~self._broken
        alpha = torch.where(self._active, alpha, 0.0)
        self._count += self._active
        # p is zero in columns that rest, so nothing of theirs moves.
        self.x += alpha * self._p
        self._r -= alpha * product
        z = self.problem.precondition(self._r)
        rho = _dots(self._r, z)
        self._flag(_norms(self._r), rho)
        beta = rho / self._rho
        self._p = torch.where(self._active, z + beta * self._p, 0.0)
        self._rho = torch.where(self._active, rho, 1.0)

    def look(self) -> None:
        """Read the flags, and decide the columns that rest; the one place where the host waits."""
        flags = torch.cat([self._count, self._reached, self._broken, self._indefinite], dim=1)
        count, reached, broken, indefinite = fetch(flags).T
        self.took = count.astype(np.int64)
        if indefinite.any():
            raise NotDefiniteError
        for column in np.flatnonzero(broken.astype(bool) & self._undecided):
            self.statuses[column] = Status.BREAKDOWN
        self._undecided &= ~broken.astype(bool)
        seeming = reached.astype(bool) & self._undecided
        if seeming.any():
            self._settle(seeming)
        self._undecided &= self.took < self.problem.limit

    def _flag(self, norms: torch.Tensor, rho: torch.Tensor) -> None:
        self._indefinite |= self._active & (rho <= 0) & (norms > 0)
        self._broken |= self._active & ~torch.isfinite(rho + norms)
        self._reached |= self._active & (norms <= self._triggers)
        self._active = self._active & ~(self._reached | self._broken | self._indefinite)

    def _settle(self, seeming: Array) -> None:
        """Judge columns by their true residual; those that fall short begin anew from it."""
        residual = self.problem.b - self.problem.multiply(self.x)
        norms = fetch(_norms(residual))[:, 0]
        again = np.zeros_like(seeming)
        for column in np.flatnonzero(seeming):
            size = norms[column]
            if size <= self.problem.targets[column]:
                self.statuses[column] = Status.OK
                continue
            self._restarts[column] = 0 if size <= self._best[column] / 2 else self._restarts[column] + 1
            self._best[column] = min(size, self._best[column])
            if self._restarts[column] >= PATIENCE:
                self.statuses[column] = Status.STAGNATION
            else:
                again[column] = self.took[column] < self.problem.limit
        self._undecided &= ~seeming | again
        if again.any():
            self._restart(residual, self._column(again))

    def _restart(self, residual: torch.Tensor, again: torch.Tensor) -> None:
        self._r = torch.where(again, residual, self._r)
        z = self.problem.precondition(self._r)
        self._p = torch.where(again, z, self._p)
        self._rho = torch.where(again, _dots(self._r, z), self._rho)
        self._reached = self._reached & ~again
        self._active = self._active | again
        self._indefinite |= again & (self._rho <= 0) & (_norms(self._r) > 0)

    def _column(self, values: Array) -> torch.Tensor:
        return upload(values.reshape(-1, 1), str(self.problem.b.device))


def _dots(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Real part of `aᴴ b` for each row, `[k, 1]`."""
    dots: torch.Tensor = torch.linalg.vecdot(a, b, dim=1)
    return dots.real[:, None] if dots.is_complex() else dots[:, None]


def _norms(a: torch.Tensor) -> torch.Tensor:
    """2-norm of each row, `[k, 1]`."""
    norms: torch.Tensor = torch.linalg.vector_norm(a, dim=1, keepdim=True)
    return norms
