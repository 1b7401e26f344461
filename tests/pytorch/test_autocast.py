"""Autocast regions: solves and all of their derivatives stay in the type that they were given, to the last bit."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from backsolve import Client
from backsolve.errors import InvalidDtypeError
from backsolve.torch import LowRankPlusDiagonal, lstsq, solve, splstsq, spsolve
from support.tensors import close, dense, reference, rhs, sparse_pattern, values_on

# PyTorch loads its own forward-mode rules through torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

HALF = torch.bfloat16
PATTERN = sparse_pattern(386_104_729)

Function = Callable[[Client, Tensor, Tensor], Tensor]

KINDS: dict[str, tuple[Function, Callable[[torch.dtype], Tensor]]] = {
    "dense": (lambda c, A, b: solve(A, b, client=c), lambda dtype: dense(594_820_137, (), 6, dtype)),
    "sparse": (
        lambda c, v, b: spsolve(v, PATTERN, b, client=c),
        lambda dtype: values_on(PATTERN, 217_093_846, (), dtype),
    ),
    "structured": (
        lambda c, p, b: solve(LowRankPlusDiagonal(p[0] + 9, p[1:3].mT, p[3:5].mT), b, client=c),
        lambda dtype: rhs(63_918_204, (5, 6), dtype),
    ),
    "least squares": (lambda c, A, b: lstsq(A, b, client=c), lambda dtype: rhs(481_206_953, (6, 4), dtype)),
    "sparse least squares": (
        lambda c, v, b: splstsq(v, PATTERN, b, method="lstsq_superlu", client=c),
        lambda dtype: values_on(PATTERN, 905_471_268, (), dtype),
    ),
}

each_kind = pytest.mark.parametrize("kind", KINDS)
each_type = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def _region(enabled: bool) -> Any:
    return torch.autocast("cpu", dtype=HALF) if enabled else nullcontext()


@each_kind
@each_type
@pytest.mark.parametrize(("forward", "backward"), [(True, True), (True, False), (False, True)])
def test_derivatives_inside_and_outside(
    embedded: Client, kind: str, dtype: torch.dtype, forward: bool, backward: bool
) -> None:
    """Value, gradient and Hessian-vector product, each of the bits that it has without autocast."""
    f, made = KINDS[kind]

    def products(regions: tuple[bool, bool]) -> list[Tensor]:
        operand, b = made(dtype).requires_grad_(), rhs(720_915_483, (6, 3), dtype).requires_grad_()
        with _region(regions[0]):
            x = f(embedded, operand, b)
        with _region(regions[1]):
            of_operand, of_b = torch.autograd.grad(x, (operand, b), x.detach() ** 2, create_graph=True)
            second = torch.autograd.grad(of_operand, (operand, b), torch.ones_like(operand))
        return [x, of_operand, of_b, *second]

    for mine, plain in zip(products((forward, backward)), products((False, False)), strict=True):
        assert mine.dtype is dtype
        assert torch.equal(mine, plain)


@each_kind
@each_type
def test_tangents(embedded: Client, kind: str, dtype: torch.dtype) -> None:
    f, made = KINDS[kind]
    operand, b = made(dtype), rhs(135_802_967, (6, 3), dtype)
    results = []
    for enabled in (True, False):
        with _region(enabled):
            results.append(torch.func.jvp(lambda p, b: f(embedded, p, b), (operand, b), (operand.flip(0), b.flip(0))))
    for mine, plain in zip(*results, strict=True):
        assert mine.dtype is dtype
        assert torch.equal(mine, plain)


def test_nested_regions(embedded: Client) -> None:
    """Products in half precision go into a solve in single precision, and its gradient back through them."""
    weight, b = dense(862_093_147, dtype=torch.float32).requires_grad_(), rhs(91_507_328, (6,), torch.float32)
    with torch.autocast("cpu", dtype=HALF):
        product = weight @ weight
        assert product.dtype is HALF
        x = solve(product, b, client=embedded)
        with torch.autocast("cpu", enabled=False):
            inner = solve(weight, b, client=embedded)
            with pytest.raises(InvalidDtypeError, match="bfloat16"):
                solve(product, b, client=embedded)
            with torch.autocast("cpu", dtype=HALF):
                again = solve(product, b.to(HALF).float(), client=embedded)
        assert x.dtype is inner.dtype is again.dtype is torch.float32
        (gradient,) = torch.autograd.grad((x + inner).sum(), weight)
    assert gradient.dtype is torch.float32
    close(x, reference(product.detach().float(), b), rtol=1e-4, atol=1e-5)
    # What the product lost in half precision it lost before the solve: PyTorch's own solve loses the same.
    with torch.autocast("cpu", dtype=HALF):
        truth = torch.linalg.solve((weight @ weight).float(), b) + torch.linalg.solve(weight, b)
        (expected,) = torch.autograd.grad(truth.sum(), weight)
    close(gradient, expected, rtol=1e-2, atol=1e-4)


def test_mixed_types_in_a_region(embedded: Client) -> None:
    """float32 beside float64 is refused as everywhere: autocast chooses among half and single alone."""
    A, b = dense(417_860_253), rhs(208_713_596, (6,), torch.float32)
    with torch.autocast("cpu", dtype=HALF):
        with pytest.raises(InvalidDtypeError, match=r"b\.to\(A\.dtype\)"):
            solve(A, b, client=embedded)
        assert solve(A.float(), b.to(HALF), client=embedded).dtype is torch.float32


def test_half_precision_tensors_receive_half_precision_gradients(embedded: Client) -> None:
    A, b = dense(639_201_874).to(HALF).requires_grad_(), rhs(350_178_926, (6,)).to(HALF).requires_grad_()
    with torch.autocast("cpu", dtype=HALF):
        x = solve(A, b, client=embedded)
    x.sum().backward()
    assert A.grad is not None
    assert b.grad is not None
    assert A.grad.dtype is b.grad.dtype is HALF
    a, rhs_ = A.detach().float().requires_grad_(), b.detach().float().requires_grad_()
    torch.linalg.solve(a, rhs_).sum().backward()
    close(A.grad.float(), a.grad, rtol=1e-2, atol=1e-3)
    close(b.grad.float(), rhs_.grad, rtol=1e-2, atol=1e-3)
