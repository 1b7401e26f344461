"""Whom the engine is compared with: users of SciPy today, and its own callers."""

from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array
from scipy.sparse.linalg import SuperLU, splu, spsolve

import backsolve
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.embedded import EmbeddedTransport

Floats = NDArray[np.float64]

Step = tuple[Floats, Floats, Floats]
"""x, the gradient of b, and the gradient of the stored entries."""


def spsolve_pair(A: csr_array, b: Floats, g: Floats) -> Step:
    """What most scripts do: a fresh factorization forward, and another one backward."""
    # Conversions are part of what such a script costs.
    x = spsolve(csc_array(A), b)
    lam = spsolve(csc_array(A.T), g)
    return x, lam, _on_entries(A, x, lam)


@final
class CarefulUser:
    """Who keeps one `splu` for both directions, with SciPy's default settings."""

    def __init__(self) -> None:
        self._lu: SuperLU | None = None

    def step(self, A: csr_array, b: Floats, g: Floats) -> Step:
        """Factorize, then solve both ways."""
        self._lu = splu(csc_array(A))
        x, lam = self._lu.solve(b), self._lu.solve(g, trans="T")
        return x, lam, _on_entries(A, x, lam)


@final
class Caller:
    """Who calls `Client.solve` and `Client.vjp` on an engine of their own.

    Args:
        options: of every solve.
    """

    def __init__(self, **options: Any) -> None:
        self._plane = DataPlane(PlaneConfig(workers=1, cache_bytes=8 << 30))
        self.client = backsolve.Client(transport=EmbeddedTransport(self._plane))
        self.options = options

    def step(self, A: csr_array, b: Floats, g: Floats) -> Step:
        """One forward and one backward pass, both gradients."""
        x = self.client.solve(A, b, **self.options).x
        gradients = self.client.vjp(A, x, g, **self.options)
        return x, np.asarray(gradients.b), np.asarray(gradients.values.data)

    def close(self) -> None:
        """End the engine."""
        self.client.close()
        self._plane.close()


def _on_entries(A: csr_array, x: Floats, lam: Floats) -> Floats:
    rows = np.repeat(np.arange(A.shape[0]), np.diff(A.indptr))
    return np.asarray(-lam[rows] * x[A.indices])
