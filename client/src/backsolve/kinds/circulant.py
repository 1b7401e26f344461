"""Matrices whose columns are the first one, rotated."""

from typing import final

import numpy as np

from ..errors import InvalidPatternError
from .base import Kind, Numbers, Ops, Parts
from .fourier import convolve, correlation_sum


@final
class Circulant(Kind):
    """`A[i, j] = c[(i - j) mod n]`; dims `(n,)`, c `[n]`."""

    name = "circulant"

    def check(self, dims: tuple[int, ...]) -> None:
        """One size."""
        if len(dims) != 1:
            raise InvalidPatternError("a circulant matrix has dims (n,): its rows")

    def rows(self, dims: tuple[int, ...]) -> int:
        """The length of c."""
        return dims[0]

    def parts(self, dims: tuple[int, ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """C alone."""
        return (("c", dims),)

    def product(self, ops: Ops, parts: Parts, x: Numbers, *, adjoint: bool) -> Numbers:
        """Two transforms of length n a column."""
        c = parts["c"]
        n = c.shape[-1]
        return convolve(ops, c[..., None], x, n, correlate=adjoint) if n else x

    def tangent(self, ops: Ops, parts: Parts, moved: Parts, x: Numbers, *, adjoint: bool) -> Numbers:
        """A is linear in c."""
        return self.product(ops, moved, x, adjoint=adjoint)

    def gradient(self, ops: Ops, parts: Parts, left: Numbers, right: Numbers) -> Parts:
        """The sum of each rotated diagonal of left rightᴴ."""
        n = parts["c"].shape[-1]
        return {"c": correlation_sum(ops, left, right, n) if n else parts["c"]}

    def norms(self, parts: Parts) -> tuple[float, float]:
        """Exact: every row and column has the same entries."""
        size = float(np.abs(parts["c"]).sum())
        return size, size
