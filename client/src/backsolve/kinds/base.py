"""The contract of every kind of structured matrix: its parameters, its products, and what they are linear in.

The mathematics is written once for arrays of NumPy and tensors of PyTorch: only operators and
methods that both have, and for the rest an `Ops`. Leading axes are batches.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal, final

import numpy as np

from ..types import Array

Numbers = Any
"""An array of NumPy, or a tensor of PyTorch."""

Parts = Mapping[str, Numbers]
"""The parameters of a matrix by name."""

Operator = Literal["N", "T", "H", "C"]
"""What of A is meant: itself, its transpose, its conjugate transpose, its conjugate."""


@final
@dataclass(frozen=True, slots=True)
class Ops:
    """What NumPy and PyTorch call differently.

    Attributes:
        fft: the module of Fourier transforms; its functions take `(a, n, axis)`.
        concatenate: `(arrays, axis)`.
        is_complex: of an array.
        matmul: of two blocks of matrices.
    """

    fft: Any
    concatenate: Callable[[Sequence[Numbers], int], Numbers]
    is_complex: Callable[[Numbers], bool]
    matmul: Callable[[Numbers, Numbers], Numbers] = operator.matmul


def _concatenate(arrays: Sequence[Array], axis: int) -> Array:
    return np.concatenate(arrays, axis)


NUMPY = Ops(np.fft, _concatenate, np.iscomplexobj)


class Kind(ABC):
    """One kind: A is a function of some arrays, linear in each of them."""

    name: ClassVar[str]

    @abstractmethod
    def check(self, dims: tuple[int, ...]) -> None:
        """Refuse sizes that no matrix of the kind has.

        Raises:
            InvalidPatternError: with the sizes that it takes.
        """

    @abstractmethod
    def rows(self, dims: tuple[int, ...]) -> int:
        """Number of rows, and columns."""

    @abstractmethod
    def parts(self, dims: tuple[int, ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Name and shape of each parameter, in the order in which they are stored."""

    @abstractmethod
    def product(self, ops: Ops, parts: Parts, x: Numbers, *, adjoint: bool) -> Numbers:
        """`A x`, or `Aᴴ x`; `x` is `[..., n, k]`."""

    @abstractmethod
    def tangent(self, ops: Ops, parts: Parts, moved: Parts, x: Numbers, *, adjoint: bool) -> Numbers:
        """`dA x`, or `dAᴴ x`, where the parameters move by `moved`."""

    @abstractmethod
    def gradient(self, ops: Ops, parts: Parts, left: Numbers, right: Numbers) -> Parts:
        """Pull the gradient `left rightᴴ` of A's entries back to the parameters, without forming it.

        Args:
            ops: of the arrays.
            parts: the parameters.
            left, right: `[..., n, k]`.
        """

    @abstractmethod
    def norms(self, parts: Parts) -> tuple[float, float]:
        """1-norm and infinity-norm of A, or bounds from above where the exact ones are dear.

        Args:
            parts: of one matrix, in double precision.
        """


def split(shapes: tuple[tuple[str, tuple[int, ...]], ...], flat: Numbers) -> dict[str, Numbers]:
    """The parameters out of one vector `[..., count]`; views."""
    found: dict[str, Numbers] = {}
    start = 0
    for name, shape in shapes:
        stop = start + prod(shape)
        found[name] = flat[..., start:stop].reshape(*flat.shape[:-1], *shape)
        start = stop
    return found


def join(ops: Ops, shapes: tuple[tuple[str, tuple[int, ...]], ...], parts: Parts) -> Numbers:
    """The one vector `[..., count]` of parameters; the inverse of `split`."""
    flat = []
    for name, shape in shapes:
        lead = tuple(parts[name].shape[: parts[name].ndim - len(shape)])
        flat.append(parts[name].reshape((*lead, prod(shape))))
    return ops.concatenate(flat, -1)


def apply(kind: Kind, ops: Ops, parts: Parts, x: Numbers, operator: Operator) -> Numbers:
    """`op(A) x`; `x` is `[..., n, k]`."""
    # Aᵀ x = conj(Aᴴ conj(x)), and conj(A) x = conj(A conj(x)).
    if operator in ("T", "C"):
        return kind.product(ops, parts, x.conj(), adjoint=operator == "T").conj()
    return kind.product(ops, parts, x, adjoint=operator == "H")


def push(kind: Kind, ops: Ops, parts: Parts, moved: Parts, x: Numbers, operator: Operator) -> Numbers:
    """`op(dA) x` where the parameters move by `moved`."""
    if operator in ("T", "C"):
        return kind.tangent(ops, parts, moved, x.conj(), adjoint=operator == "T").conj()
    return kind.tangent(ops, parts, moved, x, adjoint=operator == "H")


def pull(kind: Kind, ops: Ops, parts: Parts, lam: Numbers, x: Numbers, operator: Operator) -> Parts:
    """Gradient of the parameters from the adjoint λ of `op(A) x = b` (see `backsolve.gradient`)."""
    left, right = (lam, x) if operator in ("N", "C") else (x, lam)
    if operator in ("T", "C"):
        left, right = left.conj(), right.conj()
    return kind.gradient(ops, parts, -left, right)
