"""Preconditioned conjugate gradients for Hermitian positive definite matrices, dense or sparse.

The recurrence proposes when to stop; the true residual b - A x decides, and where the two disagree
the iteration restarts from it.
"""

from typing import final

from .base import KrylovSolver
from .block import Block
from .problem import Failure, Finished, NotDefiniteError, Problem
from .recycling import Recycling, recycling_cg


@final
class ConjugateGradients(KrylovSolver):
    """Hermitian positive definite matrices; what shows itself to be something else is refused."""

    name = "cg"
    hermitian = True
    definite = True

    def iterate(self, problem: Problem) -> Finished:
        """Run CG.

        Raises:
            NotDefiniteError: pᴴ A p <= 0 or rᴴ M⁻¹ r <= 0 for some vector met on the way.
        """
        if isinstance(problem.recycle, Recycling):
            return recycling_cg(problem, problem.recycle)
        block = Block(problem.multiply, problem.precondition, problem.b, problem.x0, problem.targets, problem.limit)
        while block.active:
            problem.check()
            block.step()
        if block.failure is Failure.NOT_DEFINITE:
            raise NotDefiniteError
        return Finished(block.x, block.stops, block.iterations)
