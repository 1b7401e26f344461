"""Products with circulant and Toeplitz matrices by Fourier transforms, and their adjoints."""

from .base import Numbers, Ops


def transform(ops: Ops, a: Numbers, size: int, *, real: bool) -> Numbers:
    """Fourier transform of `[..., m, k]` along m, filled up with zeros to `size`; half of it where all is real."""
    return ops.fft.rfft(a, size, -2) if real else ops.fft.fft(a, size, -2)


def back(ops: Ops, a: Numbers, size: int, *, real: bool) -> Numbers:
    """The inverse of `transform`."""
    return ops.fft.irfft(a, size, -2) if real else ops.fft.ifft(a, size, -2)


def convolve(ops: Ops, a: Numbers, x: Numbers, size: int, *, correlate: bool = False) -> Numbers:
    """Cyclic convolution `sum_l a[l] x[m - l]`, or correlation `sum_l conj(a[l]) x[l + m]`, of period `size`.

    Args:
        ops: of the arrays.
        a, x: `[..., m, k]`; one of them may have a single column for all.
        size: at least both lengths.
        correlate: which of the two; it is the adjoint of the other.
    """
    real = not (ops.is_complex(a) or ops.is_complex(x))
    of_a = transform(ops, a, size, real=real)
    of_a = of_a.conj() if correlate else of_a
    return back(ops, of_a * transform(ops, x, size, real=real), size, real=real)


def correlation_sum(ops: Ops, left: Numbers, right: Numbers, size: int) -> Numbers:
    """`sum_k sum_j left[j + m, k] conj(right[j, k])` for each m, of period `size`; `[..., size]`."""
    real = not (ops.is_complex(left) or ops.is_complex(right))
    product = transform(ops, left, size, real=real) * transform(ops, right, size, real=real).conj()
    return back(ops, product.sum(-1)[..., None], size, real=real)[..., 0]


def fast_size(least: int) -> int:
    """The smallest product of powers of 2, 3 and 5 that is not below `least`: transforms of that size are fast."""
    best = 1 << max(least - 1, 0).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            rest = -(-least // three)
            best = min(best, three << max(rest - 1, 0).bit_length())
            three *= 3
        five *= 5
    return best
