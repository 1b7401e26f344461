"""What is added to another matrix: a product of two thin matrices."""

from typing import final

import numpy as np

from ..errors import InvalidPatternError
from .base import Kind, Numbers, Ops, Parts


@final
class Update(Kind):
    """`U Vᴴ`, of `A = S + U Vᴴ`; dims `(n, k)`, U and V `[n, k]`.

    S belongs to the pattern that the kind is of (`StructuredPattern.base`) and to the matrix
    (`Matrix.base`): what is linear in S is computed as for S itself.
    """

    name = "update"

    def check(self, dims: tuple[int, ...]) -> None:
        """Two sizes; a rank above n would only cost more than all entries do."""
        if len(dims) != 2 or dims[1] > dims[0]:
            raise InvalidPatternError(
                "an update has dims (n, k): the rows of S, and the columns of U and V, at most n; "
                "add larger ones to S itself"
            )

    def rows(self, dims: tuple[int, ...]) -> int:
        """Those of U."""
        return dims[0]

    def parts(self, dims: tuple[int, ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """U, V."""
        return (("U", dims), ("V", dims))

    def product(self, ops: Ops, parts: Parts, x: Numbers, *, adjoint: bool) -> Numbers:
        """`2 n k` multiply-adds a column."""
        u, v = parts["U"], parts["V"]
        if adjoint:
            u, v = v, u
        return ops.matmul(u, ops.matmul(v.conj().swapaxes(-1, -2), x))

    def tangent(self, ops: Ops, parts: Parts, moved: Parts, x: Numbers, *, adjoint: bool) -> Numbers:
        """`dU Vᴴ + U dVᴴ`, which is of the same kind with twice the rank."""
        wider = {
            "U": ops.concatenate([moved["U"], parts["U"]], -1),
            "V": ops.concatenate([parts["V"], moved["V"]], -1),
        }
        return self.product(ops, wider, x, adjoint=adjoint)

    def gradient(self, ops: Ops, parts: Parts, left: Numbers, right: Numbers) -> Parts:
        """With G = left rightᴴ: `∂U = G V`, `∂V = Gᴴ U` (as of `low_rank.py`)."""
        return {
            "U": ops.matmul(left, ops.matmul(right.conj().swapaxes(-1, -2), parts["V"])),
            "V": ops.matmul(right, ops.matmul(left.conj().swapaxes(-1, -2), parts["U"])),
        }

    def norms(self, parts: Parts) -> tuple[float, float]:
        """Those of `|U| |V|ᴴ`, which are not smaller than those of the product."""
        a, b = np.abs(parts["U"]), np.abs(parts["V"])
        return float((b @ a.sum(axis=0)).max(initial=0.0)), float((a @ b.sum(axis=0)).max(initial=0.0))
