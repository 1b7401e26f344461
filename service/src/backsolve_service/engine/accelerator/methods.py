"""The iterative methods that run on a device, under the names that they have on the CPU."""

from typing import Any, final

import numpy as np

from backsolve.errors import BacksolveError
from backsolve.pattern import AnyPattern
from backsolve.types import Status

from ..base import Controls, Factor, FactorSpec, Solver, Symbolic
from ..faults import finite_statuses, not_definite, record
from ..krylov.basis import RESTART
from ..operand import Operand
from ..registry import DEFAULT_PRECONDITIONER
from ..structure import diagonal
from ..symmetry import is_hermitian
from ..tolerance import ITERATIONS_PER_ROW
from .build import build
from .cg import conjugate_gradients
from .gmres import gmres
from .krylov import DeviceKrylovFactor, Method
from .operator import DeviceOperator
from .pattern import DeviceSymbolic, analyze
from .place import working
from .precondition import DevicePreconditioner
from .problem import Iterated, Problem


def _iterate_cg(problem: Problem, controls: Controls) -> Iterated:
    del controls
    return conjugate_gradients(problem)


def _iterate_gmres(problem: Problem, controls: Controls) -> Iterated:
    return gmres(problem, controls.restart or RESTART)


CG = Method("cg", hermitian=True, limit_per_row=ITERATIONS_PER_ROW, iterate=_iterate_cg)
GMRES = Method("gmres", hermitian=False, limit_per_row=ITERATIONS_PER_ROW, iterate=_iterate_gmres, bases=1)


@final
class DeviceConjugateGradients(Solver):
    """Hermitian positive definite matrices; what shows itself to be something else is refused."""

    name = "cg"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Nothing to prepare: A = Aᴴ."""
        del spec
        return analyze(pattern, hermitian=True)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Check what can be checked in O(nnz), and bring A and the preconditioner to the device.

        Raises:
            NotPositiveDefiniteError: not Hermitian, or a diagonal entry is not positive.
            NonfiniteInputError: the matrix holds NaN or infinity.
            DeviceOutOfMemoryError: the device has no room.
        """
        return prepare(CG, symbolic, operand, spec)


@final
class DeviceGmres(Solver):
    """Any square matrix; the residual never grows. Keeps `restart` vectors a column on the device."""

    name = "gmres"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Lay out the transpose of a sparse pattern."""
        del spec
        return analyze(pattern, hermitian=False)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Bring A, a sparse one's transpose, and the preconditioner to the device.

        Raises:
            SingularMatrixError: the preconditioner would be singular.
            NonfiniteInputError: the matrix holds NaN or infinity.
            DeviceOutOfMemoryError: the device has no room.
        """
        return prepare(GMRES, symbolic, operand, spec)


def prepare(method: Method, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> DeviceKrylovFactor:
    """Everything that a solve needs on the device, for each system."""
    symbolic.check(operand)
    assert isinstance(symbolic, DeviceSymbolic)
    statuses = finite_statuses(operand)
    operators: list[DeviceOperator | None] = []
    built: list[DevicePreconditioner | None] = []
    with working(spec.device):
        for index, a in enumerate(operand.systems):
            operator, m = None, None
            if statuses[index] is Status.OK:
                try:
                    if method.hermitian:
                        _check_definite(a, method.name)
                    m = build(spec.preconditioner or DEFAULT_PRECONDITIONER, operand, index, spec.device)
                    operator = DeviceOperator(operand, index, symbolic, spec.device)
                except BacksolveError as error:
                    statuses[index], m = record(operand, error), None
            operators.append(operator)
            built.append(m)
    return DeviceKrylovFactor(operand, spec.device, method, tuple(operators), tuple(built), tuple(statuses))


def _check_definite(a: Any, method: str) -> None:
    other = "lu" if isinstance(a, np.ndarray) else "superlu"
    if not is_hermitian(a):
        raise not_definite(None, method, other)
    bad = np.flatnonzero(~(diagonal(a).real > 0))
    if bad.size:
        raise not_definite(int(bad[0]), method, other)
