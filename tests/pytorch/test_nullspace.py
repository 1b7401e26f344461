"""Derivatives of solves within a family of matrices whose null space is the constants."""

import pytest
import torch
from scipy.sparse import csr_array

from backsolve.pattern import Pattern
from backsolve.torch import solve, spsolve
from engine.test_nullspace import EDGES, laplacian

PATTERN = Pattern.from_csr(csr_array(laplacian([1.0] * len(EDGES))))
KEPT = torch.tensor(PATTERN.rows).long(), torch.tensor(PATTERN.indices).long()


def dense(weights):
    """The Laplacian, or with complex weights the Hermitian one's analogue, which is complex symmetric."""
    i, j = torch.tensor(EDGES).T
    a = torch.zeros(8, 8, dtype=weights.dtype)
    a = a.index_put((i, j), -weights).index_put((j, i), -weights)
    return a - torch.diag(a.sum(1))


def centred(v):
    return v - v.mean(-1, keepdim=True)


@pytest.mark.parametrize("trans", ["N", "T", "H"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_gradients_of_both_orders_within_the_family(sparse, dtype, trans):
    generator = torch.Generator().manual_seed(441_902_117)
    weights = torch.rand(len(EDGES), generator=generator, dtype=dtype) + 0.5
    b = torch.randn(8, generator=generator, dtype=dtype)
    method = "superlu" if sparse else "lu"

    def of_family(w, v):
        a = dense(w)
        if sparse:
            return spsolve(a[KEPT], PATTERN, centred(v), nullspace="constant", method=method, trans=trans)
        return solve(a, centred(v), nullspace="constant", method=method, trans=trans)

    inputs = weights.requires_grad_(), b.requires_grad_()
    assert torch.autograd.gradcheck(of_family, inputs, atol=1e-6, rtol=1e-5)
    assert torch.autograd.gradgradcheck(of_family, inputs, atol=1e-5, rtol=1e-4)


def test_it_is_the_pseudoinverse():
    generator = torch.Generator().manual_seed(50_119_224)
    weights = torch.rand(len(EDGES), generator=generator, dtype=torch.float64) + 0.5
    b = centred(torch.randn(8, generator=generator, dtype=torch.float64))
    g = torch.randn(8, generator=generator, dtype=torch.float64)
    ours, theirs = weights.clone().requires_grad_(), weights.clone().requires_grad_()
    (g @ solve(dense(ours), b, nullspace="constant")).backward()
    (g @ torch.linalg.pinv(dense(theirs), hermitian=True, rtol=1e-10) @ b).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("trans", ["N", "T", "H"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_graph_that_autograd_runs_has_the_second_derivative_too(dtype, trans):
    """Cotangents of an adjoint have parts outside the range, which a solve would refuse."""
    torch.compiler.reset()
    generator = torch.Generator().manual_seed(318_400_972)
    weights = (torch.rand(len(EDGES), generator=generator, dtype=dtype) + 0.5).requires_grad_()
    b = torch.randn(8, generator=generator, dtype=dtype).requires_grad_()

    def ours(a, v):
        return solve(a, v, nullspace="constant", method="lu", trans=trans)

    def size_of_gradients(f):
        a, v = dense(weights), centred(b)
        first = torch.autograd.grad((f(a, v).abs() ** 3).sum(), (a, v), create_graph=True)
        return (first[0].abs() ** 2).sum() + (uneven * first[1].abs() ** 2).sum()

    uneven = torch.arange(8)
    inverse = torch.linalg.pinv({"N": lambda a: a, "T": lambda a: a.mT, "H": lambda a: a.mH}[trans](dense(weights)))
    x = inverse @ centred(b)
    lam = inverse.mH @ (3 * x.abs() * x)
    truth = (lam.abs() ** 2).sum() * (x.abs() ** 2).sum() + (uneven * lam.abs() ** 2).sum()
    for f in (ours, torch.compile(ours, fullgraph=True, backend="eager")):
        mine = size_of_gradients(f)
        torch.testing.assert_close(mine, truth)
        second = torch.autograd.grad(mine, (weights, b))
        torch.testing.assert_close(second, torch.autograd.grad(truth, (weights, b), retain_graph=True))
