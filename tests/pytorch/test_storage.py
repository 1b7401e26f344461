"""Tensors stored as Hermitian matrices: gradients to second order, forward mode, vmap, graphs, and their cost."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import backsolve.torch as bt
from backsolve import Client, Pattern
from backsolve.errors import InvalidOptionError, NotHermitianError
from backsolve.types import Storage
from support.systems import laplacian

# PyTorch loads its own forward-mode rules through torch.jit.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state"),
]

N = 5
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
each_trans = pytest.mark.parametrize("trans", ["N", "T", "H"])
each_storage = pytest.mark.parametrize("storage", ["hermitian", "lower"])
PATTERN = Pattern.from_csr(sparse.csr_array(np.ones((N, N)) - np.eye(N, k=3) - np.eye(N, k=-3)))
WHERE = torch.tensor(np.ones((N, N)) - np.eye(N, k=3) - np.eye(N, k=-3))
LOWER = Pattern.from_csr(sparse.csr_array(np.tril(np.ones((N, N)) - np.eye(N, k=-3))), storage="lower")

INDICES = {
    storage: tuple(torch.tensor(index) for index in (place.rows, place.indices, place.indptr))
    for storage, place in (("hermitian", PATTERN), ("lower", LOWER))
}


def randn(*shape: int, dtype: torch.dtype, seed: int = 51_904_377) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def entries(a: Tensor, pattern: Pattern) -> Tensor:
    """The numbers on a pattern."""
    return a[..., torch.tensor(pattern.rows), torch.tensor(pattern.indices)]


def mask(values: Tensor) -> Tensor:
    """The entries of PATTERN of any matrix."""
    return values * WHERE


def whole(free: Tensor) -> Tensor:
    """A Hermitian matrix, out of numbers that are free to move: the diagonal's imaginary part does not enter."""
    shifted = free + 4 * torch.eye(N, dtype=free.dtype)
    return mask(shifted + shifted.mH)


def solver(form: str, storage: Storage, trans: str) -> Callable[[Tensor, Tensor], Tensor]:
    """x of the free numbers and b, in each way of storing the matrix."""

    def solve(free: Tensor, b: Tensor) -> Tensor:
        a = whole(free)
        kept = a.tril() if storage == "lower" else a
        place = LOWER if storage == "lower" else PATTERN
        rows, columns, indptr = INDICES[storage]
        if form == "pattern":
            return bt.spsolve(kept[..., rows, columns], place, b, storage=storage, trans=trans)
        if form == "coo":
            kept = torch.sparse_coo_tensor(
                torch.stack([rows, columns]), kept[rows, columns], (N, N), check_invariants=True
            )
        if form == "csr":
            kept = torch.sparse_csr_tensor(indptr, columns, kept[rows, columns], (N, N), check_invariants=True)
        return bt.solve(kept, b, storage=storage, trans=trans)

    return solve


def dense(trans: str) -> Callable[[Tensor, Tensor], Tensor]:
    def solve(free: Tensor, b: Tensor) -> Tensor:
        a = whole(free)
        return torch.linalg.solve({"N": a, "T": a.mT, "H": a.mH}[trans], b)

    return solve


