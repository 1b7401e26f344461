"""Least squares on tensors, and its derivatives of both orders."""

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.autograd import gradcheck, gradgradcheck

from backsolve import Pattern
from backsolve._adapter.request import System
from backsolve.client import default_client
from backsolve.errors import InvalidPatternError, InvalidShapeError
from backsolve.pattern import DensePattern
from backsolve.torch import lstsq, solve, splstsq
from backsolve.torch._least_squares import Problem, normal
from backsolve.types import Options

each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
each_shape = pytest.mark.parametrize(("m", "n"), [(7, 4), (4, 7), (5, 5)], ids=["tall", "wide", "square"])
each_damp = pytest.mark.parametrize("damp", [0.0, 0.6], ids=["plain", "damped"])


def normal_numbers(shape, dtype, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@each_dtype
@each_shape
@each_damp
@pytest.mark.parametrize("columns", [(), (2,)], ids=["vector", "columns"])
def test_gradients_of_both_orders(m, n, dtype, damp, columns):
    a = normal_numbers((m, n), dtype, 610_223_974).requires_grad_()
    b = normal_numbers((m, *columns), dtype, 71_150_386).requires_grad_()

    def ours(A, rhs):
        return lstsq(A, rhs, damp=damp)

    assert gradcheck(ours, (a, b), atol=1e-6, rtol=1e-5)
    assert gradgradcheck(ours, (a, b), atol=1e-5, rtol=1e-4, fast_mode=True)


@each_dtype
@each_damp
def test_gradients_of_both_orders_of_a_low_rank(dtype, damp):
    """A = L R keeps its rank, whatever L and R are."""
    left = normal_numbers((6, 2), dtype, 40_112_873).requires_grad_()
    right = normal_numbers((2, 5), dtype, 40_112_874).requires_grad_()
    b = normal_numbers((6,), dtype, 40_112_875).requires_grad_()

    def ours(tall, wide, rhs):
        return lstsq(tall @ wide, rhs, damp=damp)

    assert gradcheck(ours, (left, right, b), atol=1e-6, rtol=1e-5)
    assert gradgradcheck(ours, (left, right, b), atol=1e-5, rtol=1e-4, fast_mode=True)


@each_dtype
@each_damp
def test_gradients_of_the_normal_inverse_of_a_low_rank(dtype, damp):
    """The operation by itself meets cotangents outside the row space, which none of `lstsq` are."""
    left = normal_numbers((6, 2), dtype, 52_330_117).requires_grad_()
    right = normal_numbers((2, 5), dtype, 52_330_118).requires_grad_()
    g = normal_numbers((5, 2), dtype, 52_330_119).requires_grad_()

    def ours(tall, wide, cotangent):
        problem = Problem(
            System(default_client(), DensePattern((6, 5)), Options(method="lstsq", damp=damp), 60.0, "raise")
        )
        return normal(tall @ wide, cotangent, problem)

    assert gradcheck(ours, (left, right, g), atol=1e-6, rtol=1e-5, fast_mode=True)


@each_dtype
@each_damp
@pytest.mark.parametrize(("m", "n"), [(9, 5), (5, 9)], ids=["tall", "wide"])
def test_sparse_gradients_of_both_orders(m, n, dtype, damp):
    rng = np.random.default_rng(818_220_145)
    full = sparse.random_array((m, n), density=0.3, rng=rng) + sparse.eye_array(m, n)
    pattern = Pattern.from_csr(full.tocsr())
    values = normal_numbers((pattern.nnz,), dtype, 30_442)
    values = (values + 3 * torch.tensor(pattern.rows == pattern.indices)).requires_grad_()
    b = normal_numbers((m,), dtype, 30_443).requires_grad_()

    def ours(v, rhs):
        return splstsq(v, pattern, rhs, damp=damp, rtol=1e-13)

    assert gradcheck(ours, (values, b), atol=1e-6, rtol=1e-5, fast_mode=True)
    assert gradgradcheck(ours, (values, b), atol=1e-5, rtol=1e-4, fast_mode=True)


@each_dtype
@each_shape
def test_gradients_are_those_of_pinv(m, n, dtype):
    a, b, g = (normal_numbers(s, dtype, seed) for s, seed in (((m, n), 551), ((m, 2), 552), ((n, 2), 553)))
    ours, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()
    lstsq(ours, b).backward(g)
    (torch.linalg.pinv(theirs) @ b).backward(g)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-8)


def test_batches_are_their_members():
    a = normal_numbers((2, 3, 6, 4), torch.float64, 7_731).requires_grad_()
    b = normal_numbers((2, 3, 6), torch.float64, 7_732).requires_grad_()
    x = lstsq(a, b)
    assert x.shape == (2, 3, 4)
    x.square().sum().backward()
    one, rhs = a.detach()[1, 2].requires_grad_(), b.detach()[1, 2].requires_grad_()
    lstsq(one, rhs).square().sum().backward()
    torch.testing.assert_close(a.grad[1, 2], one.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(b.grad[1, 2], rhs.grad, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_sparse_tensors_get_sparse_gradients():
    full = torch.eye(6, 4, dtype=torch.float64) + torch.diag(torch.ones(4, dtype=torch.float64), -2)[:6, :4]
    b = normal_numbers((6,), torch.float64, 1_939)
    dense = full.clone().requires_grad_()
    lstsq(dense, b).sum().backward()
    for layout in (full.to_sparse(), full.to_sparse_csr()):
        a = layout.requires_grad_()
        lstsq(a, b, rtol=1e-13).sum().backward()
        assert a.grad.layout is a.layout
        torch.testing.assert_close(a.grad.to_dense(), dense.grad * (full != 0), rtol=0, atol=1e-9)


def test_one_factor_serves_forward_and_backward():
    seen = []
    a = normal_numbers((8, 3), torch.float64, 5_512).requires_grad_()
    x = lstsq(a, normal_numbers((8,), torch.float64, 5_513), observe=lambda phase, stats: seen.append((phase, stats)))
    x.sum().backward()
    assert [phase for phase, _ in seen] == ["solve", "adjoint", "adjoint"]
    assert [stats.factor_hit for _, stats in seen] == [False, True, True]


def test_refusals():
    a, b = torch.ones(5, 3, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    with pytest.raises(InvalidShapeError, match="use lstsq"):
        solve(a, b)
    with pytest.raises(InvalidShapeError, match="b has shape"):
        lstsq(a, torch.ones(3, dtype=torch.float64))
    with pytest.raises(InvalidPatternError, match="must be a backsolve"):
        splstsq(a.reshape(-1), "pattern", b)
