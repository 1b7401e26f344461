"""Matrices for `linear_operator` and GPyTorch whose solves are backsolve's.

    from backsolve.torch.operator import SolveLinearOperator

    def forward(self, x):                                  # of a gpytorch.models.ExactGP
        covariance = self.covar_module(x).to_dense()
        return MultivariateNormal(self.mean_module(x), SolveLinearOperator(covariance))

Needs the extra `gpytorch`, or `linear_operator` alone; `import backsolve.torch` needs neither.
"""

from abc import abstractmethod
from typing import Any, Final, Unpack, final

import torch
from linear_operator import settings
from linear_operator.operators import DiagLinearOperator, LinearOperator, to_dense
from torch import Tensor

from .. import canonical
from ..errors import (
    InvalidDtypeError,
    InvalidPatternError,
    InvalidShapeError,
    NotPositiveDefiniteError,
    NotSupportedError,
)
from ..pattern import Pattern
from . import _rules
from ._options import SolveOptions
from .functional import solve, spsolve

_COLUMNS: Final = -2
"""Where a right-hand side `[*batch, n, k]` has its rows."""


def _broadcast(*shapes: Any) -> tuple[int, ...]:
    """The batch that all of these fit into."""
    return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


class _SolvedOperator(LinearOperator):  # type: ignore[misc]
    """What dense and sparse operators share. Every derivative of every order is that of `backsolve.torch`."""

    # `linear_operator` makes an operator again from tensors and keyword arguments: these are the options.

    @abstractmethod
    def _like(self, entries: Tensor) -> "_SolvedOperator":
        """The same kind of operator, with the same options."""

    @abstractmethod
    def _solved(self, b: Tensor) -> Tensor:
        """A⁻¹ b; `b` is `[*batch, n, k]` with the operator's own batch."""

    @property
    @abstractmethod
    def _entries(self) -> Tensor:
        """The tensor that it is made of."""

    @property
    def _options(self) -> Any:
        return self._nondifferentiable_kwargs

    # -- solves ----------------------------------------------------------------------------

    def solve(self, right_tensor: Tensor, left_tensor: Tensor | None = None) -> Tensor:
        """`A⁻¹ R`, or `L A⁻¹ R`: one request, one more for its gradient, and no factorization for that.

        Args:
            right_tensor: `[n]`, or `[*batch, n, k]`; a batch of right-hand sides of one matrix is one block.
            left_tensor: `[*batch, o, n]`.

        Raises:
            InvalidShapeError: they do not fit.
            BacksolveError: whatever the solve meets.
        """
        n = self.shape[-1]
        if self.shape[-2] != n:
            raise InvalidShapeError(f"A must be square, its shape is {tuple(self.shape)}")
        vector = right_tensor.ndim == 1
        b = right_tensor.unsqueeze(-1) if vector else right_tensor
        if b.shape[_COLUMNS] != n:
            raise InvalidShapeError(f"b has shape {tuple(right_tensor.shape)}, this matrix needs {n} rows")
        x = self._of_every_batch(b)
        if left_tensor is not None:
            x = left_tensor @ x
        return x.squeeze(-1) if vector else x

    def _of_every_batch(self, b: Tensor) -> Tensor:
        if not self.batch_shape:
            # One matrix: all columns are one block, and one factor serves them.
            block = b.movedim(_COLUMNS, 0)
            return self._solved(block.flatten(1)).reshape(block.shape).movedim(0, _COLUMNS)
        try:
            batch = _broadcast(self.batch_shape, b.shape[:-2])
        except RuntimeError as err:
            raise InvalidShapeError(
                f"b has batch {tuple(b.shape[:-2])}, the matrices {tuple(self.batch_shape)}: they do not fit each other"
            ) from err
        one = self if batch == tuple(self.batch_shape) else self._expand_batch(batch)
        return one._solved(b.expand(*batch, *b.shape[-2:]))

    def _solve(self, rhs: Tensor, preconditioner: Any = None, num_tridiag: int | None = 0) -> Tensor:
        """What `linear_operator` calls where it would run conjugate gradients; a preconditioner is not needed.

        Raises:
            NotSupportedError: tridiagonal matrices are wanted, of which it estimates determinants.
        """
        if num_tridiag:
            raise NotSupportedError(
                "determinants are not estimated from solves with this operator: use its logdet or inv_quad_logdet"
            )
        return self.solve(rhs)

    def inv_quad(self, inv_quad_rhs: Tensor, reduce_inv_quad: bool = True) -> Tensor:
        """`tr(Rᵀ A⁻¹ R)`, or without `reduce_inv_quad` the diagonal; exact, by one solve."""
        columns = inv_quad_rhs.unsqueeze(-1) if inv_quad_rhs.ndim == 1 else inv_quad_rhs
        each = (columns * self.solve(columns)).sum(_COLUMNS)
        return each.sum(-1) if reduce_inv_quad else each

    def inv_quad_logdet(
        self, inv_quad_rhs: Tensor | None = None, logdet: bool | None = False, reduce_inv_quad: bool | None = True
    ) -> tuple[Tensor, Tensor]:
        """`inv_quad` by one solve, and the logarithm of the determinant.

        No server is asked for a determinant. It is computed here, exactly, from a Cholesky factor of all
        n x n entries, O(n³): of a dense matrix of any size, of a sparse one up to
        `linear_operator.settings.max_cholesky_size` rows.

        Raises:
            NotPositiveDefiniteError: the determinant is wanted of a matrix without a Cholesky factor.
            NotSupportedError: it is wanted of a larger sparse matrix.
        """
        if inv_quad_rhs is None and not logdet:
            raise NotSupportedError("ask for inv_quad_rhs, for logdet=True, or for both")
        nothing = torch.zeros([], dtype=self.dtype, device=self.device)
        quad = nothing if inv_quad_rhs is None else self.inv_quad(inv_quad_rhs, bool(reduce_inv_quad))
        return quad, self._log_determinant() if logdet else nothing

    def _log_determinant(self) -> Tensor:
        self._check_size()
        entries = self.to_dense()
        with torch.autocast(entries.device.type, enabled=False):
            factor, info = torch.linalg.cholesky_ex(entries)
        if bool(info.any()):
            raise NotPositiveDefiniteError(
                "a determinant was wanted of a matrix that is not positive definite: add to its diagonal, e.g. "
                "A.add_jitter(1e-6)"
            )
        determinant: Tensor = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return determinant

    def _check_size(self) -> None:
        """Refuse to form all entries of a matrix that is too large for it."""

    # -- products, sums and multiples, which keep the solver -------------------------------------------

    def matmul(self, other: Any) -> Any:
        """`A B`; of a tensor by PyTorch's operations: the library's own product is differentiated once only."""
        if not isinstance(other, Tensor):
            return super().matmul(other)
        rows = other.shape[0] if other.ndim == 1 else other.shape[_COLUMNS]
        if rows != self.shape[-1]:
            raise InvalidShapeError(f"A is {tuple(self.shape)}, its factor {tuple(other.shape)}: they do not fit")
        return self._matmul(other)

    def add_diagonal(self, diag: Tensor) -> "_SolvedOperator":
        """`A + diag(d)`, solved likewise; `diag` is `[*batch, n]`, `[*batch, 1]` or `[]`."""
        added = diag if diag.ndim else diag.unsqueeze(-1)
        return self._plus_diagonal(added.expand(*_broadcast(added.shape[:-1], self.batch_shape), self._n))

    @abstractmethod
    def _plus_diagonal(self, diag: Tensor) -> "_SolvedOperator":
        """Likewise, of `[*batch, n]`."""

    @property
    def _n(self) -> int:
        return int(self.shape[-1])

    def __add__(self, other: Any) -> Any:
        if isinstance(other, DiagLinearOperator):
            return self.add_diagonal(other._diagonal())
        return super().__add__(other)

    def _mul_constant(self, other: Any) -> "_SolvedOperator":
        factor = torch.as_tensor(other, dtype=self.dtype, device=self.device)
        if factor.ndim:  # one for each matrix of the batch
            factor = factor.reshape((*factor.shape, *(1,) * (self._entries.ndim - len(self.batch_shape))))
        return self._like(self._entries * factor)

    def _expand_batch(self, batch_shape: Any) -> "_SolvedOperator":
        lead = len(self.batch_shape)
        return self._like(self._entries.expand(*batch_shape, *self._entries.shape[lead:]))

    def _unsqueeze_batch(self, dim: int) -> "_SolvedOperator":
        return self._like(self._entries.unsqueeze(dim))


