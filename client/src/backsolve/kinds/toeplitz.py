"""Matrices that are constant along each diagonal."""

from typing import final

import numpy as np

from ..errors import InvalidPatternError
from .base import Kind, Numbers, Ops, Parts
from .fourier import convolve, correlation_sum, fast_size


@final
class Toeplitz(Kind):
    """`A[i, j] = t[i - j + n - 1]`; dims `(n,)`, t `[2n - 1]` from the upper right corner to the lower left."""

    name = "toeplitz"

    def check(self, dims: tuple[int, ...]) -> None:
        """One size."""
        if len(dims) != 1:
            raise InvalidPatternError("a toeplitz matrix has dims (n,): its rows")

    def rows(self, dims: tuple[int, ...]) -> int:
        """N."""
        return dims[0]

    def parts(self, dims: tuple[int, ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """T alone."""
        return (("t", (max(2 * dims[0] - 1, 0),)),)

    def product(self, ops: Ops, parts: Parts, x: Numbers, *, adjoint: bool) -> Numbers:
        """Two transforms of length 2n a column: a window of the convolution of t and x."""
        t, n = parts["t"], x.shape[-2]
        if n == 0:
            return x
        # From 2n - 1 on nothing that is wrapped around falls into the window.
        size = fast_size(2 * n - 1)
        found = convolve(ops, t[..., None], x, size, correlate=adjoint)
        if not adjoint:
            return found[..., n - 1 : 2 * n - 1, :]
        return ops.concatenate([found[..., size - n + 1 :, :], found[..., :1, :]], -2)

    def tangent(self, ops: Ops, parts: Parts, moved: Parts, x: Numbers, *, adjoint: bool) -> Numbers:
        """A is linear in t."""
        return self.product(ops, moved, x, adjoint=adjoint)

    def gradient(self, ops: Ops, parts: Parts, left: Numbers, right: Numbers) -> Parts:
        """The sum of each diagonal of left rightᴴ."""
        n = left.shape[-2]
        if n == 0:
            return {"t": parts["t"]}
        size = fast_size(2 * n - 1)
        found = correlation_sum(ops, left, right, size)
        return {"t": ops.concatenate([found[..., size - n + 1 :], found[..., :n]], -1)}

    def norms(self, parts: Parts) -> tuple[float, float]:
        """Exact: rows and columns are the same windows of t."""
        size = np.abs(parts["t"])
        n = (size.size + 1) // 2
        sums = np.concatenate([[0.0], np.cumsum(size)])
        largest = float((sums[n:] - sums[:-n]).max()) if n else 0.0
        return largest, largest
