"""Exact scaling by powers of two, so that no square of a tiny or huge number is ever taken."""

import numpy as np

from backsolve.types import Array


def magnitude(a: Array, axis: int) -> Array:
    """Largest real or imaginary part along `axis`: never overflows, NaN and infinity survive."""
    if a.dtype.kind != "c":
        return np.asarray(np.abs(a).max(axis=axis))
    return np.asarray(np.maximum(np.abs(a.real).max(axis=axis), np.abs(a.imag).max(axis=axis)))


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
