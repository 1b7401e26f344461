"""Matrices near the ends of the range of their element type, solved as 2⁻ᵉ A, whose entries are ordinary numbers.

Below the smallest normal number digits are lost, and the inverse of a pivot is infinite; near the largest one
elimination overflows. A power of two is exact, so any method may solve 2⁻ᵉ A y = 2⁻ᵖ b with numbers near 1, and
x = 2ᵖ⁻ᵉ y is what was asked. Whether x fits into its type is then a question of x alone, and has a status of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, final

import numpy as np

from backsolve.errors import SingularMatrixError
from backsolve.pattern import AnyPattern, StructuredPattern
from backsolve.types import Array, Status, Trans

from .base import Controls, Factor, FactorSpec, Outcome, Solver, Symbolic
from .divided import divided, powers_of
from .lstsq.base import LeastSquaresFactor
from .operand import Operand
from .registry import ROWS
from .scaling import exponents, magnitude, shift
from .tolerance import direct_backward_error

if TYPE_CHECKING:
    from .answer import Answer


@dataclass(frozen=True, eq=False)
class RangedFactor(Factor):
    """A factor of 2⁻ᵉ A.

    Attributes:
        operand: A.
        inner: the factor.
        powers: `[systems]` e.
    """

    operand: Operand
    inner: Factor
    powers: Array

    @property
    def max_columns(self) -> int:
        """As of the factor."""
        return self.inner.max_columns

    @property
    def nbytes(self) -> int:
        """Bytes of the factor, and of 2⁻ᵉ A."""
        return self.inner.nbytes + self.inner.operand.nbytes

    @property
    def narrow(self) -> bool:
        """As of the factor."""
        return self.inner.narrow

    @property
    def note(self) -> str | None:
        """What was done to the matrix, after what the factor has to say."""
        said = "A is near an end of the range of its element type, and was divided by a power of two"
        return said if self.inner.note is None else f"{self.inner.note}; {said}"

    @property
    def device_nbytes(self) -> int:
        """As of the factor."""
        return self.inner.device_nbytes

    @property
    def condition(self) -> float | None:
        """As of the factor: a condition number knows no scale."""
        return self.inner.condition

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """As the factor, times the power of two; what leaves the range is infinite, or zero."""
        powers = self._powers(rhs.ndim, self._times(controls))
        first = controls.x0 if controls.x0 is None else shift(controls.x0, powers)
        outcome = self.inner.solve(rhs, trans, replace(controls, x0=first))
        return replace(outcome, x=shift(outcome.x, -powers), proof=None)

    def answer(
        self, rhs: Array, trans: Trans, controls: Controls, answer: "Callable[[Factor, Array, Trans, Controls], Answer]"
    ) -> "Answer":
        """What `answer` finds for 2⁻ᵉ A and a right-hand side near 1, in the units that were asked for.

        Its figures are those of x, as long as x fits into its type; what does not has status OUT_OF_RANGE, and figures
        that bound what was lost.
        """
        if rhs.ndim != (2 if self.operand.batch is None else 3) or rhs.size == 0:
            return answer(self.inner, rhs, trans, controls)  # empty, or refused there
        axis = rhs.ndim - 2
        largest = magnitude(rhs, axis)
        own = exponents(np.where(np.isfinite(largest), largest, 0.0))
        if controls.atol:
            own = np.full_like(own, own.max())  # one tolerance for all columns needs one unit
        own = np.expand_dims(own, axis)
        powers = self._powers(rhs.ndim, self._times(controls))
        first = controls.x0 if controls.x0 is None else shift(controls.x0, powers - own)
        atol = controls.atol
        if atol:
            with np.errstate(over="ignore"):
                atol = float(np.ldexp(atol, -int(own.max())))
            atol = min(atol, float(np.finfo(np.float64).max))
        found = answer(self.inner, shift(rhs, -own), trans, replace(controls, x0=first, atol=atol))
        x = shift(found.x, own - powers)
        return self._judged(found, x, shift(x, powers - own))

    def _judged(self, found: "Answer", x: Array, returned: Array) -> "Answer":
        """The answer with `x`, which in the units of `found` is `returned`: it may have lost digits, or all of them."""
        y = found.x if found.x.ndim == 3 else found.x[None]
        wide = returned.astype(self.operand.wide_dtype, copy=False).reshape(y.shape)
        with np.errstate(all="ignore"):
            lost = magnitude(wide - y, 1) / magnitude(y, 1)
        lost = np.where(np.isfinite(y).all(axis=1), np.where(np.isnan(lost), 0.0, lost), 0.0)
        inverse = found.inverse_norm
        if inverse is not None:
            with np.errstate(over="ignore"):
                inverse = float(min(np.ldexp(inverse, -int(self.powers[0])), np.finfo(np.float64).max))
        beyond = lost > direct_backward_error(self.operand.dtype)
        statuses = tuple(
            tuple(Status.OUT_OF_RANGE if out else status for status, out in zip(system, flags, strict=True))
            for system, flags in zip(found.statuses, beyond.tolist(), strict=True)
        )
        # A change of x by a part of it adds no more than that part to the backward error.
        backward = found.backward_error + lost
        relative = found.relative_residual + lost * max(found.condition or 1.0, 1.0)
        return replace(
            found, x=x, statuses=statuses, relative_residual=relative, backward_error=backward, inverse_norm=inverse
        )

    def _times(self, controls: Controls) -> int:
        """How often 2⁻ᵉ stands in the answer."""
        return 2 if controls.cotangent and isinstance(self.inner, LeastSquaresFactor) else 1

    def _powers(self, ndim: int, times: int) -> Array:
        """Exponents that broadcast against columns."""
        return self.powers[:, None, None] * times if ndim == 3 else self.powers * times


@final
class RangedDirect(RangedFactor):
    """Of a direct method."""

    direct = True


@final
class RangedIterated(RangedFactor):
    """Of an iterative method."""

    direct = False


@final
class Ranged(Solver):
    """A method, for matrices of any size of numbers, whose errors name a column.

    It costs a look at the norms, which the certificate needs anyway.

    Args:
        inner: the method.
    """

    name = "ranged"

    def __init__(self, inner: Solver) -> None:
        self.inner = inner

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """As the method."""
        return self.inner.analyze(pattern, spec)

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """As the method, of 2⁻ᵉ A where that is needed."""
        powers = powers_of(operand)
        if powers is not None and (spec.damp or spec.nullspace is not None):
            # One penalty, and one test of what counts as zero, for all systems of a batch.
            powers = np.full_like(powers, powers.max())
        if powers is None:
            return self._factorized(symbolic, operand, spec)
        symbolic.check(operand)
        given: Any = spec
        if spec.damp:
            given = replace(spec, damp=min(float(np.ldexp(spec.damp, -int(powers[0]))), _MOST_DAMP))
        inner = self._factorized(symbolic, divided(operand, powers), given)
        return (RangedDirect if inner.direct else RangedIterated)(operand, inner, powers)

    def _factorized(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        try:
            return self.inner.factorize(symbolic, operand, spec)
        except SingularMatrixError as error:
            found = self._lifted(symbolic, operand, spec, error)
            if isinstance(found, Factor):
                return found
            if spec.nullspace is not None or ROWS[spec.method].least_squares:
                raise  # they say what to do in words of their own
            from .direct.dependent import named  # noqa: PLC0415  (of use only where something has failed)

            better = named(found, operand)
            if better is error:
                raise
            raise better from error

    def _lifted(
        self, symbolic: Symbolic, operand: Operand, spec: FactorSpec, error: SingularMatrixError
    ) -> Factor | SingularMatrixError:
        """A factor where no more than the sizes of numbers had made a pivot look like a zero; else what is wrong."""
        row = ROWS[spec.method]
        plain = row.direct and row.needs == "square" and spec.nullspace is None and operand.batch is None
        wide = np.dtype(spec.precision).itemsize >= operand.dtype.itemsize
        if not (plain and wide) or isinstance(operand.pattern, StructuredPattern):
            return error
        from .lifted import LiftedFactor, levelled, lifted  # noqa: PLC0415  (of use only where something has failed)

        made = levelled(operand) if spec.method == "qr" else lifted(operand)
        if made is None:
            return error
        scaled, columns, rows = made
        try:
            return LiftedFactor(operand, self.inner.factorize(symbolic, scaled, spec), columns, rows)
        except SingularMatrixError as again:
            return again  # the column that it names is not one that only looked dependent


_MOST_DAMP = 2.0**900
"""A penalty that is infinite beside the matrix leaves x = 0 in either case."""


@cache
def ranged(inner: Solver) -> Ranged:
    """A method for matrices of any size of numbers; one object for each method."""
    return Ranged(inner)
