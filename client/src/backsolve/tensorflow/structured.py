"""Structured matrices of tensors, for `backsolve.tensorflow.solve`; what they are is told at `backsolve.structured`.

Inside `tf.function` their sizes must be known when it is traced: they are part of the pattern.
"""

from abc import ABC, abstractmethod
from typing import Any, final

import tensorflow as tf

from ..errors import InvalidDtypeError, InvalidPatternError, InvalidShapeError, NotSupportedError
from ..kinds import UPDATE
from ..kinds.base import apply
from ..pattern import DensePattern, Pattern, StructuredPattern
from ._arrays import OPS, Arraylike
from ._inputs import tensor
from ._request import coordinates
from ._rules import ANY, Tensor, algebra, of_pattern, shaped


class Structured(ABC):
    """A matrix that is given by tensors; gradients reach whatever those were computed from.

    With the same `*batch` axes in front of every parameter, a batch of matrices, solved in one request
    (an update is always one matrix).
    """

    @property
    @abstractmethod
    def pattern(self) -> StructuredPattern:
        """Kind and sizes."""

    @abstractmethod
    def _parts(self) -> dict[str, Tensor]:
        """Every parameter that the kind has."""

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, n)`, of one matrix."""
        return self.pattern.shape

    @property
    def batch(self) -> tuple[int | None, ...]:
        """The axes in front of every parameter; None where one is not known yet."""
        name, shape = self.pattern.parts[0]
        first = self._parts()[name]
        return tuple(first.shape[: first.shape.rank - len(shape)])

    @property
    def dtype(self) -> Any:
        """Element type of the parameters."""
        return next(iter(self._parts().values())).dtype

    def values(self) -> Tensor:
        """All parameters in one vector, differentiably."""
        parts = self._parts()
        flat = []
        for name, shape in self.pattern.parts:
            lead = tf.shape(parts[name])[: parts[name].shape.rank - len(shape)]
            # The size is known, whatever the batch is.
            size = tf.TensorShape(shape).num_elements()
            whole = tf.reshape(parts[name], tf.concat([lead, [size]], 0))
            flat.append(shaped(whole, [*self.batch, size]))
        return tf.concat(flat, -1)

    def matvec(self, x: Tensor) -> Tensor:
        """`A x`, differentiably; `x` is `[*batch, n]` or `[*batch, n, k]`."""
        x = tensor(x, "x")
        wanted = (*self.batch, self.shape[1])
        rank = x.shape.rank
        if rank - len(wanted) not in (0, 1) or not x.shape[: len(wanted)].is_compatible_with(wanted):
            raise InvalidShapeError(f"x has shape {tuple(x.shape)}; this matrix takes {wanted}, or that with k columns")
        return self._product(x) if rank > len(wanted) else self._product(x[..., None])[..., 0]

    def _product(self, columns: Tensor) -> Tensor:
        """`A x`; x is `[*batch, n, k]`."""
        parts = {name: Arraylike(part) for name, part in self._parts().items()}
        product: Arraylike = apply(self.pattern.kind, OPS, parts, Arraylike(columns), "N")
        return product.tensor

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.matvec(x)

    def __repr__(self) -> str:
        many = f"batch of {self.batch}, " if self.batch else ""
        return f"{type(self).__name__}({many}{self.shape[0]}x{self.shape[1]}, {self.dtype.name})"

    def to_dense(self) -> Tensor:
        """All n x n entries, differentiably: for tests and small matrices."""
        name, shape = self.pattern.parts[0]
        lead = tf.shape(self._parts()[name])[: self._parts()[name].shape.rank - len(shape)]
        eye = tf.eye(self.shape[1], batch_shape=lead, dtype=self.dtype)
        return self.matvec(shaped(eye, [*self.batch, *self.shape]))


def _parameters(given: dict[str, tuple[Any, int]], *, one: bool = False) -> list[Tensor]:
    """Refuse what is no tensor of the right number of dimensions, or of another type than the first.

    Args:
        given: each parameter by name, with its dimensions.
        one: whether there must be one matrix, rather than a batch.

    Raises:
        InvalidDtypeError, InvalidShapeError: naming the parameter.
    """
    found: list[Tensor] = []
    for name, (value, ndim) in given.items():
        checked = tensor(value, name)
        rank = checked.shape.rank
        if rank is None or rank < ndim or (one and rank != ndim):
            more = "a batch is not taken" if one else "after those of a batch"
            raise InvalidShapeError(f"{name} must be of {ndim} dimensions: {more}")
        if None in checked.shape[rank - ndim :]:
            raise InvalidShapeError(
                f"{name} has sizes that are not known while the tf.function is traced, {tuple(checked.shape)}: a "
                f"structured matrix is of fixed sizes, e.g. tf.ensure_shape({name}, ...)"
            )
        found.append(checked)
        if checked.dtype != found[0].dtype:
            raise InvalidDtypeError(
                f"{name} is {checked.dtype.name}, other parameters are {found[0].dtype.name}: convert one"
            )
    return found


def _alike(one: Any, other: Any) -> bool:
    """Whether two shapes may be the same."""
    return bool(tf.TensorShape(one).is_compatible_with(tf.TensorShape(other)))


@final
class LowRankPlusDiagonal(Structured):
    """`A = diag(d) + U Vᴴ`, solved in O(n r²) by the Woodbury identity.

    Args:
        d: `[n]`.
        U: `[n, r]`.
        V: `[n, r]`; None: U itself.

    Raises:
        InvalidShapeError, InvalidDtypeError: they do not fit each other.
    """

    def __init__(self, d: Any, U: Any, V: Any = None) -> None:
        self.d, self.U, self.V = _parameters({"d": (d, 1), "U": (U, 2), "V": (U if V is None else V, 2)})
        if not _alike(self.U.shape[:-1], self.d.shape) or not _alike(self.V.shape, self.U.shape):
            raise InvalidShapeError(
                f"d has shape {tuple(self.d.shape)}, U {tuple(self.U.shape)} and V {tuple(self.V.shape)}: "
                "they must be (n,), (n, r) and (n, r), or each with the same batch axes in front"
            )

    @property
    def pattern(self) -> StructuredPattern:
        """Kind and sizes."""
        return StructuredPattern("low_rank", tuple(self.U.shape[-2:]))

    def _parts(self) -> dict[str, Tensor]:
        return {"d": self.d, "U": self.U, "V": self.V}


@final
class Kronecker(Structured):
    """`A = A1 ⊗ A2 ⊗ ...`, solved factor by factor.

    Args:
        factors: each `[n_i, n_i]`; 1 to 16 of them.

    Raises:
        InvalidShapeError, InvalidDtypeError, InvalidPatternError: they do not fit each other.
    """

    def __init__(self, *factors: Any) -> None:
        self.factors = tuple(_parameters({f"factor {index + 1}": (each, 2) for index, each in enumerate(factors)}))
        for index, factor in enumerate(self.factors):
            if factor.shape[-2] != factor.shape[-1]:
                raise InvalidShapeError(f"factor {index + 1} has shape {tuple(factor.shape)}: it must be square")
            if not _alike(factor.shape[:-2], self.factors[0].shape[:-2]):
                raise InvalidShapeError("either every factor has the same batch axes in front, or none has any")
        self._pattern = StructuredPattern("kronecker", [factor.shape[-1] for factor in self.factors])

    @property
    def pattern(self) -> StructuredPattern:
        """Kind and sizes."""
        return self._pattern

    def _parts(self) -> dict[str, Tensor]:
        return {f"A{index + 1}": factor for index, factor in enumerate(self.factors)}


@final
class Circulant(Structured):
    """`A[i, j] = c[(i - j) mod n]`, solved in O(n log n) by Fourier transforms.

    Args:
        c: `[n]`, the first column.
    """

    def __init__(self, c: Any) -> None:
        (self.c,) = _parameters({"c": (c, 1)})

    @property
    def pattern(self) -> StructuredPattern:
        """Kind and sizes."""
        return StructuredPattern("circulant", tuple(self.c.shape[-1:]))

    def _parts(self) -> dict[str, Tensor]:
        return {"c": self.c}


@final
class Toeplitz(Structured):
    """`A[i, j] = c[i - j]` on and below the diagonal, `r[j - i]` above it.

    Args:
        c: `[n]`, the first column.
        r: `[n]`, the first row; `r[0]` is not looked at. None: conj(c).

    Raises:
        InvalidShapeError, InvalidDtypeError: they do not fit each other.
    """

    def __init__(self, c: Any, r: Any = None) -> None:
        row = tf.math.conj(tensor(c, "c")) if r is None else r
        self.c, self.r = _parameters({"c": (c, 1), "r": (row, 1)})
        if not _alike(self.r.shape, self.c.shape):
            raise InvalidShapeError(
                f"c has shape {tuple(self.c.shape)} and r {tuple(self.r.shape)}: they must be alike"
            )

    @property
    def pattern(self) -> StructuredPattern:
        """Kind and sizes."""
        return StructuredPattern("toeplitz", tuple(self.c.shape[-1:]))

    def _parts(self) -> dict[str, Tensor]:
        return {"t": tf.concat([tf.reverse(self.r[..., 1:], [-1]), self.c], -1)}


@final
class LowRankUpdate(Structured):
    """`A = S + U Vᴴ`, solved with the factor of S, which plain solves and other updates of S share.

    Args:
        S: `[n, n]`, dense or a `tf.SparseTensor`, that inside `tf.function` only if it was made outside of it; with
            `pattern` the `[nnz]` numbers on it.
        U: `[n, k]`, k at most n.
        V: `[n, k]`; None: U itself.
        pattern: where the numbers of a sparse S are, as for `spsolve`.

    Raises:
        InvalidShapeError, InvalidDtypeError, InvalidPatternError: they do not fit each other.
        NotSupportedError: the indices of S are not known yet.
    """

    def __init__(self, S: Any, U: Any, V: Any = None, *, pattern: Pattern | None = None) -> None:
        self.U, self.V = _parameters({"U": (U, 2), "V": (U if V is None else V, 2)}, one=True)
        self.S = S if isinstance(S, tf.SparseTensor) else tensor(S, "S")
        self._entries, self.below = _base(self.S, pattern)
        if self.below.shape != (self.U.shape[0], self.U.shape[0]) or self.V.shape != self.U.shape:
            raise InvalidShapeError(
                f"S has shape {self.below.shape}, U {tuple(self.U.shape)} and V {tuple(self.V.shape)}: "
                "they must be (n, n), (n, k) and (n, k)"
            )
        if self._entries.dtype != self.U.dtype:
            raise InvalidDtypeError(f"S is {self._entries.dtype.name}, U and V are {self.U.dtype.name}: convert one")
        self._pattern = StructuredPattern(UPDATE.name, tuple(self.U.shape), self.below)

    @property
    def pattern(self) -> StructuredPattern:
        """Kind and sizes, and the pattern of S."""
        return self._pattern

    def values(self) -> Tensor:
        """The entries of S, then U and V, in one vector, differentiably."""
        return tf.concat([tf.reshape(each, [-1]) for each in (self._entries, self.U, self.V)], 0)

    def _parts(self) -> dict[str, Tensor]:
        return {"U": self.U, "V": self.V}

    def _product(self, columns: Tensor) -> Tensor:
        place = of_pattern(self.below) if isinstance(self.below, Pattern) else None
        return super()._product(columns) + algebra(place).product(ANY, self._entries, columns, transposed=False)


def _base(S: Any, pattern: Pattern | None) -> tuple[Tensor, Pattern | DensePattern]:
    """The entries of S, and where they are."""
    if pattern is not None:
        if not isinstance(pattern, Pattern):
            raise InvalidPatternError("pattern must be a backsolve.Pattern, e.g. Pattern.from_csr(S)")
        if isinstance(S, tf.SparseTensor) or tuple(S.shape) != pattern.entries:
            raise InvalidShapeError(f"S has shape {tuple(S.shape)}, the pattern needs {pattern.entries} numbers")
        return S, pattern
    if isinstance(S, tf.SparseTensor):
        indices, shape = (tf.get_static_value(each) for each in (S.indices, S.dense_shape))
        if indices is None or shape is None:
            raise NotSupportedError(
                "the indices of S are not known while the tf.function is traced: give numbers and pattern, "
                "LowRankUpdate(values, U, V, pattern=Pattern.from_csr(...))"
            )
        entries = coordinates(indices, (int(shape[0]), int(shape[1])))
        if entries.position is None:
            return S.values, entries.pattern
        # A duplicate is added to the entry, which is what the matrix has there.
        return tf.math.unsorted_segment_sum(S.values, entries.position, entries.pattern.nnz), entries.pattern
    if S.shape.rank != 2 or None in tuple(S.shape):
        raise InvalidShapeError(f"S must be [n, n], its shape is {tuple(S.shape)}: a batch is not taken")
    return S, DensePattern((S.shape[0], S.shape[1]))
