"""The cases that every framework solves, as NumPy arrays; no framework appears here."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from backsolve import Pattern
from support.fresh import new_rng
from support.systems import random_like

N = 7


@dataclass(frozen=True)
class Case:
    """`op(A) x = b` with a nonsymmetric A, weights of a loss, and directions to differentiate along.

    Attributes:
        sparse: A is values on a pattern; else `[*batch, n, n]`.
        batch: systems in front.
        columns: of b; () for vectors.
        trans: the operator.
        dtype: of everything but the weights.
    """

    sparse: bool
    batch: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    trans: Any = "N"
    dtype: str = "float64"

    def __str__(self) -> str:
        kind = "sparse" if self.sparse else "dense"
        shape = "x".join(map(str, self.batch)) or "single"
        return "-".join([kind, shape, "columns" if self.columns else "vector", self.trans, self.dtype])

    @cached_property
    def pattern(self) -> Pattern:
        """A nonsymmetric pattern with a full diagonal."""
        stored = np.random.default_rng(519_330_274).random((N, N)) < 0.45
        np.fill_diagonal(stored, True)
        rows, columns = np.nonzero(stored)
        return Pattern(np.searchsorted(rows, np.arange(N + 1)), columns, (N, N))

    @property
    def entries(self) -> tuple[int, ...]:
        return (self.pattern.nnz,) if self.sparse else (N, N)

    @cached_property
    def values(self) -> np.ndarray:
        """A's entries, `[*batch, nnz]` or `[*batch, n, n]`; the diagonal is large enough for any other entries."""
        diagonal = self.pattern.rows == self.pattern.indices if self.sparse else np.eye(N, dtype=bool)
        found = random_like((*self.batch, *self.entries), self.dtype, 880_412_597)
        return (found + 6 * diagonal).astype(self.dtype)

    @cached_property
    def b(self) -> np.ndarray:
        return random_like((*self.batch, N, *self.columns), self.dtype, 337_905_128)

    @cached_property
    def values_direction(self) -> np.ndarray:
        return random_like(self.values.shape, self.dtype, 604_281_973)

    @cached_property
    def b_direction(self) -> np.ndarray:
        return random_like(self.b.shape, self.dtype, 195_773_046)

    @cached_property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Of |x|⁴ and of Re x in the loss, in the real type of x."""
        real = np.zeros((), self.dtype).real.dtype
        rng = np.random.default_rng(712_054_386)
        return rng.uniform(0.2, 1.5, self.b.shape).astype(real), rng.standard_normal(self.b.shape).astype(real)

    def fresh(self) -> np.ndarray:
        """Values that no cache has met, whatever ran before on the same server."""
        noise = new_rng().standard_normal(self.values.shape)
        return (self.values * (1 + 1e-4 * noise)).astype(self.dtype)


CASES = [
    Case(sparse, batch, columns, trans, dtype)
    for sparse in (False, True)
    for trans in ("N", "T", "H")
    for dtype in ("float64", "complex128")
    for batch, columns in (((), ()), ((2, 3), (3,)))
] + [
    Case(sparse, batch, columns, "T", "complex128")
    for sparse in (False, True)
    for batch, columns in (((), (3,)), ((2, 3), ()))
]
"""Every operator in every type; of shapes one of each kind, as a shape is what frameworks compile for."""

SINGLE = [Case(sparse, (), (), "N", "float64") for sparse in (False, True)]
"""For what does not depend on all of that."""

SMALL = [
    Case(sparse, batch, (), "N", dtype)
    for sparse in (False, True)
    for batch in ((), (3,))
    for dtype in ("float32", "complex64")
]
"""In single precision."""