@final
class SolveLinearOperator(_SolvedOperator):
    """A dense matrix, `[*batch, n, n]`, whose solves are those of `backsolve.torch.solve`.

    Sums with tensors, diagonals and other dense operators, multiples and slices stay of this kind. For what
    `linear_operator` expects of an operator, A should be symmetric; solves are right for any A.

    Args:
        tensor: the entries.
        options: keyword arguments of `backsolve.torch.solve`, such as `client` or `method`.
    """

    def __init__(self, tensor: Tensor, **options: Unpack[SolveOptions]) -> None:
        if not isinstance(tensor, Tensor):
            raise InvalidDtypeError("A must be a torch.Tensor; of another operator pass A.to_dense()")
        if tensor.ndim < 2:
            raise InvalidShapeError(f"A must be [*batch, n, n], its shape is {tuple(tensor.shape)}")
        super().__init__(tensor, **options)
        self.tensor = tensor

    def _like(self, entries: Tensor) -> "SolveLinearOperator":
        return SolveLinearOperator(entries, **self._options)

    def _solved(self, b: Tensor) -> Tensor:
        x: Tensor = solve(self.tensor, b, **self._options)
        return x

    @property
    def _entries(self) -> Tensor:
        return self.tensor

    def _size(self) -> torch.Size:
        return self.tensor.size()

    def to_dense(self) -> Tensor:
        """The entries."""
        return self.tensor

    def _matmul(self, rhs: Tensor) -> Tensor:
        return torch.matmul(self.tensor, rhs)

    def _transpose_nonbatch(self) -> "SolveLinearOperator":
        return self._like(self.tensor.mT)

    def _diagonal(self) -> Tensor:
        return self.tensor.diagonal(dim1=-1, dim2=-2)

    def _plus_diagonal(self, diag: Tensor) -> "SolveLinearOperator":
        return self._like(self.tensor + torch.diag_embed(diag))

    def _get_indices(self, row_index: Any, col_index: Any, *batch_indices: Any) -> Tensor:
        return self.tensor[(*batch_indices, row_index, col_index)]

    def _getitem(self, row_index: Any, col_index: Any, *batch_indices: Any) -> "SolveLinearOperator":
        return self._like(self.tensor[(*batch_indices, row_index, col_index)])

    def __add__(self, other: Any) -> Any:
        if isinstance(other, Tensor) or (
            isinstance(other, LinearOperator) and not isinstance(other, DiagLinearOperator)
        ):
            return self._like(self.tensor + to_dense(other))
        return super().__add__(other)


