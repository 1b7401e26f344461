"""What conjugate gradients remember of a pattern from one solve to the next.

Values on one pattern resemble each other, and so do the eigenvectors that make CG slow. Each run
gives the Ritz vectors of the smallest eigenvalues it has met, and the next one is spared them.

Source: Saad, Yeung, Erhel and Guyomarc'h, "A deflated version of the conjugate gradient algorithm",
SIAM J. Sci. Comput. 21 (2000), section 5; Parks and others, "Recycling Krylov subspaces for sequences of
linear systems", SIAM J. Sci. Comput. 28 (2006).
"""

from threading import Lock
from typing import Any, final

import numpy as np

from backsolve.pattern import AnyPattern
from backsolve.types import Array

from ..base import Symbolic
from .deflation import Deflation, Directions, deflated_cg, recycled
from .problem import Finished, Problem

_DIRECTIONS_PER_VECTOR = 3
_MORE_DIRECTIONS = 10
"""Directions that a run gives Ritz vectors from: more cost memory, and the first hold most of what is wanted."""


@final
class Recycling(Symbolic):
    """Approximate eigenvectors of the matrices on one pattern; the one thing here that a solve changes.

    It changes what a solve costs, never its answer beyond the tolerance. Thread-safe.

    Args:
        pattern: whose matrices.
        count: how many vectors.
        dtype: of the vectors: float64 or complex128.
    """

    def __init__(self, pattern: AnyPattern, count: int, dtype: "np.dtype[Any]") -> None:
        self.pattern = pattern
        self.count = count
        self._dtype = dtype
        self._lock = Lock()
        self._vectors: Array = np.zeros((pattern.n, 0), dtype=dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors once they are there."""
        return self.pattern.n * self.count * self._dtype.itemsize

    def vectors(self) -> Array:
        """`[n, r]`, r from 0 to `count`; not modified by anybody."""
        with self._lock:
            return self._vectors

    def keep(self, vectors: Array) -> None:
        """The newest ones take the place of those before."""
        with self._lock:
            self._vectors = vectors


def recycling_cg(problem: Problem, kept: Recycling) -> Finished:
    """Solve by CG deflated with what is kept, and keep what it learns; costs `count` products more.

    Raises:
        NotDefiniteError, CancelledError: as `deflated_cg`.
    """
    w = kept.vectors()
    aw = problem.multiply(np.ascontiguousarray(w.T)).T if w.shape[1] else w
    space = Deflation(w, aw)
    directions = Directions(_DIRECTIONS_PER_VECTOR * kept.count + _MORE_DIRECTIONS)
    finished = deflated_cg(problem, space, directions)
    if finished.iterations:
        kept.keep(recycled(space, directions, problem.precondition, kept.count).w)
    return finished
