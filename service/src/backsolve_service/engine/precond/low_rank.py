"""Diagonal plus low rank: A's few largest eigenvalues, found by a randomized sketch."""

from typing import Any, final

import numpy as np

from backsolve.errors import NotPositiveDefiniteError
from backsolve.types import Array

from .base import Preconditioner
from .forms import unit_diagonal

_SPARE = 10
"""Columns of the sketch beyond the rank."""

_SEED = 507_221_894


@final
class LowRank(Preconditioner):
    """M = D^(1/2) (I + W Wᴴ) D^(1/2), with D the diagonal of A and W of rank `rank`: positive definite by construction.

    The Nyström approximation of A with unit diagonal gives its largest eigenvalues θ₁ ≥ θ₂ ≥ ... and
    their vectors U; M brings them all down to θ of the rank: W = U (θ/θ_rank - 1)^(1/2). U is
    orthonormal, so M⁻¹ is known in closed form and needs no r x r solve. It helps where few
    eigenvalues are large, and not where many are small (discretized differential operators).
    Built with about `rank` products with A and n rank² flops; an application costs 4 n rank.

    Args:
        a: Hermitian positive definite.
        rank: most columns of W.

    Raises:
        NotPositiveDefiniteError: not Hermitian, a diagonal entry is not positive, or the sketch
            shows an eigenvalue that is not.

    Source: Frangella, Tropp and Udell, "Randomized Nyström preconditioning", SIAM J. Matrix Anal.
    Appl. 44 (2023), algorithm 2.1 and equation (1.3), with no shift of A.
    """

    def __init__(self, a: Any, rank: int) -> None:
        self._s, matrix = unit_diagonal(a, "low_rank")
        n = matrix.shape[0]
        values, vectors = _nystroem(matrix, min(n, rank + _SPARE)) if n else (np.ones(0), np.zeros((0, 0), a.dtype))
        values, vectors = values[:rank], vectors[:, :rank]
        self._vectors: Array = np.ascontiguousarray(vectors)
        self._damping: Array = (values[-1] / values if values.size else values) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of U, its weights and the scaling."""
        return int(self._s.nbytes + self._vectors.nbytes + self._damping.nbytes)

    def apply(self, residuals: Array) -> Array:
        """`M⁻¹ r` for each of the rows of `residuals`, `[k, n]`."""
        r = residuals * self._s
        weights = (r @ np.conj(self._vectors)) * self._damping
        return np.asarray((r + weights @ self._vectors.T) * self._s)

    def apply_adjoint(self, residuals: Array) -> Array:
        """M is Hermitian."""
        return self.apply(residuals)


def _nystroem(matrix: Any, columns: int) -> tuple[Array, Array]:
    """Largest eigenvalues, descending and positive, and orthonormal vectors of them."""
    n = matrix.shape[0]
    rng = np.random.default_rng(_SEED)
    test: Array = np.linalg.qr(rng.standard_normal((n, columns)).astype(matrix.dtype))[0]
    sketch = np.asarray(matrix @ test)
    # The shift makes the small matrix definite in floating point; it is taken off again below.
    shift = float(np.finfo(np.float64).eps * np.sqrt(n) * np.linalg.norm(sketch))
    shifted = sketch + shift * test
    small = np.conj(test.T) @ shifted
    try:
        lower = np.linalg.cholesky((small + np.conj(small.T)) / 2)
    except np.linalg.LinAlgError:
        raise NotPositiveDefiniteError(
            "the matrix is not positive definite, which preconditioner 'low_rank' needs: "
            "use preconditioner 'jacobi' or a direct method"
        ) from None
    half = np.conj(np.linalg.solve(lower, np.conj(shifted.T)).T)
    vectors, singular, _ = np.linalg.svd(half, full_matrices=False)
    values = np.square(singular) - shift
    # Below this nothing is known but the shift.
    sure = values > 10 * shift
    return values[sure], vectors[:, sure]
