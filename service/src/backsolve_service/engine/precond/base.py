"""The contract of a preconditioner."""

from abc import ABC, abstractmethod
from typing import Any

from backsolve.types import Array


class Preconditioner(ABC):
    """An easily inverted stand-in M for one matrix A, Hermitian positive definite by construction.

    M changes the cost of a solve, never its answer. Immutable once built; built from one system
    in float64 or complex128.

    Args:
        a: `csr_array` or 2-D array.

    Raises:
        NotPositiveDefiniteError: A shows that it is not positive definite.
    """

    @abstractmethod
    def __init__(self, a: Any) -> None: ...

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held."""

    @abstractmethod
    def apply(self, residuals: Array) -> Array:
        """`M⁻¹ r` for each of the rows of `residuals`, `[k, n]`; may return its argument."""
