"""Kronecker products of dense factors."""

from math import prod
from typing import final

import numpy as np

from ..errors import InvalidPatternError
from .base import Kind, Numbers, Ops, Parts

_MOST_FACTORS = 16


@final
class Kronecker(Kind):
    """`A = A1 ⊗ A2 ⊗ ...`; dims their sizes, each `[n_i, n_i]`."""

    name = "kronecker"

    def check(self, dims: tuple[int, ...]) -> None:
        """One size a factor."""
        if not 1 <= len(dims) <= _MOST_FACTORS:
            raise InvalidPatternError(
                f"a kronecker matrix has dims (n1, n2, ...): the rows of 1 to {_MOST_FACTORS} factors"
            )

    def rows(self, dims: tuple[int, ...]) -> int:
        """The product of the sizes."""
        return prod(dims)

    def parts(self, dims: tuple[int, ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """A1, A2, ..."""
        return tuple((f"A{index + 1}", (size, size)) for index, size in enumerate(dims))

    def product(self, ops: Ops, parts: Parts, x: Numbers, *, adjoint: bool) -> Numbers:
        """`n (n1 + n2 + ...)` multiply-adds a column."""
        factors = list(parts.values())
        for index, factor in enumerate(factors):
            x = _along(ops, factors, index, factor.conj().swapaxes(-1, -2) if adjoint else factor, x)
        return x

    def tangent(self, ops: Ops, parts: Parts, moved: Parts, x: Numbers, *, adjoint: bool) -> Numbers:
        """The sum over the factors of the product with that one replaced by its tangent."""
        terms = [
            self.product(ops, {name: (moved if name == one else parts)[name] for name in parts}, x, adjoint=adjoint)
            for one in parts
        ]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def gradient(self, ops: Ops, parts: Parts, left: Numbers, right: Numbers) -> Parts:
        """Of factor i, with y = (the other factors) right: left yᴴ, summed over all axes but its own."""
        factors = list(parts.values())
        found = {}
        for index, name in enumerate(parts):
            y = right
            for other, factor in enumerate(factors):
                if other != index:
                    y = _along(ops, factors, other, factor, y)
            shape = _shape(factors, index, right)
            found[name] = ops.matmul(left.reshape(shape), y.reshape(shape).conj().swapaxes(-1, -2)).sum(-3)
        return found

    def norms(self, parts: Parts) -> tuple[float, float]:
        """Exact: the products of those of the factors."""
        one = infinity = 1.0
        for factor in parts.values():
            size = np.abs(factor)
            one *= float(size.sum(axis=0).max(initial=0.0))
            infinity *= float(size.sum(axis=1).max(initial=0.0))
        return one, infinity


def _shape(factors: list[Numbers], index: int, x: Numbers) -> tuple[int, ...]:
    """The shape of `x`, `[..., n, k]`, in which the axis of one factor is the last but one."""
    sizes = [factor.shape[-1] for factor in factors]
    return (*x.shape[:-2], prod(sizes[:index]), sizes[index], prod(sizes[index + 1 :]) * x.shape[-1])


def _along(ops: Ops, factors: list[Numbers], index: int, matrix: Numbers, x: Numbers) -> Numbers:
    """Multiply by `I ⊗ matrix ⊗ I`."""
    return ops.matmul(matrix[..., None, :, :], x.reshape(_shape(factors, index, x))).reshape(x.shape)
