"""Cholesky under one name: torch's for dense matrices, SuperLU's symmetric mode for sparse ones."""

from dataclasses import replace
from typing import final

from backsolve.pattern import AnyPattern, Pattern

from ..base import Factor, FactorSpec, Solver, Symbolic
from ..operand import Operand
from .mixed import factorize_mixed, is_mixed
from .ordering import analyze


@final
class Cholesky(Solver):
    """Hermitian positive definite matrices; anything else is refused, with the column that shows it."""

    name = "cholesky"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Order a sparse pattern; a dense one needs nothing.

        Raises:
            SingularMatrixError: no values on this pattern are invertible.
        """
        if isinstance(pattern, Pattern):
            # Where the pivots have to be read, SuperLU keeps the copy that it hands out.
            return replace(analyze(pattern, self.name, spec), copies=2)
        from .dense import dense_symbolic  # noqa: PLC0415  (torch is for dense matrices only)

        return dense_symbolic(pattern, spec)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Factorize.

        Raises:
            NotPositiveDefiniteError: not Hermitian, or `details["column"]` has no positive pivot.
            NonfiniteInputError: the matrix holds NaN or infinity.
        """
        symbolic.check(operand)
        if is_mixed(operand, spec):
            return factorize_mixed(self, symbolic, operand, spec, symmetric=True)
        if isinstance(operand.pattern, Pattern):
            from .sparse_cholesky import factorize_sparse  # noqa: PLC0415

            return factorize_sparse(symbolic, operand)
        from .dense_cholesky import factorize_dense  # noqa: PLC0415

        return factorize_dense(operand, spec)
