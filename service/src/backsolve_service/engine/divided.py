"""2⁻ᵉ A for matrices near the ends of the range of their element type, of every kind, and the e that is best.

Of a structured matrix it is the parameters that must be of ordinary size, whatever their product is: each factor
of a Kronecker product is divided by a power of its own, and what a column of V is too large or too small by is
carried by that of U.
"""

from collections.abc import Mapping

import numpy as np

from backsolve.matrix import Matrix, standing_on
from backsolve.pattern import StructuredPattern
from backsolve.types import Array

from .operand import Operand
from .scaling import exponents, magnitude, shift

_LINEAR_IN = {"low_rank": ("d",), "circulant": ("c",), "toeplitz": ("t",)}
"""Of a kind of structured matrix, the parameters that carry a factor of the whole, beside U."""


def powers_of(operand: Operand) -> Array | None:
    """`[systems]` exponents e that bring 2⁻ᵉ A to ordinary size; None where nothing is near the ends of the range.

    A huge matrix is divided by no more than keeps its smallest entry normal.
    """
    if min(operand.m, operand.n) == 0 or operand.batch == 0:
        return None
    kind = operand.pattern.kind.name if isinstance(operand.pattern, StructuredPattern) else ""
    norms = operand.norm_table.max(axis=1)
    found, parts = exponents(np.where(np.isfinite(norms), norms, 0.0)), np.zeros((norms.size, 0), dtype=np.int32)
    if kind == "kronecker":
        parts = np.stack([_sizes(operand, name) for name in _parameters(operand)], axis=1)
        found = parts.sum(axis=1)  # the product itself may be beyond the range
    elif kind == "low_rank":
        parts = np.concatenate([_column_sizes(operand, name) for name in ("U", "V")], axis=1)
    low, high = _outside(operand, found)
    needed = (low & ((norms > 0) | (found != 0))) | high
    if not np.any(needed) and not np.any(_outside(operand, parts)):
        return None
    # The entries of a Kronecker product are products.
    room = found if kind == "kronecker" else np.maximum(_least(operand) - np.finfo(operand.dtype).minexp - 1, 0)
    powers = np.where(high, np.minimum(found, room), np.where(low, found, 0))
    return powers if powers.any() or parts.size else None


def divided(operand: Operand, powers: Array) -> Operand:
    """2⁻ᵉ A."""
    values, pattern = operand.values, operand.pattern
    if not isinstance(pattern, StructuredPattern):
        return Operand(Matrix(pattern, shift(values, -_against(operand, powers, values))))
    scaled = values.copy()
    to, parts = pattern.split(scaled), pattern.split(values)
    if pattern.kind.name == "kronecker":
        left = powers
        for name in list(parts)[:0:-1]:
            own = _sizes(operand, name)
            to[name][...] = shift(parts[name], -_against(operand, own, parts[name]))
            left = left - own
        to["A1"][...] = shift(parts["A1"], -_against(operand, left, parts["A1"]))
        return Operand(Matrix(pattern, scaled))
    for name in _LINEAR_IN[pattern.kind.name]:
        to[name][...] = shift(parts[name], -_against(operand, powers, parts[name]))
    if "U" in parts:
        _balance(operand, powers, parts, to)
    return Operand(Matrix(pattern, scaled))


def divided_update(operand: Operand, base: Operand, power: int) -> Operand:
    """2⁻ᵉ (S + U Vᴴ), with `base` for 2⁻ᵉ S."""
    assert isinstance(operand.pattern, StructuredPattern)
    pattern = StructuredPattern(operand.pattern.kind.name, operand.pattern.dims, standing_on(base.matrix))
    scaled = operand.values.copy()
    _balance(operand, np.array([power]), operand.pattern.split(operand.values), pattern.split(scaled))
    return Operand(Matrix(pattern, scaled, base.matrix), base)


def update_power(operand: Operand, base_power: int) -> int | None:
    """The e that is best for S + U Vᴴ; None where nothing is near the ends of the range.

    Args:
        operand: of the update.
        base_power: of S as it was factorized.
    """
    assert operand.base is not None
    if operand.n == 0:
        return None
    found = exponents(np.maximum(operand.norm_table.max(axis=1), operand.base.norm_table.max(axis=1)))
    low, high = (bool(each[0]) for each in _outside(operand, found))
    columns = np.concatenate([_column_sizes(operand, name) for name in ("U", "V")], axis=1)
    if not (low or high or base_power or np.any(_outside(operand, columns))):
        return None
    if not high:
        return int(found[0]) if low else 0
    least = min(int(_least(operand.base)[0]), int(_least(operand)[0]))
    return min(int(found[0]), max(least - int(np.finfo(operand.dtype).minexp) - 1, 0))


def _outside(operand: Operand, found: Array) -> tuple[Array, Array]:
    """Which magnitudes, given by exponents, are near the lower and the upper end of the range."""
    info = np.finfo(operand.dtype)
    return found < info.minexp + 2 * info.nmant, found > info.maxexp - info.nmant


def _least(operand: Operand) -> Array:
    """`[systems]` exponent of the smallest entry that is not zero."""
    flat = operand.values.reshape(1 if operand.batch is None else operand.batch, -1)
    size = np.abs(flat.view(flat.real.dtype))
    return exponents(np.where((size > 0) & np.isfinite(size), size, np.inf).min(axis=1, initial=1.0))


def _parameters(operand: Operand) -> Mapping[str, Array]:
    """The parameters by name, of all systems: `[systems, ...]`."""
    assert isinstance(operand.pattern, StructuredPattern)
    return operand.pattern.split(operand.values if operand.batch is not None else operand.values[None])


def _sizes(operand: Operand, name: str) -> Array:
    """`[systems]` exponents of a parameter."""
    part = _parameters(operand)[name]
    return _exponents(magnitude(part.reshape(part.shape[0], -1), 1))


def _column_sizes(operand: Operand, name: str) -> Array:
    """`[systems, r]` exponents of the columns of U or V."""
    return _exponents(magnitude(_parameters(operand)[name], 1))


def _exponents(largest: Array) -> Array:
    return exponents(np.where(np.isfinite(largest), largest, 0.0))


def _against(operand: Operand, powers: Array, part: Array) -> Array:
    """Powers, `[systems]`, that broadcast against a part of the values."""
    return powers.reshape(-1, *[1] * (part.ndim - 1)) if operand.batch is not None else powers


def _balance(operand: Operand, powers: Array, parts: Mapping[str, Array], to: Mapping[str, Array]) -> None:
    """Write 2⁻ᵉ U Vᴴ: U carries the power, and what columns of V near the ends of the range are divided by."""
    own = _column_sizes(operand, "V")
    low, high = _outside(operand, own)
    own = np.where(low | high, own, 0)
    carried = own - powers[:, None]
    for name, each in (("U", carried), ("V", -own)):
        to[name][...] = shift(parts[name], each[:, None, :] if operand.batch is not None else each)
