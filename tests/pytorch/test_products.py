"""Hessian-vector and Gauss-Newton products and Jacobians of functions that solve: right, and with few solves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor
from torch.autograd.functional import hvp as reference_hvp

import backsolve.torch as bt
from backsolve import Client, Pattern
from backsolve.errors import InvalidDtypeError, InvalidOptionError, InvalidShapeError, NotSupportedError
from support.fresh import new_rng

# PyTorch loads its own forward-mode rules through torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

N = 6
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 33_018_244) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def fresh(dtype: torch.dtype = torch.float64) -> Tensor:
    """A matrix that no other test has solved with: what is factorized is counted."""
    return randn(N, N, dtype=dtype) + float(new_rng().random())


@contextmanager
def counted(client: Client) -> Iterator[dict[str, float]]:
    """Solves of each kind, and factorizations, inside of the block."""
    names = ("solves", "adjoint_solves", "tangent_solves", "factorizations")
    before, found = client.stats(), {}
    yield found
    after = client.stats()
    found |= {name: after[name] - before[name] for name in names}
    found["all"] = found["solves"] + found["adjoint_solves"] + found["tangent_solves"]


def functions(client: Client | None) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """A nonlinear function of A and b, by our solve and by PyTorch's."""

    def with_solve(solve: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        def f(a: Tensor, b: Tensor) -> Tensor:
            x = solve(a + 8 * torch.eye(N, dtype=a.dtype), b)
            return (x.abs().square() + 0.1 * x.abs().pow(4)).sum()

        return f

    return with_solve(lambda a, b: bt.solve(a, b, client=client)), with_solve(torch.linalg.solve)


@each_dtype
def test_hvp_is_that_of_a_dense_solve_and_costs_two_further_solves(embedded: Client, dtype: torch.dtype) -> None:
    ours, theirs = functions(embedded)
    inputs, v = (
        (randn(N, N, dtype=dtype), randn(N, dtype=dtype, seed=2)),
        (
            randn(N, N, dtype=dtype, seed=3),
            randn(N, dtype=dtype, seed=4),
        ),
    )
    with counted(embedded) as count:
        value, product = bt.hvp(ours, inputs, v)
    assert (count["all"], count["factorizations"]) == (4, 1)
    wanted_value, wanted = reference_hvp(theirs, inputs, v)
    torch.testing.assert_close(value, wanted_value)
    for found, exact in zip(product, wanted, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-11)
        assert not found.requires_grad


def test_more_products_at_one_point_cost_two_solves_each(embedded: Client) -> None:
    ours, theirs = functions(embedded)
    b = randn(N, seed=5)
    a = fresh()
    with counted(embedded) as count:
        hessian = bt.HessianProducts(lambda a: ours(a, b), a)
    assert (count["all"], count["factorizations"]) == (2, 1)
    exact = torch.func.grad(lambda a: theirs(a, b))(a)
    torch.testing.assert_close(hessian.gradient, exact)
    for seed in (6, 7, 8):
        v = randn(N, N, seed=seed)
        with counted(embedded) as count:
            product = hessian(v)
        assert (count["all"], count["factorizations"]) == (2, 0)
        torch.testing.assert_close(product, reference_hvp(lambda a: theirs(a, b), a, v)[1], rtol=1e-9, atol=1e-11)


def test_linear_functions_and_inputs_that_do_not_enter() -> None:
    x, y = randn(3), randn(2, seed=9)
    value, (first, second) = bt.hvp(lambda x, y: 3 * x.sum(), (x, y), (x, y))
    torch.testing.assert_close(value, 3 * x.sum())
    assert not first.any()
    assert not second.any()
    _, (first, second) = bt.hvp(lambda x, y: x.pow(3).sum(), (x, y), (x, y))
    torch.testing.assert_close(first, 6 * x * x)
    assert not second.any()


@each_dtype
@pytest.mark.parametrize("squares", [True, False])
def test_gnvp(embedded: Client, dtype: torch.dtype, squares: bool) -> None:
    b, goal = randn(N, dtype=dtype, seed=10), randn(N, dtype=dtype, seed=11)
    a, v = fresh(dtype), randn(N, N, dtype=dtype, seed=12)
    eye = 8 * torch.eye(N, dtype=dtype)

    def loss(r: Tensor) -> Tensor:
        return (r.abs().square() / 2 + r.abs().pow(4)).sum()

    with counted(embedded) as count:
        value, product = bt.gnvp(
            lambda a: bt.solve(a + eye, b, client=embedded) - goal, None if squares else loss, a, v
        )
    assert (count["solves"], count["tangent_solves"], count["adjoint_solves"]) == (1, 1, 1)
    assert count["factorizations"] == 1
    # With dA = V: J v = -A⁻¹ V x, and Jᵀ w = -(A⁻ᴴ w) xᴴ.
    x = torch.linalg.solve(a + eye, b)
    moved = -torch.linalg.solve(a + eye, v @ x)
    r = x - goal
    curved = moved if squares else reference_hvp(loss, r, moved)[1]
    exact = -torch.outer(torch.linalg.solve((a + eye).mH, curved), x.conj())
    torch.testing.assert_close(product, exact, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(value, r.abs().square().sum() / 2 if squares else loss(r))
    assert torch.real(torch.vdot(v.flatten(), product.flatten())) > 0


@pytest.mark.parametrize("mode", ["reverse", "forward", "auto"])
def test_a_jacobian_is_one_request(embedded: Client, mode: str) -> None:
    pattern = Pattern.from_csr(sparse.csr_array(np.ones((N, N)) - np.eye(N, k=4)))
    values, b = randn(pattern.nnz) + float(new_rng().random()), randn(N, seed=13)
    where = torch.tensor(pattern.rows), torch.tensor(pattern.indices)
    diagonal = 9.0 * (where[0] == where[1])

    def ours(values: Tensor, b: Tensor) -> Tensor:
        return bt.spsolve(values + diagonal, pattern, b, client=embedded)

    def theirs(values: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.solve(torch.zeros(N, N, dtype=b.dtype).index_put(where, values + diagonal), b)

    with counted(embedded) as count:
        value, (by_values, by_b) = bt.jacobian(ours, (values, b), mode=mode)
    assert (count["all"], count["factorizations"]) == (3 if mode == "forward" else 2, 1)
    assert count["adjoint_solves"] == (0 if mode == "forward" else 1)
    torch.testing.assert_close(value, theirs(values, b))
    exact = torch.func.jacrev(theirs, (0, 1))(values, b)
    for found, wanted in zip((by_values, by_b), exact, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_auto_takes_the_fewer_and_complex_outputs_go_forward(embedded: Client) -> None:
    a = randn(N, N) + 8 * torch.eye(N)
    b = randn(N, seed=14)
    with counted(embedded) as count:
        _, found = bt.jacobian(lambda t: bt.solve(a, t * b, client=embedded), torch.tensor([2.0], dtype=b.dtype))
    assert count["adjoint_solves"] == 0
    torch.testing.assert_close(found[:, 0], torch.linalg.solve(a, b))
    _, found = bt.jacobian(lambda t: bt.solve(a + 0j, t * b + 0j, client=embedded), b)
    torch.testing.assert_close(found, torch.linalg.solve(a, torch.diag(b)) + 0j)


def test_what_is_refused() -> None:
    x = randn(3)
    with pytest.raises(InvalidShapeError, match="real scalar"):
        bt.hvp(lambda x: x, x, x)
    with pytest.raises(InvalidShapeError, match="shapes"):
        bt.hvp(lambda x: x.sum(), x, x[:2])
    with pytest.raises(InvalidDtypeError, match="element types"):
        bt.gnvp(lambda x: x, None, x, x.float())
    with pytest.raises(InvalidDtypeError, match="floating-point"):
        bt.hvp(lambda x: x.sum(), torch.arange(3), torch.arange(3))
    with pytest.raises(InvalidShapeError, match="empty"):
        bt.hvp(x.sum, (), ())
    with pytest.raises(InvalidDtypeError, match="real and the imaginary"):
        bt.jacobian(lambda x: x, x + 0j)
    with pytest.raises(InvalidOptionError, match="'auto', 'reverse' or 'forward'"):
        bt.jacobian(lambda x: x, x, mode="both")  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match="forward"):
        bt.jacobian(lambda x: x + 0j, x, mode="reverse")
    i = torch.arange(3)

    def once(x: Tensor) -> Tensor:
        a = torch.sparse_coo_tensor(torch.stack([i, i]), x.square() + 1, (3, 3), check_invariants=True)
        return bt.solve(a, x).square().sum()

    with pytest.raises(NotSupportedError, match="spsolve"):
        bt.hvp(once, x, x)
