"""Transforms of `torch.func` three deep, and dual numbers, where PyTorch's own solve is right and where it is not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from backsolve import Client
from backsolve.torch import solve, spsolve
from support.tensors import close, dense, rhs, scattered, sparse_pattern, values_on

# PyTorch loads its own forward-mode rules through torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

N = 4
PATTERN = sparse_pattern(903_248_175, N)

Function = Callable[..., Tensor]


def _dense_solve(A: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.solve(A, b)


def _inverse(A: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.inv(A) @ b


def _functions(client: Client, kind: str, truth: Function) -> tuple[Function, Function]:
    """Our solve and the true one, as functions of the stored numbers and b."""
    if kind == "dense":
        return (lambda A, b: solve(A, b, client=client)), truth
    return (lambda v, b: spsolve(v, PATTERN, b, client=client)), (lambda v, b: truth(scattered(v, PATTERN), b))


def _values(kind: str, seed: int, batch: tuple[int, ...] = ()) -> Tensor:
    return dense(seed, batch, N) if kind == "dense" else values_on(PATTERN, seed, batch)


each_kind = pytest.mark.parametrize("kind", ["dense", "sparse"])


def _loss(f: Function, A: Tensor, b: Tensor) -> Tensor:
    return (f(A, b) ** 3).sum()


REVERSE: dict[str, Callable[[Function, Tensor, Tensor], Tensor]] = {
    "vmap of grad of vmap": lambda f, A, b: vmap(grad(lambda A, b: vmap(f, (None, 0))(A, b).pow(3).sum()))(A, b),
    "grad of vmap of grad": lambda f, A, b: grad(
        lambda A: vmap(grad(lambda A, b: _loss(f, A, b), 1))(A, b[:, 0]).pow(2).sum()
    )(A),
    "jacrev of grad of vmap": lambda f, A, b: jacrev(grad(lambda b: vmap(f, (None, 0))(A[0], b).pow(3).sum()))(b[0]),
    "jacfwd of jacrev of vmap": lambda f, A, b: jacfwd(jacrev(lambda A: vmap(f, (None, 0))(A, b[0]).pow(3).sum()))(
        A[0]
    ),
    "vmap of jvp of grad": lambda f, A, b: vmap(
        lambda A, b, v: jvp(grad(lambda A: _loss(f, A, b)), (A,), (v,))[1], (0, 0, 0), 1
    )(A, b[:, 0], A.cos()),
    "vmap of grad of vjp": lambda f, A, b: vmap(grad(lambda A, b: vjp(lambda A: f(A, b), A)[1](b)[0].pow(2).sum()))(
        A, b[:, 0]
    ),
}
"""Compositions that `torch.linalg.solve` itself gets right."""

FORWARD: dict[str, Callable[[Function, Tensor, Tensor], Tensor]] = {
    "jvp of jvp": lambda f, A, b: jvp(lambda A: jvp(lambda A: f(A, b[0, 0]), (A,), (A.cos(),))[1], (A[0],), (A[1],))[1],
    "jacfwd of jacfwd": lambda f, A, b: jacfwd(jacfwd(lambda A: f(A, b[0, 0])))(A[0]),
    "grad of jvp": lambda f, A, b: grad(
        lambda A: jvp(lambda A: f(A, b[0, 0]), (A,), (A.detach().cos(),))[1].pow(2).sum()
    )(A[0]),
    "jacrev of jacfwd": lambda f, A, b: jacrev(jacfwd(lambda A: _loss(f, A, b[0, 0])))(A[0]),
    "jacfwd of jacfwd of jacrev": lambda f, A, b: jacfwd(jacfwd(jacrev(lambda A: _loss(f, A, b[0, 0]))))(A[0]),
    "jacrev of jacfwd of jacrev": lambda f, A, b: jacrev(jacfwd(jacrev(lambda A: _loss(f, A, b[0, 0]))))(A[0]),
    "vmap of hessian": lambda f, A, b: vmap(hessian(lambda A, b: _loss(f, A, b)))(A, b[:, 0]),
    "vmap of jvp of jvp": lambda f, A, b: vmap(
        lambda A, b, v: jvp(lambda A: jvp(lambda A: f(A, b), (A,), (v,))[1], (A,), (v,))[1]
    )(A, b[:, 0], A.cos()),
}
"""Compositions with something around a forward mode: `torch.linalg.solve` drops terms, or mixes up a mapped batch."""


def _given(kind: str) -> tuple[Tensor, Tensor]:
    return _values(kind, 186_043_925, (2,)), rhs(470_921_358, (2, 3, N))


@each_kind
@pytest.mark.parametrize("name", REVERSE)
def test_three_deep_as_pytorchs_own_solve(embedded: Client, kind: str, name: str) -> None:
    mine, theirs = (REVERSE[name](f, *_given(kind)) for f in _functions(embedded, kind, _dense_solve))
    close(mine, theirs, rtol=1e-9, atol=1e-11)


@each_kind
@pytest.mark.parametrize("name", FORWARD)
def test_around_forward_mode_as_the_inverse(embedded: Client, kind: str, name: str) -> None:
    mine, theirs = (FORWARD[name](f, *_given(kind)) for f in _functions(embedded, kind, _inverse))
    close(mine, theirs, rtol=1e-9, atol=1e-11)


def test_a_second_tangent_by_its_formula(embedded: Client) -> None:
    """A⁻¹ V A⁻¹ U A⁻¹ b + A⁻¹ U A⁻¹ V A⁻¹ b, which no library had a hand in."""
    A, b, U, V = dense(729_405_183, (), N), rhs(64_810_927, (N,)), rhs(83_729_140, (N, N)), rhs(592_018_473, (N, N))
    inverse = torch.linalg.inv(A)
    x = inverse @ b

    def second(f: Function) -> Tensor:
        return jvp(lambda A: jvp(lambda A: f(A, b), (A,), (U,))[1], (A,), (V,))[1]

    close(
        second(lambda A, b: solve(A, b, client=embedded)), inverse @ V @ inverse @ U @ x + inverse @ U @ inverse @ V @ x
    )


@pytest.mark.xfail(strict=True, reason="torch.linalg.solve is wrong around its own forward mode (PyTorch 2.13)")
@pytest.mark.parametrize("name", [name for name in FORWARD if name != "jacfwd of jacfwd of jacrev"])
def test_pytorchs_own_solve_around_forward_mode(name: str) -> None:
    """Why the tests above compare with the inverse: when this passes, PyTorch has been repaired."""
    A, b = _given("dense")
    close(FORWARD[name](_dense_solve, A, b), FORWARD[name](_inverse, A, b), rtol=1e-6, atol=1e-8)


@each_kind
@pytest.mark.parametrize(("of_values", "of_rhs", "out"), [(0, 0, 0), (-1, 0, 1), (0, -1, 0), (1, 1, -1), (None, 1, 0)])
def test_hessian_vector_products_mapped_over_other_dimensions(
    embedded: Client, kind: str, of_values: int | None, of_rhs: int, out: int
) -> None:
    A, b = _values(kind, 318_570_246, (3,)), rhs(905_418_273, (3, N))
    dim = None if of_values is None else of_values % A[0].ndim if of_values >= 0 else of_values
    given = A[0] if dim is None else A.movedim(0, dim)
    mine, theirs = (
        vmap(lambda A, b, f=f: jvp(grad(lambda A: _loss(f, A, b)), (A,), (A.cos(),))[1], (dim, of_rhs), out)(
            given, b.movedim(0, of_rhs)
        )
        for f in _functions(embedded, kind, _dense_solve)
    )
    close(mine, theirs, rtol=1e-9, atol=1e-11)


# -- dual numbers --------------------------------------------------------------------------


@each_kind
def test_dual_numbers_through_a_gradient_and_back(embedded: Client, kind: str) -> None:
    """Forward over reverse gives a Hessian-vector product; differentiating its tangent a third derivative."""
    A, b, v = _values(kind, 640_182_397), rhs(27_493_816, (N,)), _values(kind, 518_937_024)
    results: list[tuple[Tensor, Tensor]] = []
    for f in _functions(embedded, kind, _inverse):
        leaf = A.clone().requires_grad_()
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(leaf, v)
            (first,) = torch.autograd.grad(_loss(f, dual, b), dual, create_graph=True)
            product = forward_ad.unpack_dual(first).tangent
            (third,) = torch.autograd.grad(product.pow(2).sum(), leaf)
        results.append((product.detach(), third))
    for mine, wanted in zip(*results, strict=True):
        close(mine, wanted, rtol=1e-9, atol=1e-11)


@each_kind
def test_dual_numbers_that_are_mapped(embedded: Client, kind: str) -> None:
    A, b, v = _values(kind, 275_301_948, (3,)), rhs(846_017_295, (3, N)), _values(kind, 91_284_063, (3,))
    tangents: list[Any] = []
    for f in _functions(embedded, kind, _dense_solve):
        with forward_ad.dual_level():
            x = vmap(f)(forward_ad.make_dual(A, v), forward_ad.make_dual(b, b.cos()))
            tangents.append(forward_ad.unpack_dual(x).tangent)
    close(*tangents)


def test_pytorch_has_one_level_of_dual_numbers(embedded: Client) -> None:
    """It refuses a second one itself: nested tangents are those of `torch.func.jvp`."""
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="Nested forward mode AD is not supported"):
        forward_ad.enter_dual_level()
