"""`torch.compile(fullgraph=True)` of solves."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from backsolve import Client
from backsolve.errors import NotSupportedError, SingularMatrixError
from backsolve.torch import LinearSolve, _graph, lstsq, solve, spsolve
from support.tensors import close, dense, reference, rhs, scattered, sparse_pattern, values_on

# The compiler itself uses deprecated modules and warns about itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


def _compiled_of(f: Any) -> Any:
    return torch.compile(f, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("trans", ["N", "T", "H"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
def test_dense(embedded: Client, trans: Any, dtype: torch.dtype) -> None:
    A, b = dense(381_206_947, (2,), 4, dtype).requires_grad_(), rhs(970_154_238, (2, 4), dtype).requires_grad_()
    f = _compiled_of(lambda A, b: (solve(A * 2, b, trans=trans, client=embedded).abs() ** 3).sum())
    value, truth = f(A, b), (reference(A * 2, b, trans).abs() ** 3).sum()
    close(value, truth)
    for mine, theirs in zip(torch.autograd.grad(value, (A, b)), torch.autograd.grad(truth, (A, b)), strict=True):
        close(mine, theirs)


def test_spsolve_recompiles_for_another_pattern_and_client(embedded: Client) -> None:
    """Objects outside the graph must not stay those of the first call."""
    f = _compiled_of(lambda v, p, b, c: (spsolve(v, p, b, rtol=None, client=c) ** 3).sum())
    with Client("embedded") as other:
        for seed, client in ((27_481_903, embedded), (66_190_245, embedded), (27_481_903, other)):
            pattern = sparse_pattern(seed, 5)
            values, b = values_on(pattern, 519_830_472).requires_grad_(), rhs(703_918_264, (5, 2)).requires_grad_()
            value, truth = f(values, pattern, b, client), (reference(scattered(values, pattern), b) ** 3).sum()
            close(value, truth)
            ours = torch.autograd.grad(value, (values, b))
            for mine, theirs in zip(ours, torch.autograd.grad(truth, (values, b)), strict=True):
                close(mine, theirs)


def test_options_reach_the_solver(embedded: Client) -> None:
    """A tolerance that changes from call to call is the one used, and a failure keeps its type."""
    A, b = dense(448_019_375), rhs(180_762_395, (6,))
    spd = A @ A.mT
    spd = (spd + spd.mT) / 2
    f = _compiled_of(lambda A, b, rtol: solve(A, b, method="cg", rtol=rtol, client=embedded))
    errors = [float((f(spd, b, rtol) - reference(spd, b)).norm()) for rtol in (1e-1, 1e-4, 1e-13)]
    assert errors[0] > 1e3 * errors[2]
    with pytest.raises(SingularMatrixError):
        _compiled_of(lambda A, b: solve(A, b, client=embedded))(torch.zeros(3, 3).double(), rhs(1_029_384, (3,)))


def test_layer_and_mapped_solve(embedded: Client) -> None:
    A, b = dense(915_728_406, (3,), 4), rhs(602_817_395, (3, 4))
    close(_compiled_of(LinearSolve(client=embedded))(A, b), reference(A, b))
    mapped = _compiled_of(torch.vmap(lambda A, b: solve(A, b, client=embedded)))
    close(mapped(A, b), reference(A, b))
    columns = _compiled_of(torch.vmap(lambda b: solve(A[0], b, client=embedded)))
    close(columns(b), torch.linalg.solve(A[0], b.mT).mT)


def test_backward_does_not_hash(embedded: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from backsolve import fingerprint

    A, b = dense(238_405_719).requires_grad_(), rhs(847_120_365, (6,))
    f = _compiled_of(lambda A, b: solve(A, b, client=embedded).sum())
    f(A, b).backward()
    hashed: list[int] = []
    original = fingerprint.values_digest

    def counting(pattern: Any, values: Any, *taken: Any) -> bytes:
        hashed.append(values.size)
        return original(pattern, values, *taken)

    monkeypatch.setattr(fingerprint, "values_digest", counting)
    f(A, b).backward()
    assert hashed == [36]


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_operations_are_well_formed(embedded: Client, kind: str) -> None:
    """PyTorch's own check of registered operations: schema, fake tensors, autograd, tracing."""
    pattern = sparse_pattern(704_219_583, 4)
    values = dense(330_582_147, (), 4) if kind == "dense" else values_on(pattern, 861_402_973)
    number = 0 if kind == "dense" else _graph.number_of(pattern)
    spec = ("auto|||||", "N", *[None] * 9, None, True, "raise")
    arguments = (values.requires_grad_(), rhs(92_648_013, (4, 2)).requires_grad_(), None, None, number, "", [])
    torch.library.opcheck(torch.ops.backsolve.solve, (*arguments, _graph.number_of(embedded), False, False, *spec))
    if kind == "sparse":
        lam: Tensor = rhs(71_930_258, (4, 2))
        given = (lam, lam, values.detach(), number, "", [], "N", False)
        torch.library.opcheck(torch.ops.backsolve.values_gradient, given)


