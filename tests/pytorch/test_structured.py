"""Structured matrices of tensors: gradients reach the parameters, to second order."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import backsolve.torch as bt
from backsolve import Client
from backsolve.errors import InvalidDtypeError, InvalidShapeError, NotSupportedError
from backsolve.torch.structured import Structured


def tensors(shapes: list[tuple[int, ...]], dtype: torch.dtype, shift: float = 4.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(621_904_377)
    made = [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]
    made[0] = made[0] + (shift if len(shapes[0]) == 1 and len(shapes) > 1 and len(shapes[1]) == 2 else 0)
    return [t.requires_grad_() for t in made]


# PyTorch loads its own forward-mode rules through torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def _headed(c: Tensor) -> Tensor:
    """A first column that makes the diagonal large."""
    return c + 20 * torch.nn.functional.one_hot(torch.zeros((), dtype=torch.int64), c.shape[0])


CASES: dict[str, tuple[Callable[..., Structured], list[tuple[int, ...]]]] = {
    "low_rank": (bt.LowRankPlusDiagonal, [(5,), (5, 2), (5, 2)]),
    "low_rank_tied": (bt.LowRankPlusDiagonal, [(5,), (5, 2)]),
    "kronecker": (lambda a, b: bt.Kronecker(a + 4 * torch.eye(2), b + 4 * torch.eye(3)), [(2, 2), (3, 3)]),
    "circulant": (lambda c: bt.Circulant(_headed(c)), [(5,)]),
    "toeplitz": (lambda c, r: bt.Toeplitz(_headed(c), r), [(5,), (5,)]),
    "toeplitz_hermitian": (lambda c: bt.Toeplitz(_headed(c)), [(5,)]),
}
each = pytest.mark.parametrize("case", CASES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
each_trans = pytest.mark.parametrize("trans", ["N", "T", "H"])


def operator(a: Tensor, trans: str) -> Tensor:
    return {"N": a, "T": a.mT, "H": a.mH}[trans]


@each
@each_dtype
@each_trans
def test_gradients_are_those_of_the_dense_solve(case: str, dtype: torch.dtype, trans: str) -> None:
    make, shapes = CASES[case]
    given = tensors(shapes, dtype)
    a = make(*given)
    n = a.shape[0]
    b = torch.linspace(1, 2, 2 * n, dtype=torch.float64).to(dtype).reshape(n, 2).requires_grad_()
    weights = torch.linspace(-1, 3, 2 * n, dtype=torch.float64).to(dtype).reshape(n, 2)
    x = bt.solve(a, b, trans=trans)
    expected = torch.linalg.solve(operator(a.to_dense(), trans), b)
    torch.testing.assert_close(x, expected)
    got = torch.autograd.grad((x * weights).sum().abs(), [*given, b])
    wanted = torch.autograd.grad((expected * weights).sum().abs(), [*given, b])
    torch.testing.assert_close(got, wanted)


@each
@pytest.mark.parametrize(
    ("dtype", "trans"),
    [(torch.float64, "N"), (torch.complex128, "N"), (torch.complex128, "T"), (torch.complex128, "H")],
    ids=str,
)
def test_gradcheck_and_gradgradcheck(case: str, dtype: torch.dtype, trans: str) -> None:
    make, shapes = CASES[case]
    given = tensors(shapes, dtype)
    b = torch.linspace(1, 2, make(*given).shape[0], dtype=torch.float64).to(dtype).requires_grad_()

    def solve(b: Tensor, *parts: Tensor) -> Tensor:
        return bt.solve(make(*parts), b, trans=trans)

    assert gradcheck(solve, (b, *given), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(solve, (b, *given), check_fwd_over_rev=True, fast_mode=True)


@each
def test_functional_transforms(case: str) -> None:
    make, shapes = CASES[case]
    given = [t.detach() for t in tensors(shapes, torch.float64)]
    b = torch.linspace(1, 2, make(*given).shape[0], dtype=torch.float64)

    def loss(first: Tensor) -> Tensor:
        return bt.solve(make(first, *given[1:]), b).square().sum()

    def dense(first: Tensor) -> Tensor:
        return torch.linalg.solve(make(first, *given[1:]).to_dense(), b).square().sum()

    torch.testing.assert_close(torch.func.hessian(loss)(given[0]), torch.func.hessian(dense)(given[0]))
    batch = torch.stack([given[0], given[0] + 1])
    torch.testing.assert_close(
        torch.func.vmap(torch.func.grad(loss))(batch), torch.func.vmap(torch.func.grad(dense))(batch)
    )


@each
def test_products(case: str) -> None:
    make, shapes = CASES[case]
    a = make(*tensors(shapes, torch.complex128))
    x = torch.linspace(1, 2, 2 * a.shape[0], dtype=torch.float64).to(torch.complex128).reshape(-1, 2)
    torch.testing.assert_close(a @ x, a.to_dense() @ x)
    torch.testing.assert_close(a.matvec(x[:, 0]), (a @ x)[:, 0])
    with pytest.raises(InvalidShapeError):
        a @ x[1:]


BATCHED: dict[str, tuple[Callable[..., Structured], list[tuple[int, ...]]]] = {
    **{name: CASES[name] for name in ("low_rank", "low_rank_tied")},
    "kronecker": (lambda a, b: bt.Kronecker(a + 4 * torch.eye(2), b + 4 * torch.eye(3)), [(2, 2), (3, 3)]),
    "circulant": (lambda c: bt.Circulant(c + 20 * (torch.arange(5) == 0)), [(5,)]),
    "toeplitz": (lambda c, r: bt.Toeplitz(c + 20 * (torch.arange(5) == 0), r), [(5,), (5,)]),
    "toeplitz_hermitian": (lambda c: bt.Toeplitz(c + 20 * (torch.arange(5) == 0)), [(5,)]),
}


@pytest.mark.parametrize("case", BATCHED)
@pytest.mark.parametrize("batch", [(3,), (2, 2)], ids=str)
@each_dtype
def test_a_batch_is_one_request_with_the_derivatives_of_the_dense_solve(
    embedded: Client, case: str, batch: tuple[int, ...], dtype: torch.dtype
) -> None:
    make, shapes = BATCHED[case]
    given = tensors([(*batch, *shape) for shape in shapes], dtype, shift=0)
    if case.startswith("low_rank"):
        given[0] = (given[0].detach() + 6).requires_grad_()
    a = make(*given)
    n = a.shape[0]
    assert (a.batch, a.to_dense().shape) == (batch, (*batch, n, n))
    last = (-1,) * len(batch)
    torch.testing.assert_close(a.to_dense()[last], make(*(part[last] for part in given)).to_dense())
    for columns in ((), (2,)):
        b = torch.randn(*batch, n, *columns, dtype=dtype, generator=torch.Generator().manual_seed(818_006))
        b.requires_grad_()
        before = embedded.stats()["solves"]
        x = bt.solve(make(*given), b, client=embedded)
        assert embedded.stats()["solves"] == before + 1
        full = a.to_dense()
        torch.testing.assert_close(a @ b, (full @ b if columns else (full @ b.unsqueeze(-1)).squeeze(-1)))
        expected = torch.linalg.solve(full, b) if columns else torch.linalg.solve(full, b.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(x, expected)
        got = torch.autograd.grad((x.abs() ** 3).sum(), [*given, b], retain_graph=True)
        torch.testing.assert_close(got, torch.autograd.grad((expected.abs() ** 3).sum(), [*given, b]))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidShapeError, match="must be"):
        bt.LowRankPlusDiagonal(torch.ones(3), torch.ones(4, 1))
    with pytest.raises(InvalidShapeError, match="batch"):
        bt.LowRankPlusDiagonal(torch.ones(2, 3), torch.ones(3, 1))
    with pytest.raises(InvalidShapeError, match="same batch axes"):
        bt.Kronecker(torch.ones(2, 3, 3), torch.ones(3, 3))
    with pytest.raises(InvalidShapeError, match="x has shape"):
        bt.Circulant(torch.ones(2, 3)).matvec(torch.ones(3, 2))
    with pytest.raises(InvalidShapeError, match="batch is not taken"):
        bt.LowRankUpdate(torch.eye(3), torch.ones(2, 3, 1))
    with pytest.raises(InvalidDtypeError, match="U is"):
        bt.LowRankPlusDiagonal(torch.ones(3), torch.ones(3, 1, dtype=torch.float64))
    a = bt.LowRankPlusDiagonal(torch.ones(3), torch.ones(3, 1))
    with pytest.raises(InvalidDtypeError):
        bt.solve(a, torch.ones(3, dtype=torch.float64))


@each
@pytest.mark.parametrize(
    ("dtype", "trans", "dynamic"),
    [(torch.float64, "N", True), (torch.complex128, "T", False), (torch.complex128, "H", False)],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_graph_gives_the_same_answer_and_gradients(case: str, dtype: torch.dtype, trans: str, dynamic: bool) -> None:
    torch.compiler.reset()
    make, shapes = CASES[case]
    given = tensors(shapes, dtype)
    n = make(*given).shape[0]
    b = torch.linspace(1, 2, 2 * n, dtype=torch.float64).to(dtype).reshape(n, 2).requires_grad_()

    def loss(b: Tensor, *parts: Tensor) -> Tensor:
        a = make(*parts)
        return (bt.solve(a, b, trans=trans).abs() ** 3).sum() + a.matvec(b).abs().sum()

    value = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)(b, *given)
    expected = loss(b, *given)
    torch.testing.assert_close(value, expected)
    got = torch.autograd.grad(value, [b, *given])
    torch.testing.assert_close(got, torch.autograd.grad(expected, [b, *given]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_graph_takes_a_matrix_from_outside_and_refuses_a_second_derivative() -> None:
    torch.compiler.reset()
    make, shapes = CASES["low_rank"]
    d, u, v = tensors(shapes, torch.float64)
    b = torch.linspace(1, 2, 5, dtype=torch.float64)
    compiled = torch.compile(bt.solve, fullgraph=True, backend="eager")
    for scale in (1.0, 2.0):
        a = make(d * scale, u, v)
        x = compiled(a, b)
        torch.testing.assert_close(x, torch.linalg.solve(a.to_dense(), b))
    (first,) = torch.autograd.grad(x.pow(3).sum(), d, create_graph=True)
    with pytest.raises(NotSupportedError, match="differentiated once"):
        first.sum().backward()
