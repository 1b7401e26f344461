"""`torch.compile(fullgraph=True)` of least squares, first order."""

import functools
from typing import Any

import pytest
import torch

from backsolve import Client
from backsolve.errors import InvalidOptionError, NotConvergedError, NotSupportedError
from backsolve.torch import _graph, lstsq, splstsq
from support.rectangular import SHAPES, filled, minimiser, nearly, rectangular, rectangular_pattern
from support.tensors import close, rhs

# The compiler itself uses deprecated modules and warns about itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


each_shape = pytest.mark.parametrize("shape", SHAPES)
each_damp = pytest.mark.parametrize("damp", [0.0, 0.6], ids=["plain", "damped"])


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


def _compiled_of(f: Any) -> Any:
    return torch.compile(f, fullgraph=True, backend="aot_eager")


@each_shape
@each_damp
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
def test_dense(embedded: Client, shape: str, damp: float, dtype: torch.dtype) -> None:
    A = rectangular("dense", shape, (2,), dtype).requires_grad_()
    b = rhs(50_918_233, A.shape[:-1], dtype).requires_grad_()
    f = _compiled_of(lambda A, b: (lstsq(A * 2, b, damp=damp, client=embedded).abs() ** 3).sum())
    value, truth = f(A, b), (minimiser(A * 2, b, damp).abs() ** 3).sum()
    close(value, truth)
    for mine, theirs in zip(torch.autograd.grad(value, (A, b)), torch.autograd.grad(truth, (A, b)), strict=True):
        close(mine, theirs)
    (alone,) = torch.autograd.grad(f(A.detach(), b), b)
    close(alone, torch.autograd.grad((minimiser(A * 2, b, damp).abs() ** 3).sum(), b)[0])


def test_splstsq_recompiles_for_another_pattern_and_client(embedded: Client) -> None:
    f = _compiled_of(lambda v, p, b, c: (splstsq(v, p, b, rtol=1e-14, client=c) ** 3).sum())
    with Client("embedded") as other:
        for shape, client in (("tall", embedded), ("wide", embedded), ("tall", other)):
            pattern = rectangular_pattern(shape)
            values, b = rectangular("sparse", shape).requires_grad_(), rhs(9_120_447, (pattern.m, 2)).requires_grad_()
            value, truth = f(values, pattern, b, client), (minimiser(filled(values, pattern), b, 0.0) ** 3).sum()
            nearly(value, truth)
            ours = torch.autograd.grad(value, (values, b))
            for mine, theirs in zip(ours, torch.autograd.grad(truth, (values, b)), strict=True):
                nearly(mine, theirs)


def test_mapped(embedded: Client) -> None:
    A, b = rectangular("dense", "tall", (3,)), rhs(71_203_348, (3, 6))
    close(_compiled_of(torch.vmap(functools.partial(lstsq, client=embedded)))(A, b), minimiser(A, b, 0.0))
    columns = _compiled_of(torch.vmap(lambda b: lstsq(A[0], b, client=embedded)))
    close(columns(b), minimiser(A[0], b.mT, 0.0).mT)


def test_options_reach_the_solver(embedded: Client) -> None:
    A, b = rectangular("dense", "tall"), rhs(40_018_825, (6,))
    f = _compiled_of(lambda A, b, damp: lstsq(A, b, damp=damp, client=embedded))
    for damp in (0.1, 0.7, 2.5):
        close(f(A, b, damp), minimiser(A, b, damp))
    cut = lstsq(A, b, rcond=0.6, client=embedded)
    assert float((cut - minimiser(A, b, 0.0)).norm()) > 0.01
    close(_compiled_of(lambda A, b: lstsq(A, b, rcond=0.6, client=embedded))(A, b), cut)
    with pytest.raises(NotConvergedError):
        _compiled_of(lambda A, b: lstsq(A, b, rtol=1e-40, client=embedded))(A, b)
    with pytest.raises(InvalidOptionError, match="transpose A itself"):
        _compiled_of(lambda A, b: lstsq(A, b, trans="T", client=embedded))(A, b)


def test_backward_does_not_hash(embedded: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from backsolve import fingerprint

    A, b = rectangular("dense", "tall").requires_grad_(), rhs(33_917_204, (6,))
    f = _compiled_of(lambda A, b: lstsq(A, b, client=embedded).sum())
    f(A, b).backward()
    hashed: list[int] = []
    original = fingerprint.values_digest

    def counting(pattern: Any, values: Any, *taken: Any) -> bytes:
        hashed.append(values.size)
        return original(pattern, values, *taken)

    monkeypatch.setattr(fingerprint, "values_digest", counting)
    f(A, b).backward()
    assert hashed == [24]


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_operations_are_well_formed(embedded: Client, kind: str) -> None:
    pattern = rectangular_pattern("tall")
    number = 0 if kind == "dense" else _graph.number_of(pattern)
    spec = ("lstsq|||||", "N", *[None] * 9, None, True, "raise")
    place = (number, "", [], _graph.number_of(embedded), *spec)
    values, b = rectangular(kind, "tall"), rhs(62_117_093, (6, 2))
    torch.library.opcheck(torch.ops.backsolve.minimise, (values.requires_grad_(), b.requires_grad_(), *place))
    x, digest = torch.ops.backsolve.minimise(values.detach(), b.detach(), *place)
    for of_values in (True, False):
        given = (values.detach(), b.detach(), x, torch.ones_like(x), digest, of_values, *place)
        torch.library.opcheck(torch.ops.backsolve.minimise_gradient, given)


def test_what_a_graph_cannot_hold_is_refused(embedded: Client) -> None:
    A, b = rectangular("dense", "tall"), rhs(18_305_526, (6,))
    f = functools.partial(lstsq, client=embedded)
    for inside in (lambda b: torch.func.jvp(lambda b: f(A, b), (b,), (b,))[1], torch.func.jacfwd(lambda b: f(A, b))):
        with pytest.raises((torch._dynamo.exc.TorchDynamoException, NotSupportedError)):
            _compiled_of(inside)(b)
    compiled = _compiled_of(f)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotSupportedError, match="forward-mode"):
        compiled(A, torch.autograd.forward_ad.make_dual(b, b))
    # PyTorch's tracer reports our refusal in an error of its own, which shows the line.
    with pytest.raises(Exception, match="observe do not work"):
        _compiled_of(lambda A, b: f(A, b, observe=print))(A, b)
    twice = torch.compile(f, fullgraph=True, backend="eager")
    (first,) = torch.autograd.grad(twice(A.requires_grad_(), b).pow(3).sum(), A, create_graph=True)
    with pytest.raises(NotSupportedError, match="differentiated once"):
        first.sum().backward()
