"""Sparse tensors: gradients in the caller's layout and order, and the second derivatives they allow."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from backsolve import Client, Pattern
from backsolve.errors import InvalidPatternError, InvalidShapeError, NotSupportedError
from backsolve.torch import solve, spsolve
from support.tensors import close, dense, generator, reference, rhs

# PyTorch announces that its compressed layouts are in beta.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse C:UserWarning")

N = 5
B = rhs(604_218_937, (N,))


def _stored() -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and numbers of a nonsymmetric matrix, sorted by row."""
    full = dense(951_720_346, (), N)
    rows, columns = torch.nonzero((torch.rand(N, N, generator=generator(73_015_829)) < 0.4) | torch.eye(N).bool()).T
    return rows, columns, full[rows, columns].clone()


def _csr(rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(rows, minlength=N).cumsum(0)])
    return torch.sparse_csr_tensor(offsets, columns, values, (N, N), check_invariants=False)


def _csc(rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(columns, minlength=N).cumsum(0)])
    return torch.sparse_csc_tensor(offsets, rows, values, (N, N), check_invariants=False)


def _coo(rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(torch.stack([rows, columns]), values, (N, N), check_invariants=False)


def _by_column(rows: Tensor, columns: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    order = torch.argsort(columns, stable=True)
    return rows[order], columns[order], values[order]


def _unsorted_rows(rows: Tensor, columns: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows in order, columns falling within each."""
    order = torch.argsort(rows * N + (N - columns))
    return rows[order], columns[order], values[order]


def _shuffled_twice(rows: Tensor, columns: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In any order, each entry split in two."""
    order = torch.randperm(2 * len(rows), generator=generator(412_885_730))
    return tuple(torch.cat([t, t])[order] for t in (rows, columns, values / 2))  # type: ignore[return-value]


Build = Callable[[Tensor, Tensor, Tensor], Tensor]
LAYOUTS: dict[str, tuple[Build, Callable[..., tuple[Tensor, Tensor, Tensor]]]] = {
    "csr": (_csr, lambda r, c, v: (r, c, v)),
    "csr-unsorted": (_csr, _unsorted_rows),
    "csc": (_csc, _by_column),
    "coo": (_coo, lambda r, c, v: (r, c, v)),
    "coo-shuffled-duplicates": (_coo, _shuffled_twice),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def _of(layout: str) -> tuple[Build, Tensor, Tensor, Tensor]:
    build, arrange = LAYOUTS[layout]
    return build, *arrange(*_stored())


@each_layout
@pytest.mark.parametrize("trans", ["N", "T", "H"])
def test_gradient_of_the_numbers_behind_a_constructor(embedded: Client, layout: str, trans: Any) -> None:
    """Each number, duplicates included, receives the full gradient of its entry, in the caller's order."""
    build, rows, columns, values = _of(layout)
    values.requires_grad_()
    x = solve(build(rows, columns, values), B, trans=trans, client=embedded)
    full = torch.zeros(N, N, dtype=values.dtype).index_put((rows, columns), values.detach(), accumulate=True)
    full.requires_grad_()
    truth = reference(full, B, trans)
    close(x, truth)
    (expected,) = torch.autograd.grad((truth**3).sum(), full)
    (of_values,) = torch.autograd.grad((x**3).sum(), values)
    close(of_values, expected[rows, columns])


@each_layout
def test_finite_differences_behind_a_constructor(embedded: Client, layout: str) -> None:
    build, rows, columns, values = _of(layout)
    values.requires_grad_()
    assert gradcheck(lambda v: solve(build(rows, columns, v), B, client=embedded), values, atol=1e-6, rtol=1e-4)


@each_layout
def test_leaf_gradient_has_the_leafs_layout(embedded: Client, layout: str) -> None:
    build, rows, columns, values = _of(layout)
    leaf = build(rows, columns, values).requires_grad_()
    loss = (solve(leaf, B, client=embedded) ** 3).sum()
    if layout == "csc":  # PyTorch cannot accumulate into `.grad` of this layout
        (got,) = torch.autograd.grad(loss, leaf)
    else:
        loss.backward()
        got = leaf.grad
    full = torch.zeros(N, N, dtype=values.dtype).index_put((rows, columns), values, accumulate=True).requires_grad_()
    (expected,) = torch.autograd.grad((reference(full, B) ** 3).sum(), full)
    assert got is not None
    assert got.layout is leaf.layout
    if layout.startswith("coo"):
        got = got.coalesce()
        at = got.indices()
        close(got.values(), expected[at[0], at[1]])
    else:
        close(got.values(), expected[rows, columns])
        if layout.startswith("csr"):
            assert torch.equal(got.col_indices(), leaf.col_indices())


@each_layout
def test_leaf_second_derivative(embedded: Client, layout: str) -> None:
    """Hessian-vector product of a nonlinear loss against the dense one."""
    build, rows, columns, values = _of(layout)
    leaf = build(rows, columns, values).requires_grad_()
    full = leaf.detach().to_dense() if "unsorted" not in layout else _csr(*_stored()).to_dense()
    full.requires_grad_()
    (grad,) = torch.autograd.grad((solve(leaf, B, client=embedded) ** 3).sum(), leaf, create_graph=True)
    (grad_full,) = torch.autograd.grad((reference(full, B) ** 3).sum(), full, create_graph=True)
    at = grad.indices() if grad.layout is torch.sparse_coo else torch.stack([rows, columns])
    weights = rhs(280_743_915, (N, N))
    (ours,) = torch.autograd.grad((grad.values() * weights[at[0], at[1]]).sum(), leaf)
    mask = torch.zeros(N, N, dtype=torch.float64).index_put((at[0], at[1]), weights[at[0], at[1]])
    (truth,) = torch.autograd.grad((grad_full * mask).sum(), full)
    close(ours.values(), truth[at[0], at[1]])


def _second(x_of: Callable[[Tensor], Tensor], leaf: Tensor) -> Tensor:
    """A loss with a second term in the same numbers, differentiated twice."""
    loss = (x_of(leaf) ** 3).sum() + (leaf**3).sum()
    (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
    (second,) = torch.autograd.grad((grad**2).sum(), leaf)
    return second


@pytest.mark.parametrize(
    "through",
    [
        "csr",
        "csr-unsorted",
        "csc",
        "coo",
        "coo-shuffled-duplicates",
        "scaled",
        "converted",
        "values",
        "values-of-coo",
        "to_sparse_csr",
    ],
)
def test_second_derivative_through_pytorchs_sparse_operations_is_refused(embedded: Client, through: str) -> None:
    """First order is right; the second raises where PyTorch would have dropped a term."""
    build, rows, columns, values = _of(through if through in LAYOUTS else "csr")
    pattern = Pattern.from_csr(_Csr(*_stored()))

    def x_of(leaf: Tensor) -> Tensor:
        A = build(rows, columns, leaf)
        if through == "values":
            return spsolve(A.values(), pattern, B, client=embedded)
        if through == "values-of-coo":
            return spsolve(_coo(rows, columns, leaf).coalesce().values() * 1.5, pattern, B, client=embedded)
        if through == "scaled":
            A = A * 1.5
        if through == "converted":
            A = _coo(rows, columns, leaf).coalesce().to_sparse_csr()
        if through == "to_sparse_csr":
            A = torch.zeros(N, N, dtype=leaf.dtype).index_put((rows, columns), leaf).to_sparse_csr()
        return solve(A, B, client=embedded)

    with pytest.raises(NotSupportedError, match="spsolve"):
        _second(x_of, values.requires_grad_())


def test_second_derivative_by_spsolve(embedded: Client) -> None:
    """What the refusal advises is right."""
    rows, columns, values = _stored()
    pattern = Pattern.from_csr(_Csr(rows, columns, values))

    def dense_x(leaf: Tensor) -> Tensor:
        return reference(torch.zeros(N, N, dtype=leaf.dtype).index_put((rows, columns), leaf), B)

    ours = _second(lambda leaf: spsolve(leaf, pattern, B, client=embedded), values.requires_grad_())
    close(ours, _second(dense_x, values), rtol=1e-9)


def test_lost_part_beside_a_csr_leaf_is_refused(embedded: Client) -> None:
    """`A.values()` of the user's own, beside ours, loses its second derivative in PyTorch: not silently here."""
    leaf = _csr(*_stored()).requires_grad_()
    loss = (solve(leaf, B, client=embedded) ** 3).sum() + (leaf.values() ** 3).sum()
    (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(NotSupportedError, match="spsolve"):
        torch.autograd.grad((grad.values() ** 2).sum(), leaf)


def test_values_of_a_csr_leaf(embedded: Client) -> None:
    rows, columns, values = _stored()
    pattern = Pattern.from_csr(_Csr(rows, columns, values))
    leaf = _csr(rows, columns, values).requires_grad_()
    x = spsolve(leaf.values(), pattern, B, client=embedded)
    (grad,) = torch.autograd.grad((x**3).sum(), leaf, create_graph=True)
    with pytest.raises(NotSupportedError, match="spsolve"):
        torch.autograd.grad((grad.values() ** 2).sum(), leaf)


def test_unsorted_rows_behind_another_operation_are_refused(embedded: Client) -> None:
    """PyTorch would hand the gradient back in another order."""
    rows, columns, values = _unsorted_rows(*_stored())
    with pytest.raises(InvalidPatternError, match="sort the indices"):
        solve(_csr(rows, columns, values.requires_grad_()) * 2.0, B, client=embedded)


def test_other_sparse_shapes_are_refused(embedded: Client) -> None:
    with pytest.raises(InvalidShapeError, match="spsolve"):
        solve(dense(1_047_283, (2,)).to_sparse(), rhs(55_203_871, (2, 6)), client=embedded)
    with pytest.raises(NotSupportedError, match="sparse_csr"):
        solve(dense(1_047_283).to_sparse_bsr((2, 2)), rhs(55_203_871, (6,)), client=embedded)
    with pytest.raises(InvalidShapeError, match="to_dense"):
        solve(dense(1_047_283), rhs(55_203_871, (6,)).to_sparse(), client=embedded)


def test_broken_indices_are_refused(embedded: Client) -> None:
    rows, columns, values = _stored()
    with pytest.raises(InvalidPatternError):
        solve(_csr(rows, columns + 3, values), B, client=embedded)


class _Csr:
    """The arrays of a CSR matrix, as `Pattern.from_csr` reads them."""

    def __init__(self, rows: Tensor, columns: Tensor, values: Tensor) -> None:
        self.indptr = np.concatenate([[0], np.cumsum(np.bincount(rows.numpy(), minlength=N))])
        self.indices = columns.numpy()
        self.shape = (N, N)
