"""Matrices given by parameters rather than entries; solved by methods that never form their n x n entries.

    A = backsolve.LowRankPlusDiagonal(d, U, V)          # diag(d) + U Vᴴ
    x = client.solve(A, b).x
    client.vjp(A, x, g).values.U                        # the gradient of U

Arrays are held as they are given, not copied. With one more axis in front of every parameter an object is
a batch, solved in one request (an update is always one matrix).
"""

from abc import abstractmethod
from typing import Any, Self, final

import numpy as np

from .canonical import Canonical, Parametrised, PatternMemo, as_array, canonicalise, is_sparse, native
from .errors import InvalidShapeError
from .kinds import UPDATE
from .kinds.base import NUMPY, apply, join
from .matrix import Matrix, standing_on
from .pattern import StructuredPattern
from .types import Array


class Structured(Parametrised):
    """One matrix that is given by parameters, or a batch of them: every parameter with one more axis in front.

    Attributes:
        batch: number of matrices, or None for a single one.
    """

    # NumPy would take `array @ A` for itself, and answer with an array of objects.
    __array_ufunc__ = None

    batch: int | None = None

    @property
    @abstractmethod
    def pattern(self) -> StructuredPattern:
        """Kind and sizes."""

    @abstractmethod
    def _parts(self) -> dict[str, Array]:
        """Every parameter that the kind has."""

    @abstractmethod
    def _made(self, parts: dict[str, Any]) -> Self:
        """An object like this one out of a gradient of every parameter that the kind has."""

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, n)`, of one matrix."""
        return self.pattern.shape

    @property
    def dtype(self) -> "np.dtype[Any]":
        """Common element type of the parameters."""
        return np.result_type(*self._parts().values())

    def matrix(self, dtype: "np.dtype[Any] | None" = None, memo: PatternMemo | None = None) -> Matrix:
        """The canonical matrix: its parameters in one vector, a copy."""
        wanted = self.dtype if dtype is None else dtype
        below = self._below(wanted, memo)
        pattern = self._pattern_on(below)
        flat = np.asarray(join(NUMPY, pattern.parts, self._parts()))
        return Matrix(pattern, flat.astype(wanted, copy=False), below)

    def _below(self, dtype: "np.dtype[Any]", memo: PatternMemo | None) -> Matrix | None:
        """The matrix that this one stands on, if it does."""
        del dtype, memo
        return None

    def _pattern_on(self, below: Matrix | None) -> StructuredPattern:
        """Kind and sizes, on the matrix that this one stands on."""
        del below
        return self.pattern

    def like(self, gradient: Array) -> Self:
        """An object of the same class that holds the gradient of each parameter.

        Raises:
            InvalidShapeError: the gradient is of another number of matrices.
        """
        lead = () if self.batch is None else (self.batch,)
        if gradient.shape[:-1] != lead:
            raise InvalidShapeError(
                f"a gradient of shape {gradient.shape} does not belong to this: of its batch it would be {(*lead, 'k')}"
            )
        return self._made(self._taken_apart(gradient))

    def _taken_apart(self, gradient: Array) -> dict[str, Any]:
        """The gradient of each parameter out of those of all."""
        return self.pattern.split(gradient)

    def matvec(self, x: Any) -> Array:
        """`A x`; `x` is `[n]` or `[n, k]`, of a batch with one more axis in front."""
        array = as_array(x, "x")
        wanted = (self.shape[1],) if self.batch is None else (self.batch, self.shape[1])
        if array.shape[: len(wanted)] != wanted or array.ndim - len(wanted) not in (0, 1):
            raise InvalidShapeError(f"x has shape {array.shape}; this matrix takes {wanted}, or that with k columns")
        columns = array[..., None] if array.ndim == len(wanted) else array
        return self._product(columns).reshape(array.shape)

    def _product(self, columns: Array) -> Array:
        """`A x`; x is `[(batch,) n, k]`."""
        return np.asarray(apply(self.pattern.kind, NUMPY, self._parts(), columns, "N"))

    def __matmul__(self, x: Any) -> Array:
        return self.matvec(x)

    def toarray(self) -> Array:
        """All n x n entries: for tests and small matrices."""
        lead = () if self.batch is None else (self.batch,)
        return self.matvec(np.broadcast_to(np.eye(self.shape[1], dtype=self.dtype), (*lead, *self.shape)))

    def __repr__(self) -> str:
        many = "" if self.batch is None else f"batch of {self.batch}, "
        return f"{type(self).__name__}({many}{self.shape[0]}x{self.shape[1]}, {self.dtype})"


def _parameter(value: Any, name: str, ndim: int, *, one: bool = False) -> Array:
    """An array of a parameter's dimensions, or of one more, unless there must be `one`."""
    array = as_array(value, name)
    if array.ndim not in ((ndim,) if one else (ndim, ndim + 1)):
        more = "a batch is not taken" if one else "or one more, of a batch"
        raise InvalidShapeError(f"{name} has {array.ndim} dimensions, it needs {ndim}: {more}")
    return array


def _batch_of(parameter: Array, ndim: int) -> int | None:
    return None if parameter.ndim == ndim else int(parameter.shape[0])


@final
class LowRankPlusDiagonal(Structured):
    """`A = diag(d) + U Vᴴ`, solved in O(n r²) by the Woodbury identity.

    Args:
        d: `[n]`; some may be zero, as long as A is nonsingular.
        U: `[n, r]`; solving gains over a dense matrix while r is well below n.
        V: `[n, r]`; None: U itself, so that A is Hermitian if d is real. The gradient of U is then
            that of both places in which it stands.

    Raises:
        InvalidShapeError: the shapes do not fit each other.
        InvalidPatternError: r is above n.
    """

    def __init__(self, d: Any, U: Any, V: Any = None) -> None:
        self.d = _parameter(d, "d", 1)
        self.U = _parameter(U, "U", 2)
        self.V = None if V is None else _parameter(V, "V", 2)
        v = self.U if self.V is None else self.V
        if self.U.shape[:-1] != self.d.shape or v.shape != self.U.shape:
            raise InvalidShapeError(
                f"d has shape {self.d.shape}, U {self.U.shape} and V {v.shape}: they must be (n,), (n, r) and (n, r), "
                "or each with the same batch axis in front"
            )
        self._pattern = StructuredPattern("low_rank", self.U.shape[-2:])
        self.batch = _batch_of(self.d, 1)

    @property
    def pattern(self) -> StructuredPattern:
        """Kind and sizes."""
        return self._pattern

    def _parts(self) -> dict[str, Array]:
        return {"d": self.d, "U": self.U, "V": self.U if self.V is None else self.V}

    def _made(self, parts: dict[str, Array]) -> "LowRankPlusDiagonal":
        if self.V is None:
            return LowRankPlusDiagonal(parts["d"], parts["U"] + parts["V"])
        return LowRankPlusDiagonal(parts["d"], parts["U"], parts["V"])


@final
class Kronecker(Structured):
    """`A = A1 ⊗ A2 ⊗ ...`, solved factor by factor: `n (n1 + n2 + ...)` multiply-adds a column.

    Args:
        factors: each `[n_i, n_i]`; 1 to 16 of them.

    Raises:
        InvalidShapeError: one is not square.
        InvalidPatternError: none, or too many.
    """

    def __init__(self, *factors: Any) -> None:
        self.factors = tuple(_parameter(factor, f"factor {i + 1}", 2) for i, factor in enumerate(factors))
        for index, factor in enumerate(self.factors):
            if factor.shape[-2] != factor.shape[-1]:
                raise InvalidShapeError(f"factor {index + 1} has shape {factor.shape}: it must be square")
            if factor.shape[:-2] != self.factors[0].shape[:-2]:
                raise InvalidShapeError("either every factor has the same batch axis in front, or none has one")
        self._pattern = StructuredPattern("kronecker", [factor.shape[-1] for factor in self.factors])
        self.batch = _batch_of(self.factors[0], 2)

    @property
    def pattern(self) -> StructuredPattern:
        """Kind and sizes."""
        return self._pattern

    def _parts(self) -> dict[str, Array]:
        return {f"A{index + 1}": factor for index, factor in enumerate(self.factors)}

    def _made(self, parts: dict[str, Array]) -> "Kronecker":
        return Kronecker(*parts.values())


@final
class Circulant(Structured):
    """`A[i, j] = c[(i - j) mod n]`, solved in O(n log n) by Fourier transforms.

    Args:
        c: `[n]`, the first column.
    """

    def __init__(self, c: Any) -> None:
        self.c = _parameter(c, "c", 1)
        self.batch = _batch_of(self.c, 1)

    @property
    def pattern(self) -> StructuredPattern:
        """Kind and sizes."""
        return StructuredPattern("circulant", self.c.shape[-1:])

    def _parts(self) -> dict[str, Array]:
        return {"c": self.c}

    def _made(self, parts: dict[str, Array]) -> "Circulant":
        return Circulant(parts["c"])


@final
class Toeplitz(Structured):
    """`A[i, j] = c[i - j]` on and below the diagonal, `r[j - i]` above it.

    Once factorized a solve costs O(n log n); factorizing costs O(n log n) an iteration where the
    matrix is kind, O(n²) where it is not.

    Args:
        c: `[n]`, the first column.
        r: `[n]`, the first row; `r[0]` is not looked at (as in SciPy), and its gradient is 0. None:
            conj(c), so that A is Hermitian if c[0] is real; the gradient of c is then that of both.

    Raises:
        InvalidShapeError: c and r differ in length.
    """

    def __init__(self, c: Any, r: Any = None) -> None:
        self.c = _parameter(c, "c", 1)
        self.r = None if r is None else _parameter(r, "r", 1)
        if self.r is not None and self.r.shape != self.c.shape:
            raise InvalidShapeError(f"c has shape {self.c.shape} and r {self.r.shape}: they must be alike")
        self.batch = _batch_of(self.c, 1)

    @property
    def pattern(self) -> StructuredPattern:
        """Kind and sizes."""
        return StructuredPattern("toeplitz", self.c.shape[-1:])

    def _parts(self) -> dict[str, Array]:
        row = np.conj(self.c) if self.r is None else self.r
        return {"t": np.concatenate([row[..., :0:-1], self.c], axis=-1)}

    def _made(self, parts: dict[str, Array]) -> "Toeplitz":
        n = self.c.shape[-1]
        above, column = parts["t"][..., : max(n - 1, 0)][..., ::-1], parts["t"][..., max(n - 1, 0) :]
        corner = np.zeros((*self.c.shape[:-1], min(n, 1)), dtype=above.dtype)
        row = np.concatenate([corner, above], axis=-1)
        return Toeplitz(column + np.conj(row)) if self.r is None else Toeplitz(column, row)


@final
class LowRankUpdate(Structured):
    """`A = S + U Vᴴ`, solved with the factor of S by the Woodbury identity; S is never factorized again.

    S keeps an identity of its own: plain solves with S, and every update of it, share one upload and
    one factor. A solve costs one with S's factor and `4 n k` multiply-adds; the first one with these U
    and V costs k solves more. `method=` names the method of S. Where S is far worse conditioned than
    A, digits are lost: what the residual shows is refined, and what it cannot mend is told.

    Args:
        S: `[n, n]` array or SciPy sparse matrix; no batch.
        U: `[n, k]`, k at most n; worth it while k is well below n.
        V: `[n, k]`; None: U itself, so that A is Hermitian if S is. The gradient of U is then that of
            both places in which it stands.

    Raises:
        InvalidShapeError: the shapes do not fit each other.
        InvalidPatternError: k is above n.
    """

    def __init__(self, S: Any, U: Any, V: Any = None) -> None:
        if isinstance(S, Parametrised):
            raise InvalidShapeError("S must be an array or a sparse matrix: add the products to those of S instead")
        self.S = S if is_sparse(S) else _parameter(S, "S", 2, one=True)
        self.U = _parameter(U, "U", 2, one=True)
        self.V = None if V is None else _parameter(V, "V", 2, one=True)
        v = self.U if self.V is None else self.V
        n = self.U.shape[0]
        if tuple(self.S.shape) != (n, n) or v.shape != self.U.shape:
            raise InvalidShapeError(
                f"S has shape {tuple(self.S.shape)}, U {self.U.shape} and V {v.shape}: "
                "they must be (n, n), (n, k) and (n, k)"
            )
        UPDATE.check(self.U.shape)

    @property
    def pattern(self) -> StructuredPattern:
        """Kind and sizes, and the pattern of S."""
        return self._pattern_on(self._canonical().matrix)

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, n)`."""
        return (self.U.shape[0], self.U.shape[0])

    @property
    def dtype(self) -> "np.dtype[Any]":
        """Common element type of S, U and V."""
        return np.result_type(native(np.empty(0, self.S.dtype), "S"), *self._parts().values())

    def _canonical(self, dtype: "np.dtype[Any] | None" = None, memo: PatternMemo | None = None) -> Canonical:
        return canonicalise(self.S, dtype, memo)

    def _below(self, dtype: "np.dtype[Any]", memo: PatternMemo | None) -> Matrix | None:
        return self._canonical(dtype, memo).matrix

    def _pattern_on(self, below: Matrix | None) -> StructuredPattern:
        return StructuredPattern(UPDATE.name, self.U.shape, standing_on(below))

    def _parts(self) -> dict[str, Array]:
        return {"U": self.U, "V": self.U if self.V is None else self.V}

    def _taken_apart(self, gradient: Array) -> dict[str, Any]:
        canonical = self._canonical()
        pattern = self._pattern_on(canonical.matrix)
        matrix = Matrix.of_parameters(pattern, gradient)
        assert matrix.base is not None
        return {"S": canonical.like_caller(matrix.base.values), **pattern.split(matrix.values)}

    def _made(self, parts: dict[str, Any]) -> "LowRankUpdate":
        if self.V is None:
            return LowRankUpdate(parts["S"], parts["U"] + parts["V"])
        return LowRankUpdate(parts["S"], parts["U"], parts["V"])

    def _product(self, columns: Array) -> Array:
        own = apply(UPDATE, NUMPY, self._parts(), columns, "N")
        return np.asarray(self.S @ columns + own)
