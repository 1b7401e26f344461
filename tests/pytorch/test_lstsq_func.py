"""Least squares under `torch.func` and forward mode, against the same transforms of dense formulas."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from backsolve import Client
from backsolve.errors import NotSupportedError
from backsolve.torch import lstsq, splstsq
from support.rectangular import SHAPES, filled, minimiser, nearly, rectangular, rectangular_pattern
from support.tensors import close, rhs

# PyTorch loads its own forward-mode rules through torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

Minimise = Callable[[Tensor, Tensor], Tensor]

each_shape = pytest.mark.parametrize("shape", SHAPES)
each_kind = pytest.mark.parametrize("kind", ["dense", "sparse"])
each_damp = pytest.mark.parametrize("damp", [0.0, 0.6], ids=["plain", "damped"])
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])


def _pair(client: Client, kind: str, shape: str, damp: float = 0.0, **options: Any) -> tuple[Minimise, Minimise]:
    """Our answer and the formula, as functions of the stored numbers and b."""
    if kind == "dense":
        return (lambda A, b: lstsq(A, b, damp=damp, client=client, **options)), (lambda A, b: minimiser(A, b, damp))
    pattern = rectangular_pattern(shape)
    return (
        lambda v, b: splstsq(v, pattern, b, damp=damp, rtol=1e-14, client=client, **options),
        lambda v, b: minimiser(filled(v, pattern), b, damp),
    )


@each_shape
@each_kind
@each_damp
@each_dtype
def test_forward_mode_and_what_is_made_of_it(
    embedded: Client, shape: str, kind: str, damp: float, dtype: torch.dtype
) -> None:
    m, n = SHAPES[shape]
    A, b = rectangular(kind, shape, (), dtype), rhs(190_445_872, (m, 2), dtype)
    da, db, dx = rhs(51_206_873, tuple(A.shape), dtype), rhs(87_340_119, (m, 2), dtype), rhs(22_701_954, (n, 2), dtype)
    results = []
    for f in _pair(embedded, kind, shape, damp):
        x, both = jvp(f, (A, b), (da, db))
        of_a, of_b = jvp(lambda A, f=f: f(A, b), (A,), (da,))[1], jvp(lambda b, f=f: f(A, b), (b,), (db,))[1]
        of_tangent = grad(lambda A, b, f=f: (jvp(f, (A, b), (da, db))[1].abs() ** 2).sum(), (0, 1))(A, b)
        of_cotangent = jvp(lambda A, b, f=f: vjp(f, A, b)[1](dx), (A, b), (da, db))[1]
        results.append((x, both, of_a, of_b, *of_tangent, *of_cotangent))
    for mine, theirs in zip(*results, strict=True):
        nearly(mine, theirs)


@each_dtype
@each_damp
def test_forward_mode_of_a_low_rank(dtype: torch.dtype, damp: float) -> None:
    """A = L R keeps its rank: the terms of the null spaces on both sides count."""
    shapes = ((6, 2), (2, 5), (6,))
    left, right, b = (rhs(57_203_318 + i, shape, dtype).requires_grad_() for i, shape in enumerate(shapes))

    def ours(left: Tensor, right: Tensor, b: Tensor) -> Tensor:
        return lstsq(left @ right, b, damp=damp)

    given = (left, right, b)
    assert gradcheck(ours, given, check_forward_ad=True, check_backward_ad=False, atol=1e-6, rtol=1e-5)
    assert gradgradcheck(ours, given, check_fwd_over_rev=True, fast_mode=True, atol=1e-5, rtol=1e-4)


@each_shape
@each_kind
def test_second_order_jacobians(embedded: Client, shape: str, kind: str) -> None:
    A, b = rectangular(kind, shape), rhs(90_377_415, (SHAPES[shape][0],))
    for transform in (hessian, lambda f: jacfwd(jacfwd(f)), lambda f: jacrev(jacrev(f)), lambda f: jacrev(jacfwd(f))):
        mine, theirs = (transform(lambda A, f=f: (f(A, b) ** 3).sum())(A) for f in _pair(embedded, kind, shape))
        close(mine, theirs, rtol=1e-7, atol=1e-8)


@each_shape
def test_forward_mode_twice_over_reverse(embedded: Client, shape: str) -> None:
    A, b, v = rectangular("dense", shape), rhs(83_014_627, (SHAPES[shape][0],)), rectangular("dense", shape) * 0.1
    results = []
    for f in _pair(embedded, "dense", shape):
        first = grad(lambda A, f=f: (f(A, b) ** 3).sum())

        def second(A: Tensor, first: Callable[[Tensor], Tensor] = first) -> Tensor:
            return jvp(first, (A,), (v,))[1]

        results.append(jvp(second, (A,), (v,))[1])
    close(*results, rtol=1e-7, atol=1e-8)


@each_shape
@each_kind
@pytest.mark.parametrize("columns", [(), (3,)], ids=["vector", "columns"])
def test_vmap_is_one_request(embedded: Client, shape: str, kind: str, columns: tuple[int, ...]) -> None:
    ours, truth = _pair(embedded, kind, shape)
    m, _ = SHAPES[shape]
    A, b = rectangular(kind, shape, (3,)), rhs(615_200_347, (3, m, *columns))
    before = embedded.stats()["solves"]
    pairs = [(vmap(f)(A, b), vmap(f, (None, 0))(A[0], b), vmap(f, (0, None))(A, b[0])) for f in (ours, truth)]
    assert embedded.stats()["solves"] == before + 3
    for mine, theirs in zip(*pairs, strict=True):
        nearly(mine, theirs)


@each_kind
def test_vmap_over_other_dimensions_and_nested(embedded: Client, kind: str) -> None:
    ours, truth = _pair(embedded, kind, "tall")
    A, b = rectangular(kind, "tall", (3, 2)), rhs(238_871_560, (3, 2, 6))
    moved, last = A.movedim(0, -1), b.movedim(0, -1)
    for f, g in ((vmap(vmap(ours)), vmap(vmap(truth))), (vmap(ours), vmap(truth))):
        nearly(f(A, b), g(A, b))
    nearly(vmap(ours, (-1, -1), 1)(moved, last), vmap(truth, (-1, -1), 1)(moved, last))


@each_kind
@each_damp
@each_dtype
def test_vmap_of_derivatives(embedded: Client, kind: str, damp: float, dtype: torch.dtype) -> None:
    A, b, v = (
        rectangular(kind, "tall", (3,), dtype),
        rhs(77_915_042, (3, 6), dtype),
        rectangular(kind, "tall", (3,), dtype),
    )
    results = []
    for f in _pair(embedded, kind, "tall", damp):

        def loss(A: Tensor, b: Tensor, f: Minimise = f) -> Tensor:
            return (f(A, b).abs() ** 3).sum()

        def curved(A: Tensor, b: Tensor, v: Tensor) -> Tensor:
            return jvp(lambda A: grad(loss)(A, b), (A,), (v,))[1]

        results.append((*vmap(grad(loss, (0, 1)))(A, b), vmap(curved)(A, b, v)))
    for mine, theirs in zip(*results, strict=True):
        close(mine, theirs, rtol=1e-7, atol=1e-8)


@each_kind
def test_dual_numbers(embedded: Client, kind: str) -> None:
    A, b, da = rectangular(kind, "wide"), rhs(31_905_277, (4,)), torch.ones_like(rectangular(kind, "wide"))
    seen: list[str] = []
    ours, truth = _pair(embedded, kind, "wide", observe=lambda phase, _: seen.append(phase))
    results = []
    for f in (ours, truth):
        with forward_ad.dual_level():
            results.append(forward_ad.unpack_dual(f(forward_ad.make_dual(A, da), b)))
    for mine, theirs in zip(*results, strict=True):
        nearly(mine, theirs)
    assert seen == ["solve", "solve", "adjoint", "adjoint", "adjoint"]


def test_transforms_use_the_factor_of_the_forward(embedded: Client) -> None:
    ours, _ = _pair(embedded, "dense", "tall")
    A, b = rectangular("dense", "tall", (2,)) + 0.25, rhs(5_610_372, (2, 6))
    before = embedded.stats()["factorizations"]
    vmap(grad(lambda A, b: jvp(lambda b: ours(A, b), (b,), (b,))[1].square().sum()))(A, b)
    assert embedded.stats()["factorizations"] - before == 1


def test_a_second_derivative_that_pytorch_would_get_wrong_is_refused(embedded: Client) -> None:
    """As for solves: PyTorch's sparse constructors drop the second derivative without a word."""
    values, b = rhs(4_490_127, (3,)).requires_grad_(), rhs(4_490_128, (4,))
    A = torch.sparse_coo_tensor(torch.tensor([[0, 1, 3], [0, 1, 0]]), values + 3, (4, 2), check_invariants=True)
    x = lstsq(A, b, client=embedded, rtol=1e-13)
    (first,) = torch.autograd.grad(x.pow(3).sum(), values, create_graph=True)
    with pytest.raises(NotSupportedError, match="spsolve"):
        torch.autograd.grad((first * values).sum(), values)
