"""A matrix that is solved already, plus one of low rank: the Woodbury identity on the factor at hand.

With A = S + U Vᴴ, Z = S⁻¹ U and the capacitance matrix K = I + Vᴴ Z, of the update's rank k,

    A⁻¹ b = y - Z K⁻¹ Vᴴ y,  y = S⁻¹ b,        A⁻ᴴ c = S⁻ᴴ (c - V K⁻ᴴ Zᴴ c),

so that a solve in either direction costs one with the factor of S, and Z is all that is kept.

Digits are lost where S is far worse conditioned than A: Z and y then agree in what cancels. Nothing in
the formula mends that (Yip); the residual of A itself shows it, and refinement with the same factor
regains what is regained as long as some digits were right.

Sources: Hager, "Updating the inverse of a matrix", SIAM Review 31 (1989), section 2; Yip, "A note on
the stability of solving a rank-p modification of a linear system by the Sherman-Morrison-Woodbury
formula", SIAM J. Sci. Stat. Comput. 7 (1986).
"""

from dataclasses import dataclass, replace
from typing import final

import numpy as np

from backsolve.errors import SingularMatrixError
from backsolve.types import Array, Trans

from ..answer import answer
from ..base import Controls, Factor, FactorSpec, Outcome
from ..certify import two_norm
from ..divided import divided, divided_update, update_power
from ..faults import finite_statuses
from ..operand import Operand
from ..ranged import RangedDirect, RangedFactor, RangedIterated
from ..tolerance import epsilon, iterative_rtol
from .small import SmallLu, small_lu

_CORRECTIONS = 3
"""Most corrections of an iterative answer: each is a whole solve with S, and gains what that has gained."""


def update_spec(spec: FactorSpec) -> FactorSpec:
    """What the factor of an update on a factor of S is known by."""
    return replace(spec, method=f"update({spec.method})")


def predicted_nbytes(operand: Operand) -> int:
    """Bytes that the factor of an update will hold: Z, and K with its pivots."""
    k = operand.wide[0]["U"].shape[1]
    return int((operand.n * k + k * k) * operand.wide_dtype.itemsize + k * np.dtype(np.int32).itemsize)


_ROUNDINGS = 16.0
"""Of its largest term, by which an entry of K may be off, and times the error of Z as one more solve shows it."""

_CANCELS = 1e3
"""Growth from which it matters what Z is off by: S, however ill-conditioned it is, must leave K a digit."""


