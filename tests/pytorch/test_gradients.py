"""First and second derivatives against finite differences and PyTorch's dense solve (R1, R4)."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from backsolve import Client
from backsolve.torch import solve, spsolve
from support.tensors import close, dense, reference, rhs, scattered, sparse_pattern, values_on

# PyTorch loads its own forward-mode rules through torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

each_trans = pytest.mark.parametrize("trans", ["N", "T", "H"])
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
each_batch = pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=["single", "batch", "two-batches"])
each_width = pytest.mark.parametrize("columns", [(), (4,)], ids=["vector", "columns"])
each_need = pytest.mark.parametrize("need", ["A", "b", "both"])


def _tolerance(batch: tuple[int, ...]) -> dict[str, Any]:
    """Every entry of the Jacobian for single systems; random projections of it for batches, to save time."""
    return {"atol": 1e-6, "rtol": 1e-4, "fast_mode": bool(batch)}


def _inputs(A: Tensor, b: Tensor, need: str) -> tuple[Tensor, Tensor]:
    return A.requires_grad_(need != "b"), b.requires_grad_(need != "A")


@each_trans
@each_dtype
@each_batch
@each_width
@each_need
def test_dense_gradient(
    embedded: Client, trans: Any, dtype: torch.dtype, batch: tuple[int, ...], columns: tuple[int, ...], need: str
) -> None:
    A, b = _inputs(dense(558_102_917, batch, 3, dtype), rhs(771_940_233, (*batch, 3, *columns), dtype), need)
    close(solve(A, b, trans=trans, client=embedded), reference(A, b, trans))
    assert gradcheck(lambda A, b: solve(A, b, trans=trans, client=embedded), (A, b), **_tolerance(batch))


@each_trans
@each_dtype
@each_batch
@each_width
@each_need
def test_sparse_gradient(
    embedded: Client, trans: Any, dtype: torch.dtype, batch: tuple[int, ...], columns: tuple[int, ...], need: str
) -> None:
    pattern = sparse_pattern(640_177_391, 4)
    values = values_on(pattern, 902_551_786, batch, dtype)
    values, b = _inputs(values, rhs(318_460_275, (*batch, 4, *columns), dtype), need)
    close(spsolve(values, pattern, b, trans=trans, client=embedded), reference(scattered(values, pattern), b, trans))
    assert gradcheck(
        lambda v, b: spsolve(v, pattern, b, trans=trans, client=embedded), (values, b), **_tolerance(batch)
    )


@each_trans
@each_dtype
def test_second_derivatives_and_forward_mode(embedded: Client, trans: Any, dtype: torch.dtype) -> None:
    """Reverse over reverse, forward over reverse, and forward mode, dense with columns."""
    A, b = _inputs(dense(483_920_611, (), 3, dtype), rhs(229_871_046, (3, 2), dtype), "both")

    def f(A: Tensor, b: Tensor) -> Tensor:
        return solve(A, b, trans=trans, client=embedded)

    assert gradcheck(f, (A, b), check_forward_ad=True, check_backward_ad=False)
    assert gradgradcheck(f, (A, b), check_fwd_over_rev=True)


@each_trans
@each_dtype
@pytest.mark.parametrize("batch", [(), (2,)], ids=["single", "batch"])
def test_second_derivatives_and_forward_mode_on_a_pattern(
    embedded: Client, trans: Any, dtype: torch.dtype, batch: tuple[int, ...]
) -> None:
    pattern = sparse_pattern(117_530_982, 3)
    values = values_on(pattern, 865_003_291, batch, dtype)
    values, b = _inputs(values, rhs(590_411_238, (*batch, 3), dtype), "both")

    def f(values: Tensor, b: Tensor) -> Tensor:
        return spsolve(values, pattern, b, trans=trans, client=embedded)

    assert gradcheck(f, (values, b), check_forward_ad=True, check_backward_ad=False)
    assert gradgradcheck(f, (values, b), check_fwd_over_rev=True)


def test_hessian_vector_product_equals_dense(client: Client) -> None:
    """A nonlinear loss with a second term in the values: nothing of it may be lost."""
    pattern = sparse_pattern(752_318_840, 12)
    values = values_on(pattern, 246_997_105).requires_grad_()
    b = rhs(993_471_028, (12,)).requires_grad_()
    direction = rhs(404_118_597, (pattern.nnz,)), rhs(684_720_913, (12,))

    def product(x: Tensor) -> tuple[Tensor, ...]:
        loss = (x**3).sum() + (values**3).sum() + (x * b).sum()
        grads = torch.autograd.grad(loss, (values, b), create_graph=True)
        return torch.autograd.grad(grads, (values, b), direction)

    ours = product(spsolve(values, pattern, b, client=client))
    truth = product(reference(scattered(values, pattern), b))
    for mine, theirs in zip(ours, truth, strict=True):
        close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_third_derivative(embedded: Client) -> None:
    A, b = dense(815_236_004, (), 3).requires_grad_(), rhs(377_914_520, (3,))

    def third(x: Tensor) -> Tensor:
        grad = torch.ones(())
        value = (x**2).sum()
        for _ in range(3):
            (grad,) = torch.autograd.grad(value, A, create_graph=True)
            value = (grad**2).sum()
        return grad

    close(third(solve(A, b, client=embedded)), third(reference(A, b)), rtol=1e-9)


def test_dual_numbers(embedded: Client) -> None:
    A, b = dense(660_184_257), rhs(128_739_405, (6,))
    da, db = rhs(571_602_938, (6, 6)), rhs(843_295_176, (6,))
    with forward_ad.dual_level():
        dual = solve(forward_ad.make_dual(A, da), forward_ad.make_dual(b, db), client=embedded)
        only_b = solve(A, forward_ad.make_dual(b, db), client=embedded)
        tangents = [forward_ad.unpack_dual(x).tangent for x in (dual, only_b)]
    close(tangents[0], torch.linalg.solve(A, db - da @ reference(A, b)))
    close(tangents[1], torch.linalg.solve(A, db))


def test_backward_of_a_tangent(embedded: Client) -> None:
    """Reverse over forward: x's own dependence on A is part of the tangent's derivative."""
    A, b = dense(932_745_610, (), 4).requires_grad_(), rhs(286_031_574, (4,)).requires_grad_()
    da, db = rhs(745_109_382, (4, 4)), rhs(463_820_197, (4,))

    def gradients(f: Any) -> tuple[Tensor, ...]:
        with forward_ad.dual_level():
            x = f(forward_ad.make_dual(A, da), forward_ad.make_dual(b, db))
            return torch.autograd.grad((forward_ad.unpack_dual(x).tangent ** 2).sum(), (A, b))

    ours, truth = gradients(lambda A, b: solve(A, b, client=embedded)), gradients(reference)
    for mine, theirs in zip(ours, truth, strict=True):
        close(mine, theirs)


def test_only_wanted_cotangents_are_computed(embedded: Client) -> None:
    """Without a gradient wanted there is no adjoint solve; b's alone needs no product with x."""
    A, b = dense(254_618_703), rhs(697_340_185, (6,))
    seen: list[str] = []
    with torch.no_grad():
        solve(A.requires_grad_(), b, client=embedded, observe=lambda phase, _: seen.append(phase))
    x = solve(A.detach(), b.requires_grad_(), client=embedded, observe=lambda phase, _: seen.append(phase))
    assert seen == ["solve", "solve"]
    x.sum().backward()
    assert seen == ["solve", "solve", "adjoint"]
    close(b.grad, torch.linalg.solve(A.detach().mT, torch.ones(6, dtype=torch.float64)))


