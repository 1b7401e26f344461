"""The contract of a preconditioner."""

from abc import ABC, abstractmethod
from typing import Any

from backsolve.types import Array


class Preconditioner(ABC):
    """An easily inverted stand-in M for one matrix A.

    M changes the cost of a solve, never its answer. Immutable once built; built from one system
    in float64 or complex128. Its row in the registry says whether M is Hermitian positive definite
    by construction; only then may CG and MINRES use it.

    Args:
        a: `csr_array` or 2-D array.
        parameters: those of its row in the registry, all of them, by name.

    Raises:
        NotPositiveDefiniteError: M would be definite by construction, and A shows that it is not.
        SingularMatrixError: M would be singular.
    """

    @abstractmethod
    def __init__(self, a: Any) -> None: ...

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held."""

    @property
    def note(self) -> str | None:
        """What the caller should know of this one, if anything: the certificate says it after the reason."""
        return None

    @abstractmethod
    def apply(self, residuals: Array) -> Array:
        """`M⁻¹ r` for each of the rows of `residuals`, `[k, n]`; may return its argument."""

    @abstractmethod
    def apply_adjoint(self, residuals: Array) -> Array:
        """`M⁻ᴴ r` for each of the rows of `residuals`, `[k, n]`; may return its argument."""
