"""Sparse LU, LDLᴴ and Cholesky on a CUDA device (cuDSS), in an order that the pattern alone decides.

cuDSS keeps analysis and factors in one object, so each factor has one of its own; what factors of
one pattern share is the permutation, by far the dearest part of an analysis. The object of a factor
that is dropped is kept, and refactorized where new values come on its pattern. Pivots are only
searched within blocks and replaced where they vanish, so every new factor is tried on random
vectors, forward, before it is believed; where it fails, a safer plan follows.
"""

from typing import final

import torch

from backsolve.errors import InvalidPatternError, SingularMatrixError
from backsolve.pattern import AnyPattern, IndexArray, Pattern
from backsolve.types import Status

from ...accelerator.pattern import analyze as transpose
from ...accelerator.place import upload, working
from ...base import Factor, FactorSpec, Solver, Symbolic
from ...faults import finite_statuses
from ...operand import Operand
from ...structure import inspect_pattern
from .build import Build
from .constants import MatrixType, Phase
from .factor import CudssFactor, CudssSymbolic
from .handles import Dense, Sparse, Work, handle
from .plans import Plan, plans


@final
class Cudss(Solver):
    """Any square nonsingular sparse matrix, on a CUDA device."""

    name = "cudss"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Have the library order the pattern, and read its order.

        Raises:
            SingularMatrixError: no values on this pattern are invertible.
            InvalidPatternError: the pattern is dense.
        """
        if not isinstance(pattern, Pattern):
            raise InvalidPatternError("method 'cudss' takes sparse matrices: use method 'lu'")
        facts = inspect_pattern(pattern)
        if facts.structurally_singular:
            raise SingularMatrixError(
                "the pattern is structurally singular: no values on it are invertible; look for an empty row or column",
                kind="structural",
            )
        order = _order(pattern, "cuda" if spec is None else spec.device) if facts.full_diagonal and pattern.n else None
        return CudssSymbolic(pattern, order, transpose(pattern, hermitian=False))

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Factorize by the first plan that its probe confirms; where memory is short, with factors on the host.

        Raises:
            SingularMatrixError: no plan could solve with the probe; `details["pivots"]` says how many
                pivots were replaced.
            NonfiniteInputError: the matrix holds NaN or infinity.
            DeviceOutOfMemoryError: the device has no room, even with factors on the host.
            DeviceFaultError: the device failed.
        """
        symbolic.check(operand)
        assert isinstance(symbolic, CudssSymbolic)
        statuses = finite_statuses(operand)
        usable = [index for index, status in enumerate(statuses) if status is Status.OK]
        ways = plans(operand, usable, full_diagonal=symbolic.permutation is not None)
        if not usable or operand.n == 0:
            none = (None,) * len(statuses)
            return CudssFactor(operand, spec.device, ways[-1], None, None, none, tuple(statuses), 0)
        with working(spec.device):
            return Build(symbolic, operand, spec.device, statuses, usable).first_good(ways)


def _order(pattern: Pattern, device: str) -> IndexArray:
    """The library's order of a pattern, which needs no values: ones stand for them."""
    with working(device):
        values = torch.ones(pattern.nnz, dtype=torch.float64, device=device)
        at = handle(device, values.dtype)
        kind = MatrixType.CUDSS_MTYPE_GENERAL
        matrix = Sparse(at, upload(pattern.indptr, device), upload(pattern.indices, device), values, kind)
        work = Work(at, Plan(kind, ordered=True).settings(None))
        vector = torch.ones(1, pattern.n, dtype=torch.float64, device=device)
        with at.used():
            work.execute(Phase.CUDSS_PHASE_REORDERING, matrix, Dense(at, torch.zeros_like(vector)), Dense(at, vector))
            return work.permutation(pattern.n, pattern.indices.dtype)
