"""Deflated conjugate gradients: what one run learns of a matrix spares the next run iterations.

The few smallest eigenvalues decide how long CG takes. A run meets them on its way; approximate
eigenvectors W from it are handed to the next run, with the same matrix or one near it, which solves on
their span exactly and iterates on the rest.

Nothing here changes an answer: a poor W costs iterations, and the true residual decides as ever.

Source: Saad, Yeung, Erhel and Guyomarc'h, "A deflated version of the conjugate gradient algorithm",
SIAM J. Sci. Comput. 21 (2000), algorithm 3.6 and section 5.1.
"""

from typing import final

import numpy as np

from backsolve.types import Array

from .driver import Cycle, Start, run
from .problem import Apply, Finished, NotDefiniteError, Problem, longest, norms, real_dots

_PROGRESS = 0.5
_DEPENDENT = 1e-12
"""Directions whose Gram matrix has an eigenvalue below this part of the largest are dependent up to rounding."""


@final
class Deflation:
    """A space to be solved on exactly, by a basis W with `Wᴴ A W = I`. Immutable.

    Args:
        w: `[n, r]`, any directions; those that are zero, not finite, or dependent on others are left out.
        aw: `[n, r]`, A times them: r products if A is new, none if `recycled` made both.

    Raises:
        NotDefiniteError: A is not positive definite on the span of W.
    """

    def __init__(self, w: Array, aw: Array) -> None:
        self.w, self.aw = _orthonormal(w, aw)

    @property
    def nbytes(self) -> int:
        """Bytes of W and A W."""
        return int(self.w.nbytes + self.aw.nbytes)

    def correction(self, residuals: Array) -> tuple[Array, Array]:
        """`d = W (Wᴴ A W)⁻¹ Wᴴ r` for each of the rows of `residuals`, `[k, n]`, and `A d`."""
        along = residuals @ np.conj(self.w)
        return along @ self.w.T, along @ self.aw.T

    def project(self, directions: Array) -> Array:
        """Each row of `directions`, `[k, n]`, made A-orthogonal to W."""
        return np.asarray(directions - (directions @ np.conj(self.aw)) @ self.w.T)


