"""`torch.func`: every transform, alone and nested, against the same transform of the dense solve."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from backsolve import Client
from backsolve.torch import solve, spsolve
from support.tensors import close, dense, reference, rhs, scattered, sparse_pattern, values_on

# PyTorch loads its own forward-mode rules through torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

Solve = Callable[[Tensor, Tensor], Tensor]

PATTERN = sparse_pattern(530_977_164, 5)


def _pair(client: Client, kind: str, trans: Any = "N") -> tuple[Solve, Solve]:
    """Our solve and the true one, as functions of the stored numbers and b."""
    if kind == "dense":
        return (lambda A, b: solve(A, b, trans=trans, client=client)), (lambda A, b: reference(A, b, trans))
    return (
        lambda v, b: spsolve(v, PATTERN, b, trans=trans, client=client),
        lambda v, b: reference(scattered(v, PATTERN), b, trans),
    )


def _values(kind: str, batch: tuple[int, ...] = (), dtype: torch.dtype = torch.float64) -> Tensor:
    if kind == "dense":
        return dense(417_203_985, batch, 5, dtype)
    return values_on(PATTERN, 608_834_172, batch, dtype)


each_kind = pytest.mark.parametrize("kind", ["dense", "sparse"])
each_width = pytest.mark.parametrize("columns", [(), (3,)], ids=["vector", "columns"])


@each_kind
@each_width
def test_vmap_over_right_hand_sides_is_one_request(embedded: Client, kind: str, columns: tuple[int, ...]) -> None:
    ours, truth = _pair(embedded, kind)
    A, b = _values(kind), rhs(745_392_018, (7, 5, *columns))
    before = embedded.stats()["solves"]
    x = vmap(ours, (None, 0))(A, b)
    assert embedded.stats()["solves"] == before + 1
    close(x, vmap(truth, (None, 0))(A, b))


@each_kind
@each_width
def test_vmap_over_values_is_one_request(embedded: Client, kind: str, columns: tuple[int, ...]) -> None:
    ours, truth = _pair(embedded, kind)
    A, b = _values(kind, (4,)), rhs(391_854_706, (4, 5, *columns))
    before = embedded.stats()["solves"]
    close(vmap(ours)(A, b), vmap(truth)(A, b))
    close(vmap(ours, (0, None))(A, b[0]), vmap(truth, (0, None))(A, b[0]))
    assert embedded.stats()["solves"] == before + 2  # each call is one request for its four matrices


@each_kind
@pytest.mark.parametrize("dims", [(1, 1), (-1, -1), (None, 1)])
def test_vmap_over_other_dimensions(embedded: Client, kind: str, dims: tuple[int | None, int]) -> None:
    ours, truth = _pair(embedded, kind)
    A = _values(kind) if dims[0] is None else _values(kind, (4,)).movedim(0, dims[0])
    b = rhs(862_519_043, (4, 5)).movedim(0, dims[1])
    close(vmap(ours, dims, 1)(A, b), vmap(truth, dims, 1)(A, b))


@each_kind
def test_nested_vmap(embedded: Client, kind: str) -> None:
    ours, truth = _pair(embedded, kind)
    A, b = _values(kind, (3,)), rhs(209_467_815, (3, 4, 5))
    cases = (((None, 0), (0, 0), b), ((0, None), (None, 0), b[0]), ((None, 0), (0, None), b[0]))
    for inner, outer, given in cases:
        mine, theirs = (vmap(vmap(f, inner), outer)(A, given) for f in (ours, truth))
        close(mine, theirs)


@each_kind
def test_vmap_of_a_batch(embedded: Client, kind: str) -> None:
    """A batch that the solve sees, inside a dimension that it does not see."""
    ours, truth = _pair(embedded, kind)
    A, b = _values(kind, (4, 2)), rhs(774_018_392, (4, 2, 5, 3))
    close(vmap(ours)(A, b), vmap(truth)(A, b))
    close(vmap(ours, (None, 0))(A[0], b), vmap(truth, (None, 0))(A[0], b))


@each_kind
@pytest.mark.parametrize("trans", ["N", "T", "H"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
def test_vmap_of_grad(embedded: Client, kind: str, trans: Any, dtype: torch.dtype) -> None:
    A, b = _values(kind, (4,), dtype), rhs(627_153_804, (4, 5), dtype)
    results = [
        vmap(grad(lambda A, b, f=f: (f(A, b).abs() ** 3).sum(), (0, 1)))(A, b) for f in _pair(embedded, kind, trans)
    ]
    for mine, theirs in zip(*results, strict=True):
        close(mine, theirs, rtol=1e-9, atol=1e-11)


@each_kind
@pytest.mark.parametrize("argument", [0, 1])
def test_jacobians(embedded: Client, kind: str, argument: int) -> None:
    ours, truth = _pair(embedded, kind)
    A, b = _values(kind), rhs(940_286_537, (5,))
    expected = jacrev(truth, argument)(A, b)
    close(jacrev(ours, argument)(A, b), expected)
    close(jacfwd(ours, argument)(A, b), expected)


@each_kind
def test_second_order_jacobians(embedded: Client, kind: str) -> None:
    A, b = _values(kind), rhs(183_746_209, (5,))
    for transform in (hessian, lambda f: jacfwd(jacfwd(f)), lambda f: jacrev(jacrev(f)), lambda f: jacrev(jacfwd(f))):
        mine, theirs = (transform(lambda A, f=f: (f(A, b) ** 3).sum())(A) for f in _pair(embedded, kind))
        close(mine, theirs, rtol=1e-9, atol=1e-11)


@each_kind
def test_jvp_vjp_and_both(embedded: Client, kind: str) -> None:
    A, b = _values(kind), rhs(556_210_483, (5, 2))
    da, db = rhs(28_540_913, tuple(A.shape)), rhs(60_912_447, (5, 2))
    results = []
    for f in _pair(embedded, kind):
        x, dx = jvp(f, (A, b), (da, db))
        _, pull = vjp(f, A, b)
        of_tangent = grad(lambda A, f=f: (jvp(f, (A, b), (da, db))[1] ** 2).sum())(A)
        of_cotangent = jvp(lambda A, f=f: vjp(f, A, b)[1](db), (A,), (da,))[1]
        results.append((x, dx, *pull(db), of_tangent, *of_cotangent))
    for mine, theirs in zip(*results, strict=True):
        close(mine, theirs)


@each_kind
def test_vmap_of_hessian_vector_products(embedded: Client, kind: str) -> None:
    A, b, v = _values(kind, (3,)), rhs(870_361_942, (3, 5)), _values(kind, (3,))
    mine, theirs = (
        vmap(lambda A, b, v, f=f: jvp(grad(lambda A: (f(A, b) ** 3).sum()), (A,), (v,))[1])(A, b, v)
        for f in _pair(embedded, kind)
    )
    close(mine, theirs, rtol=1e-9, atol=1e-11)


@each_kind
def test_transforms_hash_nothing_in_the_backward(embedded: Client, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digests are the forward's, also where the transform folds the batch."""
    from backsolve import fingerprint

    hashed: list[int] = []
    original = fingerprint.values_digest

    def counting(pattern: Any, values: Any, *taken: Any) -> bytes:
        hashed.append(values.size)
        return original(pattern, values, *taken)

    monkeypatch.setattr(fingerprint, "values_digest", counting)
    ours, _ = _pair(embedded, kind)
    A, b = _values(kind, (3,)), rhs(338_940_721, (3, 5))
    vmap(ours)(A, b)  # the engine, in this process too, has hashed what it was sent
    hashed.clear()
    vmap(grad(lambda A, b: (ours(A, b) ** 2).sum()))(A, b)
    assert len(hashed) == 1
    vmap(hessian(lambda A, b: (ours(A, b) ** 2).sum()))(A, b)
    assert len(hashed) == 2
