"""From a sparse tensor to values on a canonical pattern, differentiably to every order.

PyTorch's own `.values()` of a compressed tensor cannot be differentiated twice, so the stored
entries are taken out, and gradients put back, by the two operations below, each the other's
derivative. A gradient has the layout, the indices and the order of the tensor it belongs to; of an
uncoalesced COO tensor it has each position once, as PyTorch's own gradients have.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor

from .._fork import renew_after_fork
from ..canonical import PatternMemo
from ..errors import InvalidPatternError, InvalidShapeError, NotSupportedError
from ..pattern import Pattern
from ..types import Array
from ._numbers import check_numbers

_memo: Final = PatternMemo()
renew_after_fork(_memo, PatternMemo.forget_locks)

_COMPRESSED: Final = (torch.sparse_csr, torch.sparse_csc)


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """The indices of a sparse tensor.

    Attributes:
        layout: sparse_coo, sparse_csr or sparse_csc.
        first: indptr of a compressed layout, `[2, nnz]` indices of COO.
        second: indices of a compressed layout, unused for COO.
        shape: `(n, n)`.
    """

    layout: torch.layout
    first: Tensor
    second: Tensor
    shape: tuple[int, int]

    def build(self, values: Tensor) -> Tensor:
        """A sparse tensor with these indices."""
        if self.layout is torch.sparse_coo:
            return torch.sparse_coo_tensor(self.first, values, self.shape, is_coalesced=True, check_invariants=False)
        return torch.sparse_compressed_tensor(
            self.first, self.second, values, self.shape, layout=self.layout, check_invariants=False
        )

    def take(self, tensor: Tensor) -> Tensor:
        """The entries of a sparse tensor at these indices, in this order."""
        if tensor.layout is not self.layout:
            raise NotSupportedError(
                f"a gradient arrived as {tensor.layout} at a {self.layout} matrix: use spsolve(values, pattern, b)"
            )
        if self.layout is torch.sparse_coo:
            tensor = tensor.coalesce()
            same = torch.equal(tensor.indices(), self.first)
        else:
            first, second = _indices(tensor)
            same = torch.equal(first, self.first) and torch.equal(second, self.second)
        if not same:
            raise NotSupportedError(
                "a gradient of the sparse matrix arrived on other entries than the matrix has: "
                "use spsolve(values, pattern, b)"
            )
        return tensor.values().clone()


@final
class Entries(torch.autograd.Function):
    """`layout.take(A)`: the stored numbers of a sparse tensor."""

    @staticmethod
    def forward(A: Tensor, layout: Layout) -> Tensor:
        """`[nnz]` in A's own order (COO: coalesced)."""
        return layout.take(A)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the indices."""
        ctx.layout = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Put the gradient back on A's indices."""
        return Assembled.apply(grad, ctx.layout), None  # type: ignore[no-untyped-call]


@final
class Assembled(torch.autograd.Function):
    """`layout.build(values)`: a sparse tensor of given numbers."""

    @staticmethod
    def forward(values: Tensor, layout: Layout) -> Tensor:
        """A sparse tensor."""
        return layout.build(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the indices."""
        ctx.layout = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Take the numbers out again."""
        return Entries.apply(grad, ctx.layout), None  # type: ignore[no-untyped-call]


def extract(A: Tensor) -> tuple[Tensor, Pattern]:
    """Values of a sparse tensor on its canonical pattern.

    Args:
        A: `[n, n]`, sparse COO, CSR or CSC; unsorted and duplicated entries are allowed where
            the layout allows them.

    Returns:
        `[nnz]` canonical values connected to A, and the pattern.

    Raises:
        InvalidShapeError: not one square matrix.
        InvalidPatternError: broken indices, or unsorted ones behind an operation of PyTorch's
            that would return their gradient in another order.
        NotSupportedError: another layout.
    """
    if A.layout not in (torch.sparse_coo, *_COMPRESSED):
        raise NotSupportedError(f"A is {A.layout}; use dense, sparse_coo, sparse_csr or sparse_csc")
    if A.ndim != 2 or A.dense_dim() != 0:
        raise InvalidShapeError(
            f"a sparse A must be [n, n] of numbers, its shape is {tuple(A.shape)}; "
            "for a batch on one pattern use spsolve(values, pattern, b)"
        )
    shape = (int(A.shape[0]), int(A.shape[1]))
    if A.layout is torch.sparse_coo:
        return _from_coo(A, shape)
    first, second = _indices(A)
    layout = Layout(A.layout, first, second, shape)
    by_column = A.layout is torch.sparse_csc
    entries = _memo.compressed(_host(first), _host(second), shape, by_column)
    position = None if entries.position is None else torch.from_numpy(entries.position).to(A.device)
    if position is not None and A.requires_grad and A.grad_fn is not None and not _ascending(first, second):
        _keep_order(A, layout)
    values: Tensor = Entries.apply(A, layout)  # type: ignore[no-untyped-call]
    if position is None:
        return values, entries.pattern
    canonical = torch.zeros(entries.pattern.nnz, dtype=values.dtype, device=values.device)
    return canonical.index_add(0, position, values), entries.pattern


def _from_coo(A: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Pattern]:
    with torch.no_grad():
        indices = A.detach().coalesce().indices()
    rows, columns = _host(indices[0]), _host(indices[1])
    if rows.size and (rows.min() < 0 or columns.min() < 0 or rows.max() >= shape[0] or columns.max() >= shape[1]):
        raise InvalidPatternError(f"indices point outside the {shape[0]}x{shape[1]} matrix")
    # Coalesced entries are sorted by row, then column: canonical CSR but for the offsets.
    indptr = np.zeros(shape[0] + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows, minlength=shape[0]), out=indptr[1:])
    pattern = _memo.compressed(indptr, columns, shape, by_column=False).pattern
    layout = Layout(torch.sparse_coo, indices, indices, shape)
    values: Tensor = Entries.apply(A, layout)  # type: ignore[no-untyped-call]
    return values, pattern


def _keep_order(A: Tensor, layout: Layout) -> None:
    """Make PyTorch's constructor return the gradient of unsorted entries in the caller's order.

    Its own rule sorts them: entry by entry the gradient would belong to other entries.
    """
    node: Any = A.grad_fn
    if not node.name().startswith("SparseCompressedTensorBackward"):
        raise InvalidPatternError(
            "A has unsorted indices and was computed by an operation whose gradient PyTorch would return in another "
            "order: sort the indices within each row, build A as COO, or use spsolve(values, pattern, b)"
        )
    node.register_hook(_reorder(layout))


def _reorder(layout: Layout) -> Callable[..., tuple[Any, ...] | None]:
    def in_callers_order(grad_inputs: tuple[Any, ...], grad_outputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if grad_outputs[0] is None or len(grad_inputs) != 1:
            return None
        return (Entries.apply(grad_outputs[0], layout),)  # type: ignore[no-untyped-call]

    return in_callers_order


def _ascending(indptr: Tensor, indices: Tensor) -> bool:
    """Whether the indices of each row of a compressed layout are sorted."""
    pointers, index = _host(indptr), _host(indices)
    falls = index[1:] < index[:-1]
    starts = pointers[1:-1]
    falls[starts[(starts > 0) & (starts < index.size)] - 1] = False
    return not falls.any()


def _indices(tensor: Tensor) -> tuple[Tensor, Tensor]:
    if tensor.layout is torch.sparse_csr:
        return tensor.crow_indices(), tensor.col_indices()
    return tensor.ccol_indices(), tensor.row_indices()


def _host(tensor: Tensor) -> Array:
    check_numbers(tensor)
    return tensor.detach().cpu().numpy()