def test_x0_has_no_gradient(embedded: Client) -> None:
    A, b = dense(318_205_946), rhs(820_475_113, (6,))
    spd = (A + A.mT).requires_grad_()  # equal to its transpose to the last bit, as CG demands
    x0 = rhs(159_687_420, (6,)).requires_grad_()
    x = solve(spd, b, x0=x0, method="cg", rtol=1e-13, client=embedded)
    (of_x0,) = torch.autograd.grad(x.sum(), x0, allow_unused=True, retain_graph=True)
    assert of_x0 is None
    close(x, reference(spd, b), rtol=1e-9)
    (of_a,) = torch.autograd.grad(x.sum(), spd)
    close(of_a, torch.autograd.grad(reference(spd, b).sum(), spd)[0], rtol=1e-8, atol=1e-10)


@each_dtype
@each_width
@pytest.mark.parametrize("block", ["_CACHED", "_BLOCK"])
def test_many_pieces_of_entries(
    embedded: Client, dtype: torch.dtype, columns: tuple[int, ...], block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries are taken in pieces; the pieces make the same gradient and the same tangent, and their derivatives."""
    pattern = sparse_pattern(729_183_046, 9)
    v, b = values_on(pattern, 118_704_935, (), dtype), rhs(503_662_781, (9, *columns), dtype)
    dv = rhs(660_193_527, (pattern.nnz,), dtype)

    def all_of(f: Any) -> list[Tensor]:
        given = v.clone().requires_grad_()
        (first,) = torch.autograd.grad((f(given, b).abs() ** 3).sum(), given, create_graph=True)
        (second,) = torch.autograd.grad((first.abs() ** 2).sum(), given)
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(v, dv), b)).tangent
        return [first.detach(), second, tangent]

    monkeypatch.setattr(f"backsolve.torch._rules.{block}", 14)
    ours = all_of(lambda v, b: spsolve(v, pattern, b, client=embedded))
    for mine, theirs in zip(ours, all_of(lambda v, b: reference(scattered(v, pattern), b)), strict=True):
        close(mine, theirs, rtol=1e-8, atol=1e-10)