@dataclass(frozen=True, eq=False)
class UpdateFactor(Factor):
    """`Z` and `K` beside a factor of S, which is not copied and not counted here.

    Attributes:
        operand: A itself.
        inner: the factor of S.
        z: `[n, k]` S⁻¹ U, in double precision.
        capacitance: K, factored.
        growth: ||K⁻¹||₁ ||E||₁, with E ε what K's entries may be off by: how much its inverse amplifies their rounding.
    """

    operand: Operand
    inner: Factor
    z: Array
    capacitance: SmallLu
    growth: float

    @property
    def nbytes(self) -> int:
        """Bytes of Z and K."""
        return int(self.z.nbytes) + self.capacitance.nbytes

    @property
    def narrow(self) -> bool:
        """As the factor of S."""
        return self.inner.narrow

    @property
    def note(self) -> str | None:
        """What the factor of S has to say."""
        return self.inner.note

    @property
    def condition(self) -> float | None:
        """The growth where no digit of K is certain, so that no answer is called good; else nothing is estimated."""
        return self.growth if self.growth >= 1 / epsilon(self.operand.dtype) else None

    def solved(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """The identity, once: one solve with S."""
        v = self.operand.wide[0]["V"]
        if trans == "N":
            found = self.inner.solve(rhs, trans, controls)
            y = found.x.astype(self.operand.wide_dtype, copy=False)
            x = self._narrowed(y - self.z @ self.capacitance.solve(v.conj().T @ y))
            return replace(found, x=x, proof=None)
        # A⁻ᵀ c is the conjugate of A⁻ᴴ conj(c).
        c = (rhs.conj() if trans == "T" else rhs).astype(self.operand.wide_dtype, copy=False)
        c = c - v @ self.capacitance.solve(self.z.conj().T @ c, adjoint=True)
        found = self.inner.solve(self._narrowed(c.conj() if trans == "T" else c), trans, controls)
        return replace(found, proof=None)

    def _narrowed(self, a: Array) -> Array:
        return np.asarray(a).astype(self.operand.dtype, copy=False)


@final
class DirectUpdate(UpdateFactor):
    """S is factorized."""

    direct = True
    max_columns = 32

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """The identity, unrefined."""
        return self.solved(rhs, trans, controls)


@final
class IteratedUpdate(UpdateFactor):
    """Solves with S iterate: what they leave of the residual of A is corrected here."""

    direct = False
    max_columns = 16

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """The identity, and once more for what is left, until the tolerance is met or nothing is gained."""
        found = self.solved(rhs, trans, controls)
        rtol = controls.rtol
        if rtol is None:
            rtol = iterative_rtol(self.operand.dtype)
        with np.errstate(all="ignore"):
            target = np.maximum(rtol * two_norm(rhs[None].astype(self.operand.wide_dtype)), controls.atol or 0.0)
            left, size = self._residual(rhs, found.x, trans)
            for _ in range(_CORRECTIONS):
                wanting = np.flatnonzero((size > target)[0] & np.isfinite(size[0]))
                more_allowed = None if controls.maxiter is None else controls.maxiter - found.iterations[0]
                if not wanting.size or (more_allowed is not None and more_allowed < 1):
                    break
                again = replace(controls, maxiter=more_allowed)
                more = self.solved(self._narrowed(left[:, wanting]), trans, again)
                x = found.x.copy()
                x[:, wanting] += more.x
                now, size_now = self._residual(rhs, x, trans)
                found = replace(found, iterations=(found.iterations[0] + more.iterations[0],))
                if not np.all(size_now[0, wanting] < size[0, wanting]):
                    break
                found, left, size = replace(found, x=x, statuses=more.statuses), now, size_now
        return found

    def _residual(self, rhs: Array, x: Array, trans: Trans) -> tuple[Array, Array]:
        wide = x.astype(self.operand.wide_dtype, copy=False)
        left = rhs.astype(self.operand.wide_dtype, copy=False) - self.operand.product(0, wide, trans)
        return left, two_norm(left[None])


def factorize_update(inner: Factor, operand: Operand) -> Factor:
    """Prepare `S + U Vᴴ` on a factor of S: k solves with it, and `n k² + k³` multiply-adds.

    Near the ends of the range of the element type it is 2⁻ᵉ (S + U Vᴴ) that is prepared, on the same factor.

    Args:
        inner: the factor of S.
        operand: of A, whose `base` is S.

    Raises:
        SingularMatrixError: the capacitance matrix is exactly singular, and A with it.
        NonfiniteInputError: U or V holds NaN or infinity.
    """
    finite_statuses(operand)
    core, base_power = (inner.inner, int(inner.powers[0])) if isinstance(inner, RangedFactor) else (inner, 0)
    power = update_power(operand, base_power)
    if power is None:
        return _prepared(inner, operand)
    if power == base_power:
        scaled = _prepared(core, divided_update(operand, core.operand, power))
    else:
        base = divided(inner.operand, np.array([power]))
        made = RangedDirect if core.direct else RangedIterated
        scaled = _prepared(made(base, core, np.array([base_power - power])), divided_update(operand, base, power))
    return (RangedDirect if scaled.direct else RangedIterated)(operand, scaled, np.array([power]))


def _prepared(inner: Factor, operand: Operand) -> UpdateFactor:
    u, v = operand.systems[0]["U"], operand.wide[0]["V"]
    z = answer(inner, np.ascontiguousarray(u), "N", Controls()).x.astype(operand.wide_dtype)
    with np.errstate(all="ignore"):
        k = v.conj().T @ z
        size = np.abs(v).T @ np.abs(z)
    for matrix in (k, size):
        matrix[np.diag_indices_from(matrix)] += 1
    try:
        capacitance = small_lu(k)
    except SingularMatrixError as error:
        raise SingularMatrixError(
            "the update makes the matrix singular: I + V^H S^-1 U, of the update's rank, has no inverse; "
            "leave out the columns of U and V that cancel a part of S",
            kind="numeric",
        ) from error
    made = IteratedUpdate if not inner.direct else DirectUpdate
    growth = _growth(capacitance, _ROUNDINGS * size)
    if growth >= _CANCELS:
        growth = _growth(capacitance, _ROUNDINGS * (size + _off(inner, operand, z)))
    return made(operand, inner, z, capacitance, growth)


def _off(inner: Factor, operand: Operand, z: Array) -> Array:
    """What the error of Z = S⁻¹ U, found by a step of refinement, does to the entries of K, in roundings."""
    assert operand.base is not None
    with np.errstate(all="ignore"):
        rest = (operand.systems[0]["U"] - operand.base.product(0, z, "N")).astype(operand.dtype)
        error = answer(inner, rest, "N", Controls()).x
        return np.asarray(np.abs(operand.wide[0]["V"]).T @ np.abs(error) / epsilon(operand.dtype))


def _growth(capacitance: SmallLu, size: Array) -> float:
    if not size.size:
        return 0.0
    with np.errstate(all="ignore"):
        inverse = np.abs(capacitance.solve(np.eye(size.shape[0], dtype=capacitance.lu.dtype)))
        growth = float(inverse.sum(axis=0).max() * size.sum(axis=0).max())
    return growth if np.isfinite(growth) else float(np.finfo(np.float64).max)
