"""Structured matrices of tensors, for `backsolve.torch.solve`; what they are is told at `backsolve.structured`."""

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

from ..errors import InvalidDtypeError, InvalidPatternError, InvalidShapeError
from ..kinds import UPDATE
from ..kinds.base import apply, join
from ..pattern import DensePattern, Pattern, StructuredPattern
from ._inputs import tensor
from ._rules import OPS, product
from ._sparse import extract


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
    def batch(self) -> tuple[int, ...]:
        """The axes in front of every parameter."""
        name, shape = self.pattern.parts[0]
        first = self._parts()[name]
        return tuple(first.shape[: first.ndim - len(shape)])

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the parameters."""
        return next(iter(self._parts().values())).dtype

    def values(self) -> Tensor:
        """All parameters in one vector, differentiably."""
        flat: Tensor = join(OPS, self.pattern.parts, self._parts())
        return flat

    def matvec(self, x: Tensor) -> Tensor:
        """`A x`, differentiably; `x` is `[*batch, n]` or `[*batch, n, k]`.

        Inside `torch.compile`, which does not know `@` of other classes, the form for `A @ x`.
        """
        wanted = (*self.batch, self.shape[1])
        if tuple(x.shape[: len(wanted)]) != wanted or x.ndim - len(wanted) not in (0, 1):
            raise InvalidShapeError(f"x has shape {tuple(x.shape)}; this matrix takes {wanted}, or that with k columns")
        columns = x.unsqueeze(-1) if x.ndim == len(wanted) else x
        return self._product(columns).reshape(x.shape)

    def _product(self, columns: Tensor) -> Tensor:
        """`A x`; x is `[*batch, n, k]`."""
        product: Tensor = apply(self.pattern.kind, OPS, self._parts(), columns, "N")
        return product.resolve_conj()

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.matvec(x)

    def to_dense(self) -> Tensor:
        """All n x n entries, differentiably: for tests and small matrices."""
        first = next(iter(self._parts().values()))
        eye = torch.eye(self.shape[1], dtype=first.dtype, device=first.device)
        return self.matvec(eye.expand(*self.batch, *self.shape))

    def __repr__(self) -> str:
        many = f"batch of {self.batch}, " if self.batch else ""
        return f"{type(self).__name__}({many}{self.shape[0]}x{self.shape[1]}, {self.dtype})"


def _parameters(given: dict[str, tuple[Tensor, int]], *, one: bool = False) -> None:
    """Refuse what is no tensor of the right number of dimensions, or of another type than the first.

    Args:
        given: each parameter by name, with its dimensions.
        one: whether there must be one matrix, rather than a batch.

    Raises:
        InvalidDtypeError, InvalidShapeError: naming the parameter.
    """
    first: Tensor | None = None
    for name, (value, ndim) in given.items():
        checked = tensor(value, name)
        if checked.layout is not torch.strided or checked.ndim < ndim or (one and checked.ndim != ndim):
            more = "a batch is not taken" if one else "after those of a batch"
            raise InvalidShapeError(f"{name} must be dense, of {ndim} dimensions: {more}")
        first = checked if first is None else first
        if checked.dtype != first.dtype or checked.device != first.device:
            raise InvalidDtypeError(
                f"{name} is {checked.dtype} on {checked.device}, other parameters are {first.dtype} on {first.device}: "
                "convert one"
            )


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

    def __init__(self, d: Tensor, U: Tensor, V: Tensor | None = None) -> None:
        _parameters({"d": (d, 1), "U": (U, 2), "V": (U if V is None else V, 2)})
        self.d, self.U, self.V = d, U, U if V is None else V
        if U.shape[:-1] != d.shape or self.V.shape != U.shape:
            raise InvalidShapeError(
                f"d has shape {tuple(d.shape)}, U {tuple(U.shape)} and V {tuple(self.V.shape)}: "
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

    def __init__(self, *factors: Tensor) -> None:
        _parameters({f"factor {index + 1}": (factor, 2) for index, factor in enumerate(factors)})
        self.factors = factors
        for index, factor in enumerate(factors):
            if factor.shape[-2] != factor.shape[-1]:
                raise InvalidShapeError(f"factor {index + 1} has shape {tuple(factor.shape)}: it must be square")
            if factor.shape[:-2] != factors[0].shape[:-2]:
                raise InvalidShapeError("either every factor has the same batch axes in front, or none has any")
        self._pattern = StructuredPattern("kronecker", [factor.shape[-1] for factor in factors])

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

    def __init__(self, c: Tensor) -> None:
        _parameters({"c": (c, 1)})
        self.c = c

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

    def __init__(self, c: Tensor, r: Tensor | None = None) -> None:
        row = c.conj().resolve_conj() if r is None else r
        _parameters({"c": (c, 1), "r": (row, 1)})
        self.c, self.r = c, row
        if row.shape != c.shape:
            raise InvalidShapeError(f"c has shape {tuple(c.shape)} and r {tuple(row.shape)}: they must be alike")

    @property
    def pattern(self) -> StructuredPattern:
        """Kind and sizes."""
        return StructuredPattern("toeplitz", tuple(self.c.shape[-1:]))

    def _parts(self) -> dict[str, Tensor]:
        return {"t": torch.cat([self.r[..., 1:].flip(-1), self.c], -1)}


@final
class LowRankUpdate(Structured):
    """`A = S + U Vᴴ`, solved with the factor of S, which plain solves and other updates of S share.

    The gradient of a sparse S has its layout and entries. `torch.func.vmap` over S, U or V asks for
    one matrix after the other.

    Args:
        S: `[n, n]`, dense or sparse COO, CSR or CSC; with `pattern` the `[nnz]` numbers on it. PyTorch's
            sparse tensors can be differentiated once: for second derivatives give numbers and pattern.
        U: `[n, k]`, k at most n.
        V: `[n, k]`; None: U itself.
        pattern: where the numbers of a sparse S are, as for `spsolve`.

    Raises:
        InvalidShapeError, InvalidDtypeError, InvalidPatternError: they do not fit each other.
    """

    def __init__(self, S: Tensor, U: Tensor, V: Tensor | None = None, *, pattern: Pattern | None = None) -> None:
        _parameters({"U": (U, 2), "V": (U if V is None else V, 2)}, one=True)
        self.S, self.U, self.V = tensor(S, "S"), U, U if V is None else V
        self._entries, self._below = _base(S, pattern)
        if self._below.shape != (U.shape[0], U.shape[0]) or self.V.shape != U.shape:
            raise InvalidShapeError(
                f"S has shape {self._below.shape}, U {tuple(U.shape)} and V {tuple(self.V.shape)}: "
                "they must be (n, n), (n, k) and (n, k)"
            )
        if S.dtype != U.dtype or S.device != U.device:
            raise InvalidDtypeError(f"S is {S.dtype} on {S.device}, U and V are {U.dtype} on {U.device}: convert one")
        self._pattern = StructuredPattern(UPDATE.name, tuple(U.shape), self._below)

    @property
    def pattern(self) -> StructuredPattern:
        """Kind and sizes, and the pattern of S."""
        return self._pattern

    def values(self) -> Tensor:
        """The entries of S, then U and V, in one vector, differentiably."""
        own: Tensor = join(OPS, self.pattern.parts, self._parts())
        return torch.cat([self._entries.reshape(-1), own])

    def _parts(self) -> dict[str, Tensor]:
        return {"U": self.U, "V": self.V}

    def _product(self, columns: Tensor) -> Tensor:
        own: Tensor = apply(UPDATE, OPS, self._parts(), columns, "N")
        return product(self._below, self._entries, columns, transposed=False) + own.resolve_conj()


def _base(S: Tensor, pattern: Pattern | None) -> tuple[Tensor, Pattern | DensePattern]:
    """The entries of S, and where they are."""
    if pattern is not None:
        if not isinstance(pattern, Pattern):
            raise InvalidPatternError("pattern must be a backsolve.Pattern, e.g. Pattern.from_csr(S)")
        if S.layout is not torch.strided or tuple(S.shape) != pattern.entries:
            raise InvalidShapeError(f"S has shape {tuple(S.shape)}, the pattern needs {pattern.entries} numbers")
        return S, pattern
    if S.layout is not torch.strided:
        return extract(S)
    if S.ndim != 2:
        raise InvalidShapeError(f"S must be [n, n], its shape is {tuple(S.shape)}: a batch is not taken")
    return S, DensePattern((S.shape[0], S.shape[1]))