# PyTorch cannot differentiate its constructor of complex CSR tensors.
@pytest.mark.parametrize(
    ("form", "dtype"),
    [(f, torch.float64) for f in ("dense", "pattern", "coo", "csr")]
    + [(f, torch.complex128) for f in ("dense", "pattern", "coo")],
    ids=str,
)
@each_storage
@each_trans
def test_gradients_are_those_of_a_dense_solve(form: str, storage: Storage, dtype: torch.dtype, trans: str) -> None:
    free, b = randn(N, N, dtype=dtype).requires_grad_(), randn(N, 2, dtype=dtype, seed=4_110).requires_grad_()
    g = randn(N, 2, dtype=dtype, seed=4_111)
    x, exact = solver(form, storage, trans)(free, b), dense(trans)(free, b)
    torch.testing.assert_close(x, exact, rtol=1e-11, atol=1e-11)
    for found, wanted in zip(
        torch.autograd.grad(x, (free, b), g), torch.autograd.grad(exact, (free, b), g), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("form", ["dense", "pattern"])
@each_storage
@each_dtype
@each_trans
def test_second_order_and_forward_mode(form: str, storage: Storage, dtype: torch.dtype, trans: str) -> None:
    free, b = randn(N, N, dtype=dtype).requires_grad_(), randn(N, dtype=dtype, seed=4_112).requires_grad_()
    f = solver(form, storage, trans)
    assert gradcheck(f, (free, b), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(f, (free, b), check_fwd_over_rev=True, fast_mode=True)


@each_storage
@each_dtype
def test_each_has_its_own_gradient(storage: Storage, dtype: torch.dtype) -> None:
    a, b = whole(randn(N, N, dtype=dtype)), randn(N, dtype=dtype, seed=4_113)
    g = {}
    for how in ("general", storage):
        given = a.clone().requires_grad_()
        bt.solve(given, b, storage=how).abs().square().sum().backward()
        assert given.grad is not None
        g[how] = given.grad
    both = g["general"] + g["general"].mH
    wanted = both / 2 if storage == "hermitian" else both.tril() - torch.diag(torch.diag(both)) / 2
    torch.testing.assert_close(g[storage], wanted)


@each_storage
def test_batches_and_vmap_are_one_request(storage: Storage) -> None:
    free, b = randn(3, N, N, dtype=torch.float64), randn(3, N, dtype=torch.float64, seed=4_114)
    asked: list[str] = []

    def solve(free: Tensor, b: Tensor) -> Tensor:
        return bt.solve(whole(free), b, storage=storage, observe=lambda phase, _: asked.append(phase))

    torch.testing.assert_close(solve(free, b), torch.linalg.solve(whole(free), b))
    torch.testing.assert_close(torch.func.vmap(solve)(free, b), torch.linalg.solve(whole(free), b))
    assert asked == ["solve", "solve"]
    each = torch.func.vmap(torch.func.grad(lambda f, r: solve(f, r).sum()))(free, b)
    exact = torch.func.vmap(torch.func.grad(lambda f, r: torch.linalg.solve(whole(f), r).sum()))(free, b)
    torch.testing.assert_close(each, exact)


@each_storage
@pytest.mark.parametrize("form", ["dense", "pattern"])
def test_compiled(storage: Storage, form: str) -> None:
    solve = solver(form, storage, "N")
    free, b = randn(N, N, dtype=torch.float64).requires_grad_(), randn(N, dtype=torch.float64, seed=4_115)
    compiled = torch.compile(solve, backend="aot_eager", fullgraph=True)
    x = compiled(free, b)
    torch.testing.assert_close(x, solve(free, b))
    (found,) = torch.autograd.grad(x.square().sum(), free)
    (wanted,) = torch.autograd.grad(solve(free, b).square().sum(), free)
    torch.testing.assert_close(found, wanted)


def test_a_step_with_a_second_derivative_factorizes_once(embedded: Client) -> None:
    a = sparse.csr_array(sparse.tril(laplacian(30)) + 0.125 * sparse.eye_array(900))
    pattern = Pattern.from_csr(a, storage="lower")
    values = torch.tensor(a.data, requires_grad=True)
    before = embedded.stats()
    x = bt.spsolve(values, pattern, torch.ones(900, dtype=torch.float64), client=embedded)
    (grad,) = torch.autograd.grad(x.square().sum(), values, create_graph=True)
    torch.autograd.grad(grad.square().sum(), values)
    after = embedded.stats()
    assert after["factorizations"] - before["factorizations"] == 1
    counted = ("solves", "adjoint_solves", "tangent_solves")
    assert sum(after[name] - before[name] for name in counted) == 4


def test_what_is_refused() -> None:
    a, b = whole(randn(N, N, dtype=torch.float64)), torch.ones(N, dtype=torch.float64)
    with pytest.raises(NotHermitianError, match="conjugate transpose"):
        bt.solve(a + torch.diag(torch.ones(N - 1, dtype=a.dtype), 1), b, storage="hermitian")
    values = entries(a, PATTERN)
    with pytest.raises(InvalidOptionError, match="'general', 'hermitian' or 'lower'"):
        bt.spsolve(values, PATTERN, b, storage="symmetric")
    with pytest.raises(InvalidOptionError, match="already"):
        bt.spsolve(entries(a, LOWER), LOWER, b, storage="hermitian")
    with pytest.raises(InvalidOptionError, match="given by parameters"):
        bt.solve(bt.Circulant(torch.ones(N, dtype=torch.float64)), b, storage="lower")
    with pytest.raises(InvalidOptionError, match="general storage alone"):
        bt.splstsq(entries(a, LOWER), LOWER, b)
