"""`S + U Vᴴ` of tensors: gradients reach S on its own entries, U, V and b, to second order, with one factorization."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import backsolve.torch as bt
from backsolve import Client, Pattern
from backsolve.errors import InvalidDtypeError, InvalidPatternError, InvalidShapeError, NonfiniteInputError
from support.fresh import new_rng
from support.systems import convection

# PyTorch loads its own forward-mode rules through torch.jit.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit:DeprecationWarning", "ignore:Sparse CSR tensor support:UserWarning"
)

N, K = 9, 2
PATTERN = Pattern.from_csr(convection(3))

Make = Callable[[Tensor, Tensor, Tensor], bt.LowRankUpdate]


def _coo(values: Tensor, u: Tensor, v: Tensor) -> bt.LowRankUpdate:
    at = torch.tensor(np.stack([PATTERN.rows, PATTERN.indices]))
    return bt.LowRankUpdate(torch.sparse_coo_tensor(at, values, (N, N), check_invariants=False), u, v)


CASES: dict[str, tuple[Make, tuple[int, ...]]] = {
    "dense": (bt.LowRankUpdate, (N, N)),
    "tied": (lambda s, u, v: bt.LowRankUpdate(s, u + 0 * v), (N, N)),
    "pattern": (lambda s, u, v: bt.LowRankUpdate(s, u, v, pattern=PATTERN), (PATTERN.nnz,)),
    "coo": (_coo, (PATTERN.nnz,)),
}
each = pytest.mark.parametrize("case", CASES)
# PyTorch's own sparse constructors have no second derivative.
twice = pytest.mark.parametrize("case", ["dense", "tied", "pattern"])
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
each_trans = pytest.mark.parametrize("trans", ["N", "T", "H"])


def tensors(case: str, dtype: torch.dtype, k: int = K) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers of S, which make it diagonally dominant, U and V."""
    generator = torch.Generator().manual_seed(309_771_452)
    shape = CASES[case][1]
    s, u, v = (torch.randn(each, dtype=dtype, generator=generator) for each in (shape, (N, k), (N, k)))
    diagonal = torch.eye(N).bool() if len(shape) == 2 else torch.tensor(PATTERN.rows == PATTERN.indices)
    return (s + 9 * diagonal).requires_grad_(), (0.5 * u).requires_grad_(), v.requires_grad_()