@pytest.mark.parametrize("transform", ["jvp", "jacfwd", "grad"])
def test_a_derivative_by_func_inside_a_graph_is_right_or_refused(transform: str, embedded: Client) -> None:
    """PyTorch drops the tangent of a registered operation and returns zeros."""
    a, b = dense(529_183_006), rhs(771_204_519, (6,))
    inverse = torch.linalg.inv(a)

    def inside(b: Tensor) -> Tensor:
        f = functools.partial(solve, a, client=embedded)
        if transform == "jvp":
            return torch.func.jvp(f, (b,), (b,))[1]
        if transform == "jacfwd":
            return torch.func.jacfwd(f)(b)
        return torch.func.grad(lambda v: f(v).sum())(b)

    expected = {"jvp": inverse @ b, "jacfwd": inverse, "grad": inverse.mT.sum(-1)}[transform]
    close(torch.compile(inside, backend="aot_eager")(b), expected)
    torch._dynamo.reset()
    with pytest.raises((torch._dynamo.exc.TorchDynamoException, NotSupportedError)):
        torch.compile(inside, backend="aot_eager", fullgraph=True)(b)


@pytest.mark.parametrize("call", [solve, lstsq])
def test_where_a_graph_is_broken_nothing_of_the_client_is_compiled(call: Any, embedded: Client) -> None:
    """It was, and the engine with it: hundreds of functions, in seconds."""
    a, b = dense(529_183_009), rhs(771_204_522, (6,))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    inside = torch.compile(
        lambda b: torch.func.jvp(functools.partial(call, a, client=embedded), (b,), (b,))[1], backend="aot_eager"
    )
    close(inside(b), torch.linalg.solve(a, b))
    assert 0 < torch._dynamo.utils.counters["frames"]["total"] < 100
    for function in (Client.solve_matrix, Client.lstsq_matrix, Client.normal_matrix):
        assert not torch._dynamo.eval_frame._debug_get_cache_entry_list(function)


@pytest.mark.parametrize("primed", [False, True])
def test_a_dual_number_in_a_graph_is_refused(primed: bool, embedded: Client) -> None:
    a, b = dense(529_183_007), rhs(771_204_520, (6,))
    compiled = torch.compile(functools.partial(solve, client=embedded), backend="aot_eager", fullgraph=True)
    if primed:
        compiled(a, b)
    with forward_ad.dual_level(), pytest.raises(NotSupportedError, match="forward-mode"):
        compiled(forward_ad.make_dual(a, a), b)


def test_legacy_vmap_is_refused_with_the_way_out(embedded: Client) -> None:
    a, b = dense(529_183_008), rhs(771_204_521, (6,)).requires_grad_()
    x = solve(a, b, client=embedded)
    with pytest.raises(NotSupportedError, match=r"torch\.func"):
        torch.autograd.grad(x, b, torch.eye(6, dtype=x.dtype), is_grads_batched=True)
