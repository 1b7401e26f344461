"""The proof that goes with an answer: its true residual, in float64, against norms that cannot overflow.

Arrays here are `[systems, n, k]`; what is measured is `[systems, k]`, so that a block of columns
of several callers can be taken apart again.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from backsolve.types import Array, Trans

from .operand import Operand
from .scaling import largest


@final
@dataclass(frozen=True, slots=True)
class Reference:
    """The right-hand sides in float64, and what is computed of them once.

    Attributes:
        wide: `[systems, n, k]`, of magnitudes whose squares neither overflow nor vanish.
        two: 2-norm of each column.
        largest: maximum norm of each column.
        matrix: `[systems, 1]` infinity-norm of op(A).
    """

    wide: Array
    two: Array
    largest: Array
    matrix: Array

    def columns(self, which: Array) -> "Reference":
        """Some of the columns."""
        return Reference(self.wide[:, :, which], self.two[:, which], self.largest[:, which], self.matrix)


@final
@dataclass(frozen=True, slots=True)
class Proof:
    """The figures of an answer as a method measured them where the answer lay, `[systems, k]`.

    They are what `measure` would find: in double precision, of x as it was returned.

    Attributes:
        relative, backward, condition: as of `Evidence`; infinite without an answer.
    """

    relative: Array
    backward: Array
    condition: Array


@final
@dataclass(frozen=True, slots=True)
class Evidence:
    """What the residual of each column says.

    Attributes:
        residual: `[systems, n, k]` b - op(A) x; without rows where a method has measured it elsewhere.
        two: its 2-norm.
        relative: the same over ||b||; 0 where both are 0.
        backward: ||b - op(A) x|| / (||A|| ||x|| + ||b||) in the maximum norm.
        condition: ||A|| ||x|| / ||b||, a lower bound on the condition number in the maximum norm.
    """

    residual: Array
    two: Array
    relative: Array
    backward: Array
    condition: Array


def reference(operand: Operand, rhs: Array, trans: Trans) -> Reference:
    """Measure the right-hand sides, `[systems, n, k]`."""
    wide = rhs.astype(operand.wide_dtype, copy=False)
    norm = operand.norm_table[:, 1 if trans == "N" else 0, None]
    return Reference(wide, two_norm(wide), max_norm(wide), norm)


def measure(operand: Operand, against: Reference, x: Array, trans: Trans) -> Evidence:
    """Measure answers `x`, `[systems, n, k]`, of any precision; costs one product with A.

    What is not a number counts as infinitely bad.
    """
    with np.errstate(all="ignore"):
        wide = x.astype(operand.wide_dtype, copy=False)
        residual = against.wide - operand.products(wide, trans)
        two, size = two_norm(residual), max_norm(wide)
        relative = np.where(two == 0, 0.0, two / against.two)
        # Divided through by ||x||: the product ||A|| ||x|| could overflow and hide the error.
        remainder = max_norm(residual)
        scale = np.where(size > 0, size, 1.0)
        backward = (remainder / scale) / (against.matrix * (size > 0) + against.largest / scale)
        backward = np.where(remainder == 0, 0.0, backward)
        condition = np.where(against.largest > 0, against.matrix * (size / against.largest), 0.0)
    return Evidence(residual, two, _or_infinite(relative), _or_infinite(backward), _or_infinite(condition))


def accept(proof: Proof, against: Reference) -> Evidence:
    """What a method has proved elsewhere, without its residuals, which stayed there."""
    none = np.empty((against.wide.shape[0], 0, against.wide.shape[2]), dtype=against.wide.dtype)
    two = np.where(proof.relative > 0, proof.relative * against.two, 0.0)
    return Evidence(none, two, proof.relative, proof.backward, proof.condition)


def two_norm(a: Array) -> Array:
    """2-norm of each column; `[systems, k]`."""
    if a.shape[0] == a.shape[2] == 1:
        column = a.reshape(-1)
        return np.full((1, 1), np.sqrt(np.vdot(column, column).real))
    squares = np.einsum("snk,snk->sk", np.conj(a) if a.dtype.kind == "c" else a, a)
    return np.asarray(np.sqrt(squares.real))


def max_norm(a: Array) -> Array:
    """Maximum norm of each column; `[systems, k]`."""
    if a.shape[0] == a.shape[2] == 1:
        # Along an axis of stride 1 this is five times faster.
        return np.asarray(np.abs(a.reshape(-1)).max()).reshape(1, 1)
    return largest(np.abs(a), 1)


def _or_infinite(a: Array) -> Array:
    return np.where(np.isnan(a), np.inf, a)