@final
class Directions:
    """The first search directions of a run, from which eigenvectors are made.

    Args:
        most: how many to keep, each with its product with A: two vectors.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._p: list[Array] = []
        self._ap: list[Array] = []

    def take(self, p: Array, ap: Array) -> None:
        """Keep one direction, `[n]`, as long as there is room."""
        if len(self._p) < self._most:
            self._p.append(p.copy())
            self._ap.append(ap.copy())

    def pairs(self, like: Array) -> tuple[Array, Array]:
        """What was kept and A times it, `[n, l]` each, l perhaps 0; `like` has n rows and the element type."""
        if not self._p:
            empty = np.zeros((like.shape[0], 0), dtype=like.dtype)
            return empty, empty
        return np.stack(self._p, axis=1), np.stack(self._ap, axis=1)


def deflated_cg(problem: Problem, space: Deflation, directions: Directions | None = None) -> Finished:
    """Solve by CG on what `space` leaves over.

    Beside CG's own cost an iteration takes `4 n r` multiply-adds a column.

    Args:
        problem: with A and M Hermitian positive definite; A the one that `space` knows the products of.
        space: may be empty: then this is CG.
        directions: filled from the first column of each cycle, for `recycled`.

    Raises:
        NotDefiniteError: pᴴ A p <= 0 or rᴴ M⁻¹ r <= 0 for some vector met on the way.
        CancelledError: out of `problem.check`.
    """
    return run(problem, lambda p, start: _cycle(p, start, space, directions), _PROGRESS)


def ritz_vectors(z: Array, az: Array, precondition: Apply, count: int) -> tuple[Array, Array, Array]:
    """Approximate eigenvectors of `M⁻¹ A` to its smallest eigenvalues, out of the span of Z.

    `M⁻¹ A` is self-adjoint in the inner product of A, and Ritz vectors in that one need no product
    with M. The values are bounds of the eigenvalues from above.

    Args:
        z, az: `[n, l]`, and A times it.
        precondition: `M⁻¹ v` for each of the rows of `[l, n]`; called once.
        count: how many are wanted.

    Returns:
        Values `[r]`, ascending; vectors `[n, r]`; A times them. r is less than `count` where the
        span of Z is smaller.

    Raises:
        NotDefiniteError: A is not positive definite on the span of Z.
    """
    z, az = _orthonormal(z, az)
    gram = np.conj(az.T) @ precondition(np.ascontiguousarray(az.T)).T
    values, vectors = np.linalg.eigh((gram + np.conj(gram.T)) / 2)
    chosen = vectors[:, :count]
    return values[:count], z @ chosen, az @ chosen


def recycled(space: Deflation, directions: Directions, precondition: Apply, count: int) -> Deflation:
    """The space for the next run: the `count` smallest of what was known and what a run has met; no product.

    Args:
        space: the one that the run was deflated with.
        directions: the ones that the run has filled.
        precondition: as of `ritz_vectors`.
        count: dimension wanted.
    """
    p, ap = directions.pairs(space.w)
    z, az = np.hstack([space.w, p]), np.hstack([space.aw, ap])
    _, w, aw = ritz_vectors(z, az, precondition, count)
    return Deflation(w, aw)


def _cycle(problem: Problem, start: Start, space: Deflation, directions: Directions | None) -> Cycle:
    """From a residual, first reduced to what is orthogonal to W, until every column proposes to stop."""
    found, product = space.correction(start.r)
    x, r = start.x + found, start.r - product
    out, products = x.copy(), np.zeros(x.shape[0], dtype=np.int64)
    most = np.minimum(start.limits, longest(x.shape[1]))
    live: Array = np.flatnonzero(norms(r) > start.triggers)
    if not live.size:
        return Cycle(out, products, np.zeros(out.shape[0], dtype=bool))
    x, r = x[live], r[live]
    z = problem.precondition(r)
    rho = _energy(r, z)
    p = space.project(z)
    while live.size:
        problem.check()
        products[live] += 1
        ap = problem.multiply(p)
        if directions is not None:
            directions.take(p[0], ap[0])
        curvature = real_dots(p, ap)
        if np.any(curvature <= 0):
            raise NotDefiniteError
        alpha = (rho / curvature)[:, None]
        x = x + alpha * p
        r = r - alpha * ap
        # What is not a number is done as well.
        done = ~(norms(r) > start.triggers[live]) | (products[live] >= most[live])
        if done.any():
            good = done & np.isfinite(x).all(axis=1)
            out[live[good]] = x[good]
            live, x, r, p, rho = (a[~done] for a in (live, x, r, p, rho))
            if not live.size:
                break
        z = problem.precondition(r)
        before, rho = rho, _energy(r, z)
        p = space.project(z) + (rho / before)[:, None] * p
    return Cycle(out, products, np.zeros(out.shape[0], dtype=bool))


def _energy(r: Array, z: Array) -> Array:
    """`rᴴ M⁻¹ r` for each row."""
    rho = real_dots(r, z)
    if np.any(rho <= 0):
        raise NotDefiniteError
    return rho


def _orthonormal(w: Array, aw: Array) -> tuple[Array, Array]:
    """The same span in a basis with `Wᴴ A W = I`, and A times it."""
    usable = np.isfinite(w).all(axis=0) & np.isfinite(aw).all(axis=0) & w.any(axis=0)
    w, aw = w[:, usable], aw[:, usable]
    # Vectors near 1 first, so that no square leaves the range.
    size = np.abs(w).max(axis=0, initial=0.0)
    w, aw = w / size, aw / size
    energies = real_dots(w.T, aw.T)
    if np.any(energies <= 0):
        raise NotDefiniteError
    lengths = np.sqrt(energies)
    w, aw = w / lengths, aw / lengths
    gram = np.conj(w.T) @ aw
    values, vectors = np.linalg.eigh((gram + np.conj(gram.T)) / 2)
    floor = _DEPENDENT * values.max(initial=0.0)
    if np.any(values < -len(values) * floor):
        raise NotDefiniteError
    kept = values > floor
    basis = vectors[:, kept] / np.sqrt(values[kept])
    return w @ basis, aw @ basis
