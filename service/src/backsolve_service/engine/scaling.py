"""Exact scaling by powers of two, so that no square of a tiny or huge number is ever taken."""

import numpy as np

from backsolve.types import Array

_FEW = 64
"""Rows that are left to NumPy's own reduction."""


def magnitude(a: Array, axis: int) -> Array:
    """Largest real or imaginary part along `axis`: never overflows, NaN and infinity survive."""
    if a.dtype.kind != "c":
        return largest(np.abs(a), axis)
    return np.asarray(np.maximum(largest(np.abs(a.real), axis), largest(np.abs(a.imag), axis)))


def largest(sizes: Array, axis: int) -> Array:
    """`sizes.max(axis)`, NaN if there is one; `sizes` is written to.

    Halved until little is left: of a block of columns `max` itself makes one small step a row, each with its own look
    at the processor's flags, and takes five times as long.
    """
    rows = sizes.shape[axis]
    if axis == sizes.ndim - 1:
        return np.asarray(sizes.max(axis=axis))
    whole = np.moveaxis(sizes, axis, 0)
    while rows > _FEW:
        half = rows // 2
        np.maximum(whole[:half], whole[rows - half : rows], out=whole[:half])
        rows -= half
    return np.asarray(whole[:rows].max(axis=0))


def exponents(largest: Array) -> Array:
    """Powers of two that bring numbers of these magnitudes into [1/2, 1); 0 for 0."""
    return np.frexp(largest)[1]


def shift(a: Array, powers: Array) -> Array:
    """`a * 2**powers`, exact but for underflow; overflows to infinity. `powers` broadcasts against `a`."""
    with np.errstate(over="ignore", under="ignore"):
        if a.dtype.kind != "c":
            return np.ldexp(a, powers)
        # ldexp knows no complex numbers.
        out = np.empty(np.broadcast_shapes(a.shape, powers.shape), dtype=a.dtype)
        out.real = np.ldexp(a.real, powers)
        out.imag = np.ldexp(a.imag, powers)
        return out