@final
class SparseSolveLinearOperator(_SolvedOperator):
    """A sparse matrix, `values` on a pattern, whose solves are those of `backsolve.torch.spsolve`.

    Sums with diagonals and multiples stay of this kind. For what `linear_operator` expects of an operator, A
    should be symmetric; solves are right for any A. Its gradient has the stored entries alone.

    Args:
        values: `[*batch, nnz]`, in the pattern's order.
        pattern: where the values are; a diagonal that is to be added to must be stored.
        options: keyword arguments of `backsolve.torch.spsolve`, such as `client` or `method`.
    """

    def __init__(self, values: Tensor, *, pattern: Pattern, **options: Unpack[SolveOptions]) -> None:
        if not isinstance(values, Tensor):
            raise InvalidDtypeError("values must be a torch.Tensor")
        if not isinstance(pattern, Pattern):
            raise InvalidPatternError("pattern must be a backsolve.Pattern, e.g. Pattern.from_csr(A)")
        if values.ndim < 1 or values.shape[-1] != pattern.nnz:
            raise InvalidShapeError(f"values has shape {tuple(values.shape)}, the pattern needs {(pattern.nnz,)}")
        super().__init__(values, pattern=pattern, **options)
        self.values, self.pattern = values, pattern

    def _like(self, entries: Tensor) -> "SparseSolveLinearOperator":
        return SparseSolveLinearOperator(entries, **self._options)

    def _solved(self, b: Tensor) -> Tensor:
        options = {name: value for name, value in self._options.items() if name != "pattern"}
        x: Tensor = spsolve(self.values, self.pattern, b, **options)
        return x

    @property
    def _entries(self) -> Tensor:
        return self.values

    def _size(self) -> torch.Size:
        return torch.Size((*self.values.shape[:-1], *self.pattern.shape))

    def _matmul(self, rhs: Tensor) -> Tensor:
        vector = rhs.ndim == 1
        columns = rhs.unsqueeze(-1) if vector else rhs
        batch = _broadcast(self.batch_shape, columns.shape[:-2])
        product = _rules.product(
            self.pattern, self.values, columns.expand(*batch, *columns.shape[-2:]), transposed=False
        )
        return product.squeeze(-1) if vector else product

    def to_dense(self) -> Tensor:
        """All entries, differentiably."""
        rows, columns = _rules.coordinates(self.pattern, self.values.device)
        m, n = self.pattern.shape
        full = self.values.new_zeros(*self.batch_shape, m * n)
        return full.index_copy(-1, rows.long() * n + columns, self.values).reshape(*self.batch_shape, m, n)

    def _transpose_nonbatch(self) -> "SparseSolveLinearOperator":
        flipped = canonical.from_coordinates(self.pattern.indices, self.pattern.rows, self.pattern.shape[::-1])
        values = self.values
        if flipped.position is not None:
            values = torch.zeros_like(values).index_copy(-1, torch.tensor(flipped.position), values)
        return SparseSolveLinearOperator(values, **{**self._options, "pattern": flipped.pattern})

    def _diagonal(self) -> Tensor:
        rows, stored = self._stored_diagonal()
        found = self.values.new_zeros(*self.batch_shape, min(self.pattern.shape))
        return found.index_copy(-1, rows, self.values.index_select(-1, stored))

    def _plus_diagonal(self, diag: Tensor) -> "SparseSolveLinearOperator":
        rows, stored = self._stored_diagonal()
        if rows.numel() != self._n:
            raise InvalidPatternError(
                "the pattern does not store all of the diagonal, which is to be added to: store zeros there"
            )
        values = self.values.expand(*diag.shape[:-1], self.pattern.nnz)
        return self._like(values.index_add(-1, stored, diag.index_select(-1, rows)))

    def _stored_diagonal(self) -> tuple[Tensor, Tensor]:
        """The rows whose diagonal entry is stored, and where."""
        rows, columns = _rules.coordinates(self.pattern, self.values.device)
        stored = torch.nonzero(rows == columns).squeeze(-1)
        return rows.index_select(0, stored).long(), stored

    def _check_size(self) -> None:
        most = int(settings.max_cholesky_size.value())
        if self._n > most:
            raise NotSupportedError(
                f"the determinant of a sparse matrix of {self._n} rows takes all of its entries: allow them by "
                f"linear_operator.settings.max_cholesky_size({self._n}), or leave logdet out: solves and inv_quad do "
                "without"
            )
