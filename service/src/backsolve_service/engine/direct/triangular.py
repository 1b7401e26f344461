"""Triangular matrices, lower or upper: nothing is eliminated, solving is one sweep.

Dense ones are torch's. A sparse one is read as the U of an LU whose L is the identity: SuperLU's
compiled sweeps then serve it in all three directions. A lower one becomes an upper one when rows
and columns are counted from the end.
"""

from typing import Any, final

import numpy as np

from backsolve.errors import InvalidPatternError
from backsolve.pattern import AnyPattern, Pattern

from ..base import Factor, FactorSpec, Solver, Symbolic
from ..faults import factorize_each, singular
from ..operand import Operand
from ..structure import inspect_pattern
from .ordering import Fill, Ordering, arranged, check_matching
from .superlu import SuperLuFactor, decompose


@final
class Triangular(Solver):
    """Lower or upper triangular matrices."""

    name = "triangular"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Find the side of a sparse pattern; a dense matrix shows it by its values.

        Raises:
            SingularMatrixError: a diagonal entry is not stored.
            InvalidPatternError: entries are stored on both sides of the diagonal.
        """
        if not isinstance(pattern, Pattern):
            from .dense import dense_symbolic  # noqa: PLC0415  (torch is for dense matrices only)

            return dense_symbolic(pattern, spec)
        facts = inspect_pattern(pattern)
        check_matching(facts)
        if not facts.triangular:
            raise InvalidPatternError("method 'triangular' takes entries on one side of the diagonal only")
        order = np.arange(pattern.n, dtype=np.intc)
        if facts.lower_bandwidth:
            order = order[::-1].copy()
        return arranged(pattern, "natural", order, Fill(pattern.nnz + pattern.n, float(pattern.nnz)))

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Look for zeros on the diagonal, and hand the matrix over.

        Raises:
            SingularMatrixError: a diagonal entry is zero; `details["column"]` says which.
            NonfiniteInputError: the matrix holds NaN or infinity.
            InvalidPatternError: a dense matrix has nonzeros on both sides of its diagonal.
        """
        symbolic.check(operand)
        if not isinstance(symbolic, Ordering):
            from .dense_triangular import factorize_dense  # noqa: PLC0415

            return factorize_dense(operand, spec)
        ordering = symbolic
        handles, statuses = factorize_each(operand, lambda index: _handle(ordering, operand.systems[index]))
        return SuperLuFactor(operand, symbolic, handles, statuses)


def _handle(ordering: Ordering, a: Any) -> Any:
    zeros = np.flatnonzero(a.diagonal() == 0)
    if zeros.size:
        raise singular(int(zeros[0]))
    return decompose(ordering.permuted(a.data), symmetric=True, threshold=0.0)
