"""Structured matrices of arrays, for `backsolve.jax.solve`; what they are is told at `backsolve.structured`.

They are pytrees: arguments of jitted functions, and of `jax.grad`, whose gradient is one of the same class.
"""

from abc import ABC, abstractmethod
from typing import Any, Self, final

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.sparse import BCOO, BCSR

from .._adapter.rules import operated
from ..errors import InvalidDtypeError, InvalidPatternError, InvalidShapeError
from ..kinds import UPDATE
from ..kinds.base import apply, join
from ..pattern import DensePattern, Pattern, StructuredPattern
from ._inputs import array
from ._rules import ALGEBRA, OPS
from ._sparse import extract


class Structured(ABC):
    """A matrix that is given by arrays; gradients reach whatever those were computed from.

    With the same `*batch` axes in front of every parameter, a batch of matrices, solved in one request
    (an update is always one matrix).
    """

    @property
    @abstractmethod
    def pattern(self) -> StructuredPattern:
        """Kind and sizes."""

    @abstractmethod
    def _parts(self) -> dict[str, Array]:
        """Every parameter that the kind has."""

    @abstractmethod
    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """What JAX sees of it."""

    @classmethod
    @abstractmethod
    def tree_unflatten(cls, fixed: Any, children: Any) -> Self:
        """The inverse; nothing is checked, as JAX puts other things than arrays in their places."""

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, n)`, of one matrix."""
        return self.pattern.shape

    @property
    def batch(self) -> tuple[int, ...]:
        """The axes in front of every parameter."""
        name, shape = self.pattern.parts[0]
        first = self._parts()[name]
        return tuple(first.shape[: first.ndim - len(shape)])

    @property
    def dtype(self) -> Any:
        """Element type of the parameters."""
        return next(iter(self._parts().values())).dtype

    def values(self) -> Array:
        """All parameters in one vector, differentiably."""
        flat: Array = join(OPS, self.pattern.parts, self._parts())
        return flat

    def matvec(self, x: Array) -> Array:
        """`A x`, differentiably; `x` is `[*batch, n]` or `[*batch, n, k]`."""
        wanted = (*self.batch, self.shape[1])
        if tuple(x.shape[: len(wanted)]) != wanted or x.ndim - len(wanted) not in (0, 1):
            raise InvalidShapeError(f"x has shape {tuple(x.shape)}; this matrix takes {wanted}, or that with k columns")
        columns = x[..., None] if x.ndim == len(wanted) else x
        return self._product(columns).reshape(x.shape)

    def _product(self, columns: Array) -> Array:
        """`A x`; x is `[*batch, n, k]`."""
        product: Array = apply(self.pattern.kind, OPS, self._parts(), columns, "N")
        return product

    def __matmul__(self, x: Array) -> Array:
        return self.matvec(x)

    def __repr__(self) -> str:
        many = f"batch of {self.batch}, " if self.batch else ""
        return f"{type(self).__name__}({many}{self.shape[0]}x{self.shape[1]}, {self.dtype})"

    def to_dense(self) -> Array:
        """All n x n entries, differentiably: for tests and small matrices."""
        eye = jnp.eye(self.shape[1], dtype=self.dtype)
        return self.matvec(jnp.broadcast_to(eye, (*self.batch, *self.shape)))


def _parameters(given: dict[str, tuple[Any, int]], *, one: bool = False) -> list[Array]:
    """Refuse what is no array of the right number of dimensions, or of another type than the first.

    Args:
        given: each parameter by name, with its dimensions.
        one: whether there must be one matrix, rather than a batch.

    Raises:
        InvalidDtypeError, InvalidShapeError: naming the parameter.
    """
    found: list[Array] = []
    for name, (value, ndim) in given.items():
        checked = array(value, name)
        if checked.ndim < ndim or (one and checked.ndim != ndim):
            more = "a batch is not taken" if one else "after those of a batch"
            raise InvalidShapeError(f"{name} must be of {ndim} dimensions: {more}")
        found.append(checked)
        if checked.dtype != found[0].dtype:
            raise InvalidDtypeError(f"{name} is {checked.dtype}, other parameters are {found[0].dtype}: convert one")
    return found


@final
@jax.tree_util.register_pytree_node_class
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
        if self.U.shape[:-1] != self.d.shape or self.V.shape != self.U.shape:
            raise InvalidShapeError(
                f"d has shape {self.d.shape}, U {self.U.shape} and V {self.V.shape}: "
                "they must be (n,), (n, r) and (n, r), or each with the same batch axes in front"
            )

    @property
    def pattern(self) -> StructuredPattern:
        """Kind and sizes."""
        return StructuredPattern("low_rank", tuple(self.U.shape[-2:]))

    def _parts(self) -> dict[str, Array]:
        return {"d": self.d, "U": self.U, "V": self.V}

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """D, U, V."""
        return (self.d, self.U, self.V), None

    @classmethod
    def tree_unflatten(cls, fixed: Any, children: Any) -> Self:
        """The inverse."""
        made = object.__new__(cls)
        made.d, made.U, made.V = children
        return made


@final
@jax.tree_util.register_pytree_node_class
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
                raise InvalidShapeError(f"factor {index + 1} has shape {factor.shape}: it must be square")
            if factor.shape[:-2] != self.factors[0].shape[:-2]:
                raise InvalidShapeError("either every factor has the same batch axes in front, or none has any")
        StructuredPattern("kronecker", [factor.shape[-1] for factor in self.factors])

    @property
    def pattern(self) -> StructuredPattern:
        """Kind and sizes."""
        return StructuredPattern("kronecker", [factor.shape[-1] for factor in self.factors])

    def _parts(self) -> dict[str, Array]:
        return {f"A{index + 1}": factor for index, factor in enumerate(self.factors)}

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """The factors."""
        return self.factors, None

    @classmethod
    def tree_unflatten(cls, fixed: Any, children: Any) -> Self:
        """The inverse."""
        made = object.__new__(cls)
        made.factors = tuple(children)
        return made


@final
@jax.tree_util.register_pytree_node_class
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

    def _parts(self) -> dict[str, Array]:
        return {"c": self.c}

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """C alone."""
        return (self.c,), None

    @classmethod
    def tree_unflatten(cls, fixed: Any, children: Any) -> Self:
        """The inverse."""
        made = object.__new__(cls)
        (made.c,) = children
        return made


@final
@jax.tree_util.register_pytree_node_class
class Toeplitz(Structured):
    """`A[i, j] = c[i - j]` on and below the diagonal, `r[j - i]` above it.

    Args:
        c: `[n]`, the first column.
        r: `[n]`, the first row; `r[0]` is not looked at. None: conj(c).

    Raises:
        InvalidShapeError, InvalidDtypeError: they do not fit each other.
    """

    def __init__(self, c: Any, r: Any = None) -> None:
        row = array(c, "c").conj() if r is None else r
        self.c, self.r = _parameters({"c": (c, 1), "r": (row, 1)})
        if self.r.shape != self.c.shape:
            raise InvalidShapeError(f"c has shape {self.c.shape} and r {self.r.shape}: they must be alike")

    @property
    def pattern(self) -> StructuredPattern:
        """Kind and sizes."""
        return StructuredPattern("toeplitz", tuple(self.c.shape[-1:]))

    def _parts(self) -> dict[str, Array]:
        return {"t": jnp.concatenate([self.r[..., :0:-1], self.c], -1)}

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """C and r."""
        return (self.c, self.r), None

    @classmethod
    def tree_unflatten(cls, fixed: Any, children: Any) -> Self:
        """The inverse."""
        made = object.__new__(cls)
        made.c, made.r = children
        return made


@final
@jax.tree_util.register_pytree_node_class
class LowRankUpdate(Structured):
    """`A = S + U Vᴴ`, solved with the factor of S, which plain solves and other updates of S share.

    `vmap` over S, U or V asks for one matrix after the other.

    Args:
        S: `[n, n]`, dense, BCOO or BCSR; with `pattern` the `[nnz]` numbers on it.
        U: `[n, k]`, k at most n.
        V: `[n, k]`; None: U itself.
        pattern: where the numbers of a sparse S are, as for `spsolve`: the form for `jit`.

    Raises:
        InvalidShapeError, InvalidDtypeError, InvalidPatternError: they do not fit each other.
    """

    def __init__(self, S: Any, U: Any, V: Any = None, *, pattern: Pattern | None = None) -> None:
        self.U, self.V = _parameters({"U": (U, 2), "V": (U if V is None else V, 2)}, one=True)
        self.S = S if isinstance(S, BCOO | BCSR) else array(S, "S")
        self.below = pattern
        entries, below = self._base()
        if below.shape != (self.U.shape[0], self.U.shape[0]) or self.V.shape != self.U.shape:
            raise InvalidShapeError(
                f"S has shape {below.shape}, U {self.U.shape} and V {self.V.shape}: "
                "they must be (n, n), (n, k) and (n, k)"
            )
        if entries.dtype != self.U.dtype:
            raise InvalidDtypeError(f"S is {entries.dtype}, U and V are {self.U.dtype}: convert one")

    @property
    def pattern(self) -> StructuredPattern:
        """Kind and sizes, and the pattern of S."""
        return StructuredPattern(UPDATE.name, tuple(self.U.shape), self._base()[1])

    def values(self) -> Array:
        """The entries of S, then U and V, in one vector, differentiably."""
        own: Array = join(OPS, self.pattern.parts, self._parts())
        return jnp.concatenate([self._base()[0].reshape(-1), own])

    def _parts(self) -> dict[str, Array]:
        return {"U": self.U, "V": self.V}

    def _product(self, columns: Array) -> Array:
        entries, below = self._base()
        own: Array = apply(UPDATE, OPS, self._parts(), columns, "N")
        of_base: Array = operated(ALGEBRA, below, "N", entries, columns)
        return own + of_base

    def _base(self) -> tuple[Array, Pattern | DensePattern]:
        """The entries of S, and where they are."""
        if self.below is not None:
            if not isinstance(self.below, Pattern):
                raise InvalidPatternError("pattern must be a backsolve.Pattern, e.g. Pattern.from_csr(S)")
            if isinstance(self.S, BCOO | BCSR) or tuple(self.S.shape) != self.below.entries:
                raise InvalidShapeError(f"S has shape {self.S.shape}, the pattern needs {self.below.entries} numbers")
            return self.S, self.below
        if self.S.ndim != 2:
            raise InvalidShapeError(f"S must be [n, n], its shape is {tuple(self.S.shape)}: a batch is not taken")
        if isinstance(self.S, BCOO | BCSR):
            return extract(self.S)
        return self.S, DensePattern((self.S.shape[0], self.S.shape[1]))

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """S, U, V; the pattern is fixed."""
        return (self.S, self.U, self.V), self.below

    @classmethod
    def tree_unflatten(cls, fixed: Any, children: Any) -> Self:
        """The inverse."""
        made = object.__new__(cls)
        made.S, made.U, made.V = children
        made.below = fixed
        return made
