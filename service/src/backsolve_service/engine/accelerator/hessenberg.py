"""The small least-squares problems of GMRES, on the host, from what Arnoldi left on the device.

Each column of a block has a Hessenberg matrix of its own. The device never waits for them: the
host reads the new columns of all matrices at a look, and finds out afterwards at which step each
one had converged.
"""

from typing import final

import numpy as np

from backsolve.types import Array

_LUCKY = 10 * float(np.finfo(np.float64).eps)
"""What is left of A v after orthogonalization is rounding noise below this part of it."""


@final
class Hessenberg:
    """`min ‖β e₁ - H y‖` by Givens rotations, for `k` matrices at once.

    Args:
        beta: `[k]` norm of each starting residual.
        triggers: `[k]` norm at which each column is content.
        width: most columns of each matrix.
        dtype: float64 or complex128.

    Attributes:
        used: `[k]` steps until a column was content or could not go on; `steps` while neither.
        decided: `[k]`.
        broken: `[k]` what Arnoldi gave was not a number.
        exhausted: `[k]` the space stopped growing without an answer in it.
        steps: columns taken in so far.

    Source: Saad and Schultz, "GMRES: a generalized minimal residual algorithm", SIAM J. Sci.
    Stat. Comput. 7 (1986), section 3.2.
    """

    def __init__(self, beta: Array, triggers: Array, width: int, dtype: "np.dtype[np.generic]") -> None:
        k = beta.size
        self.steps = 0
        self.used: Array = np.zeros(k, dtype=np.int64)
        self.decided: Array = np.zeros(k, dtype=bool)
        self.broken: Array = np.zeros(k, dtype=bool)
        self.exhausted: Array = np.zeros(k, dtype=bool)
        self._triggers = triggers
        self._r = np.zeros((k, width + 1, width), dtype=dtype)
        self._g = np.zeros((k, width + 1), dtype=dtype)
        self._g[:, 0] = beta
        self._cosines = np.zeros((k, width))
        self._sines = np.zeros((k, width), dtype=dtype)

    def extend(self, columns: Array) -> None:
        """Take in further columns of H, `[k, new, width + 1]`, zero below the subdiagonal."""
        for step in range(columns.shape[1]):
            self._append(columns[:, step].copy())

    def solve(self, width: int) -> Array:
        """`[k, width]` coefficients of the basis vectors; zero beyond what a column used."""
        y = np.zeros((self._r.shape[0], width), dtype=self._r.dtype)
        for index, used in enumerate(self.used):
            if used:
                y[index, :used] = np.linalg.solve(self._r[index, :used, :used], self._g[index, :used])
        return y

    def _append(self, h: Array) -> None:
        j = self.steps
        self.steps += 1
        with np.errstate(all="ignore"):
            bad = ~np.isfinite(h).all(axis=1)
            noise = np.abs(h[:, j + 1]) <= _LUCKY * np.linalg.norm(h[:, : j + 2], axis=1)
            for i in range(j):
                c, s = self._cosines[:, i], self._sines[:, i]
                upper, lower = h[:, i].copy(), h[:, i + 1].copy()
                h[:, i] = c * upper + s * lower
                h[:, i + 1] = c * lower - np.conj(s) * upper
            size = np.hypot(np.abs(h[:, j]), np.abs(h[:, j + 1]))
            empty = size <= _LUCKY * np.linalg.norm(self._r[:, : j + 1, : j + 1].reshape(h.shape[0], -1), axis=1)
            c, s = _rotation(h[:, j], h[:, j + 1])
            self._cosines[:, j], self._sines[:, j] = c, s
            self._r[:, : j + 1, j] = h[:, : j + 1]
            self._r[:, j, j] = c * h[:, j] + s * h[:, j + 1]
            before = self._g[:, j].copy()
            self._g[:, j] = c * before
            self._g[:, j + 1] = -np.conj(s) * before
        going = ~self.decided
        self.broken |= going & bad
        # A direction that A maps into what is there already, and that helps nothing: A is singular there.
        self.exhausted |= going & ~bad & (empty | (size == 0))
        stopped = going & (self.broken | self.exhausted)
        content = going & ~stopped & (noise | (np.abs(self._g[:, j + 1]) <= self._triggers))
        self.used[going & ~stopped] = j + 1
        self.decided |= stopped | content


def _rotation(a: Array, b: Array) -> tuple[Array, Array]:
    """Cosine (real) and sine of the rotation that turns `(a, b)` into `(r, 0)`, each `[k]`."""
    size = np.hypot(np.abs(a), np.abs(b))
    away = np.where(np.abs(a) > 0, np.abs(a), 1.0)
    phase = np.where(np.abs(a) > 0, a / away, 1.0)
    scale = np.where(size > 0, size, 1.0)
    return np.where(size > 0, np.abs(a) / scale, 1.0), phase * np.conj(b) / scale