def full(case: str, s: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """All entries, in PyTorch's own operations."""
    if len(CASES[case][1]) == 1:
        at = torch.tensor(np.stack([PATTERN.rows, PATTERN.indices]))
        s = torch.zeros((N, N), dtype=s.dtype).index_put((at[0], at[1]), s)
    return s + u @ (u if case == "tied" else v).mH


def operator(a: Tensor, trans: str) -> Tensor:
    return {"N": a, "T": a.mT, "H": a.mH}[trans]


def right(dtype: torch.dtype, columns: int) -> Tensor:
    flat = torch.linspace(1, 2, N * max(columns, 1), dtype=torch.float64).to(dtype)
    return (flat.reshape(N, columns) if columns else flat).requires_grad_()


@each
@each_dtype
@each_trans
@pytest.mark.parametrize("columns", [0, 1, 2])
def test_gradients_are_those_of_the_dense_solve(case: str, dtype: torch.dtype, trans: str, columns: int) -> None:
    given, b = tensors(case, dtype), right(dtype, columns)
    a = CASES[case][0](*given)
    x = bt.solve(a, b, trans=trans)
    expected = torch.linalg.solve(operator(full(case, *given), trans), b)
    torch.testing.assert_close(x, expected)
    weights = torch.linspace(-1, 3, x.numel(), dtype=torch.float64).to(dtype).reshape(x.shape)
    got = torch.autograd.grad((x * weights).sum().abs(), [*given, b])
    wanted = torch.autograd.grad((expected * weights).sum().abs(), [*given, b], materialize_grads=True)
    torch.testing.assert_close(got, wanted)


@twice
@pytest.mark.parametrize(
    ("dtype", "trans"),
    [(torch.float64, "N"), (torch.complex128, "N"), (torch.complex128, "T"), (torch.complex128, "H")],
    ids=str,
)
def test_gradcheck_and_gradgradcheck(case: str, dtype: torch.dtype, trans: str) -> None:
    given, b = tensors(case, dtype), right(dtype, 2)

    def solve(b: Tensor, *parts: Tensor) -> Tensor:
        return bt.solve(CASES[case][0](*parts), b, trans=trans)

    assert gradcheck(solve, (b, *given), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(solve, (b, *given), check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("layout", ["csr", "csc", "coo"])
def test_the_gradient_of_a_sparse_s_has_its_layout(layout: str) -> None:
    s = full("pattern", *tensors("pattern", torch.float64, 0)).detach()
    s = {"csr": s.to_sparse_csr, "csc": s.to_sparse_csc, "coo": s.to_sparse}[layout]().requires_grad_()
    _, u, v = tensors("dense", torch.float64)
    # PyTorch cannot accumulate the gradient of a CSC leaf itself.
    (gradient,) = torch.autograd.grad(bt.solve(bt.LowRankUpdate(s, u, v), torch.ones(N, dtype=torch.float64)).sum(), s)
    assert gradient.layout is s.layout
    dense = s.detach().to_dense().requires_grad_()
    torch.linalg.solve(dense + u @ v.mH, torch.ones(N, dtype=torch.float64)).sum().backward()
    assert dense.grad is not None
    torch.testing.assert_close(gradient.to_dense(), torch.where(dense != 0, dense.grad, 0))


@twice
def test_functional_transforms(case: str) -> None:
    make, given = CASES[case][0], [t.detach() for t in tensors(case, torch.float64)]
    b = right(torch.float64, 0).detach()

    def loss(*parts: Tensor) -> Tensor:
        return bt.solve(make(*parts), b).square().sum()

    def dense(*parts: Tensor) -> Tensor:
        return torch.linalg.solve(full(case, *parts), b).square().sum()

    hessians = (torch.func.hessian(each, argnums=(0, 1))(*given) for each in (loss, dense))
    torch.testing.assert_close(*hessians)
    for mapped in range(3):
        batch = [torch.stack([t, 1.25 * t]) if index == mapped else t for index, t in enumerate(given)]
        dims = tuple(0 if index == mapped else None for index in range(3))
        gradients = (
            torch.func.vmap(torch.func.grad(each, argnums=(0, 1)), in_dims=dims)(*batch) for each in (loss, dense)
        )
        torch.testing.assert_close(*gradients)
    columns = torch.stack([b, 2 * b, b.flip(0)])
    mapped_b = torch.func.vmap(lambda c: bt.solve(make(*given), c))(columns)
    torch.testing.assert_close(mapped_b, torch.linalg.solve(full(case, *given), columns.mT).mT)


@each
def test_products(case: str) -> None:
    given = tensors(case, torch.complex128)
    a, x = CASES[case][0](*given), right(torch.complex128, 2)
    torch.testing.assert_close(a.to_dense(), full(case, *given))
    torch.testing.assert_close(a @ x, full(case, *given) @ x)


def test_one_factorization_for_s_its_updates_and_their_derivatives(embedded: Client) -> None:
    """Of a Newton step: S, two updates of it, a gradient each and a product with the Hessian."""
    s, u, v = tensors("pattern", torch.float64)
    s = (s.detach() + torch.as_tensor(new_rng().random(1))).requires_grad_()
    b = right(torch.float64, 0)
    before = dict(embedded.stats())
    bt.spsolve(s, PATTERN, b, client=embedded).sum().backward()
    for scale in (1.0, 0.5):
        a = bt.LowRankUpdate(s, scale * u, v, pattern=PATTERN)
        loss = bt.solve(a, b, client=embedded).square().sum()
        (gradient,) = torch.autograd.grad(loss, u, create_graph=True)
        torch.autograd.grad((gradient * v.detach()).sum(), u)
    grown = {name: count - before[name] for name, count in embedded.stats().items() if name in before}
    assert grown["factorizations"] == 1
    assert grown["uploads"] == 3
    # Each Hessian-vector product is one solve more and one adjoint solve more.
    assert grown["adjoint_solves"] + grown["solves"] + grown["tangent_solves"] == 2 + 2 * 4


def test_what_does_not_fit_is_refused() -> None:
    s, u, v = (t.detach() for t in tensors("dense", torch.float64))
    values = tensors("pattern", torch.float64)[0].detach()
    for arguments in ((s, u[1:], v[1:]), (s, u, v[:, :1]), (s[1:], u, v), (torch.stack([s, s]), u, v), (values, u, v)):
        with pytest.raises(InvalidShapeError):
            bt.LowRankUpdate(*arguments)
    with pytest.raises(InvalidShapeError, match="numbers"):
        bt.LowRankUpdate(values[1:], u, v, pattern=PATTERN)
    with pytest.raises(InvalidShapeError, match="numbers"):
        bt.LowRankUpdate(s, u, v, pattern=PATTERN)
    with pytest.raises(InvalidPatternError, match=r"backsolve\.Pattern"):
        bt.LowRankUpdate(values, u, v, pattern=(N, N))  # type: ignore[arg-type]
    with pytest.raises(InvalidPatternError, match="at most n"):
        bt.LowRankUpdate(s, torch.ones(N, N + 1, dtype=s.dtype))
    with pytest.raises(InvalidDtypeError, match="S is"):
        bt.LowRankUpdate(s.float(), u, v)
    with pytest.raises(InvalidDtypeError):
        bt.solve(bt.LowRankUpdate(s, u, v), torch.ones(N))
    with pytest.raises(NonfiniteInputError):
        bt.solve(bt.LowRankUpdate(s, u * torch.nan, v), torch.ones(N, dtype=s.dtype))
    # PyTorch's tracer reports our refusal in an error of its own, which shows the line.
    with pytest.raises(Exception, match=r"torch\.compile cannot hold an update"):
        torch.compile(lambda b: bt.solve(bt.LowRankUpdate(s, u, v), b), fullgraph=True, backend="eager")(s[0])
