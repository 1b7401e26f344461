"""A diagonal plus a matrix of low rank, by the Woodbury identity.

With A = D + Z Wᴴ and the capacitance matrix K = I + Wᴴ D⁻¹ Z, of the rank's size,

    A⁻¹ = D⁻¹ - D⁻¹ Z K⁻¹ Wᴴ D⁻¹.

D itself may be singular, or so nearly so that its inverse drowns what matters. So its entries that
are small beside the low-rank part of their row are first replaced by that part's size, and what
was added is taken off again by as many columns more in Z and W. They are at most r: each
eliminates one, and a diagonal with more zeros than r leaves A singular, since then
rank A <= (n - zeros) + r < n. In the same way, by interlacing, sigma_min(A) is at most the
(r+1)-smallest |d|, so what is left in D is no smaller than the conditioning of A has room for.

Sources: Hager, "Updating the inverse of a matrix", SIAM Review 31 (1989), section 2; Yip, "A note on
the stability of solving a rank-p modification of a linear system by the Sherman-Morrison-Woodbury
formula", SIAM J. Sci. Stat. Comput. 7 (1986), for what spoils it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from backsolve.errors import SingularMatrixError
from backsolve.pattern import StructuredPattern
from backsolve.types import Array

from .base import Prepared, StructuredSolver
from .small import SmallLu, small_lu

_SMALL = 0.1
"""A diagonal entry below this part of its row's low-rank entry is replaced. Near 1 nothing is lost by not replacing."""


@final
@dataclass(frozen=True, eq=False)
class WoodburySystem(Prepared):
    """`D + Z Wᴴ` with the factored capacitance matrix."""

    inverse: Array
    z: Array
    w: Array
    capacitance: SmallLu
    extra: int

    @property
    def nbytes(self) -> int:
        """Bytes of D⁻¹ and K, and of Z and W where they are no longer U and V."""
        wider = int(self.z.nbytes + self.w.nbytes) if self.extra else 0
        return int(self.inverse.nbytes) + self.capacitance.nbytes + wider

    def solve(self, rhs: Array, *, adjoint: bool) -> Array:
        """`4 n r + r²` multiply-adds a column."""
        inverse, z, w = self.inverse[:, None], self.z, self.w
        if adjoint:
            inverse, z, w = inverse.conj(), w, z
        y = inverse * rhs
        small = self.capacitance.solve(w.conj().T @ y, adjoint=adjoint)
        return np.asarray(y - inverse * (z @ small))


@final
class Woodbury(StructuredSolver):
    """Any nonsingular `diag(d) + U Vᴴ`."""

    name = "woodbury"
    kind = "low_rank"

    def prepare(self, pattern: StructuredPattern, parts: Mapping[str, Array]) -> Prepared:
        """Factorize the capacitance matrix; `n r² + r³` multiply-adds.

        Raises:
            SingularMatrixError: more zeros on the diagonal than the rank mends, or K is singular.
        """
        del pattern
        d, u, v = parts["d"], parts["U"], parts["V"]
        replaced, d, z, w = _sound(d, u, v)
        with np.errstate(all="ignore"):
            inverse = 1 / d
            k = w.conj().T @ (inverse[:, None] * z)
        k[np.diag_indices_from(k)] += 1
        return WoodburySystem(inverse, z, w, small_lu(k), replaced)


def _sound(d: Array, u: Array, v: Array) -> tuple[int, Array, Array, Array]:
    """A diagonal that is safe to invert, with Z and W that mend what was replaced in it."""
    n, r = u.shape
    zeros = int(np.count_nonzero(d == 0))
    if zeros > r:
        raise SingularMatrixError(
            f"the matrix is exactly singular: its diagonal has {zeros} zeros, of which a part of rank {r} mends "
            f"at most {r}; "
            "solve A + shift*I, or raise the rank",
            kind="numeric",
        )
    if n == 0 or r == 0:
        return 0, d, u, v
    size = np.abs(u).max(axis=1) * np.abs(v).max(axis=1)
    with np.errstate(all="ignore"):
        ratio = np.where(d == 0, 0.0, np.abs(d) / size)
    candidates = np.argpartition(ratio, r - 1)[:r] if n > r else np.arange(n)
    small = candidates[ratio[candidates] < _SMALL]
    if not small.size:
        return 0, d, u, v
    # Where the row has no low-rank part either, any size will do; that of the largest keeps the scale.
    scale = float(size.max()) or float(np.abs(d).max()) or 1.0
    sound = d.copy()
    sound[small] = np.where(size[small] > 0, size[small], scale)
    unit = np.zeros((n, small.size), dtype=u.dtype)
    unit[small, np.arange(small.size)] = 1
    mended = np.zeros((n, small.size), dtype=u.dtype)
    mended[small, np.arange(small.size)] = np.conj(d[small] - sound[small])
    return small.size, sound, np.hstack([u, unit]), np.hstack([v, mended])
