"""From a row of the registry that says `cuda` to the preconditioner on a device."""

import numpy as np

from ..operand import Operand
from ..precond.block_jacobi import BlockJacobi
from ..precond.chebyshev import Chebyshev
from ..precond.hierarchy import hierarchy
from ..precond.parameters import resolve, split
from ..registry import PRECONDITIONERS, precondition
from ..symmetry import wide_system
from .multigrid import DeviceMultigrid
from .place import upload
from .polynomial import DeviceChebyshev
from .precondition import DeviceBlockJacobi, DeviceDiagonal, DeviceIdentity, DevicePreconditioner


def build(spelled: str, operand: Operand, index: int, device: str) -> DevicePreconditioner:
    """The device's form of a preconditioner; call inside `place.working`.

    It is built on the host, by what serves the CPU, so that both refuse the same matrices with the
    same words.

    Raises:
        NotPositiveDefiniteError, SingularMatrixError: A has no such preconditioner.
        InvalidOptionError: not with these parameters.
    """
    name, given = split(spelled)
    a = wide_system(operand, index)
    if name == "none":
        return DeviceIdentity()
    if name == "amg":
        kind = str(resolve(name, given, PRECONDITIONERS[name].parameters)["kind"])
        return DeviceMultigrid(hierarchy(a, kind), device)
    host = precondition(spelled, a)
    if name == "chebyshev":
        assert isinstance(host, Chebyshev)
        return DeviceChebyshev(host, device)
    if name == "block_jacobi":
        assert isinstance(host, BlockJacobi)
        return DeviceBlockJacobi(host, device)
    assert name == "jacobi"
    ones = np.ones((1, operand.n), dtype=operand.wide_dtype)
    return DeviceDiagonal(upload(host.apply(ones)[0], device))
