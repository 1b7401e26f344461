"""A diagonal plus a product of two thin matrices."""

from typing import Any, final

import numpy as np

from ..errors import InvalidPatternError
from ..types import Array
from .base import Kind, Numbers, Ops, Parts

_EXACT_ROWS = 2048
"""Up to here norms are exact: they cost n² r, at most half a second at r = 50."""

_BLOCK = 256


@final
class LowRank(Kind):
    """`A = diag(d) + U Vᴴ`; dims `(n, r)`, d `[n]`, U and V `[n, r]`."""

    name = "low_rank"

    def check(self, dims: tuple[int, ...]) -> None:
        """Two sizes; a rank above n would only cost more than all entries do."""
        if len(dims) != 2 or dims[1] > dims[0]:
            raise InvalidPatternError(
                "a low_rank matrix has dims (n, r): its rows, and the columns of U and V, at most n; use a dense matrix"
            )

    def rows(self, dims: tuple[int, ...]) -> int:
        """The length of d."""
        return dims[0]

    def parts(self, dims: tuple[int, ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """d, U, V."""
        n, r = dims
        return (("d", (n,)), ("U", (n, r)), ("V", (n, r)))

    def product(self, ops: Ops, parts: Parts, x: Numbers, *, adjoint: bool) -> Numbers:
        """`(2 r + 1) n` multiply-adds a column."""
        d, u, v = parts["d"], parts["U"], parts["V"]
        if adjoint:
            d, u, v = d.conj(), v, u
        return d[..., None] * x + ops.matmul(u, ops.matmul(v.conj().swapaxes(-1, -2), x))

    def tangent(self, ops: Ops, parts: Parts, moved: Parts, x: Numbers, *, adjoint: bool) -> Numbers:
        """`dA = diag(dd) + dU Vᴴ + U dVᴴ`, which is of the same kind with twice the rank."""
        wider = {
            "d": moved["d"],
            "U": ops.concatenate([moved["U"], parts["U"]], -1),
            "V": ops.concatenate([parts["V"], moved["V"]], -1),
        }
        return self.product(ops, wider, x, adjoint=adjoint)

    def gradient(self, ops: Ops, parts: Parts, left: Numbers, right: Numbers) -> Parts:
        """With G = left rightᴴ: `∂d = diag(G)`, `∂U = G V`, `∂V = Gᴴ U`.

        From dL = Re tr(Gᴴ dA): Re tr(Gᴴ dU Vᴴ) = Re tr((G V)ᴴ dU), and
        Re tr(Gᴴ U dVᴴ) = Re tr((Gᴴ U)ᴴ dV), as the real part of a trace is that of its conjugate.
        """
        return {
            "d": (left * right.conj()).sum(-1),
            "U": ops.matmul(left, ops.matmul(right.conj().swapaxes(-1, -2), parts["V"])),
            "V": ops.matmul(right, ops.matmul(left.conj().swapaxes(-1, -2), parts["U"])),
        }

    def norms(self, parts: Parts) -> tuple[float, float]:
        """Exact up to 2048 rows, beyond that those of `|diag(d)| + |U| |V|ᴴ`, which are not smaller."""
        d, u, v = (np.asarray(parts[name]) for name in ("d", "U", "V"))
        if d.size == 0:
            return 0.0, 0.0
        if d.size > _EXACT_ROWS:
            size, a, b = np.abs(d), np.abs(u), np.abs(v)
            return float((size + b @ a.sum(axis=0)).max()), float((size + a @ b.sum(axis=0)).max())
        return _exact(d, u, v)


def _exact(d: Array, u: Array, v: Array) -> tuple[float, float]:
    n = d.size
    columns: Any = np.zeros(n)
    largest = 0.0
    for start in range(0, n, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, n))
        block = u[rows] @ v.conj().T
        block[rows - start, rows] += d[rows]
        size = np.abs(block)
        largest = max(largest, float(size.sum(axis=1).max()))
        columns += size.sum(axis=0)
    return float(columns.max()), largest
